//! Helpers on the packet of a socket buffer.

use bpfarray_core::{Errno, helper_id};

use super::Builtin;
use crate::context::HeaderStart;
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::SKB_LOAD_BYTES, load_bytes),
    (helper_id::SKB_LOAD_BYTES_RELATIVE, load_bytes_relative),
    (helper_id::SKB_STORE_BYTES, store_bytes),
    (helper_id::SKB_PULL_DATA, pull_data),
    (helper_id::SET_HASH, set_hash),
    (helper_id::SET_HASH_INVALID, |machine, [ctx, ..]| set_hash(machine, [ctx, 0, 0, 0, 0])),
];

const RECOMPUTE_CSUM: u64 = 1;
const INVALIDATE_HASH: u64 = 2;

/// Offsets are 32 bits wide and not negative.
fn checked(offset: u32) -> Option<usize> {
    i32::try_from(offset).ok().map(|offset| offset as usize)
}

/// Bytes of the packet, `None` where it has not so many.
pub(super) fn load(
    machine: &mut Machine<'_>,
    ctx: u64,
    offset: u32,
    len: usize,
) -> Result<Option<Vec<u8>>, HelperError> {
    let (skb, buffer) = machine.context(ctx)?.skb().ok_or(HelperError::WrongContext)?;
    Ok(checked(offset).and_then(|offset| skb.load_bytes(buffer, offset, len)))
}

/// Overwrites bytes of the packet; `None` where it has not so many.
pub(super) fn store(
    machine: &mut Machine<'_>,
    ctx: u64,
    offset: u32,
    bytes: &[u8],
) -> Result<Option<()>, HelperError> {
    let (skb, buffer) = machine.context(ctx)?.skb().ok_or(HelperError::WrongContext)?;
    Ok(checked(offset).and_then(|offset| skb.store_bytes(buffer, offset, bytes)))
}

/// Copies to the program what was found. Where nothing was, its memory becomes zero.
fn deliver(
    machine: &mut Machine<'_>,
    to: u64,
    len: u32,
    found: Option<Vec<u8>>,
) -> Result<u64, HelperError> {
    match found {
        Some(bytes) => machine.write(to, &bytes).map(|()| 0),
        None => {
            machine.clear(to, len.into())?;
            Ok(Errno::EFAULT.to_return())
        }
    }
}

fn load_bytes(
    machine: &mut Machine<'_>,
    [ctx, offset, to, len, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let found = load(machine, ctx, offset as u32, len as u32 as usize)?;
    deliver(machine, to, len as u32, found)
}

fn load_bytes_relative(
    machine: &mut Machine<'_>,
    [ctx, offset, to, len, start]: [u64; 5],
) -> Result<u64, HelperError> {
    let (skb, buffer) = machine.context(ctx)?.skb().ok_or(HelperError::WrongContext)?;
    let (offset, len) = (offset as u32, len as u32);
    let start = match start as u32 {
        0 => Some(HeaderStart::Mac),
        1 => Some(HeaderStart::Network),
        _ => None,
    };
    let found = start
        .filter(|_| offset <= 0xffff)
        .and_then(|start| skb.load_relative(buffer, start, offset as usize, len as usize));
    deliver(machine, to, len, found)
}

fn store_bytes(
    machine: &mut Machine<'_>,
    [ctx, offset, from, len, flags]: [u64; 5],
) -> Result<u64, HelperError> {
    let bytes = machine.read_vec(from, len as u32 as u64)?;
    if flags & !(RECOMPUTE_CSUM | INVALIDATE_HASH) != 0 {
        return Ok(Errno::EINVAL.to_return());
    }
    let stored = store(machine, ctx, offset as u32, &bytes)?;
    if stored.is_some() && flags & INVALIDATE_HASH != 0 {
        set_hash(machine, [ctx, 0, 0, 0, 0])?;
    }
    Ok(stored.map_or(Errno::EFAULT.to_return(), |()| 0))
}

fn set_hash(machine: &mut Machine<'_>, [ctx, hash, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let (skb, buffer) = machine.context(ctx)?.classifier().ok_or(HelperError::WrongContext)?;
    skb.set_hash(buffer, hash as u32);
    Ok(0)
}

/// All of a packet is always there; only what is not cannot be pulled in.
fn pull_data(machine: &mut Machine<'_>, [ctx, len, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let (skb, _) = machine.context(ctx)?.skb().ok_or(HelperError::WrongContext)?;
    let is_there = len as u32 as usize <= skb.len();
    Ok(if is_there { 0 } else { Errno::ENOMEM.to_return() })
}
