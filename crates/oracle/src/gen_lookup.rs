//! The instructions that lookups and tail calls become: the kernel's, cut out of a dump, and ours.

use std::fmt;

use bpfarray_core::insn::{Insn, Reg, alu, jmp, pseudo, size};
use bpfarray_core::{Errno, VALUE_OFFSET, helper_id, map};
use bpfarray_vm::{ProgType, Program};

use crate::attr::ProgLoad;
use crate::create::MapCreate;
use crate::kernel::Kernel;
use crate::request::{Creator, Request};
use crate::rng::Rng;
use crate::sys::Prog;
use crate::{LoadError, Unavailable, kernel_side, ours};

/// Why the kernel's instructions could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("creating the map: {0}")]
    Create(Errno),
    #[error("loading a program that looks up: {0}")]
    Load(#[from] LoadError),
    #[error("dumping the program: {0}")]
    Xlated(Errno),
}

/// What a program does with a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Looks up an element.
    Lookup,
    /// Looks up a map in an ARRAY_OF_MAPS, and an element of that.
    InnerLookup,
    /// Calls the program in a slot.
    TailCall,
}

impl Use {
    const ALL: [(Self, &str); 3] = [
        (Self::Lookup, "lookup"),
        (Self::InnerLookup, "inner lookup"),
        (Self::TailCall, "tail call"),
    ];
}

/// A map, and what a program does with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    kind: Use,
    request: Request,
}

impl Question {
    /// The question of a seed.
    pub fn random(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        match rng.below(10) {
            0 | 1 => {
                let outer = random_map(rng, &[MapCreate::ARRAY_OF_MAPS]);
                let inner = random_map(rng, &[MapCreate::ARRAY, MapCreate::PERCPU_ARRAY]);
                Self { kind: Use::InnerLookup, request: outer.with_inner(inner) }
            }
            2 => Self { kind: Use::TailCall, request: random_map(rng, &[MapCreate::PROG_ARRAY]) },
            3 => {
                let outer = random_map(rng, &[MapCreate::ARRAY_OF_MAPS]);
                let inner =
                    random_map(rng, &[MapCreate::PERF_EVENT_ARRAY, MapCreate::CGROUP_ARRAY]);
                Self { kind: Use::Lookup, request: outer.with_inner(inner) }
            }
            _ => {
                let request = random_map(rng, &[MapCreate::ARRAY, MapCreate::PERCPU_ARRAY]);
                Self { kind: Use::Lookup, request }
            }
        }
    }

    /// The question that `Display` wrote.
    pub fn parse(line: &str) -> Option<Self> {
        Use::ALL.iter().find_map(|&(kind, name)| {
            let request = Request::parse(line.strip_prefix(name)?.strip_prefix(' ')?)?;
            Some(Self { kind, request })
        })
    }

    /// A program that uses the map with index 0, and where in it the part of interest begins. Behind
    /// that part are two instructions.
    fn program(&self) -> (Vec<Insn>, usize) {
        let map = |dst| Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), 0);
        let key = [Insn::mov64_reg(Reg::R2, Reg::R10), Insn::alu64_imm(alu::ADD, Reg::R2, -8)];
        let lookup = Insn::call(helper_id::MAP_LOOKUP_ELEM);
        let mut insns = vec![Insn::st_mem(size::DW, Reg::R10, -8, 0)];
        match self.kind {
            Use::Lookup | Use::InnerLookup => {
                insns.extend(key);
                insns.extend(map(Reg::R1));
            }
            Use::TailCall => {
                insns.push(Insn::mov64_imm(Reg::R3, 0));
                insns.extend(map(Reg::R2));
            }
        }
        let start = insns.len();
        insns.push(match self.kind {
            Use::Lookup | Use::InnerLookup => lookup,
            Use::TailCall => Insn::call(helper_id::TAIL_CALL),
        });
        if self.kind == Use::InnerLookup {
            insns.push(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 4));
            insns.push(Insn::mov64_reg(Reg::R1, Reg::R0));
            insns.extend(key);
            insns.push(lookup);
        }
        insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
        (insns, start)
    }

    /// The part of interest of a dump. Where a lookup is still a call, of the map type's function, it
    /// is that of the helper.
    fn cut(&self, xlated: &[Insn]) -> Vec<Insn> {
        let (_, start) = self.program();
        let part = xlated.get(start..xlated.len().saturating_sub(2)).unwrap_or_default();
        let call = |insn: &Insn| match insn {
            insn if !insn.is_helper_call() || insn.imm == helper_id::TAIL_CALL as i32 => *insn,
            insn => Insn { imm: helper_id::MAP_LOOKUP_ELEM as i32, ..*insn },
        };
        part.iter().map(call).collect()
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Use::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, s)| s);
        write!(f, "{name} {}", self.request)
    }
}

/// A map of one of these types.
fn random_map(rng: &mut Rng, types: &[u32]) -> Request {
    let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
    let map_type = rng.pick(types);
    let value_size = match rng.below(4) {
        _ if MapCreate::array(map_type, 4, 1).holds_objects() => 4,
        0 => 1 << rng.below(15),
        1 => rng.within(1, 16),
        _ => rng.within(1, 1000),
    };
    let max_entries = match (map_type, rng.below(10)) {
        (MapCreate::PERCPU_ARRAY, 4..6) => 1 << rng.below(6),
        (MapCreate::PERCPU_ARRAY, _) => rng.within(1, 40),
        (_, 0) => rng.pick(&[1 << 16, 65537, 100_000]),
        (_, 1..4) => rng.within(1, 3000),
        (_, 4..6) => 1 << rng.below(6),
        _ => rng.within(1, 40),
    };
    let value_size = if max_entries > 40 { value_size.min(64) } else { value_size };
    let mut create = MapCreate::array(map_type, value_size, max_entries);
    if map_type == MapCreate::ARRAY {
        create.map_flags = rng.pick(&[0, 0, 0, 0x80, 0x400, 0x1000]);
    }
    Request::new(creator, create)
}

/// What the kernel makes of it. The offset of the values is replaced by ours.
///
/// # Errors
/// Whatever the kernel refused.
pub fn ask(kernel: Kernel, question: &Question) -> Result<Vec<Insn>, Error> {
    let (map, _) = kernel_side::create(kernel, &question.request)?.map_err(Error::Create)?;
    let (insns, _) = question.program();
    let prog = Prog::load(&ProgLoad::new(ProgType::SOCKET_FILTER.0, &insns, &[&map]))?;
    let xlated = prog.xlated().map_err(Error::Xlated)?;
    let values = Insn::alu64_imm(alu::ADD, Reg::R1, 0);
    let ours = |insn| match insn {
        insn if Insn { imm: 0, ..insn } == values => Insn { imm: VALUE_OFFSET as i32, ..insn },
        insn => insn,
    };
    Ok(question.cut(&xlated).into_iter().map(ours).collect())
}

/// What our rules make of a lookup; `None` for other questions.
///
/// # Errors
/// That of an invalid request.
pub fn ours(question: &Question) -> Result<Option<Vec<Insn>>, String> {
    if question.kind != Use::Lookup {
        return Ok(None);
    }
    let (map, _) = ours::create(&question.request, 1).map_err(|errno| errno.to_string())?;
    let call = || vec![Insn::call(helper_id::MAP_LOOKUP_ELEM)];
    Ok(Some(map::gen_lookup(map.layout()).map_or_else(call, |inlined| inlined.to_vec())))
}

/// What our loader makes of it, in a whole program.
///
/// # Errors
/// Why there is no such map or program.
pub fn ours_in_a_program(question: &Question) -> Result<Vec<Insn>, String> {
    let (map, _) = ours::create(&question.request, 1).map_err(|errno| errno.to_string())?;
    let (insns, _) = question.program();
    let program = Program::from_insns(ProgType::SOCKET_FILTER, &insns, &[map]);
    Ok(question.cut(&program.map_err(|e| e.to_string())?.xlated()))
}

/// The instructions as one line.
pub fn to_text(insns: &[Insn]) -> String {
    insns.iter().map(|insn| crate::text::hex(&insn.encode())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_read_back_as_they_were_written() {
        for seed in 0..200 {
            let question = Question::random(seed);
            assert_eq!(Question::parse(&question.to_string()), Some(question));
        }
    }
}
