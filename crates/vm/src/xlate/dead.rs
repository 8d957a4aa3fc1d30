//! What no path reaches is removed.

use bpfarray_core::insn::{Insn, Reg, class, jmp};

use crate::verify::{function_target, is_exit, is_unconditional_jump, jump_target, len};

/// For each instruction what is left of it. A conditional jump that goes only one way becomes unconditional, and one
/// to the next instruction nothing.
///
/// Only what no path reaches is removed, and nothing that control could fall into where an analysis was
/// wrong about that: behind a call that never returns there is still what was there.
///
/// # Kernel
/// `opt_hard_wire_dead_code_branches`, `opt_remove_dead_code`, `opt_remove_nops`
pub(super) fn remove(insns: &[Insn], reached: &[bool]) -> Vec<Option<Insn>> {
    let kept = closed(insns, reached);
    let mut left: Vec<Option<Insn>> = vec![None; insns.len()];
    let mut at = 0;
    while let Some(&insn) = insns.get(at) {
        let end = at + len(insn);
        if kept[at] {
            left[at..end].iter_mut().zip(&insns[at..end]).for_each(|(l, i)| *l = Some(*i));
            let goes = conditional_target(at, insn).map(|target| kept[target]);
            match (kept.get(end), goes) {
                (Some(false), Some(true)) => left[at] = Some(Insn::ja(insn.off)),
                (_, Some(false)) => left[at] = Some(Insn::ja(0)),
                _ => {}
            }
        }
        at = end;
    }
    remove_nops(&mut left);
    left
}

/// What is reached, and all that it refers to or goes on to.
fn closed(insns: &[Insn], reached: &[bool]) -> Vec<bool> {
    let mut kept = reached.to_vec();
    let mut pending: Vec<usize> = Vec::new();
    let mut at = 0;
    while let Some(&insn) = insns.get(at) {
        if reached[at] {
            pending.push(at);
        }
        at += len(insn);
    }
    while let Some(at) = pending.pop() {
        let insn = insns[at];
        let next = Some(at + len(insn)).filter(|_| !is_exit(insn) && !is_unconditional_jump(insn));
        let target = jump_target(at, insn).or_else(|| function_target(at, insn));
        let target = target.and_then(|target| usize::try_from(target).ok());
        let is_decided = reached[at]
            && conditional_target(at, insn).is_some_and(|t| reached[t] || reached[at + 1]);
        if is_decided {
            continue;
        }
        for to in next.into_iter().chain(target) {
            if kept.get(to) == Some(&false) {
                kept[to] = true;
                pending.push(to);
            }
        }
    }
    kept
}

fn conditional_target(at: usize, insn: Insn) -> Option<usize> {
    let target = jump_target(at, insn).filter(|_| !is_unconditional_jump(insn))?;
    usize::try_from(target).ok()
}

/// Removes jumps to the next instruction. One that gets there only because such a jump is gone stays, as in the
/// kernel, unless that was a `may_goto`.
fn remove_nops(left: &mut [Option<Insn>]) {
    // How many instructions are left before each.
    let mut before = Vec::with_capacity(left.len() + 1);
    let mut count = 0_usize;
    for insn in left.iter() {
        before.push(count);
        count += usize::from(insn.is_some());
    }
    before.push(count);
    let may_goto = |insn: Insn| insn.code == class::JMP | jmp::JCOND;
    // Whether nothing is left between a jump and its target. Behind it nothing is left before `end`.
    let is_nop = |at: usize, insn: Insn, end: usize| {
        let near = insn.code == class::JMP | jmp::JA && insn.dst == Reg::R0;
        let target = jump_target(at, insn).and_then(|target| usize::try_from(target).ok());
        (near || may_goto(insn))
            && target
                .is_some_and(|to| to > at && (to <= end || before.get(to) == Some(&before[end])))
    };
    let mut last: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < left.len() {
        let Some(insn) = left[at] else {
            at += 1;
            continue;
        };
        let end = at + len(insn);
        if is_nop(at, insn, end) {
            left[at] = None;
            let mut removed = insn;
            while may_goto(removed)
                && let Some(&previous) = last.last()
                && let Some(insn) = left[previous]
                && is_nop(previous, insn, end)
            {
                left[previous] = None;
                last.pop();
                removed = insn;
            }
        } else {
            last.push(at);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::pseudo;

    use super::*;

    fn left(insns: &[Insn], unreached: &[usize]) -> Vec<usize> {
        let reached: Vec<bool> = (0..insns.len()).map(|at| !unreached.contains(&at)).collect();
        let left = remove(insns, &reached);
        (0..insns.len()).filter(|at| left[*at].is_some()).collect()
    }

    const NOP: Insn = Insn::mov64_imm(Reg::R0, 0);

    #[test]
    fn a_jump_that_goes_one_way_is_unconditional_or_gone() {
        let jump = Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 1);
        assert_eq!(left(&[jump, NOP, NOP, Insn::exit()], &[1]), [2, 3]);
        let insns = [Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 2), NOP, Insn::ja(1), NOP, Insn::exit()];
        assert_eq!(left(&insns, &[3]), [1, 4]);
        let back = [NOP, NOP, Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, -2), Insn::exit()];
        let reached = [true, true, true, false];
        assert_eq!(remove(&back, &reached)[2..], [Some(Insn::ja(-2)), None]);
    }

    #[test]
    fn a_jump_that_becomes_one_to_the_next_instruction_stays() {
        let insns = [Insn::ja(1), Insn::ja(0), NOP, Insn::exit()];
        assert_eq!(left(&insns, &[]), [0, 2, 3]);
        let may_goto = Insn::new(class::JMP | jmp::JCOND, Reg::R0, Reg::R0, 0, 0);
        assert_eq!(left(&[Insn::ja(1), may_goto, NOP, Insn::exit()], &[]), [2, 3]);
    }

    #[test]
    fn what_is_referred_to_or_fallen_into_is_not_removed() {
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 2);
        let insns = [call, NOP, Insn::exit(), NOP, Insn::exit()];
        assert_eq!(left(&insns, &[1, 2, 3, 4]), [0, 1, 2, 3, 4]);
        assert_eq!(left(&[NOP, Insn::exit(), NOP, Insn::exit()], &[2, 3]), [0, 1]);
    }
}
