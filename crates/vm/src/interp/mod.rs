//! The interpreter: the reference for what programs mean. Safe code; every access is checked.
//!
//! Registers hold plain 64-bit numbers, and addresses are real ones. An address is worth nothing by
//! itself: each access looks up which memory of the program it falls into, and goes through
//! [`bpfarray::Memory`], which checks its bounds again. So any instructions whatsoever may be run.

mod code;
mod exec;
mod fields;
mod machine;
mod stack;
// The same tests for each engine.
#[cfg(test)]
#[cfg(feature = "jit")]
#[allow(clippy::duplicate_mod)]
#[path = "tests/mod.rs"]
pub(crate) mod jit_tests;
#[cfg(test)]
#[cfg(feature = "jit")]
#[allow(clippy::duplicate_mod)]
#[path = "tests/mod.rs"]
pub(crate) mod quick_tests;
#[cfg(test)]
#[allow(clippy::duplicate_mod)]
#[path = "tests/mod.rs"]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use bpfarray::{Lane, MapRef, SharedLanes};

pub(crate) use code::{Code, Op, OpCode};
pub(crate) use exec::MAX_LOOPS;
pub use machine::Machine;
pub(crate) use machine::{Stopped, place};
pub(crate) use stack::{FRAME_SIZE, KeptStack, Stack};

use crate::context::Context;
use crate::engine::Engine;
use crate::fault::{Fault, FaultKind, HelperError};
use crate::helper::HelperSet;
use crate::jit::Compiled;
use crate::prog_type::ProgType;
use crate::region::Regions;

/// Instructions a run may take, unless somebody says otherwise: about ten seconds of arithmetic.
pub const DEFAULT_FUEL: u64 = 1 << 32;

/// What a program runs with: its maps, its helpers and its fuel. Made once, then shared by all runs.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// Name of the program.
    name: Arc<str>,
    pub(crate) regions: Regions,
    shared: SharedLanes,
    pub(crate) helpers: Arc<HelperSet>,
    fuel: u64,
}

impl Environment {
    /// An environment with these maps and helpers, and [`DEFAULT_FUEL`].
    pub(crate) fn new(name: &str, maps: &[MapRef], helpers: &Arc<HelperSet>) -> Self {
        let regions = Regions::new(maps);
        let shared = SharedLanes::of(maps);
        let (name, helpers) = (name.into(), Arc::clone(helpers));
        Self { name, regions, shared, helpers, fuel: DEFAULT_FUEL }
    }

    /// The same environment, with one more map that programs may be led to.
    #[must_use]
    pub(crate) fn with_map(&self, map: MapRef) -> Self {
        let maps: Vec<MapRef> = self.regions.maps().iter().cloned().chain([map]).collect();
        Self { regions: Regions::new(&maps), shared: SharedLanes::of(&maps), ..self.clone() }
    }

    /// The same environment, where a run may take about `fuel` instructions.
    ///
    /// Jumps backwards and returns are charged with all instructions they close over, whether or not
    /// they were jumped over; helpers with the memory they move.
    #[must_use]
    pub(crate) fn with_fuel(self, fuel: u64) -> Self {
        Self { fuel, ..self }
    }
}

/// A program in the forms in which engines want it, and what it runs with.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    pub(crate) code: Code,
    /// Machine code, if that is what runs.
    pub(crate) compiled: Option<Arc<Compiled>>,
    pub(crate) environment: Environment,
}

impl Executable {
    /// The same program, which may touch the values of one more map.
    pub(crate) fn with_map(&self, map: MapRef) -> Self {
        Self { environment: self.environment.with_map(map), ..self.clone() }
    }

    /// What executes the program.
    pub(crate) fn engine(&self) -> Engine {
        if self.compiled.is_some() { Engine::Jit } else { Engine::Interp }
    }
}

/// Runs a program once, in a lane, with the address of the context in r1. Gives its r0.
///
/// # Errors
/// A [`Fault`] where the program does what it may not. What it had done until then stays done.
///
/// # Kernel
/// `___bpf_prog_run`
#[doc(alias = "___bpf_prog_run")]
#[inline]
pub(crate) fn run(executable: &Arc<Executable>, context: &mut Context) -> Result<u64, Box<Fault>> {
    run_in(executable, context, &Lane::enter(), None, None)
}

/// As [`run`], in the interpreter, and adds to `counts` how often it came to each instruction.
///
/// # Errors
/// Those of [`run`].
pub(crate) fn profile(
    executable: &Arc<Executable>,
    context: &mut Context,
    counts: &mut Vec<u64>,
) -> Result<u64, Box<Fault>> {
    let executable = Arc::new(Executable { compiled: None, ..Executable::clone(executable) });
    run_in(&executable, context, &Lane::enter(), Some(counts), None)
}

/// Calls a function of a program as a timer does: with a map, a key and the address of a value.
///
/// # Kernel
/// `bpf_timer_cb`
#[doc(alias = "bpf_timer_cb")]
pub(crate) fn call_back(
    executable: &Arc<Executable>,
    lane: &Lane,
    function: u64,
    map: &MapRef,
    index: u32,
    value: u64,
) -> Result<u64, Box<Fault>> {
    // A context that the function is not given.
    let context = Context::new(ProgType::SYSCALL, &[], None);
    let mut context = context.map_err(|_| fault(FaultKind::NoStack))?;
    let call = TimerCall { function, map, index, value };
    run_in(executable, &mut context, lane, None, Some(&call))
}

/// How a timer calls a function.
struct TimerCall<'a> {
    function: u64,
    map: &'a MapRef,
    index: u32,
    value: u64,
}

/// A fault before anything runs.
#[cold]
fn fault(kind: FaultKind) -> Box<Fault> {
    Box::new(Fault { program: None, insn: 0, kind })
}

/// Runs a program from its beginning, or only the function that a timer calls.
#[inline(always)]
fn run_in(
    executable: &Arc<Executable>,
    context: &mut Context,
    lane: &Lane,
    counts: Option<&mut Vec<u64>>,
    call: Option<&TimerCall<'_>>,
) -> Result<u64, Box<Fault>> {
    let mut stack = context.stack().take().map_err(|_| fault(FaultKind::NoStack))?;
    let result = {
        // A lock that is still held is released with the machine. It is large, and stays where it is made.
        let mut machine = Machine::new(executable, context, lane, &mut stack, counts);
        let result = match executable.environment.shared.is_empty() {
            true => run_on(&mut machine, call),
            false => run_with_lanes(&mut machine, call),
        };
        if machine.is_empty() {
            // Takes less time than dropping nothing, part by part.
            std::mem::forget(machine);
        }
        result
    };
    context.stack().put_back(stack);
    result
}

/// As [`run_on`], in the lanes of the files that the program's maps are in.
#[inline(never)]
fn run_with_lanes(
    machine: &mut Machine<'_>,
    call: Option<&TimerCall<'_>>,
) -> Result<u64, Box<Fault>> {
    let (lane, shared) = (machine.lane(), &machine.environment().shared);
    shared.run(lane, || run_on(machine, call))
}

#[inline(always)]
fn run_on(machine: &mut Machine<'_>, call: Option<&TimerCall<'_>>) -> Result<u64, Box<Fault>> {
    let Some(&TimerCall { function, map, index, value }) = call else { return machine.start() };
    let call =
        |machine: &mut Machine<'_>, key| machine.call(function, [map.addr(), key, value, 0, 0]);
    machine.lend(index, call).map_err(|error| match error {
        HelperError::Callback(fault) => fault,
        error => fault(FaultKind::helper(&"bpf_timer_start".into(), &[0; 5], error)),
    })
}

/// Waits a little for a lock that somebody holds, longer from round to round, and gives what that costs.
fn waiting(round: u32) -> u64 {
    const SPIN_ROUNDS: u32 = 64;
    const NAP: Duration = Duration::from_micros(20);
    /// About as many instructions as run meanwhile.
    const NAP_COST: u64 = 30_000;
    if round < SPIN_ROUNDS {
        std::hint::spin_loop();
        return 8;
    }
    std::thread::sleep(NAP);
    NAP_COST
}
