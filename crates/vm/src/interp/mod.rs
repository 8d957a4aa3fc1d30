//! The interpreter: the reference for what programs mean. Safe code; every access is checked.
//!
//! Registers hold plain 64-bit numbers, and addresses are real ones. An address is worth nothing by
//! itself: each access looks up which memory of the program it falls into, and goes through
//! [`bpfarray::Memory`], which checks its bounds again. So any instructions whatsoever may be run.

mod code;
mod exec;
mod machine;
mod stack;
// The same tests for each engine.
#[cfg(test)]
#[cfg(feature = "jit")]
#[allow(clippy::duplicate_mod)]
#[path = "tests/mod.rs"]
pub(crate) mod jit_tests;
#[cfg(test)]
#[allow(clippy::duplicate_mod)]
#[path = "tests/mod.rs"]
pub(crate) mod tests;

use std::sync::Arc;

use bpfarray::{Lane, MapRef, SharedLanes};

pub(crate) use code::{Code, Op, OpCode};
pub(crate) use exec::MAX_LOOPS;
pub use machine::Machine;
pub(crate) use machine::{Stopped, place};
pub(crate) use stack::FRAME_SIZE;
use stack::Stack;

use crate::context::Context;
use crate::engine::Engine;
use crate::fault::{Fault, FaultKind};
use crate::helper::HelperSet;
use crate::jit::Compiled;
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

    /// The same environment with other maps.
    #[must_use]
    pub(crate) fn with_maps(self, maps: &[MapRef]) -> Self {
        Self { regions: Regions::new(maps), shared: SharedLanes::of(maps), ..self }
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
pub(crate) fn run(executable: &Executable, context: &mut Context) -> Result<u64, Fault> {
    let lane = Lane::enter();
    let stack =
        Stack::take().map_err(|_| Fault { program: None, insn: 0, kind: FaultKind::NoStack })?;
    let args = [context.buffer().ctx_addr(), 0, 0, 0, 0];
    let mut machine = Machine::new(executable, context, &lane, stack);
    let result = executable.environment.shared.run(&lane, || match &executable.compiled {
        Some(compiled) => compiled.call(&mut machine, 0, args),
        None => machine.exec(0, args),
    });
    machine.into_stack().put_back();
    result
}
