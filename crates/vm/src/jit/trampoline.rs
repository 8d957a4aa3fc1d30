//! From generated code into Rust.
//!
//! **Invariant.** Only generated code calls these functions, with the address of the machine that it was
//! entered with, to which nobody else has a reference until it returns. Other addresses that they take as
//! pointers are constants that translation put there, of things that the running program keeps.
//! None of these functions unwinds: what a host's helper panics with is kept until generated code has returned, and any other panic
//! would be a mistake of ours, which ends the process.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::fault::{AccessError, FaultKind};
use crate::helper::Helper;
use crate::interp::{Executable, Machine, Stopped};

/// What generated code gets in two registers.
#[repr(C)]
pub(super) struct Answer {
    value: u64,
    status: u64,
}

/// All is well.
const GO_ON: u64 = 0;
/// The machine is stopped; the function returns at once.
const STOP: u64 = 1;

/// What ends a run by itself. The instruction's own number, such as an opcode, is above the low byte.
#[derive(Copy, Clone, Debug)]
#[repr(u64)]
pub(super) enum Reason {
    OutOfFuel,
    CallDepth,
    PastEnd,
    Illegal,
    UnknownHelper,
}

/// # Safety
/// See the invariant of this file.
unsafe fn borrow<'a, 'e>(machine: *mut Machine<'e>) -> &'a mut Machine<'e> {
    // SAFETY: generated code hands over the machine it was entered with, which is borrowed for as long as that
    // code runs, and it waits while this function runs.
    unsafe { &mut *machine }
}

fn answer(machine: &mut Machine<'_>, insn: u64, result: Result<u64, FaultKind>) -> Answer {
    match result {
        Ok(value) => Answer { value, status: GO_ON },
        Err(kind) => stop(machine, insn, kind),
    }
}

#[cold]
fn stop(machine: &mut Machine<'_>, insn: u64, kind: FaultKind) -> Answer {
    machine.stopped = Some(Stopped::Fault(machine.fault(insn as usize, kind)));
    Answer { value: 0, status: STOP }
}

fn access(result: Result<u64, AccessError>) -> Result<u64, FaultKind> {
    result.map_err(FaultKind::Access)
}

pub(super) extern "C" fn load(
    machine: *mut Machine<'_>,
    addr: u64,
    size: u64,
    insn: u64,
) -> Answer {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    let loaded = match size {
        1 => machine.load::<1>(addr),
        2 => machine.load::<2>(addr),
        4 => machine.load::<4>(addr),
        _ => machine.load::<8>(addr),
    };
    machine.remember(addr, false);
    answer(machine, insn, access(loaded))
}

pub(super) extern "C" fn store(
    machine: *mut Machine<'_>,
    addr: u64,
    size: u64,
    insn: u64,
    number: u64,
) -> Answer {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    let stored = match size {
        1 => machine.store::<1>(addr, number),
        2 => machine.store::<2>(addr, number),
        4 => machine.store::<4>(addr, number),
        _ => machine.store::<8>(addr, number),
    };
    machine.remember(addr, true);
    answer(machine, insn, access(stored.map(|()| 0)))
}

/// Which directions of access an atomic operation has.
pub(super) const READS: u64 = 1 << 8;
pub(super) const WRITES: u64 = 1 << 9;

/// Checks an atomic operation that generated code then does itself.
pub(super) extern "C" fn check(
    machine: *mut Machine<'_>,
    addr: u64,
    size_and_directions: u64,
    insn: u64,
) -> Answer {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    let (size, reads) = (size_and_directions & 0xff, size_and_directions & READS != 0);
    let writes = size_and_directions & WRITES != 0;
    let checked = machine.check_atomic(addr, size as usize, reads, writes);
    machine.remember(addr, writes);
    answer(machine, insn, access(checked.map(|()| 0)))
}

/// Calls a helper. Its arguments come first, for they are in registers then.
#[allow(clippy::too_many_arguments)]
pub(super) extern "C" fn helper(
    machine: *mut Machine<'_>,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    e: u64,
    helper: *const Helper,
    insn: u64,
) -> Answer {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    // SAFETY: a constant of the generated code, the address of a helper in the set that its `Compiled` keeps.
    let helper = unsafe { &*helper };
    let args = [a, b, c, d, e];
    match catch_unwind(AssertUnwindSafe(|| helper.call(machine, args))) {
        Ok(Ok(value)) => Answer { value, status: GO_ON },
        Ok(Err(kind)) => stop(machine, insn, kind),
        Err(panic) => {
            machine.stopped = Some(Stopped::Panic(panic));
            Answer { value: 0, status: STOP }
        }
    }
}

/// Makes the target of a tail call the running program and gives the address of its code, or 0 where there is
/// nothing to go to. `known` is where the map is among those of the program.
pub(super) extern "C" fn tail_call(
    machine: *mut Machine<'_>,
    ctx: u64,
    map: u64,
    index: u64,
    insn: u64,
    known: u64,
) -> Answer {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    let known = machine.running.environment.regions.maps().get(known as usize);
    let target = machine.tail_call_target([ctx, map, index, 0, 0], known);
    let code = target.map(|target| {
        let found = target.and_then(|to| Some((to, to.compiled.as_ref()?.main())));
        found.map_or(0, |(to, code)| {
            machine.run(to);
            machine.stack.clean();
            code as u64
        })
    });
    answer(machine, insn, code)
}

/// Makes a program the running one that has called a function which then made a tail call.
pub(super) extern "C" fn resume<'e>(machine: *mut Machine<'e>, executable: *const Arc<Executable>) {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    // SAFETY: generated code has read this from the machine's own field before the call, so it is a reference that lives
    // as long as the run.
    machine.run(unsafe { &*executable });
}

/// Stops the machine.
pub(super) extern "C" fn fault(machine: *mut Machine<'_>, insn: u64, reason: u64) {
    // SAFETY: see `borrow`.
    let machine = unsafe { borrow(machine) };
    let detail = reason >> 8;
    let kind = match reason & 0xff {
        r if r == Reason::OutOfFuel as u64 => FaultKind::OutOfFuel,
        r if r == Reason::CallDepth as u64 => FaultKind::CallDepth,
        r if r == Reason::Illegal as u64 => FaultKind::IllegalOpcode(detail as u8),
        r if r == Reason::UnknownHelper as u64 => FaultKind::UnknownHelper(detail as u32),
        _ => FaultKind::PastEnd,
    };
    stop(machine, insn, kind);
}

/// Makes the running function's frame all zeroes.
pub(super) extern "C" fn clean(machine: *mut Machine<'_>) {
    // SAFETY: see `borrow`.
    unsafe { borrow(machine) }.stack.clean();
}
