//! Jumps.

use bpfarray_core::insn::{class, jmp};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, InstBuilder, Value, types};

use super::Translation;
use crate::interp::{Op, OpCode};
use crate::jit::analysis::Fact;

impl Translation<'_, '_> {
    pub(super) fn jump(&mut self, at: usize, op: Op, fact: &Fact) {
        match fact.decided {
            Some(true) => self.take(at, op, fact),
            Some(false) => self.go_to(fact.next),
            None => {
                let condition = match op.code {
                    OpCode::MayGoto => self.may_leave(),
                    _ => self.condition(at, op),
                };
                let is_back = op.target as usize <= at;
                let taken = match self.blocks.get(&fact.taken) {
                    Some(block) if !is_back => *block,
                    _ => self.builder.create_block(),
                };
                let next = self.blocks.get(&fact.next).copied();
                let next = next.unwrap_or_else(|| self.builder.create_block());
                self.builder.ins().brif(condition, taken, &[], next, &[]);
                self.fill(taken, |this| this.take(at, op, fact));
                self.fill(next, |this| this.go_to(fact.next));
            }
        }
    }

    /// Fills a block that is no instruction's.
    fn fill(&mut self, block: Block, with: impl FnOnce(&mut Self)) {
        if !self.blocks.values().any(|known| *known == block) {
            self.builder.switch_to_block(block);
            with(self);
        }
    }

    /// Goes where the jump goes. One backwards is charged with what it closes over.
    fn take(&mut self, at: usize, op: Op, fact: &Fact) {
        let target = op.target as usize;
        if target <= at {
            self.burn(at, (at - target) as u64 + 1);
        }
        self.go_to(fact.taken);
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
