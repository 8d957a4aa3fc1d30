//! Loads, stores and atomic operations.

use bpfarray_core::insn::{Insn, atomic, class, mode};

use super::asm::{
    Arith, Cond, Operand, R8, R9, R11, RAX, RCX, RDI, RDX, RSI, Reg, Shift, Width, opcode,
};
use super::{CALLER_SAVED, MACHINE, Quick, SCRATCH, SPARE, reg};
use crate::interp::Op;
use crate::jit::trampoline::{READS, WRITES};

/// What the code that all accesses share takes in r11: the size and directions of an access in the low half-word, and the
/// instruction above it. The address is in r9, what is stored in the first of the templates' places.
const INSN_SHIFT: u8 = 16;

impl Quick<'_> {
    /// Emits a function that has an access made, or checked, by the machine. All registers but r11 stay, and r9, which has the answer or,
    /// of a check, what it had. Where the machine says no, it is 0 for a processor that goes on before it knows.
    pub(super) fn slow_access(&mut self, function: usize, is_check: bool) -> Option<usize> {
        let place = self.asm.len();
        CALLER_SAVED.into_iter().for_each(|reg| self.asm.push(reg));
        self.asm.mov(Width::B64, RDI, MACHINE);
        self.asm.mov(Width::B64, RSI, R9);
        self.asm.op(Width::B32, opcode::MOVZX16, RDX, R11);
        self.asm.shift_imm(Width::B64, Shift::Right, R11, INSN_SHIFT);
        self.asm.mov(Width::B64, RCX, R11);
        self.asm.mov(Width::B64, R8, SCRATCH);
        if is_check {
            self.asm.store(Width::B64, SPARE, R9);
        }
        self.call_rust(function);
        self.asm.mov(Width::B64, R9, if is_check { SPARE } else { RAX.into() });
        self.asm.mov(Width::B64, R11, RDX);
        CALLER_SAVED.into_iter().rev().for_each(|reg| self.asm.pop(reg));
        self.asm.op(Width::B64, opcode::TEST, R11, R11);
        self.asm.mov_imm(R11, 0);
        self.asm.op(Width::B64, opcode::CMOVNE, R9, R11);
        let fail = self.asm.jump_if(Cond::NOT_EQUAL);
        self.asm.land(fail, self.shared.fail)?;
        self.asm.ret();
        Some(place)
    }

    fn call_slow(&mut self, function: usize, at: usize, size: u64) -> Option<()> {
        self.asm.mov_imm(R11, (at as u64) << INSN_SHIFT | size);
        let call = self.asm.call();
        self.asm.land(call, function)
    }

    pub(super) fn memory(&mut self, at: usize, insn: Insn, op: Op) -> Option<()> {
        let (dst, src) = (reg(op.dst().index())?, reg(op.src().index())?);
        let width = Width::of(insn.size_bytes());
        let is_proven = (self.proven)(at);
        match is_proven {
            true => self.accesses.proven += 1,
            false => self.accesses.guarded += 1,
        }
        let size = insn.size_bytes().into();
        match insn.class() {
            class::LDX => {
                let from = Operand::Mem(src, op.off.into());
                let from = match is_proven {
                    true => from,
                    false => {
                        self.asm.op(Width::B64, opcode::LEA, R9, from);
                        self.call_slow(self.shared.load, at, size)?;
                        if insn.mode() != mode::MEMSX {
                            // A field of the context may be wider there than the load is.
                            self.asm.mov(Width::B64, dst, R9);
                            return Some(());
                        }
                        R9.into()
                    }
                };
                self.load(width, dst, from, insn.mode() == mode::MEMSX);
            }
            class::STX if insn.mode() == mode::ATOMIC => {
                return self.atomic(at, insn, op, width, is_proven);
            }
            _ => {
                let to = Operand::Mem(dst, op.off.into());
                let (to, slowly) = if is_proven { (to, false) } else { (SCRATCH, true) };
                let width = if slowly { Width::B64 } else { width };
                match insn.class() {
                    class::ST => self.asm.store_imm(width, to, op.imm as i32),
                    _ => self.asm.store(width, to, src),
                }
                if slowly {
                    self.asm.op(Width::B64, opcode::LEA, R9, Operand::Mem(dst, op.off.into()));
                    self.call_slow(self.shared.store, at, size)?;
                }
            }
        }
        Some(())
    }

    fn load(&mut self, width: Width, dst: Reg, from: Operand, signed: bool) {
        match (width, signed) {
            (Width::B8, false) => self.asm.op(Width::B32, opcode::MOVZX8, dst, from),
            (Width::B16, false) => self.asm.op(Width::B32, opcode::MOVZX16, dst, from),
            (Width::B8, true) => self.asm.op(Width::B64, opcode::MOVSX8, dst, from),
            (Width::B16, true) => self.asm.op(Width::B64, opcode::MOVSX16, dst, from),
            (Width::B32, true) => self.asm.op(Width::B64, opcode::MOVSX32, dst, from),
            (Width::B32 | Width::B64, _) => self.asm.mov(width, dst, from),
        }
    }

    fn atomic(
        &mut self,
        at: usize,
        insn: Insn,
        op: Op,
        width: Width,
        is_proven: bool,
    ) -> Option<()> {
        let (dst, src) = (reg(op.dst().index())?, reg(op.src().index())?);
        let kind = insn.imm;
        let (base, directions) = match kind {
            atomic::LOAD_ACQ => (src, READS),
            atomic::STORE_REL => (dst, WRITES),
            _ => (dst, READS | WRITES),
        };
        let from = Operand::Mem(base, op.off.into());
        self.asm.op(Width::B64, opcode::LEA, R9, from);
        let size = insn.size_bytes();
        let aligned = is_proven.then(|| {
            self.asm.test_imm(Width::B32, R9, size as i32 - 1);
            self.asm.jump_if(Cond::EQUAL)
        });
        self.call_slow(self.shared.check, at, u64::from(size) | directions)?;
        if let Some(aligned) = aligned {
            self.asm.land_here(aligned)?;
        }
        let place = Operand::Mem(R9, 0);
        match kind {
            // On this processor every load acquires, and every store releases.
            atomic::LOAD_ACQ => self.load(width, dst, place, false),
            atomic::STORE_REL => self.asm.store(width, place, src),
            atomic::XCHG => {
                self.asm.mov(width, R11, src);
                self.asm.op(width, opcode::XCHG, R11, place);
                self.asm.mov(width, src, R11);
            }
            atomic::CMPXCHG => {
                self.asm.lock();
                self.asm.op(width, opcode::CMPXCHG, src, place);
                // Where the numbers are equal the processor writes no register.
                self.asm.mov(width, RAX, RAX);
            }
            _ => {
                let what = match kind & !atomic::FETCH {
                    atomic::ADD => Arith::Add,
                    atomic::OR => Arith::Or,
                    atomic::AND => Arith::And,
                    atomic::XOR => Arith::Xor,
                    _ => return None,
                };
                match (kind & atomic::FETCH != 0, what) {
                    (false, _) => {
                        self.asm.lock();
                        self.asm.arith(width, what, place, src);
                    }
                    (true, Arith::Add) => {
                        self.asm.mov(width, R11, src);
                        self.asm.lock();
                        self.asm.op(width, opcode::XADD, R11, place);
                        self.asm.mov(width, src, R11);
                    }
                    (true, _) => self.fetch(width, what, src)?,
                }
            }
        }
        Some(())
    }

    /// Changes what is at the address in r9 as soon as nobody else does, and gives what was there.
    fn fetch(&mut self, width: Width, what: Arith, src: Reg) -> Option<()> {
        let place = Operand::Mem(R9, 0);
        self.asm.store(Width::B64, SCRATCH, src);
        self.asm.store(Width::B64, SPARE, RAX);
        self.asm.mov(width, RAX, place);
        let again = self.asm.len();
        self.asm.mov(width, R11, SCRATCH);
        self.asm.arith(width, what, R11.into(), RAX);
        self.asm.lock();
        self.asm.op(width, opcode::CMPXCHG, R11, place);
        let retry = self.asm.jump_if(Cond::NOT_EQUAL);
        self.asm.land(retry, again)?;
        self.asm.mov(width, R11, RAX);
        self.asm.mov(Width::B64, RAX, SPARE);
        self.asm.mov(Width::B64, src, R11);
        Some(())
    }
}
