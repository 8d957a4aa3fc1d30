//! Helpers on the events of a PERF_EVENT_ARRAY.

use bpfarray::perf::{EventCounts, F_CTXLEN_MASK, F_INDEX_MASK};
use bpfarray_core::{Errno, helper_id};

use super::Builtin;
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::PERF_EVENT_READ, read),
    (helper_id::PERF_EVENT_OUTPUT, output),
    (helper_id::PERF_EVENT_READ_VALUE, read_value),
];

/// Writes a record. Programs on packets may ask for the beginning of the packet behind their data.
///
/// # Kernel
/// `bpf_perf_event_output`, `bpf_skb_event_output`, `bpf_xdp_event_output`
fn output(
    machine: &mut Machine<'_>,
    [ctx, map, flags, data, size]: [u64; 5],
) -> Result<u64, HelperError> {
    let map = machine.map(map)?;
    let data = machine.read_vec(data, size)?;
    let len = match packet_len(machine, ctx)? {
        Some(_) if flags & !(F_INDEX_MASK | F_CTXLEN_MASK) != 0 => {
            return Ok(Errno::EINVAL.to_return());
        }
        Some(len) => {
            let asked = (flags & F_CTXLEN_MASK) >> 32;
            match usize::try_from(asked) {
                Ok(asked) if asked <= len => Some(asked),
                _ => return Ok(Errno::EFAULT.to_return()),
            }
        }
        None => None,
    };
    let (flags, packet) = match len {
        Some(len) => (flags & F_INDEX_MASK, packet(machine, ctx, len)?),
        None => (flags, Vec::new()),
    };
    let written = map.perf_event_output(machine.lane(), flags, &[&data, &packet]);
    Ok(written.map_or_else(|error| error.errno().to_return(), |()| 0))
}

/// Bytes of the packet, for the types of programs whose records may have some.
fn packet_len(machine: &mut Machine<'_>, ctx: u64) -> Result<Option<usize>, HelperError> {
    let context = machine.context(ctx)?;
    if let Some((xdp, _)) = context.xdp() {
        return Ok(Some(xdp.len()));
    }
    Ok(context.skb().map(|(skb, _)| skb.len()))
}

/// The first `len` bytes of the packet, of which it has so many.
fn packet(machine: &mut Machine<'_>, ctx: u64, len: usize) -> Result<Vec<u8>, HelperError> {
    machine.charge(len)?;
    let context = machine.context(ctx)?;
    if let Some((xdp, buffer)) = context.xdp() {
        return Ok(xdp.load_bytes(buffer, 0, len).unwrap_or_default());
    }
    let bytes = context.skb().and_then(|(skb, buffer)| skb.load_bytes(buffer, 0, len));
    Ok(bytes.unwrap_or_default())
}

fn read(machine: &mut Machine<'_>, [map, flags, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let counts = machine.map(map)?.perf_event_read(machine.lane(), flags);
    Ok(counts.map_or_else(|error| error.errno().to_return(), |counts| counts.counter))
}

/// Fills the buffer; with zeroes where there is nothing to read.
fn read_value(
    machine: &mut Machine<'_>,
    [map, flags, to, size, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let map = machine.map(map)?;
    let size = size as u32;
    let counts = if size as usize == EventCounts::SIZE {
        map.perf_event_read(machine.lane(), flags).map_err(|error| error.errno())
    } else {
        Err(Errno::EINVAL)
    };
    match counts {
        Ok(counts) => machine.write(to, &counts.to_bytes()).map(|()| 0),
        Err(errno) => {
            machine.clear(to, size.into())?;
            Ok(errno.to_return())
        }
    }
}
