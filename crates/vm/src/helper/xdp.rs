//! Helpers on the packet of an XDP program.

use bpfarray_core::{Errno, helper_id};

use super::Builtin;
use crate::context::{Buffer, Xdp};
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::XDP_ADJUST_HEAD, |machine, args| adjust(machine, args, Xdp::adjust_head)),
    (helper_id::XDP_ADJUST_META, |machine, args| adjust(machine, args, Xdp::adjust_meta)),
    (helper_id::XDP_ADJUST_TAIL, |machine, args| adjust(machine, args, Xdp::adjust_tail)),
    (helper_id::XDP_GET_BUFF_LEN, get_buff_len),
    (helper_id::XDP_LOAD_BYTES, load_bytes),
    (helper_id::XDP_STORE_BYTES, store_bytes),
];

/// Largest offset and length of a copy.
const MAX_COPY: u32 = 0xffff;

fn packet<'m>(
    machine: &'m mut Machine<'_>,
    ctx: u64,
) -> Result<(&'m mut Xdp, &'m mut Buffer), HelperError> {
    machine.context(ctx)?.xdp().ok_or(HelperError::WrongContext)
}

fn returned(result: Result<(), Errno>) -> u64 {
    result.map_or_else(Errno::to_return, |()| 0)
}

fn adjust(
    machine: &mut Machine<'_>,
    [ctx, delta, ..]: [u64; 5],
    by: fn(&mut Xdp, &mut Buffer, i32) -> Result<(), Errno>,
) -> Result<u64, HelperError> {
    let (xdp, buffer) = packet(machine, ctx)?;
    Ok(returned(by(xdp, buffer, delta as i32)))
}

fn get_buff_len(machine: &mut Machine<'_>, [ctx, ..]: [u64; 5]) -> Result<u64, HelperError> {
    Ok(packet(machine, ctx)?.0.len() as u64)
}

fn load_bytes(
    machine: &mut Machine<'_>,
    [ctx, offset, to, len, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let (xdp, buffer) = packet(machine, ctx)?;
    let (offset, len) = (offset as u32, len as u32);
    if offset > MAX_COPY || len > MAX_COPY {
        return Ok(Errno::EFAULT.to_return());
    }
    match xdp.load_bytes(buffer, offset as usize, len as usize) {
        Ok(bytes) => machine.write(to, &bytes).map(|()| 0),
        Err(errno) => Ok(errno.to_return()),
    }
}

fn store_bytes(
    machine: &mut Machine<'_>,
    [ctx, offset, from, len, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let (offset, len) = (offset as u32, len as u32);
    if offset > MAX_COPY || len > MAX_COPY {
        return Ok(Errno::EFAULT.to_return());
    }
    let bytes = machine.read_vec(from, len.into())?;
    let (xdp, buffer) = packet(machine, ctx)?;
    Ok(returned(xdp.store_bytes(buffer, offset as usize, &bytes)))
}
