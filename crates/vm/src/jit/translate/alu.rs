//! Arithmetic.

use bpfarray_core::insn::{Insn, X, alu, class};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};

use super::Translation;
use crate::interp::Op;

impl Translation<'_, '_> {
    pub(super) fn alu(&mut self, insn: Insn, op: Op) {
        let (dst, src) = (op.dst().index(), op.src().index());
        let wide = insn.class() == class::ALU64;
        let width = if wide { types::I64 } else { types::I32 };
        let is_reg = insn.code & X != 0;
        // What is overwritten unread stays unread: it would be carried around loops.
        let result = match insn.op() {
            alu::END => {
                let left = self.get(dst);
                self.byte_order(insn, left)
            }
            alu::NEG => {
                let left = self.get(dst);
                let left = self.low(left, width);
                self.builder.ins().ineg(left)
            }
            alu::MOV if insn.off != 0 => {
                let from = Type::int(insn.off as u16).unwrap_or(types::I64);
                let right = self.get(src);
                let low = self.low(right, from);
                if from == width { low } else { self.builder.ins().sextend(width, low) }
            }
            alu::MOV => {
                let right = if is_reg { self.get(src) } else { self.int(op.imm) };
                self.low(right, width)
            }
            op_code => {
                let right = if is_reg { self.get(src) } else { self.int(op.imm) };
                let right = self.low(right, width);
                let left = self.get(dst);
                let left = self.low(left, width);
                let constant =
                    (!is_reg).then_some(if wide { op.imm } else { op.imm as u32 as u64 });
                self.binary(op_code, insn.off, left, right, constant)
            }
        };
        let result = self.widen(result);
        self.set(dst, result);
    }

    /// The low bits of a number.
    pub(super) fn low(&mut self, value: Value, to: Type) -> Value {
        let is_so = self.builder.func.dfg.value_type(value) == to;
        if is_so { value } else { self.builder.ins().ireduce(to, value) }
    }

    /// A number with zeroes above it.
    pub(super) fn widen(&mut self, value: Value) -> Value {
        if self.builder.func.dfg.value_type(value) == types::I64 {
            value
        } else {
            self.builder.ins().uextend(types::I64, value)
        }
    }

    fn binary(
        &mut self,
        op: u8,
        off: i16,
        left: Value,
        right: Value,
        constant: Option<u64>,
    ) -> Value {
        match op {
            alu::ADD => self.builder.ins().iadd(left, right),
            alu::SUB => self.builder.ins().isub(left, right),
            alu::MUL => self.builder.ins().imul(left, right),
            alu::OR => self.builder.ins().bor(left, right),
            alu::AND => self.builder.ins().band(left, right),
            alu::XOR => self.builder.ins().bxor(left, right),
            alu::LSH => self.builder.ins().ishl(left, right),
            alu::RSH => self.builder.ins().ushr(left, right),
            alu::ARSH => self.builder.ins().sshr(left, right),
            alu::DIV if off == 0 => self.unsigned(left, right, constant, false),
            alu::MOD if off == 0 => self.unsigned(left, right, constant, true),
            alu::DIV => self.signed(left, right, false),
            _ => self.signed(left, right, true),
        }
    }

    fn number(&mut self, like: Value, number: i64) -> Value {
        let width = self.builder.func.dfg.value_type(like);
        let bits = if width == types::I32 { number & 0xffff_ffff } else { number };
        self.builder.ins().iconst(width, bits)
    }

    /// Dividing by zero gives zero, and leaves the dividend.
    fn unsigned(
        &mut self,
        left: Value,
        right: Value,
        constant: Option<u64>,
        remainder: bool,
    ) -> Value {
        if constant.is_some_and(|constant| constant != 0) {
            return match remainder {
                true => self.builder.ins().urem(left, right),
                false => self.builder.ins().udiv(left, right),
            };
        }
        let (zero, one) = (self.number(left, 0), self.number(left, 1));
        let by_zero = self.builder.ins().icmp(IntCC::Equal, right, zero);
        let divisor = self.builder.ins().select(by_zero, one, right);
        let (result, otherwise) = match remainder {
            true => (self.builder.ins().urem(left, divisor), left),
            false => (self.builder.ins().udiv(left, divisor), zero),
        };
        self.builder.ins().select(by_zero, otherwise, result)
    }

    /// Dividing by -1 negates, also where the result has no place in the register.
    fn signed(&mut self, left: Value, right: Value, remainder: bool) -> Value {
        let (zero, one) = (self.number(left, 0), self.number(left, 1));
        let minus_one = self.number(left, -1);
        let by_zero = self.builder.ins().icmp(IntCC::Equal, right, zero);
        let by_minus_one = self.builder.ins().icmp(IntCC::Equal, right, minus_one);
        let special = self.builder.ins().bor(by_zero, by_minus_one);
        let divisor = self.builder.ins().select(special, one, right);
        let ((result, by_one), otherwise) = match remainder {
            true => ((self.builder.ins().srem(left, divisor), zero), left),
            false => {
                let negated = self.builder.ins().ineg(left);
                ((self.builder.ins().sdiv(left, divisor), negated), zero)
            }
        };
        let result = self.builder.ins().select(by_minus_one, by_one, result);
        self.builder.ins().select(by_zero, otherwise, result)
    }

    fn byte_order(&mut self, insn: Insn, value: Value) -> Value {
        let width = Type::int(insn.imm as u16).unwrap_or(types::I64);
        let to_big = insn.code & X != 0;
        let swap = insn.class() == class::ALU64 || to_big == cfg!(target_endian = "little");
        let low = self.low(value, width);
        if swap { self.builder.ins().bswap(low) } else { low }
    }
}
