//! Helpers about the system: time, processor, task; and those that need nothing at all.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use bpfarray_core::{Errno, helper_id};
use rustix::process::{getgid, getuid};
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};

use super::Builtin;
use crate::fault::HelperError;
use crate::interp::{MAX_LOOPS, Machine};

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::KTIME_GET_NS, |_, _| Ok(clock_ns(ClockId::Monotonic))),
    (helper_id::KTIME_GET_BOOT_NS, |_, _| Ok(clock_ns(ClockId::Boottime))),
    (helper_id::KTIME_GET_COARSE_NS, |_, _| Ok(clock_ns(ClockId::MonotonicCoarse))),
    (helper_id::GET_PRANDOM_U32, |_, _| Ok(prandom_u32().into())),
    (helper_id::GET_SMP_PROCESSOR_ID, |machine, _| Ok(machine.lane().cpu().into())),
    (helper_id::GET_CURRENT_PID_TGID, |_, _| Ok(pid_tgid())),
    (helper_id::GET_CURRENT_UID_GID, |_, _| Ok(uid_gid())),
    (helper_id::GET_CURRENT_COMM, get_current_comm),
    (helper_id::LOOP, bpf_loop),
];

/// Nanoseconds on a clock, of which none was before 1970.
fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A number of this thread's generator, as good as programs can expect: for sampling, not for secrets.
fn prandom_u32() -> u32 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
    }
    // splitmix64
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as u32
}

/// Process id above, thread id below.
fn pid_tgid() -> u64 {
    let thread = gettid().as_raw_nonzero().get();
    u64::from(std::process::id()) << 32 | u64::from(thread.cast_unsigned())
}

/// Group id above, user id below.
fn uid_gid() -> u64 {
    u64::from(getgid().as_raw()) << 32 | u64::from(getuid().as_raw())
}

/// Fills `size` bytes with the thread's name, a NUL at the end, and zeroes.
fn get_current_comm(
    machine: &mut Machine<'_>,
    [to, size, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let Some(room) = (size as u32).checked_sub(1) else {
        return Ok(Errno::EINVAL.to_return());
    };
    machine.clear(to, u64::from(room) + 1)?;
    let name = rustix::thread::name().unwrap_or_default();
    let name = name.as_bytes();
    machine.write(to, &name[..name.len().min(room as usize)])?;
    Ok(0)
}

/// Calls a function with 0, 1, 2, ... and a context of the program's, until one call does not return 0. Gives the
/// number of calls.
fn bpf_loop(
    machine: &mut Machine<'_>,
    [count, callback, context, flags, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let count = count as u32;
    if flags != 0 {
        return Ok(Errno::EINVAL.to_return());
    }
    if count > MAX_LOOPS {
        return Ok(Errno::E2BIG.to_return());
    }
    for index in 0..u64::from(count) {
        if machine.call(callback, [index, context, 0, 0, 0])? != 0 {
            return Ok(index + 1);
        }
    }
    Ok(count.into())
}
