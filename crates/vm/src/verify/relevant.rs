//! What a path still needs of the numbers it has, and of the function's frame. Paths that differ in other things alone are the
//! same, so that a loop which counts something comes to an end soon.
//!
//! The kernel finds out looking back from where a number has mattered; here it is looked up beforehand. A number matters that
//! moves or is an address, decides a jump, is an argument that a helper's prototype asks something of, is a result
//! that somebody judges, or goes to a place on the stack from where one that matters is loaded.

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, mode, pseudo};

use super::Environment;
use super::live::{Regs, bit, effect};
use super::proto::{Arg, Ret, proto};
use super::structure::{function_target, is_exit, len, successors};
use crate::prog_type::return_range;

const ARGS: Regs = 0b11_1110;
const CALLER_SAVED: Regs = 0b11_1111;

/// What is needed on entry to an instruction.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Needs {
    /// Registers of which the number matters.
    pub(super) regs: Regs,
    /// Eight bytes each of the function's frame, the topmost in the lowest bit, that may be read before they are overwritten.
    pub(super) slots: u64,
    /// Those from which a number that matters may be read.
    pub(super) numbers: u64,
}

impl Needs {
    fn or(self, other: Self) -> Self {
        Self {
            regs: self.regs | other.regs,
            slots: self.slots | other.slots,
            numbers: self.numbers | other.numbers,
        }
    }

    fn reading(self, slots: u64, is_number_needed: bool) -> Self {
        let numbers = if is_number_needed { slots } else { 0 };
        self.or(Self { slots, numbers, ..Self::default() })
    }
}

/// The slots of a frame that `size` bytes from `at` on are in, counted from its top; all of them, if that is outside.
pub(super) fn slots(at: i64, size: i64) -> u64 {
    let (first, last) = (at, at + size - 1);
    if first < -512 || last >= 0 {
        return u64::MAX;
    }
    let bit = |at: i64| ((-at - 1) / 8) as u32;
    (bit(last)..=bit(first)).fold(0, |slots, bit| slots | 1 << bit)
}

/// What is needed on entry to each instruction.
///
/// # Kernel
/// `mark_chain_precision`, `bpf_stack_liveness_init`
pub(super) fn needs(insns: &[Insn], env: &Environment<'_>) -> Vec<Needs> {
    let pointers = pointers(insns);
    let main_end =
        insns.iter().enumerate().filter_map(|(at, insn)| function_target(at, *insn)).min();
    let is_judged = |at: usize| {
        return_range(env.prog_type, env.attach_type).is_some()
            || main_end.is_some_and(|end| at as i64 >= end)
    };
    let mut needs = vec![Needs::default(); insns.len()];
    loop {
        let mut changed = false;
        for at in (0..insns.len()).rev() {
            let insn = insns[at];
            let later = successors(at, insn)
                .filter_map(|at| needs.get(at).copied())
                .fold(Needs::default(), Needs::or);
            let before = match insn.class() {
                class::ALU | class::ALU64 => {
                    let regs = alu_operands(insn, later.regs, pointers[at].any);
                    Needs { regs, ..later }
                }
                class::LDX | class::ST | class::STX => memory(insn, later, pointers[at].stack),
                _ if is_exit(insn) => {
                    let regs = if is_judged(at) { bit(Reg::R0) } else { 0 };
                    Needs { regs, ..Needs::default() }
                }
                _ if insn.is_helper_call() || insn.is_pseudo_call() => {
                    let args = match insn.is_helper_call() {
                        true => arguments(insn.imm as u32),
                        false => ARGS,
                    };
                    let regs = later.regs & !CALLER_SAVED | args;
                    // Who is told of a place in the frame may read all of it.
                    let reached = if pointers[at].stack & ARGS == 0 { 0 } else { u64::MAX };
                    Needs { regs, ..later }.reading(reached, true)
                }
                _ => {
                    let (read, written) = effect(insn);
                    Needs { regs: later.regs & !written | read, ..later }
                }
            };
            changed |= before != needs[at];
            needs[at] = before;
        }
        if !changed {
            return needs;
        }
    }
}

/// `pointers` has the registers that may be addresses.
fn alu_operands(insn: Insn, later: Regs, pointers: Regs) -> Regs {
    let dst = bit(insn.dst);
    let operand = if insn.is_reg_src() && insn.op() != alu::END { bit(insn.src) } else { 0 };
    // How far an address is moved is judged at once.
    let moves = insn.class() == class::ALU64 && matches!(insn.op(), alu::ADD | alu::SUB);
    match insn.op() {
        _ if moves && operand != 0 && pointers & (dst | operand) != 0 => later | dst | operand,
        _ if later & dst == 0 => later,
        alu::MOV => later & !dst | operand,
        _ => later | operand,
    }
}

/// A load, a store or an atomic operation. `on_stack` has the registers that may lead to the stack.
fn memory(insn: Insn, later: Needs, on_stack: Regs) -> Needs {
    let is_atomic = insn.class() == class::STX && insn.mode() == mode::ATOMIC;
    let is_load = insn.class() == class::LDX || is_atomic && insn.imm == atomic::LOAD_ACQ;
    let base = if is_load { insn.src } else { insn.dst };
    let size = i64::from(insn.size_bytes());
    let reached = match base {
        Reg::R10 => slots(insn.off.into(), size),
        base if on_stack & bit(base) != 0 => u64::MAX,
        _ => 0,
    };
    if is_load {
        let regs = later.regs & !bit(insn.dst) | bit(base);
        return Needs { regs, ..later }.reading(reached, later.regs & bit(insn.dst) != 0);
    }
    let stored = match insn.class() {
        // Another register may lead to a caller's frame.
        _ if base == Reg::R10 && reached & later.numbers == 0 && !is_atomic => 0,
        class::STX if reached != 0 => bit(insn.src) | bit(Reg::R0),
        _ => 0,
    };
    let needs = Needs { regs: later.regs | bit(base) | stored, ..later };
    match base {
        _ if is_atomic => needs.reading(reached, true),
        // All of one slot.
        Reg::R10 if size == 8 && insn.off % 8 == 0 && reached != u64::MAX => {
            Needs { slots: needs.slots & !reached, numbers: needs.numbers & !reached, ..needs }
        }
        _ => needs,
    }
}

/// The arguments of which a helper's prototype asks something.
fn arguments(helper: u32) -> Regs {
    let Some(proto) = proto(helper) else { return ARGS };
    let matters = proto.args.iter().enumerate().filter(|(_, arg)| **arg != Arg::Anything);
    // What goes around a loop is more than anything.
    let flags = if helper == helper_id::LOOP { ARGS } else { 0 };
    matters.fold(flags, |set, (place, _)| set | 2 << place)
}

/// Registers that may hold an address, or places on the stack of which nobody knows which.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
struct Pointers {
    /// On the stack: all of which a path can know it.
    stack: Regs,
    /// Of the context.
    ctx: Regs,
    /// Anywhere: those that programs are likely to move.
    any: Regs,
}

impl Pointers {
    fn or(self, other: Self) -> Self {
        let (stack, ctx) = (self.stack | other.stack, self.ctx | other.ctx);
        Self { stack, ctx, any: self.any | other.any }
    }

    fn and(self, regs: Regs) -> Self {
        Self { stack: self.stack & regs, ctx: self.ctx & regs, any: self.any & regs }
    }

    /// What `to` may hold when it is made from these registers.
    fn moved(self, from: Regs, to: Regs) -> Self {
        let to = |regs: Regs| if regs & from == 0 { 0 } else { to };
        Self { stack: to(self.stack), ctx: to(self.ctx), any: to(self.any) }
    }
}

/// All places on the stack, where [`Pointers`] are in them.
const SPILLED: Regs = 1;

/// The registers that may hold addresses, on entry to each instruction.
fn pointers(insns: &[Insn]) -> Vec<Pointers> {
    let frame = Pointers { stack: bit(Reg::R10), any: bit(Reg::R10), ctx: 0 };
    let ctx = bit(Reg::R1);
    let mut may = vec![Pointers::default(); insns.len()];
    let mut spilled = Pointers::default();
    if let Some(first) = may.first_mut() {
        *first = frame.or(Pointers { ctx, any: ctx, stack: 0 });
    }
    loop {
        let mut changed = false;
        let mut at = 0;
        while let Some(&insn) = insns.get(at) {
            let before = may[at];
            let (_, written) = effect(insn);
            let src = bit(insn.src);
            let address = |reg: Reg| Pointers { any: bit(reg), ..Pointers::default() };
            let result = match insn.class() {
                _ if insn.is_helper_call() || insn.is_pseudo_call() => {
                    let args = before.moved(ARGS, bit(Reg::R0));
                    let is_element = insn.is_helper_call() && gives_address(insn.imm as u32);
                    let found = if is_element { bit(Reg::R0) } else { 0 };
                    Pointers { any: found, ctx: 0, ..args }
                }
                class::ALU64 => before.moved(operands(insn), written),
                class::LDX if before.stack & src != 0 => spilled.moved(SPILLED, written),
                class::LDX if before.ctx & src != 0 && insn.size_bytes() >= 4 => address(insn.dst),
                // From where a stack may be that nobody knows of.
                class::LDX => {
                    Pointers { stack: spilled.moved(SPILLED, written).stack, ..Pointers::default() }
                }
                class::STX if insn.mode() == mode::ATOMIC => spilled.moved(SPILLED, written),
                _ if insn.is_ld_imm64() && insn.src != Reg::R0 => address(insn.dst),
                _ => Pointers::default(),
            };
            let mut enter = |target: usize, regs: Pointers| {
                if let Some(known) = may.get_mut(target) {
                    let joined = known.or(regs);
                    changed |= joined != *known;
                    *known = joined;
                }
            };
            let next = before.and(!written).or(result);
            successors(at, insn).for_each(|target| enter(target, next));
            if let Some(function) =
                function_target(at, insn).and_then(|at| usize::try_from(at).ok())
            {
                let is_address =
                    insn.src.index() == usize::from(pseudo::FUNC) && insn.is_ld_imm64();
                let args = match is_address {
                    true => Pointers { stack: ARGS, any: ARGS, ctx: 0 },
                    false => before.and(ARGS),
                };
                enter(function, args.or(frame));
            }
            if insn.class() == class::STX {
                let joined = spilled.or(before.moved(src, SPILLED));
                changed |= joined != spilled;
                spilled = joined;
            }
            at += len(insn);
        }
        if !changed {
            return may;
        }
    }
}

/// The registers that an arithmetic instruction makes its result from.
fn operands(insn: Insn) -> Regs {
    let operand = if insn.is_reg_src() { bit(insn.src) } else { 0 };
    if insn.op() == alu::MOV { operand } else { operand | bit(insn.dst) }
}

/// Whether a helper gives an address that the verifier follows.
fn gives_address(helper: u32) -> bool {
    proto(helper).is_some_and(|proto| matches!(proto.ret, Ret::ElementOrNull | Ret::ObjectOrNull))
}
