//! Machine code of x86-64 that is made at once: a template for each instruction, registers in registers, one pass.
//!
//! It is what runs while nobody knows whether a program is worth Cranelift's time. Functions have the
//! [signature](super::isa::tail_signature) of Cranelift's, so that each calls the other. An access that the verifier has not proved
//! is made or checked by the machine itself, and every frame is in the run's stack, so nothing here decides what is allowed.

mod alu;
mod asm;
mod call;
mod memory;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bpfarray_core::insn::{Insn, class, jmp};

use self::asm::{
    Arith, Asm, Cond, Jump, Operand, R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI,
    RDX, RSI, Reg, Width, opcode,
};
use super::analysis::Shape;
use super::loops::charge;
use super::trampoline::{self, Reason};
use super::{ALIGN, Accesses};
use crate::helper::HelperSet;
use crate::interp::{FRAME_SIZE, MAX_LOOPS, Op, OpCode, Stack, place};

/// Where registers of BPF are: r0 to r10, and the one that translation works with. So arguments of helpers are moved by one place only,
/// and r6 to r10 are those that functions in Rust leave alone. r9 and r11 are each template's own.
const REGS: [Reg; 12] = [RAX, RDI, RSI, RDX, RCX, R8, RBX, R13, R14, R15, R12, R10];
/// Of these, what a function in Rust may change.
const CALLER_SAVED: [Reg; 7] = [RAX, RDI, RSI, RDX, RCX, R8, R10];
/// The register of BPF's frame pointer.
const FRAME_POINTER: Reg = R12;

/// What functions leave as they found it besides rbp. It is kept below rbp, in this order.
const CALLEE_SAVED: [Reg; 5] = [RBX, R12, R13, R14, R15];
/// Below that: the machine, how often `may_goto` stays in its loop, and two places of the templates. The second one has the running
/// program while a function is called.
const MACHINE: Operand = Operand::Mem(RBP, -48);
const LOOPS: Operand = Operand::Mem(RBP, -56);
const SCRATCH: Operand = Operand::Mem(RBP, -64);
const SPARE: Operand = Operand::Mem(RBP, -72);
/// Bytes below [`CALLEE_SAVED`]; with them, a multiple of 16.
const HOST_FRAME: i32 = 40;
/// Where nothing is.
const NOWHERE: usize = usize::MAX;

/// About how many instructions a program has executed in code that was made at once, whoever ran it.
#[derive(Debug)]
pub(super) struct Heat {
    spent: Box<Spent>,
    enough: u64,
    is_claimed: AtomicBool,
}

/// A number that many write to, away from what they read.
#[derive(Default, Debug)]
#[repr(align(64))]
struct Spent(AtomicU64);

impl Heat {
    /// So many instructions are executed for each that the program has before better code is made: Cranelift takes some thousand
    /// times as long for an instruction as the instruction takes.
    const FOR_EACH: u64 = 4096;

    fn new(insns: usize) -> Self {
        let enough = insns as u64 * Self::FOR_EACH;
        Self { spent: Box::default(), enough, is_claimed: AtomicBool::new(false) }
    }

    fn addr(&self) -> u64 {
        self.spent.0.as_ptr().expose_provenance() as u64
    }

    /// Whether better code is worth its while, and nobody makes it yet.
    pub(super) fn is_enough(&self) -> bool {
        self.spent.0.load(Ordering::Relaxed) >= self.enough
            && !self.is_claimed.load(Ordering::Relaxed)
    }

    /// Whether the caller shall make it: one is told so, and others need not wait.
    pub(super) fn claim(&self) -> bool {
        !self.is_claimed.swap(true, Ordering::Relaxed)
    }
}

/// The code of all functions of a program, at no address yet.
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    /// Where functions begin, by their first instruction.
    pub(super) functions: BTreeMap<usize, usize>,
    pub(super) accesses: Accesses,
    pub(super) heat: Heat,
}

/// Compiles the functions that begin with these instructions, and those that they call. `None` where that can't be
/// done: for another processor, a register that BPF doesn't have, or a program too long.
pub(super) fn compile(
    insns: &[Insn],
    ops: &[Op],
    entries: &[usize],
    helpers: &HelperSet,
    proven: &dyn Fn(usize) -> bool,
) -> Option<Made> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let heat = Heat::new(insns.len());
    let mut quick = Quick {
        insns,
        ops,
        helpers,
        proven,
        heat: heat.addr(),
        shape: Shape::new(ops, !entries.is_empty()),
        asm: Asm::default(),
        shared: Shared::default(),
        seen: vec![false; ops.len()],
        places: vec![NOWHERE; ops.len()],
        accesses: Accesses::default(),
        calls: Vec::new(),
        entry: 0,
        jumps: Vec::new(),
        empty: Vec::new(),
    };
    quick.shared_code()?;
    let mut functions = BTreeMap::new();
    let mut wanted = entries.to_vec();
    wanted.push(0);
    while let Some(entry) = wanted.pop() {
        if let Entry::Vacant(function) = functions.entry(entry) {
            quick.asm.align(ALIGN);
            function.insert(quick.asm.len());
            let before = quick.calls.len();
            quick.function(entry)?;
            wanted.extend(quick.calls[before..].iter().map(|(_, target)| *target));
        }
    }
    let Quick { mut asm, calls, accesses, .. } = quick;
    for (call, target) in calls {
        asm.land(call, *functions.get(&target)?)?;
    }
    Some(Made { bytes: asm.into_bytes(), functions, accesses, heat })
}

/// Where code is that all functions use.
#[derive(Default)]
struct Shared {
    /// Returns from the function after the machine was stopped.
    fail: usize,
    /// Returns from the function with what is in rax and rcx.
    leave: usize,
    /// Stops the machine, for the instruction in rsi and the reason in rdx.
    fault: usize,
    load: usize,
    store: usize,
    check: usize,
}

struct Quick<'a> {
    insns: &'a [Insn],
    ops: &'a [Op],
    helpers: &'a HelperSet,
    proven: &'a dyn Fn(usize) -> bool,
    /// Address of what [`Heat`] counts.
    heat: u64,
    shape: Shape,
    asm: Asm,
    shared: Shared,
    accesses: Accesses,
    /// Calls of functions, by their first instruction.
    calls: Vec<(Jump, usize)>,
    /// First instruction of the function that is being compiled.
    entry: usize,
    /// Where its instructions are, if they are there yet; of others, [`NOWHERE`].
    places: Vec<usize>,
    /// Whether a path to an instruction is known. Nothing, between two functions.
    seen: Vec<bool>,
    /// Its jumps to instructions.
    jumps: Vec<(Jump, usize)>,
    /// Where it jumps when there is no fuel for an instruction.
    empty: Vec<(Jump, usize)>,
}

impl Quick<'_> {
    fn shared_code(&mut self) -> Option<()> {
        self.shared.fault = self.asm.len();
        self.asm.mov(Width::B64, RDI, MACHINE);
        self.call_rust(trampoline::fault as *const () as usize);
        self.shared.fail = self.asm.len();
        self.asm.zero(RAX);
        self.asm.mov_imm(RCX, 1);
        self.shared.leave = self.asm.len();
        self.leave_frame();
        self.asm.ret();
        self.shared.load = self.slow_access(trampoline::load as *const () as usize, false)?;
        self.shared.store = self.slow_access(trampoline::store as *const () as usize, false)?;
        self.shared.check = self.slow_access(trampoline::check as *const () as usize, true)?;
        Some(())
    }

    fn function(&mut self, entry: usize) -> Option<()> {
        let reached = self.reached(entry);
        self.entry = entry;
        self.enter_frame(&reached)?;
        if reached.first() != Some(&entry) {
            self.jump_to(entry);
        }
        let mut at = reached.iter().copied().peekable();
        while let Some(insn) = at.next() {
            self.places[insn] = self.asm.len();
            let next = self.insn(insn)?;
            if let Some(next) = next.filter(|next| at.peek() != Some(next)) {
                self.jump_to(next);
            }
        }
        for (jump, target) in std::mem::take(&mut self.jumps) {
            let place = self.places.get(target).copied().filter(|place| *place != NOWHERE);
            self.asm.land(jump, place?)?;
        }
        for (jump, at) in std::mem::take(&mut self.empty) {
            self.asm.land_here(jump)?;
            self.fault(at, Reason::OutOfFuel, 0)?;
        }
        reached.into_iter().for_each(|at| self.places[at] = NOWHERE);
        Some(())
    }

    /// Instructions to which there is a path from the function's first one, ascending.
    fn reached(&mut self, entry: usize) -> Vec<usize> {
        let (mut reached, mut pending) = (Vec::new(), vec![entry]);
        while let Some(at) = pending.pop() {
            let Some(op) = self.ops.get(at) else { continue };
            if std::mem::replace(&mut self.seen[at], true) {
                continue;
            }
            reached.push(at);
            if op.is_jump() {
                pending.push(op.target as usize);
            }
            match op.code {
                OpCode::Ja | OpCode::Exit | OpCode::Illegal | OpCode::End => {}
                OpCode::LdImm64 => pending.push(at + 2),
                _ => pending.push(at + 1),
            }
        }
        reached.iter().for_each(|at| self.seen[*at] = false);
        reached.sort_unstable();
        reached
    }

    /// Emits an instruction. Gives the one that may follow it.
    fn insn(&mut self, at: usize) -> Option<Option<usize>> {
        let op = *self.ops.get(at)?;
        if op.is_jump() {
            return self.jump(at, op);
        }
        match op.code {
            OpCode::LdImm64 => {
                self.asm.mov_imm(reg(op.dst().index())?, op.imm);
                return Some(Some(at + 2));
            }
            OpCode::MovPercpu => {
                let (dst, src) = (reg(op.dst().index())?, reg(op.src().index())?);
                self.asm.mov(Width::B64, R9, MACHINE);
                self.asm.mov(Width::B64, R9, Operand::Mem(R9, place::PERCPU_BASE as i32));
                self.asm.arith(Width::B64, Arith::Add, R9.into(), src);
                self.asm.mov(Width::B64, dst, R9);
            }
            OpCode::CallHelper => match self.helpers.get(op.imm as u32) {
                Some(helper) => self.call_helper(at, helper)?,
                None => {
                    self.fault(at, Reason::UnknownHelper, op.imm as u32)?;
                    return Some(None);
                }
            },
            OpCode::CallFunction => self.call_function(at, op.target as usize)?,
            OpCode::TailCall => self.tail_call(at)?,
            OpCode::Exit => {
                self.burn_function(at);
                self.asm.zero(RCX);
                let leave = self.asm.jump();
                self.asm.land(leave, self.shared.leave)?;
                return Some(None);
            }
            OpCode::Illegal => {
                self.fault(at, Reason::Illegal, op.imm as u32)?;
                return Some(None);
            }
            OpCode::End => {
                self.fault(at, Reason::PastEnd, 0)?;
                return Some(None);
            }
            _ => {
                let insn = *self.insns.get(at)?;
                match insn.class() {
                    class::ALU | class::ALU64 => self.alu(insn, op)?,
                    _ => self.memory(at, insn, op)?,
                }
            }
        }
        Some(Some(at + 1))
    }

    fn jump_to(&mut self, target: usize) {
        let jump = self.asm.jump();
        self.jumps.push((jump, target));
    }

    fn jump(&mut self, at: usize, op: Op) -> Option<Option<usize>> {
        let (cost, target) = (charge(at, op), op.target as usize);
        let condition = match op.code {
            OpCode::Ja => {
                self.burn(at, cost);
                // A jump to the next instruction is none.
                return Some(Some(target));
            }
            OpCode::MayGoto => {
                self.asm.arith_imm(Width::B64, Arith::Sub, LOOPS, 1);
                Cond::BELOW
            }
            _ => self.compare(at, op)?,
        };
        if cost == 0 && op.code != OpCode::MayGoto {
            let jump = self.asm.jump_if(condition);
            self.jumps.push((jump, target));
        } else {
            let stay = self.asm.jump_if(condition.opposite());
            if op.code == OpCode::MayGoto {
                self.asm.store_imm(Width::B64, LOOPS, 0);
            }
            self.burn(at, cost);
            self.jump_to(target);
            self.asm.land_here(stay)?;
        }
        Some(Some(at + 1))
    }

    /// Compares what a conditional jump does. Gives the condition under which it jumps.
    fn compare(&mut self, at: usize, op: Op) -> Option<Cond> {
        let insn = self.insns.get(at)?;
        let width = if insn.class() == class::JMP { Width::B64 } else { Width::B32 };
        let (dst, number) = (reg(op.dst().index())?, op.imm as i32);
        let source = if insn.is_reg_src() { Some(reg(op.src().index())?) } else { None };
        match (insn.op() == jmp::JSET, source) {
            (true, Some(src)) => self.asm.op(width, opcode::TEST, src, dst),
            (true, None) => self.asm.test_imm(width, dst, number),
            (false, Some(src)) => self.asm.arith(width, Arith::Cmp, dst.into(), src),
            (false, None) => self.asm.arith_imm(width, Arith::Cmp, dst.into(), number),
        }
        Some(match insn.op() {
            jmp::JEQ => Cond::EQUAL,
            jmp::JNE | jmp::JSET => Cond::NOT_EQUAL,
            jmp::JGT => Cond::ABOVE,
            jmp::JGE => Cond::ABOVE_OR_EQUAL,
            jmp::JLT => Cond::BELOW,
            jmp::JLE => Cond::BELOW_OR_EQUAL,
            jmp::JSGT => Cond::GREATER,
            jmp::JSGE => Cond::GREATER_OR_EQUAL,
            jmp::JSLT => Cond::LESS,
            jmp::JSLE => Cond::LESS_OR_EQUAL,
            _ => return None,
        })
    }

    /// Takes an amount from the fuel, as an instruction does.
    fn burn(&mut self, at: usize, amount: u64) {
        if amount == 0 {
            return;
        }
        // No more than the instructions of a program.
        let amount = amount as i32;
        let fuel = |machine| Operand::Mem(machine, place::FUEL as i32);
        self.asm.mov(Width::B64, R9, MACHINE);
        self.asm.mov(Width::B64, R11, fuel(R9));
        self.asm.arith_imm(Width::B64, Arith::Sub, R11.into(), amount);
        let empty = self.asm.jump_if(Cond::BELOW);
        self.empty.push((empty, at));
        self.asm.store(Width::B64, fuel(R9), R11);
        self.asm.mov_imm(R9, self.heat);
        self.asm.arith_imm(Width::B64, Arith::Add, Operand::Mem(R9, 0), amount);
    }

    /// Takes what the function's own instructions up to this one cost.
    fn burn_function(&mut self, at: usize) {
        self.burn(at, at.saturating_sub(self.entry) as u64 + 1);
    }

    /// Stops the machine and returns.
    fn fault(&mut self, at: usize, reason: Reason, detail: u32) -> Option<()> {
        self.asm.mov_imm(RSI, at as u64);
        self.asm.mov_imm(RDX, reason as u64 | u64::from(detail) << 8);
        let jump = self.asm.jump();
        self.asm.land(jump, self.shared.fault)
    }

    /// Returns if a function in Rust, whose answer's second half is in `status`, has stopped the machine.
    fn unless_stopped(&mut self, status: Reg) -> Option<()> {
        self.asm.op(Width::B64, opcode::TEST, status, status);
        let fail = self.asm.jump_if(Cond::NOT_EQUAL);
        self.asm.land(fail, self.shared.fail)
    }

    /// Calls a function in Rust, at an address that is a constant of this process. The stack must be aligned.
    fn call_rust(&mut self, function: usize) {
        self.asm.mov_imm(RAX, function as u64);
        self.asm.call_reg(RAX);
    }
}

/// The register that a register of BPF is in, if there is such a one.
fn reg(index: usize) -> Option<Reg> {
    REGS.get(index).copied()
}
