//! Random programs, in the live kernel and in every form of ours.

use std::fmt;

use bpfarray::Errno;
use bpfarray_core::disasm::Disasm;
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, class, mode, pseudo, size};
use bpfarray_vm::ProgType;

use crate::compare::{Error, ProgramMismatch, Translated, same};
use crate::create::MapCreate;
use crate::kernel::Kernel;
use crate::kernel_program::KernelEngine;
use crate::our_program::{Form, OurEngine};
use crate::programs::{Assembled, Engine as _, Kind, first_cpu, on_cpu, run_once};
use crate::request::Creator;
use crate::xlated::Differences;

/// What is in a program, of the things that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Loop,
    Function,
    Callback,
    Atomic,
    Packet,
    Percpu,
    Inner,
}

impl Part {
    const ALL: [(Self, &str); 7] = [
        (Self::Loop, "loops"),
        (Self::Function, "functions"),
        (Self::Callback, "callbacks"),
        (Self::Atomic, "atomics"),
        (Self::Packet, "packet accesses"),
        (Self::Percpu, "per-CPU maps"),
        (Self::Inner, "inner maps"),
    ];

    /// Whether an instruction of a program shows that this is in it.
    fn is_shown_by(self, insn: &Insn, program: &Assembled) -> bool {
        let is_jump = matches!(insn.class(), class::JMP | class::JMP32);
        let is_call = insn.is_helper_call() || insn.is_pseudo_call();
        let names_map = |map_type| {
            let is_index =
                matches!(insn.src.index() as u8, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE);
            let map = program.maps.get(insn.imm as usize);
            insn.is_ld_imm64() && is_index && map.is_some_and(|map| map.map_type == map_type)
        };
        match self {
            Self::Loop => is_jump && !is_call && insn.off < 0,
            Self::Function => insn.is_pseudo_call(),
            Self::Callback => *insn == Insn::call(helper_id::LOOP),
            Self::Atomic => insn.class() == class::STX && insn.mode() == mode::ATOMIC,
            // The generator keeps the context in r6, and takes the packet's address for an access only.
            Self::Packet => {
                program.prog_type == ProgType::XDP
                    && *insn == Insn::ldx_mem(size::W, insn.dst, Reg::R6, 0)
            }
            Self::Percpu => names_map(MapCreate::PERCPU_ARRAY),
            Self::Inner => names_map(MapCreate::ARRAY_OF_MAPS),
        }
    }
}

/// What a comparison of random programs did.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Programs that the kernel took, with the same results here.
    pub programs: u64,
    /// Programs that the kernel's verifier gave up as too large.
    pub too_large: u64,
    /// What ran them here: each all of them.
    pub forms: Vec<Form>,
    /// What was compared of their translated instructions.
    pub translated: Translated,
    /// In how many programs there is each part.
    parts: [u64; Part::ALL.len()],
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} programs in the kernel", self.programs)?;
        for form in &self.forms {
            write!(f, ", the {form}")?;
        }
        writeln!(f, ": no difference; {} more are too large for the kernel", self.too_large)?;
        let parts = Part::ALL.iter().zip(self.parts);
        let parts: Vec<String> = parts.map(|((_, name), n)| format!("{name} in {n}")).collect();
        writeln!(f, "{}", parts.join(", "))?;
        self.translated.fmt(f)
    }
}

impl Compared {
    fn count_parts(&mut self, program: &Assembled) {
        for (count, (part, _)) in self.parts.iter_mut().zip(Part::ALL) {
            *count += u64::from(program.insns.iter().any(|i| part.is_shown_by(i, program)));
        }
    }

    /// The first part that is in none of the programs.
    pub fn missing(&self) -> Option<&'static str> {
        let mut parts = Part::ALL.iter().zip(self.parts);
        parts.find(|(_, count)| *count == 0).map(|((_, name), _)| *name)
    }

    /// Compares one program in every form. Gives how its translated instructions differ, if that is not meant to be so.
    fn compare(
        &mut self,
        kernel: Kernel,
        kind: Kind,
        seed: u64,
    ) -> Result<Option<ProgramMismatch>, Error> {
        let creator = Creator::Trusted;
        let program = (kind.random)(seed);
        let lines = || Disasm::new(&program.insns).map(|line| line.to_string());
        let refused = |why| Err(Error::refused(seed, lines().collect(), why));
        let mut theirs = match (KernelEngine { kernel, creator }).ask_to_assemble(&program) {
            Ok(Ok(theirs)) => theirs,
            Ok(Err(why)) if why.errno == Errno::E2BIG => {
                self.too_large += 1;
                return Ok(None);
            }
            Ok(Err(why)) => return refused(why.to_string()),
            Err(why) => return refused(why),
        };
        let expected = run_once(&mut theirs, &program);
        let mut mismatch = None;
        for &form in &self.forms {
            let listing = || lines().chain([format!("in the {form}")]).collect();
            let mut ours = OurEngine { form, creator }.assemble(&program);
            let result = match &mut ours {
                Ok(ours) => run_once(ours, &program),
                Err(why) => Err(why.clone()),
            };
            same(seed, listing, &expected, &result)?;
            if let (Ok(ours), Form::Interp) = (ours, form) {
                let question = || format!("{} {seed}", kind.name);
                let are_deliberate = Differences::are_deliberate_at_random;
                mismatch = self.translated.compare(&ours, &theirs, are_deliberate, question);
            }
        }
        self.count_parts(&program);
        self.programs += 1;
        Ok(mismatch)
    }
}

/// Compares what `count` random programs of a kind that the kernel takes leave in their maps, and their translated
/// instructions, on the first CPU that the process may run on. Programs on which the kernel's verifier gives up come in addition; any other refusal is a difference.
///
/// # Errors
/// The first difference in a result, or all in translated instructions.
pub fn compare(kernel: Kernel, kind: Kind, seed: u64, count: u64) -> Result<Compared, Error> {
    let mut done = Compared { forms: Form::all().collect(), ..Compared::default() };
    let (cpu, mut mismatches) = (first_cpu(), Vec::new());
    for seed in seed.. {
        if done.programs >= count {
            break;
        }
        mismatches.extend(on_cpu(cpu, || done.compare(kernel, kind, seed))??);
    }
    if mismatches.is_empty() { Ok(done) } else { Err(Error::Programs(mismatches)) }
}
