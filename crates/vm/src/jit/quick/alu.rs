//! Arithmetic.

use bpfarray_core::insn::{Insn, X, alu, class};

use super::asm::{Arith, Cond, R9, R11, RAX, RCX, RDX, Reg, Shift, Unary, Width, opcode};
use super::{Quick, SCRATCH, SPARE, reg};
use crate::interp::Op;

impl Quick<'_> {
    pub(super) fn alu(&mut self, insn: Insn, op: Op) -> Option<()> {
        let dst = reg(op.dst().index())?;
        let width = if insn.class() == class::ALU64 { Width::B64 } else { Width::B32 };
        let source = if insn.code & X != 0 { Some(reg(op.src().index())?) } else { None };
        let number = op.imm as i32;
        match insn.op() {
            alu::END => self.byte_order(insn, dst),
            alu::NEG => self.asm.unary(width, Unary::Neg, dst),
            alu::MOV => match source {
                None if width == Width::B64 => self.asm.mov_imm(dst, op.imm),
                None => self.asm.mov_imm(dst, (op.imm as u32).into()),
                Some(src) => match insn.off {
                    8 => self.asm.op(width, opcode::MOVSX8, dst, src),
                    16 => self.asm.op(width, opcode::MOVSX16, dst, src),
                    32 => self.asm.op(width, opcode::MOVSX32, dst, src),
                    _ => self.asm.mov(width, dst, src),
                },
            },
            alu::ADD => self.arith(width, Arith::Add, dst, source, number),
            alu::SUB => self.arith(width, Arith::Sub, dst, source, number),
            alu::OR => self.arith(width, Arith::Or, dst, source, number),
            alu::AND => self.arith(width, Arith::And, dst, source, number),
            alu::XOR => self.arith(width, Arith::Xor, dst, source, number),
            alu::MUL => match source {
                Some(src) => self.asm.op(width, opcode::IMUL, dst, src),
                None => self.asm.imul_imm(width, dst, number),
            },
            alu::LSH => self.shift(width, Shift::Left, dst, source, number),
            alu::RSH => self.shift(width, Shift::Right, dst, source, number),
            alu::ARSH => self.shift(width, Shift::Arithmetic, dst, source, number),
            alu::DIV | alu::MOD => {
                match source {
                    Some(src) => self.asm.mov(width, R9, src),
                    None => self.asm.mov_imm(R9, op.imm),
                }
                self.divide(width, dst, insn.op() == alu::MOD, insn.off == 1)?;
            }
            _ => return None,
        }
        Some(())
    }

    fn arith(&mut self, width: Width, what: Arith, dst: Reg, source: Option<Reg>, number: i32) {
        match source {
            Some(src) => self.asm.arith(width, what, dst.into(), src),
            None => self.asm.arith_imm(width, what, dst.into(), number),
        }
    }

    fn shift(&mut self, width: Width, what: Shift, dst: Reg, source: Option<Reg>, number: i32) {
        let Some(src) = source else {
            let mask = if width == Width::B64 { 63 } else { 31 };
            return self.asm.shift_imm(width, what, dst, number as u8 & mask);
        };
        self.asm.mov(Width::B64, R9, dst);
        self.asm.mov(Width::B64, R11, RCX);
        self.asm.mov(Width::B64, RCX, src);
        self.asm.shift_cl(width, what, R9);
        self.asm.mov(Width::B64, RCX, R11);
        self.asm.mov(Width::B64, dst, R9);
    }

    /// Divides by what is in r9: by zero, the quotient is 0 and everything remains. The processor takes no such divisor, nor -1 for
    /// the smallest number.
    fn divide(&mut self, width: Width, dst: Reg, remainder: bool, signed: bool) -> Option<()> {
        self.asm.store(Width::B64, SCRATCH, RAX);
        self.asm.store(Width::B64, SPARE, RDX);
        self.asm.mov(width, RAX, dst);
        let mut done = Vec::new();
        self.asm.op(width, opcode::TEST, R9, R9);
        let divisible = self.asm.jump_if(Cond::NOT_EQUAL);
        match remainder {
            true => self.asm.mov(width, R11, RAX),
            false => self.asm.zero(R11),
        }
        done.push(self.asm.jump());
        self.asm.land_here(divisible)?;
        if signed {
            self.asm.arith_imm(width, Arith::Cmp, R9.into(), -1);
            let other = self.asm.jump_if(Cond::NOT_EQUAL);
            match remainder {
                true => self.asm.zero(R11),
                false => {
                    self.asm.mov(width, R11, RAX);
                    self.asm.unary(width, Unary::Neg, R11);
                }
            }
            done.push(self.asm.jump());
            self.asm.land_here(other)?;
            self.asm.sign_of_rax(width);
            self.asm.unary(width, Unary::Idiv, R9);
        } else {
            self.asm.zero(RDX);
            self.asm.unary(width, Unary::Div, R9);
        }
        self.asm.mov(width, R11, if remainder { RDX } else { RAX });
        for jump in done {
            self.asm.land_here(jump)?;
        }
        self.asm.mov(Width::B64, RAX, SCRATCH);
        self.asm.mov(Width::B64, RDX, SPARE);
        self.asm.mov(Width::B64, dst, R11);
        Some(())
    }

    fn byte_order(&mut self, insn: Insn, dst: Reg) {
        let swap = insn.class() == class::ALU64 || insn.code & X != 0;
        match (insn.imm, swap) {
            (16, true) => {
                self.asm.swap16(dst);
                self.asm.op(Width::B32, opcode::MOVZX16, dst, dst);
            }
            (16, false) => self.asm.op(Width::B32, opcode::MOVZX16, dst, dst),
            (32, true) => self.asm.bswap(Width::B32, dst),
            (32, false) => self.asm.mov(Width::B32, dst, dst),
            (_, true) => self.asm.bswap(Width::B64, dst),
            (_, false) => {}
        }
    }
}
