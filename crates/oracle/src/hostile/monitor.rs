//! Runs of programs that nothing but our default mode has judged, in both engines, under a monitor of its own.
//!
//! What programs must not change is filled with bytes beforehand: the frames below the running one, the room
//! around the packet, the padding of values and what is behind them. After each run the monitor reads all
//! memory around what the program was given, by way of the system, and compares. Both engines run on the
//! same memory, so they must leave the same bytes, and say the same.

use std::collections::HashMap;
use std::io;

use bpfarray::Map;
use bpfarray_core::helper_id;
use bpfarray_core::insn::Insn;
use bpfarray_vm::fault::{AccessReason, FaultKind, HelperError};
use bpfarray_vm::{Engine, Fault, HelperSet, LoadOptions, ProgType, Program};

use super::runs::Runs;
use super::stage::Stage;
use super::watch::Memory;
use super::world::World;
use super::{Case, Key};
use crate::corpus::Corpus;
use crate::our_program::Form;

/// Instructions of a run, about.
const FUEL: u64 = 3_000;

/// Helpers whose results are not the same twice.
const UNSTEADY: [u32; 6] = [
    helper_id::KTIME_GET_NS,
    helper_id::KTIME_GET_BOOT_NS,
    helper_id::KTIME_GET_COARSE_NS,
    helper_id::KTIME_GET_TAI_NS,
    helper_id::JIFFIES64,
    helper_id::GET_PRANDOM_U32,
];

/// What a program did that it must not.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

/// What an error says.
pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What became of a program.
enum End {
    Refused,
    Ran(Runs),
}

/// Runs programs one after the other. A thread that has one must stay on one CPU, and be the only one of its process
/// that runs programs.
pub struct Monitor<'c> {
    corpus: &'c Corpus,
    memory: Memory,
    helpers: HelperSet,
    strict: bool,
    worlds: HashMap<Key, Option<World>>,
    stages: HashMap<(ProgType, usize), Option<Stage>>,
}

impl<'c> Monitor<'c> {
    /// With the maps of the corpus's objects; programs are loaded in strict mode or in the default one.
    ///
    /// # Errors
    /// When the system does not tell what is in memory.
    pub fn new(corpus: &'c Corpus, strict: bool) -> io::Result<Self> {
        let mut helpers = HelperSet::linux();
        helpers.set_trace(|_| {});
        for helper in UNSTEADY {
            helpers.register(helper, "steady", move |_, _| Ok(u64::from(helper) << 30));
        }
        let memory = Memory::open()?;
        Ok(Self { corpus, memory, helpers, strict, worlds: HashMap::new(), stages: HashMap::new() })
    }

    fn options(&self, engine: Engine) -> LoadOptions {
        LoadOptions {
            helpers: self.helpers.clone(),
            bypass_spec_v1: true,
            engine,
            ..LoadOptions::default()
        }
    }

    /// Runs a case with these instructions, a few times in each engine, on numbers that follow from the seed.
    ///
    /// # Errors
    /// What it did that it must not, or why it could not be watched.
    pub fn run(
        &mut self,
        case: &Case,
        insns: &[Insn],
        seed: u64,
        runs: &mut Runs,
    ) -> Result<(), Violation> {
        match self.try_run(case, insns, seed) {
            Ok(Ok(End::Refused)) => runs.refused += 1,
            Ok(Ok(End::Ran(more))) => *runs += more,
            Ok(Err(violation)) => return Err(violation),
            Err(why) => return Err(Violation(format!("cannot be watched: {why}"))),
        }
        Ok(())
    }

    fn try_run(
        &mut self,
        case: &Case,
        insns: &[Insn],
        seed: u64,
    ) -> Result<Result<End, Violation>, String> {
        let stage_key = (case.prog_type, case.packet.len());
        if !self.stages.contains_key(&stage_key) {
            let stage = Stage::new(case.prog_type, &case.packet, &|engine| self.options(engine))?;
            self.stages.insert(stage_key, stage);
        }
        let key = case.key();
        if !self.worlds.contains_key(&key) {
            let world = World::new(case, self.corpus, &|engine| self.options(engine))?;
            self.worlds.insert(key.clone(), world);
        }
        let options = [Engine::Interp, Engine::Jit]
            .map(|engine| LoadOptions { strict: self.strict, ..self.options(engine) });
        let (Some(Some(stage)), Some(Some(world))) =
            (self.stages.get_mut(&stage_key), self.worlds.get_mut(&key))
        else {
            return Ok(Ok(End::Refused));
        };
        let load = |maps: &[Map], options| {
            let program = Program::with_options(case.prog_type, insns, maps, options);
            program.map(|program| program.with_fuel(FUEL)).map_err(text)
        };
        let programs = (load(&world.maps[0], &options[0]), load(&world.maps[1], &options[1]));
        let (interp, quick) = match programs {
            (Ok(interp), Ok(quick)) => (interp, quick),
            (Err(_), Err(_)) => return Ok(Ok(End::Refused)),
            (interp, jit) => {
                let say =
                    |program: Result<_, String>| program.map_or_else(|why| why, |_| "taken".into());
                let said = format!("interp: {}, jit: {}", say(interp), say(jit));
                return Ok(Err(Violation(format!("refused by one engine only: {said}"))));
            }
        };
        let mut runs = Runs { programs: 1, ..Runs::default() };
        runs.interpreted += u64::from(quick.engine() != Engine::Jit);
        // Handles to one program would share the better code.
        let best = load(&world.maps[1], &options[1])?;
        best.optimise();
        for round in 0..2 {
            let mut run = |program: &Program| {
                stage.run(world, &self.memory, program, insns, &case.packet, seed ^ round << 60)
            };
            let mut traces = Vec::new();
            for (form, program) in
                [(Form::Interp, &interp), (Form::Quick, &quick), (Form::Best, &best)]
            {
                match run(program)? {
                    Ok(trace) => traces.push(trace),
                    Err(Violation(what)) => {
                        return Ok(Err(Violation(format!("in the {form}: {what}"))));
                    }
                }
            }
            let [theirs, ours @ ..] = &traces[..] else { continue };
            for trace in &traces {
                runs.finished += u64::from(trace.result.is_ok());
                runs.faults += u64::from(trace.result.is_err());
            }
            if let Err(fault) = &theirs.result
                && self.strict
                && !may_end(case.prog_type, fault)
            {
                return Ok(Err(Violation(format!("strict mode took it: {fault}"))));
            }
            if let Some(ours) = ours.iter().find(|ours| *ours != theirs) {
                let elsewhere = load(&world.maps[2], &options[0])?;
                let mut run = |program: &Program| {
                    stage.run(world, &self.memory, program, insns, &case.packet, seed ^ round << 60)
                };
                if run(&elsewhere)?.ok().as_ref() != Some(theirs) {
                    runs.by_address += 1;
                    continue;
                }
                return Ok(Err(Violation(format!("engines differ: {}", theirs.difference(ours)))));
            }
        }
        Ok(Ok(End::Ran(runs)))
    }
}

/// Whether what the kernel's verifier takes can end in this way: far from its end, too deep in calls, or behind the end of
/// a context that `BPF_PROG_TEST_RUN` would find too short.
fn may_end(prog_type: ProgType, fault: &Fault) -> bool {
    match &fault.kind {
        FaultKind::Helper { error: HelperError::Callback(inner), .. } => may_end(prog_type, inner),
        FaultKind::Access(access) => {
            prog_type == ProgType::SYSCALL && access.reason == AccessReason::Context
        }
        kind => matches!(kind, FaultKind::OutOfFuel | FaultKind::CallDepth),
    }
}
