//! Helpers on special fields of values: locks, timers, objects of the host.

use bpfarray::btf::FieldMask;
use bpfarray::{TimerError, TimerStart};
use bpfarray_core::helper_id;

use super::Builtin;
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::SPIN_LOCK, |machine, [lock, ..]| machine.spin_lock(lock).map(|()| 0)),
    (helper_id::SPIN_UNLOCK, |machine, [lock, ..]| machine.spin_unlock(lock).map(|()| 0)),
    (helper_id::TIMER_INIT, timer_init),
    (helper_id::TIMER_SET_CALLBACK, timer_set_callback),
    (helper_id::TIMER_START, timer_start),
    (helper_id::TIMER_CANCEL, timer_cancel),
    (helper_id::KPTR_XCHG, |machine, [slot, new, ..]| machine.kptr_xchg(slot, new)),
];

const TIMER: FieldMask = FieldMask::TIMER;
const TIMER_NAME: &str = "bpf_timer";

fn returned(result: Result<u64, TimerError>) -> u64 {
    result.unwrap_or_else(|error| error.errno().to_return())
}

fn timer_init(
    machine: &mut Machine<'_>,
    [timer, map_addr, clock, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let (map, _) = machine.field(timer, TIMER, TIMER_NAME)?;
    if map.addr() != map_addr {
        return Err(HelperError::OtherMap(map_addr));
    }
    Ok(returned(map.timer_init(timer, clock).map(|()| 0)))
}

fn timer_set_callback(
    machine: &mut Machine<'_>,
    [timer, function, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let (map, _) = machine.field(timer, TIMER, TIMER_NAME)?;
    let callback = machine.timer_callback(function, map)?;
    Ok(returned(map.timer_set_callback(timer, callback).map(|()| 0)))
}

fn timer_start(
    machine: &mut Machine<'_>,
    [timer, nsecs, flags, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let (map, _) = machine.field(timer, TIMER, TIMER_NAME)?;
    let started = map.timer_start(machine.lane(), timer, TimerStart { nsecs, flags });
    Ok(returned(started.map(|()| 0)))
}

fn timer_cancel(machine: &mut Machine<'_>, [timer, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let (map, _) = machine.field(timer, TIMER, TIMER_NAME)?;
    Ok(returned(map.timer_cancel(timer).map(u64::from)))
}
