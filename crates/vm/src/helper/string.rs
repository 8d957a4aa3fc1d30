//! Helpers on strings.

use std::cmp::Ordering;

use bpfarray_core::helper_id;

use super::Builtin;
use super::format::{format, read_args};
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] =
    &[(helper_id::STRNCMP, strncmp), (helper_id::SNPRINTF, snprintf)];

/// Longest format that is looked at.
const MAX_FORMAT: usize = 4096;

fn strncmp(
    machine: &mut Machine<'_>,
    [left, left_size, right, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let max = left_size as u32 as usize;
    let left = machine.read_str(left, max)?;
    let right = machine.read_str(right, max)?;
    Ok(match left.cmp(&right) {
        Ordering::Less => -1_i64 as u64,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    })
}

/// Writes text and its NUL, cut to `size` bytes. Gives how many bytes there would have been.
fn snprintf(
    machine: &mut Machine<'_>,
    [to, size, fmt, data, data_len]: [u64; 5],
) -> Result<u64, HelperError> {
    let fmt = machine.read_str(fmt, MAX_FORMAT)?;
    let args = match read_args(machine, data, data_len as u32)? {
        Ok(args) => args,
        Err(errno) => return Ok(errno.to_return()),
    };
    let text = match format(machine, &fmt, &args)? {
        Ok(text) => text,
        Err(errno) => return Ok(errno.to_return()),
    };
    if let Some(room) = (size as u32 as usize).checked_sub(1) {
        let mut cut = text[..text.len().min(room)].to_vec();
        cut.push(0);
        machine.write(to, &cut)?;
    }
    Ok(text.len() as u64 + 1)
}
