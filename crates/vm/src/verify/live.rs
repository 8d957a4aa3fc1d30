//! Which registers are read again. What a path holds in others tells it from no other path.

use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode};

use super::structure::{function_target, is_exit, is_unconditional_jump, successors};

/// A set of registers, r0 in the lowest bit.
pub(super) type Regs = u16;

const ARGS: Regs = 0b11_1110;
const CALLER_SAVED: Regs = 0b11_1111;

pub(super) const fn bit(reg: Reg) -> Regs {
    1 << reg.index()
}

/// The registers that are read, and those that are overwritten.
pub(super) fn effect(insn: Insn) -> (Regs, Regs) {
    let (dst, src) = (bit(insn.dst), bit(insn.src));
    let operand = if insn.is_reg_src() { src } else { 0 };
    match insn.class() {
        class::ALU | class::ALU64 => match insn.op() {
            alu::MOV => (operand, dst),
            alu::NEG | alu::END => (dst, dst),
            _ => (dst | operand, dst),
        },
        class::LDX => (src, dst),
        class::ST => (dst, 0),
        class::STX if insn.mode() == mode::ATOMIC => match insn.imm {
            atomic::LOAD_ACQ => (src, dst),
            atomic::CMPXCHG => (dst | src | bit(Reg::R0), bit(Reg::R0)),
            op if op & atomic::FETCH != 0 && op != atomic::STORE_REL => (dst | src, src),
            _ => (dst | src, 0),
        },
        class::STX => (dst | src, 0),
        class::LD if insn.is_ld_imm64() => (0, dst),
        // Loads of packet bytes find the context in r6.
        class::LD => (bit(Reg::new(6)) | src, CALLER_SAVED),
        _ if is_exit(insn) => (bit(Reg::R0), 0),
        _ if insn.op() == jmp::CALL => (ARGS, CALLER_SAVED),
        _ if is_unconditional_jump(insn) || insn.op() == jmp::JCOND => (0, 0),
        _ => (dst | operand, 0),
    }
}

/// The union of what is known of the instructions that may come next.
fn after(sets: &[Regs], at: usize, insn: Insn) -> Regs {
    successors(at, insn).fold(0, |set, at| set | sets.get(at).copied().unwrap_or(0))
}

/// The registers that some path reads, before it overwrites them, from each instruction on.
///
/// # Kernel
/// `compute_live_registers`
pub(super) fn registers(insns: &[Insn]) -> Vec<Regs> {
    let mut live = vec![0; insns.len()];
    loop {
        let mut changed = false;
        for at in (0..insns.len()).rev() {
            let insn = insns[at];
            let (read, written) = effect(insn);
            let before = read | (after(&live, at, insn) & !written);
            changed |= before != live[at];
            live[at] = before;
        }
        if !changed {
            return live;
        }
    }
}

/// The instructions that no path through the program can reach, whatever its numbers are.
pub(super) fn unreachable(insns: &[Insn]) -> Option<usize> {
    let mut seen = vec![false; insns.len()];
    let mut pending = vec![0];
    while let Some(at) = pending.pop() {
        let Some(&insn) = insns.get(at) else { continue };
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        if insn.is_ld_imm64() {
            seen[at + 1] = true;
        }
        pending.extend(successors(at, insn));
        pending.extend(function_target(at, insn).and_then(|at| usize::try_from(at).ok()));
    }
    seen.iter().position(|seen| !seen)
}
