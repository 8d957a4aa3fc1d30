//! Where the upper half of r0 is cleared by an instruction of its own.
//!
//! A 32-bit `cmpxchg` clears it in every engine of ours. Linux, whose processors may not, adds a move where somebody reads all of
//! r0 afterwards; it is here for programs to look the same.

use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode, size};

use crate::verify::{is_exit, jump_target, len, successors};

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
    // Whether some path reads all of r0, before it writes any of it, from each instruction on.
    let mut is_read = vec![false; insns.len()];
    loop {
        let mut changed = false;
        for at in (0..insns.len()).rev().filter(|at| reached[*at]) {
            let insn = insns[at];
            let later = || successors(at, insn).any(|next| is_read.get(next) == Some(&true));
            let before = reads(insn) || !writes(insn) && later();
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
        _ if is_exit(insn) => true,
        _ => insn.op() != jmp::CALL && jump_target(0, insn).is_some() && (dst || operand),
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
        // A 64-bit one compares all of it.
        let wide =
            Insn::new(class::STX | mode::ATOMIC | size::DW, Reg::R10, Reg::R1, -8, atomic::CMPXCHG);
        assert_eq!(cleared(size::W, &[wide, Insn::mov64_imm(Reg::R0, 0), exit]), [0]);
    }
}
