//! Frames, and calls: of helpers, of functions, and into other programs.

use super::asm::{
    Arith, Cond, Operand, R8, R9, R10, R11, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP,
    Width, opcode,
};
use super::{
    CALLEE_SAVED, CALLER_SAVED, FRAME_POINTER, FRAME_SIZE, HOST_FRAME, LOOPS, MACHINE, MAX_LOOPS,
    Quick, Reason, SPARE, Stack, place, trampoline,
};
use crate::helper::Helper;

/// Where r1 to r5 are in calls of Rust's convention, behind the machine.
const ARGS: [super::Reg; 5] = [RSI, RDX, RCX, R8, R9];

impl Quick<'_> {
    /// Makes a frame of zeroes for the function of these instructions, and puts the registers where they belong.
    pub(super) fn enter_frame(&mut self, insns: &[usize]) -> Option<()> {
        let asm = &mut self.asm;
        asm.push(RBP);
        asm.mov(Width::B64, RBP, RSP);
        CALLEE_SAVED.into_iter().for_each(|reg| asm.push(reg));
        asm.arith_imm(Width::B64, Arith::Sub, RSP.into(), HOST_FRAME);
        asm.store(Width::B64, MACHINE, RDI);
        asm.store_imm(Width::B64, LOOPS, MAX_LOOPS as i32);
        if !self.shape.begins_runs(self.entry) {
            let kept = [RBX, R13, R14, R15, FRAME_POINTER];
            ARGS.into_iter().zip(kept).for_each(|(arg, kept)| asm.mov(Width::B64, kept, arg));
            self.call_rust(trampoline::clean as *const () as usize);
            let asm = &mut self.asm;
            ARGS.into_iter().zip(kept).for_each(|(arg, kept)| asm.mov(Width::B64, arg, kept));
        }
        let asm = &mut self.asm;
        for (to, from) in [RDI, RSI, RDX, RCX, R8].into_iter().zip(ARGS) {
            asm.mov(Width::B64, to, from);
        }
        [RAX, R10].into_iter().for_each(|reg| asm.zero(reg));
        CALLEE_SAVED.into_iter().for_each(|reg| asm.zero(reg));
        self.frame_pointer();
        let is_frame = |index| super::reg(index) == Some(FRAME_POINTER);
        let reaches_frame = |at: &usize| {
            let op = self.ops.get(*at);
            op.is_some_and(|op| is_frame(op.dst().index()) || is_frame(op.src().index()))
        };
        if insns.iter().any(reaches_frame) {
            // All of it may be other than zero when the function returns. r9 is the stack, r11 where the frame begins.
            let dirty = Operand::Mem(R9, Stack::DIRTY as i32);
            self.asm.arith(Width::B64, Arith::Cmp, dirty, R11);
            let already = self.asm.jump_if(Cond::BELOW_OR_EQUAL);
            self.asm.store(Width::B64, dirty, R11);
            self.asm.land_here(already)?;
        }
        Some(())
    }

    /// Takes the frame on the host's stack down to the address to return to.
    pub(super) fn leave_frame(&mut self) {
        for (at, reg) in (1..).zip(CALLEE_SAVED) {
            self.asm.mov(Width::B64, reg, Operand::Mem(RBP, -8 * at));
        }
        self.asm.leave();
    }

    /// Puts the top of the running frame where it belongs. Leaves the address of the stack in r9, and where in it the frame begins in r11.
    fn frame_pointer(&mut self) {
        let asm = &mut self.asm;
        asm.mov(Width::B64, R9, MACHINE);
        asm.mov(Width::B64, R9, Operand::Mem(R9, place::STACK as i32));
        asm.mov(Width::B64, R11, Operand::Mem(R9, Stack::LOW as i32));
        asm.mov(Width::B64, FRAME_POINTER, Operand::Mem(R9, Stack::BASE as i32));
        asm.arith(Width::B64, Arith::Add, FRAME_POINTER.into(), R11);
        asm.arith_imm(Width::B64, Arith::Add, FRAME_POINTER.into(), FRAME_SIZE as i32);
    }

    /// Moves r1 to r5 behind the machine, as functions in Rust take them.
    fn rust_args(&mut self) {
        self.asm.mov(Width::B64, R9, R8);
        self.asm.mov(Width::B64, R8, RCX);
        self.asm.mov(Width::B64, RCX, RDX);
        self.asm.mov(Width::B64, RDX, RSI);
        self.asm.mov(Width::B64, RSI, RDI);
        self.asm.mov(Width::B64, RDI, MACHINE);
    }

    pub(super) fn call_helper(&mut self, at: usize, helper: &Helper) -> Option<()> {
        let helper = std::ptr::from_ref(helper).expose_provenance();
        // With two arguments that have no register, the stack stays aligned.
        let kept = &CALLER_SAVED[1..];
        kept.iter().for_each(|reg| self.asm.push(*reg));
        self.rust_args();
        self.asm.push_imm(at as i32);
        self.asm.mov_imm(RAX, helper as u64);
        self.asm.push(RAX);
        self.call_rust(trampoline::helper as *const () as usize);
        self.unless_stopped(RDX)?;
        self.asm.arith_imm(Width::B64, Arith::Add, RSP.into(), 16);
        kept.iter().rev().for_each(|reg| self.asm.pop(*reg));
        Some(())
    }

    pub(super) fn call_function(&mut self, at: usize, target: usize) -> Option<()> {
        let low = Operand::Mem(R11, Stack::LOW as i32);
        let running = Operand::Mem(R9, place::RUNNING as i32);
        self.asm.mov(Width::B64, R9, MACHINE);
        self.asm.mov(Width::B64, R11, Operand::Mem(R9, place::STACK as i32));
        self.asm.arith_imm(Width::B64, Arith::Cmp, low, 0);
        let go_on = self.asm.jump_if(Cond::NOT_EQUAL);
        self.fault(at, Reason::CallDepth, 0)?;
        self.asm.land_here(go_on)?;
        self.asm.arith_imm(Width::B64, Arith::Sub, low, FRAME_SIZE as i32);
        if self.shape.has_tail_calls {
            self.asm.mov(Width::B64, R9, running);
            self.asm.store(Width::B64, SPARE, R9);
        }
        self.rust_args();
        let call = self.asm.call();
        self.calls.push((call, target));
        self.unless_stopped(RCX)?;
        self.asm.mov(Width::B64, R9, MACHINE);
        self.asm.mov(Width::B64, R11, Operand::Mem(R9, place::STACK as i32));
        self.asm.arith_imm(Width::B64, Arith::Add, low, FRAME_SIZE as i32);
        if self.shape.has_tail_calls {
            self.resume(running)?;
        }
        // What the callee left in other registers is nobody's business.
        CALLER_SAVED[1..].iter().for_each(|reg| self.asm.zero(*reg));
        self.frame_pointer();
        Some(())
    }

    /// Makes this program the running one if a callee has left another. The machine's address, which the caller has just loaded, is in
    /// r9; r0 stays.
    fn resume(&mut self, running: Operand) -> Option<()> {
        self.asm.mov(Width::B64, RSI, SPARE);
        self.asm.arith(Width::B64, Arith::Cmp, running, RSI);
        let same = self.asm.jump_if(Cond::EQUAL);
        self.asm.mov(Width::B64, RDI, R9);
        // Twice, for the stack to stay aligned.
        self.asm.push(RAX);
        self.asm.push(RAX);
        self.call_rust(trampoline::resume as *const () as usize);
        self.asm.pop(RAX);
        self.asm.pop(RAX);
        self.asm.land_here(same)
    }

    pub(super) fn tail_call(&mut self, at: usize) -> Option<()> {
        self.burn_function(at);
        CALLER_SAVED.into_iter().for_each(|reg| self.asm.push(reg));
        // Once more, for the stack to stay aligned: r1, where a program that is gone to finds its context.
        self.asm.push(RDI);
        self.rust_args();
        self.asm.mov_imm(R8, at as u64);
        self.asm.mov_imm(R9, u64::MAX);
        self.call_rust(trampoline::tail_call as *const () as usize);
        self.unless_stopped(RDX)?;
        self.asm.op(Width::B64, opcode::TEST, RAX, RAX);
        let nowhere = self.asm.jump_if(Cond::EQUAL);
        self.asm.mov(Width::B64, RDI, MACHINE);
        self.asm.pop(RSI);
        [RDX, RCX, R8, R9].into_iter().for_each(|reg| self.asm.zero(reg));
        self.leave_frame();
        self.asm.jump_reg(RAX);
        self.asm.land_here(nowhere)?;
        self.asm.pop(R10);
        CALLER_SAVED.into_iter().rev().for_each(|reg| self.asm.pop(reg));
        Some(())
    }
}
