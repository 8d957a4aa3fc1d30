//! Helpers of programs whose text somebody reads.

use bpfarray_core::Errno;
use bpfarray_core::helper_id;

use super::Builtin;
use super::format::{format_at, read_args};
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] =
    &[(helper_id::SEQ_PRINTF, seq_printf), (helper_id::SEQ_WRITE, seq_write)];

fn seq_printf(
    machine: &mut Machine<'_>,
    [seq, fmt, fmt_size, data, data_len]: [u64; 5],
) -> Result<u64, HelperError> {
    let args = match read_args(machine, data, data_len as u32)? {
        Ok(args) => args,
        Err(errno) => return Ok(errno.to_return()),
    };
    match format_at(machine, fmt, fmt_size, &args)? {
        Ok(text) => write(machine, seq, &text),
        Err(errno) => Ok(errno.to_return()),
    }
}

fn seq_write(
    machine: &mut Machine<'_>,
    [seq, data, len, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let text = machine.read_vec(data, len as u32 as u64)?;
    write(machine, seq, &text)
}

fn write(machine: &mut Machine<'_>, addr: u64, text: &[u8]) -> Result<u64, HelperError> {
    let (seq, known) = machine.current_context().seq().ok_or(HelperError::WrongContext)?;
    if addr != known {
        return Err(HelperError::NotTheOutput(addr));
    }
    Ok(seq.write(text).map_or_else(Errno::to_return, |()| 0))
}
