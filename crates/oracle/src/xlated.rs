//! Whole translated programs: the kernel's and ours, laid side by side.
//!
//! Both are brought into one form first. In it maps are numbered as they come, addresses of helpers, of the CPU's number and
//! of functions are 0, and values are where ours are. What is left to differ is told by its kind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use bpfarray_core::insn::{ADDR_PERCPU, Insn, Reg, alu, class, jmp, mode, pseudo};
use bpfarray_core::{VALUE_OFFSET, helper_id};

use crate::corpus::Corpus;
use crate::inputs::Run;
use crate::programs::{Engine, Program};
use crate::text;

/// Where values of a map begin in the kernel.
const KERNEL_VALUE_OFFSET: i32 = 312;

/// What two programs may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A field of the context, which is elsewhere, and may take several instructions.
    Context,
    /// What the kernel puts before programs that write to packets.
    Prologue,
    /// A `may_goto`, which the kernel writes out.
    MayGoto,
    /// A helper call that the kernel inlines, or gives one more argument.
    Helper,
    /// What only the kernel has removed, for it knows that no path gets there.
    Kept,
    /// What only we have removed.
    Removed,
    /// Anything else.
    Other,
}

impl Kind {
    /// Whether it is meant to be so in compiled programs.
    pub fn is_deliberate(self) -> bool {
        !matches!(self, Self::Kept | Self::Removed | Self::Other)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Context => "context fields",
            Self::Prologue => "prologues",
            Self::MayGoto => "may_goto",
            Self::Helper => "inlined helpers",
            Self::Kept => "removed by the kernel only",
            Self::Removed => "removed by us only",
            Self::Other => "other",
        })
    }
}

/// How many differences there are of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences(pub BTreeMap<Kind, usize>);

impl Differences {
    /// Adds those of another program.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(*kind).or_default() += count;
        }
    }

    /// Whether all are deliberate.
    pub fn are_deliberate(&self) -> bool {
        self.0.keys().all(|kind| kind.is_deliberate())
    }

    /// Whether all are meant to be so in random programs, where more is known of numbers here than in the kernel: where we
    /// alone have removed something, jumps over it are others, too.
    pub fn are_deliberate_at_random(&self) -> bool {
        let removed = self.0.contains_key(&Kind::Removed);
        let is_meant = |kind: &Kind| {
            kind.is_deliberate() || removed && matches!(kind, Kind::Removed | Kind::Other)
        };
        self.0.keys().all(is_meant)
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        f.write_str(&if kinds.is_empty() { "none".into() } else { kinds.join(", ") })
    }
}

/// Asks for the translated instructions of a compiled program, in the common form; `None` if it cannot be loaded.
pub(crate) fn ask<E: Engine>(engine: &E, corpus: &Corpus, run: &Run) -> Option<Vec<Insn>> {
    let program = engine.load(corpus.objects.get(&run.object)?, &run.program).ok()?;
    Some(normal(&program.xlated().ok()?))
}

/// Each compiled program once, in the order of the runs.
pub(crate) fn programs(corpus: &Corpus) -> impl Iterator<Item = &Run> {
    let mut seen = HashSet::new();
    corpus.runs.iter().filter(move |run| seen.insert((&run.object, &run.program)))
}

/// How a compiled program is named in files of vectors.
pub(crate) fn question(run: &Run) -> String {
    format!("{} {}", run.object, run.program)
}

/// The instructions that [`gen_lookup::to_text`](crate::gen_lookup::to_text) wrote.
pub(crate) fn parse(text: &str) -> Option<Vec<Insn>> {
    let insn = |word: &str| text::unhex(word)?.try_into().ok().map(Insn::decode);
    text.split(' ').map(insn).collect()
}

/// A dump in the common form.
pub fn normal(dump: &[Insn]) -> Vec<Insn> {
    let mut insns = dump.to_vec();
    let mut maps = HashMap::new();
    let percpu = |insn: &Insn| {
        insn.code == Insn::mov64_reg(Reg::R0, Reg::R0).code && insn.off == ADDR_PERCPU
    };
    for at in 0..insns.len() {
        let insn = insns[at];
        if insn.is_ld_imm64() && at + 1 < insns.len() {
            match insn.src.index() as u8 {
                pseudo::MAP_FD | pseudo::MAP_VALUE => {
                    let next = maps.len() as i32;
                    insns[at].imm = *maps.entry(insn.imm).or_insert(next);
                }
                pseudo::FUNC => insns[at + 1].imm = 0,
                _ => {}
            }
        } else if insn.is_pseudo_call() {
            // The kernel has the distance in the field for offsets, and the function's number in the other.
            if insn.off != 0 {
                insns[at] = Insn { imm: insn.off.into(), off: 0, ..insn };
            }
        } else if insn.is_helper_call() && insn.imm != helper_id::TAIL_CALL as i32 {
            insns[at].imm = 0;
        } else if insn == Insn::alu64_imm(alu::ADD, Reg::R1, KERNEL_VALUE_OFFSET) {
            insns[at].imm = VALUE_OFFSET as i32;
        } else if insn.code == Insn::mov64_imm(Reg::R0, 0).code
            && insns.get(at + 1).is_some_and(percpu)
        {
            insns[at].imm = 0;
        }
    }
    insns
}

/// Where a jump, call or function address leads, and the instruction without that.
fn split(at: usize, insn: Insn) -> (Insn, Option<i64>) {
    let to = |distance: i32| Some(at as i64 + 1 + i64::from(distance));
    let is_func = insn.is_ld_imm64() && insn.src.index() as u8 == pseudo::FUNC;
    match (insn.class(), insn.op()) {
        _ if is_func || insn.is_pseudo_call() => (Insn { imm: 0, ..insn }, to(insn.imm)),
        (class::JMP | class::JMP32, jmp::CALL | jmp::EXIT) => (insn, None),
        (class::JMP32, jmp::JA) => (Insn { imm: 0, ..insn }, to(insn.imm)),
        (class::JMP | class::JMP32, _) => (Insn { off: 0, ..insn }, to(insn.off.into())),
        _ => (insn, None),
    }
}

/// Lays two programs in the common form side by side.
pub fn compare(ours: &[Insn], kernel: &[Insn]) -> Differences {
    let pairs = pairs(ours, kernel);
    let mut differences = Differences::default();
    let mut count = |kind| *differences.0.entry(kind).or_default() += 1;
    let (mut i, mut j) = (0, 0);
    for &(to_i, to_j) in pairs.iter().chain([&(ours.len(), kernel.len())]) {
        if to_i != i || to_j != j {
            count(judge(i, &ours[i..to_i], &kernel[j..to_j], ours.get(to_i)));
        }
        (i, j) = (to_i + 1, to_j + 1);
    }
    for &(i, j) in &pairs {
        let (Some(our_target), Some(their_target)) = (split(i, ours[i]).1, split(j, kernel[j]).1)
        else {
            continue;
        };
        // Between the last instruction before that is the same and the first behind it.
        let next = pairs.partition_point(|pair| (pair.0 as i64) < our_target);
        let first = next.checked_sub(1).map_or(0, |last| pairs[last].1 as i64 + 1);
        let last = pairs.get(next).map_or(kernel.len() as i64, |pair| pair.1 as i64);
        if !(first..=last).contains(&their_target) {
            count(Kind::Other);
        }
    }
    differences
}

/// The longest common subsequence, as pairs of indexes.
fn pairs(ours: &[Insn], kernel: &[Insn]) -> Vec<(usize, usize)> {
    let split_all = |insns: &[Insn]| -> Vec<(Insn, bool)> {
        let split = |(at, insn): (usize, &Insn)| split(at, *insn);
        insns.iter().enumerate().map(split).map(|(insn, to)| (insn, to.is_some())).collect()
    };
    let (a, b) = (split_all(ours), split_all(kernel));
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (rest_a, rest_b) = (&a[same..], &b[same..]);
    let width = rest_b.len() + 1;
    let mut best = vec![0_u32; (rest_a.len() + 1) * width];
    for i in (0..rest_a.len()).rev() {
        for j in (0..rest_b.len()).rev() {
            best[i * width + j] = match rest_a[i] == rest_b[j] {
                true => best[(i + 1) * width + j + 1] + 1,
                false => best[(i + 1) * width + j].max(best[i * width + j + 1]),
            };
        }
    }
    let mut pairs: Vec<(usize, usize)> = (0..same).map(|at| (at, at)).collect();
    let (mut i, mut j) = (0, 0);
    while i < rest_a.len() && j < rest_b.len() {
        if rest_a[i] == rest_b[j] && best[i * width + j] == best[(i + 1) * width + j + 1] + 1 {
            pairs.push((same + i, same + j));
            (i, j) = (i + 1, j + 1);
        } else if best[(i + 1) * width + j] >= best[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// Whether a part is only the unconditional jump that a conditional one in another part has become.
fn is_decided(part: &[Insn], other: &[Insn]) -> bool {
    let is_jump = |insn: &Insn| matches!(insn.class(), class::JMP | class::JMP32);
    let is_conditional = |insn: &Insn| {
        is_jump(insn) && !matches!(insn.op(), jmp::JA | jmp::CALL | jmp::EXIT | jmp::JCOND)
    };
    part.iter().all(|insn| insn.code == class::JMP | jmp::JA) && other.iter().any(is_conditional)
}

/// What it is that two parts differ in.
fn judge(at: usize, ours: &[Insn], kernel: &[Insn], next: Option<&Insn>) -> Kind {
    let any = |is: fn(&Insn) -> bool| ours.iter().any(is);
    let is_access = |insn: &Insn| {
        let base = if insn.class() == class::LDX { insn.src } else { insn.dst };
        let is_memory = matches!(insn.class(), class::LDX | class::ST | class::STX);
        is_memory && matches!(insn.mode(), mode::MEM | mode::MEMSX) && base != Reg::R10
    };
    let is_call = |insn: &Insn| insn.is_helper_call();
    match (ours.is_empty(), kernel.is_empty()) {
        (true, _) if at == 0 => Kind::Prologue,
        (true, _) if next.is_some_and(is_call) => Kind::Helper,
        (true, _) => Kind::Removed,
        (_, true) if !ours.iter().all(is_access) => Kind::Kept,
        _ if any(|insn| insn.code == class::JMP | jmp::JCOND) => Kind::MayGoto,
        // Next to a field there may be some that look alike. What is removed has more to it than accesses.
        _ if ours.iter().all(is_access) => Kind::Context,
        _ if ours.len() == 1 && is_call(&ours[0]) => Kind::Helper,
        _ if is_decided(kernel, ours) => Kind::Kept,
        _ if is_decided(ours, kernel) => Kind::Removed,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::size;

    use super::*;

    const NOP: Insn = Insn::mov64_imm(Reg::R0, 0);

    fn kinds(ours: &[Insn], kernel: &[Insn]) -> Vec<(Kind, usize)> {
        compare(&normal(ours), &normal(kernel)).0.into_iter().collect()
    }

    #[test]
    fn equal_programs_do_not_differ_whatever_their_addresses() {
        let of = |map, value, helper| {
            let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_FD), map);
            [lo, hi, Insn::alu64_imm(alu::ADD, Reg::R1, value), Insn::call(helper), Insn::exit()]
        };
        assert_eq!(kinds(&of(7, 4096, 1), &of(99, 312, 123_456)), []);
    }

    #[test]
    fn a_jump_to_another_place_is_a_difference() {
        let to = |off| [Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, off), NOP, NOP, Insn::exit()];
        assert_eq!(kinds(&to(1), &to(2)), [(Kind::Other, 1)]);
    }

    #[test]
    fn a_longer_access_is_a_field_of_the_context_and_jumps_go_over_it() {
        let load = Insn::ldx_mem(size::W, Reg::R2, Reg::R1, 8);
        let shift = Insn::alu64_imm(alu::RSH, Reg::R2, 8);
        let other = Insn::ldx_mem(size::W, Reg::R2, Reg::R1, 120);
        let jump = |off| Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, off);
        let ours = [jump(1), load, Insn::exit()];
        assert_eq!(kinds(&ours, &[jump(2), other, shift, Insn::exit()]), [(Kind::Context, 1)]);
    }

    #[test]
    fn what_only_one_side_has_removed_is_told() {
        assert_eq!(kinds(&[NOP, NOP, Insn::exit()], &[NOP, Insn::exit()]), [(Kind::Kept, 1)]);
        assert_eq!(kinds(&[NOP, Insn::exit()], &[NOP, NOP, Insn::exit()]), [(Kind::Removed, 1)]);
    }
}
