//! Jumps.

use bpfarray_core::insn::{class, jmp};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::Translation;
use crate::interp::{Op, OpCode};
use crate::jit::analysis::Fact;
use crate::jit::loops::charge;

impl Translation<'_, '_> {
    pub(super) fn jump(&mut self, at: usize, op: Op, fact: &Fact) {
        let back = charge(at, op);
        let condition = match fact.decided {
            Some(true) => return self.leave(at, back, fact.taken),
            Some(false) => return self.leave(at, 0, fact.next),
            None if op.code == OpCode::MayGoto => self.may_leave(),
            None => self.condition(at, op),
        };
        let ways = [(back, fact.taken), (0, fact.next)];
        let direct = ways.map(|(amount, to)| {
            let block = self.destination(to);
            block.filter(|_| self.is_free(amount, to))
        });
        let blocks = direct.map(|block| block.unwrap_or_else(|| self.builder.create_block()));
        self.builder.ins().brif(condition, blocks[0], &[], blocks[1], &[]);
        for ((amount, to), (block, direct)) in ways.into_iter().zip(blocks.into_iter().zip(direct))
        {
            if direct.is_none() {
                self.builder.switch_to_block(block);
                self.leave(at, amount, to);
            }
        }
    }

    /// Goes to another block, which is charged.
    pub(super) fn leave(&mut self, at: usize, amount: u64, to: usize) {
        self.charge(at, amount, to);
        self.go_to(to);
    }

    /// Whether `may_goto` leaves its loop.
    fn may_leave(&mut self) -> Value {
        let left = self.builder.use_var(self.loops);
        let none = self.builder.ins().icmp_imm_u(IntCC::Equal, left, 0);
        let one_less = self.builder.ins().iadd_imm_s(left, -1);
        let zero = self.int(0);
        let left = self.builder.ins().select(none, zero, one_less);
        self.builder.def_var(self.loops, left);
        none
    }

    fn condition(&mut self, at: usize, op: Op) -> Value {
        let Some(insn) = self.subject.insns.get(at) else { return self.int(0) };
        let width = if insn.class() == class::JMP { types::I64 } else { types::I32 };
        let left = self.get(op.dst().index());
        let right = if insn.is_reg_src() { self.get(op.src().index()) } else { self.int(op.imm) };
        let (left, right) = (self.low(left, width), self.low(right, width));
        let condition = match insn.op() {
            jmp::JEQ => IntCC::Equal,
            jmp::JNE => IntCC::NotEqual,
            jmp::JGT => IntCC::UnsignedGreaterThan,
            jmp::JGE => IntCC::UnsignedGreaterThanOrEqual,
            jmp::JLT => IntCC::UnsignedLessThan,
            jmp::JLE => IntCC::UnsignedLessThanOrEqual,
            jmp::JSGT => IntCC::SignedGreaterThan,
            jmp::JSGE => IntCC::SignedGreaterThanOrEqual,
            jmp::JSLT => IntCC::SignedLessThan,
            jmp::JSLE => IntCC::SignedLessThanOrEqual,
            // What is left is JSET.
            _ => {
                let common = self.builder.ins().band(left, right);
                return self.builder.ins().icmp_imm_u(IntCC::NotEqual, common, 0);
            }
        };
        self.builder.ins().icmp(condition, left, right)
    }
}
