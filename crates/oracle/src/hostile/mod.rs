//! Programs that do what they must not: those of the other generators and the compiled ones with mistakes in them,
//! and such as were made for it.

mod calls;
pub mod campaign;
mod generate;
mod judges;
pub mod monitor;
mod mutate;
mod reason;
pub mod runs;
mod shrink;
mod stage;
mod statements;
pub mod verify;
mod watch;
mod world;

use bpfarray_core::disasm::Disasm;
use bpfarray_core::insn::{Insn, Reg, pseudo};
use bpfarray_vm::ProgType;

use crate::corpus::Corpus;
use crate::create::MapCreate;
use crate::programs::Kind;
use crate::rng::Rng;

pub use judges::{Strict, TheKernel, Verdict};
pub use reason::{Reason, reason};
pub use shrink::shrink;

/// Where the maps of a program come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Maps {
    /// Each from its attributes; one may hold another one in its first slot, and takes others like it.
    Made(Vec<MapCreate>, Option<(usize, usize)>),
    /// Those of a compiled object, so many.
    Of {
        /// The object's name.
        object: String,
        /// How many maps it has.
        maps: usize,
    },
}

/// Maps are for programs of one kind, as the first one that refers to a PROG_ARRAY decides on that: type, attach type,
/// whether packets come in several pieces.
type Key = (Maps, ProgType, u32, bool);

/// A program, right or not.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it was made from.
    pub origin: String,
    /// The program's type.
    pub prog_type: ProgType,
    /// How it expects to be attached, or 0.
    pub expected_attach_type: u32,
    /// Whether it takes packets in several pieces.
    pub has_frags: bool,
    /// The instructions.
    pub insns: Vec<Insn>,
    /// The maps.
    pub maps: Maps,
    /// A packet to run it with; empty for a type that takes none.
    pub packet: Vec<u8>,
}

/// A compiled program.
struct Compiled {
    origin: String,
    maps: Maps,
    prog_type: ProgType,
    expected_attach_type: u32,
    has_frags: bool,
    insns: Vec<Insn>,
}

/// Makes programs from seeds.
pub struct Cases {
    compiled: Vec<Compiled>,
}

impl Cases {
    /// With the programs of a corpus among what is changed.
    pub fn new(corpus: &Corpus) -> Self {
        let mut compiled = Vec::new();
        for (name, object) in &corpus.objects {
            for spec in object.programs() {
                let (Ok(prog_type), Ok(code)) = (spec.prog_type(), spec.code()) else { continue };
                // Those name something of the kernel that they are attached to.
                if prog_type == ProgType::TRACING {
                    continue;
                }
                compiled.push(Compiled {
                    origin: format!("{name}:{}", spec.name),
                    maps: Maps::Of { object: name.clone(), maps: object.maps().len() },
                    prog_type,
                    expected_attach_type: spec.expected_attach_type().map_or(0, |t| t.0),
                    has_frags: spec.def.is_some_and(|def| def.xdp_has_frags),
                    insns: code.insns.clone(),
                });
            }
        }
        Self { compiled }
    }

    /// A program of a seed in which nothing is wrong.
    pub fn right(seed: u64) -> Case {
        Case::assembled("generated", generate::random(&mut Rng::new(seed), 0))
    }

    /// The program of a seed, which has a few mistakes or none.
    pub fn random(&self, seed: u64) -> Case {
        let rng = &mut Rng::new(seed);
        let changes = match rng.below(10) {
            0 => 0,
            1..6 => 1,
            6..9 => 2,
            _ => 3,
        };
        let share = rng.below(100);
        let mut case = match share {
            0..66 => {
                // The generator's own mistakes, or changes afterwards.
                let mistakes = rng.below(changes + 1);
                let assembled = generate::random(rng, mistakes);
                let mut case = Case::assembled("generated", assembled);
                for _ in mistakes..changes {
                    case.mutate(rng);
                }
                return case;
            }
            66..82 if !self.compiled.is_empty() => {
                let base = &self.compiled[rng.below(self.compiled.len() as u32) as usize];
                base.case()
            }
            _ => {
                let kind = Kind::ALL[share as usize % Kind::ALL.len()];
                // Few, so that there are few sets of maps.
                let base = u64::from(rng.below(24));
                Case::assembled(&format!("{} {base}", kind.name), (kind.random)(base))
            }
        };
        (0..changes).for_each(|_| case.mutate(rng));
        case
    }
}

impl Compiled {
    fn case(&self) -> Case {
        Case {
            origin: self.origin.clone(),
            prog_type: self.prog_type,
            expected_attach_type: self.expected_attach_type,
            has_frags: self.has_frags,
            insns: self.insns.clone(),
            maps: self.maps.clone(),
            packet: (0..64).collect(),
        }
    }
}

impl Case {
    fn assembled(origin: &str, program: crate::programs::Assembled) -> Self {
        Self {
            origin: origin.to_owned(),
            prog_type: program.prog_type,
            expected_attach_type: 0,
            has_frags: false,
            insns: program.insns,
            maps: Maps::Made(program.maps, program.inner),
            packet: program.packet,
        }
    }

    fn key(&self) -> Key {
        (self.maps.clone(), self.prog_type, self.expected_attach_type, self.has_frags)
    }

    fn mutate(&mut self, rng: &mut Rng) {
        let maps = match &self.maps {
            Maps::Made(maps, _) => maps.len(),
            Maps::Of { maps, .. } => *maps,
        };
        mutate::mutate(rng, &mut self.insns, maps);
        // The kernel would take what lies behind the list of descriptors for another one, and a number for what
        // happens to be open.
        for insn in self.insns.iter_mut().filter(|insn| insn.is_ld_imm64()) {
            let kind = match insn.src.index() as u8 {
                pseudo::MAP_FD | pseudo::MAP_IDX => pseudo::MAP_IDX,
                pseudo::MAP_VALUE | pseudo::MAP_IDX_VALUE => pseudo::MAP_IDX_VALUE,
                _ => continue,
            };
            insn.src = Reg::new(kind);
            insn.imm = insn.imm.rem_euclid(maps.max(1) as i32);
        }
    }

    /// The program as text, each line with its index.
    pub fn listing(&self) -> Vec<String> {
        Disasm::new(&self.insns).map(|line| format!("{}: {line}", line.index)).collect()
    }
}
