//! Which numbers matter to whether a program is safe. Paths that differ in others alone are the same, so that
//! a loop which counts something comes to an end soon.
//!
//! The kernel finds out looking back from where a number has mattered; here it is looked up beforehand. A number matters that
//! moves or is an address, decides a jump, is an argument that a helper's prototype asks something of, is a result
//! that somebody judges, or goes to the stack, from where it may come back.

use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, mode, pseudo};

use super::Environment;
use super::live::{Regs, after, bit, effect};
use super::proto::{Arg, proto};
use super::structure::{function_target, is_exit, len, successors};
use crate::prog_type::AttachType;

const ARGS: Regs = 0b11_1110;
const CALLER_SAVED: Regs = 0b11_1111;

/// The registers of which the number matters, on entry to each instruction.
///
/// # Kernel
/// `mark_chain_precision`
pub(super) fn registers(insns: &[Insn], env: &Environment<'_>) -> Vec<Regs> {
    let on_stack = stack_pointers(insns);
    let main_end =
        insns.iter().enumerate().filter_map(|(at, insn)| function_target(at, *insn)).min();
    let is_judged = |at: usize| {
        env.attach_type == AttachType::TRACE_ITER || main_end.is_some_and(|end| at as i64 >= end)
    };
    let mut relevant = vec![0; insns.len()];
    loop {
        let mut changed = false;
        for at in (0..insns.len()).rev() {
            let insn = insns[at];
            let later = after(&relevant, at, insn);
            let before = match insn.class() {
                class::ALU | class::ALU64 => alu_operands(insn, later),
                class::LDX => later & !bit(insn.dst) | bit(insn.src),
                class::ST => later | bit(insn.dst),
                class::STX => store_operands(insn, later, on_stack[at]),
                _ if is_exit(insn) => {
                    if is_judged(at) {
                        bit(Reg::R0)
                    } else {
                        0
                    }
                }
                _ if insn.is_helper_call() => later & !CALLER_SAVED | arguments(insn.imm as u32),
                _ => {
                    let (read, written) = effect(insn);
                    later & !written | read
                }
            };
            changed |= before != relevant[at];
            relevant[at] = before;
        }
        if !changed {
            return relevant;
        }
    }
}

fn alu_operands(insn: Insn, later: Regs) -> Regs {
    let operand = if insn.is_reg_src() && insn.op() != alu::END { bit(insn.src) } else { 0 };
    match insn.op() {
        _ if later & bit(insn.dst) == 0 => later,
        alu::MOV => later & !bit(insn.dst) | operand,
        _ => later | operand,
    }
}

fn store_operands(insn: Insn, later: Regs, on_stack: Regs) -> Regs {
    let is_load = insn.mode() == mode::ATOMIC && insn.imm == atomic::LOAD_ACQ;
    if is_load {
        return later & !bit(insn.dst) | bit(insn.src);
    }
    let stored = if on_stack & bit(insn.dst) != 0 { bit(insn.src) | bit(Reg::R0) } else { 0 };
    later | bit(insn.dst) | stored
}

/// The arguments of which a helper's prototype asks something.
fn arguments(helper: u32) -> Regs {
    let Some(proto) = proto(helper) else { return ARGS };
    let matters = proto.args.iter().enumerate().filter(|(_, arg)| **arg != Arg::Anything);
    // What goes around a loop is more than anything.
    let flags = if helper == bpfarray_core::helper_id::LOOP { ARGS } else { 0 };
    matters.fold(flags, |set, (place, _)| set | 2 << place)
}

/// The registers that may hold an address on the stack, on entry to each instruction: all of which a path can know it.
fn stack_pointers(insns: &[Insn]) -> Vec<Regs> {
    let mut may = vec![0; insns.len()];
    let mut spilled = false;
    if let Some(first) = may.first_mut() {
        *first = bit(Reg::R10);
    }
    loop {
        let mut changed = false;
        let mut at = 0;
        while let Some(&insn) = insns.get(at) {
            let before = may[at];
            let (_, written) = effect(insn);
            let has = |reg| before & bit(reg) != 0;
            let is_call = insn.is_helper_call() || insn.is_pseudo_call();
            let (result, may_be) = match insn.class() {
                _ if is_call => (bit(Reg::R0), before & ARGS != 0),
                class::ALU64 if insn.op() == alu::MOV => {
                    (written, insn.is_reg_src() && has(insn.src))
                }
                class::ALU64 => (written, has(insn.dst) || insn.is_reg_src() && has(insn.src)),
                class::LDX => (written, spilled),
                class::STX if insn.mode() == mode::ATOMIC => (written, spilled),
                _ => (written, false),
            };
            let mut enter = |target: usize, regs: Regs| {
                if let Some(known) = may.get_mut(target) {
                    changed |= regs & !*known != 0;
                    *known |= regs;
                }
            };
            let next = before & !written | if may_be { result } else { 0 };
            successors(at, insn).for_each(|target| enter(target, next));
            if let Some(function) =
                function_target(at, insn).and_then(|at| usize::try_from(at).ok())
            {
                let is_address =
                    insn.src.index() == usize::from(pseudo::FUNC) && insn.is_ld_imm64();
                let args = if is_address { ARGS } else { before & ARGS };
                enter(function, args | bit(Reg::R10));
            }
            if insn.class() == class::STX && has(insn.src) && !spilled {
                (spilled, changed) = (true, true);
            }
            at += len(insn);
        }
        if !changed {
            return may;
        }
    }
}
