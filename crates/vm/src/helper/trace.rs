//! Helpers that tell somebody something.

use bpfarray_core::helper_id;

use super::Builtin;
use super::format::{format_at, read_args};
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] =
    &[(helper_id::TRACE_PRINTK, trace_printk), (helper_id::TRACE_VPRINTK, trace_vprintk)];

/// Bytes of a line, its NUL included; the rest is cut off.
///
/// # Kernel
/// `MAX_BPRINTF_BUF`
const MAX_LINE: usize = 1024;

fn trace_printk(
    machine: &mut Machine<'_>,
    [fmt, fmt_size, args @ ..]: [u64; 5],
) -> Result<u64, HelperError> {
    print(machine, fmt, fmt_size, &args)
}

fn trace_vprintk(
    machine: &mut Machine<'_>,
    [fmt, fmt_size, data, data_len, _]: [u64; 5],
) -> Result<u64, HelperError> {
    match read_args(machine, data, data_len as u32)? {
        Ok(args) => print(machine, fmt, fmt_size, &args),
        Err(errno) => Ok(errno.to_return()),
    }
}

/// Writes one line. Gives the length of the text, cut off or not, without a NUL.
fn print(
    machine: &mut Machine<'_>,
    fmt: u64,
    fmt_size: u64,
    args: &[u64],
) -> Result<u64, HelperError> {
    let text = match format_at(machine, fmt, fmt_size, args)? {
        Ok(text) => text,
        Err(errno) => return Ok(errno.to_return()),
    };
    let line = String::from_utf8_lossy(&text[..text.len().min(MAX_LINE - 1)]);
    let newline = if line.ends_with('\n') { "" } else { "\n" };
    machine.trace(&format!("{line}{newline}"));
    Ok(text.len() as u64)
}
