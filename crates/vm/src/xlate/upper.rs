//! Where the upper half of r0 is cleared by an instruction of its own.
//!
//! A 32-bit `cmpxchg` clears it in every engine of ours. Linux, whose processors may not, adds a move where somebody reads all of
//! r0 afterwards; it is here for programs to look the same.

use std::collections::BTreeSet;

use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode, size};

use crate::verify::{function_target, is_exit, len, successors};

/// The move, which the kernel marks by its immediate.
///
/// # Kernel
/// `BPF_ZEXT_REG`
pub(super) const CLEAR: Insn = Insn { imm: 1, ..Insn::alu32_reg(alu::MOV, Reg::R0, Reg::R0) };

/// The instructions behind which it belongs.
///
/// # Kernel
/// `mark_insn_zext`, `opt_subreg_zext_lo32_rnd_hi32`
pub(super) fn cleared_after(insns: &[Insn], reached: &[bool]) -> Vec<usize> {
    let leaves_half = |at: usize| {
        let insn = insns[at];
        let is_atomic = insn.class() == class::STX && insn.mode() == mode::ATOMIC;
        reached[at] && is_atomic && insn.size() == size::W && insn.imm == atomic::CMPXCHG
    };
    let found: Vec<usize> = (0..insns.len()).filter(|at| leaves_half(*at)).collect();
    if found.is_empty() {
        return found;
    }
    // Somebody reads what a function returns, if its caller does. Those that helpers call are read by none.
    let target = |at: usize| usize::try_from(function_target(at, insns[at])?).ok();
    let targets: BTreeSet<usize> = (0..insns.len()).filter_map(target).collect();
    let function_of = |at: usize| targets.range(..=at).next_back().copied().unwrap_or(0);
    let is_call = |at: &usize| insns[*at].is_pseudo_call();
    let calls: Vec<_> =
        (0..insns.len()).filter(is_call).filter_map(|at| Some((at, target(at)?))).collect();
    // Whether some path reads all of r0, before it writes any of it, from each instruction on.
    let mut is_read = vec![false; insns.len()];
    loop {
        let mut changed = false;
        for at in (0..insns.len()).rev().filter(|at| reached[*at]) {
            let insn = insns[at];
            let is_read_at = |next: usize| is_read.get(next) == Some(&true);
            let before = match is_exit(insn) {
                true => match function_of(at) {
                    0 => true,
                    function => calls
                        .iter()
                        .any(|(site, target)| *target == function && is_read_at(*site + 1)),
                },
                false => reads(insn) || !writes(insn) && successors(at, insn).any(is_read_at),
            };
            changed |= before != is_read[at];
            is_read[at] = before;
        }
        if !changed {
            break;
        }
    }
    let is_read_behind = |at: &usize| is_read.get(at + len(insns[*at])) == Some(&true);
    found.into_iter().filter(is_read_behind).collect()
}

/// Whether an instruction reads all of r0.
///
/// # Kernel
/// `is_reg64`
fn reads(insn: Insn) -> bool {
    let (dst, src) = (insn.dst == Reg::R0, insn.src == Reg::R0);
    let operand = src && insn.is_reg_src();
    match insn.class() {
        class::ALU if insn.op() == alu::END => dst && insn.imm == 64,
        class::ALU | class::JMP32 => false,
        class::ALU64 if insn.op() == alu::MOV => operand,
        class::ALU64 => dst || operand,
        class::LDX => src,
        class::ST => dst,
        class::STX if insn.mode() == mode::ATOMIC && insn.imm == atomic::LOAD_ACQ => src,
        class::STX => {
            let compares = insn.mode() == mode::ATOMIC && insn.imm == atomic::CMPXCHG;
            dst || (src || compares) && insn.size() == size::DW
        }
        class::LD => src && insn.mode() == mode::IND,
        _ if matches!(insn.op(), jmp::CALL | jmp::JA | jmp::JCOND) => false,
        _ => dst || operand,
    }
}

/// Whether an instruction writes r0, or nobody knows what is in it afterwards.
fn writes(insn: Insn) -> bool {
    let (dst, src) = (insn.dst == Reg::R0, insn.src == Reg::R0);
    match insn.class() {
        class::ALU | class::ALU64 | class::LDX => dst,
        class::LD => !insn.is_ld_imm64() || dst,
        class::STX if insn.mode() == mode::ATOMIC => match insn.imm {
            atomic::CMPXCHG => true,
            atomic::LOAD_ACQ => dst,
            atomic::STORE_REL => false,
            op => op & atomic::FETCH != 0 && src,
        },
        class::JMP => insn.op() == jmp::CALL,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::pseudo;

    use super::*;

    /// Where moves are added behind `cmpxchg` of this size and what follows it.
    fn cleared(size: u8, rest: &[Insn]) -> Vec<usize> {
        let code = class::STX | mode::ATOMIC | size;
        let cmpxchg = Insn::new(code, Reg::R10, Reg::R1, -8, atomic::CMPXCHG);
        let insns = [&[cmpxchg], rest].concat();
        cleared_after(&insns, &vec![true; insns.len()])
    }

    #[test]
    fn all_of_r0_is_cleared_where_somebody_reads_it_before_it_is_written() {
        let exit = Insn::exit();
        assert_eq!(cleared(size::W, &[exit]), [0]);
        assert!(cleared(size::DW, &[exit]).is_empty());
        assert!(cleared(size::W, &[Insn::mov64_imm(Reg::R0, 0), exit]).is_empty());
        let half = Insn::alu32_reg(alu::MOV, Reg::R2, Reg::R0);
        assert!(cleared(size::W, &[half, Insn::mov64_imm(Reg::R0, 0), exit]).is_empty());
        let whole = Insn::mov64_reg(Reg::R2, Reg::R0);
        assert_eq!(cleared(size::W, &[whole, Insn::mov64_imm(Reg::R0, 0), exit]), [0]);
        // One way of two, and around a loop.
        let other = Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 1);
        assert_eq!(cleared(size::W, &[other, Insn::mov64_imm(Reg::R0, 0), exit]), [0]);
        let half_test = Insn::new(class::JMP32 | jmp::JNE, Reg::R0, Reg::R0, -2, 7);
        assert!(cleared(size::W, &[half_test, Insn::mov64_imm(Reg::R0, 0), exit]).is_empty());
        let nothing = [Insn::ja(0), Insn::new(class::JMP | jmp::JCOND, Reg::R0, Reg::R0, 0, 0)];
        let overwritten = [Insn::mov64_imm(Reg::R0, 0), exit];
        assert!(cleared(size::W, &[&nothing[..], &overwritten].concat()).is_empty());
        // A function's caller decides.
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 2);
        let code = class::STX | mode::ATOMIC | size::W;
        let cmpxchg = Insn::new(code, Reg::R10, Reg::R1, -8, atomic::CMPXCHG);
        for (first, expected) in [(Insn::mov64_imm(Reg::R0, 0), &[][..]), (Insn::ja(0), &[3])] {
            let insns = [call, first, exit, cmpxchg, exit];
            assert_eq!(cleared_after(&insns, &[true; 5]), expected);
        }
        // A 64-bit one compares all of it.
        let wide =
            Insn::new(class::STX | mode::ATOMIC | size::DW, Reg::R10, Reg::R1, -8, atomic::CMPXCHG);
        assert_eq!(cleared(size::W, &[wide, Insn::mov64_imm(Reg::R0, 0), exit]), [0]);
    }
}
