//! Copies of loops.
//!
//! A loop that is unrolled is entered by a gate. With fuel for all its copies, that is paid, and the way is through them, one after
//! the other, and back to the gate; else it is once around the loop as it stands in the function.

use std::collections::BTreeSet;

use cranelift_codegen::ir::{Block, InstBuilder, Value, types};

use super::{FIELD, Translation, ule};
use crate::jit::loops;

impl Translation<'_, '_> {
    pub(super) fn make_blocks(&mut self) {
        for &leader in &self.analysis.leaders {
            let block = self.builder.create_block();
            self.blocks.insert((0, leader), block);
        }
        for (header, unrolled) in &self.unrolled {
            self.gates.insert(*header, self.builder.create_block());
            for copy in 1..=unrolled.copies {
                for leader in unrolled.blocks() {
                    let block = self.builder.create_block();
                    self.blocks.insert((copy, leader), block);
                    if unrolled.is_aside(leader) {
                        self.builder.set_cold_block(block);
                    }
                }
            }
            for leader in unrolled.blocks() {
                if let Some(seldom) = self.blocks.get(&(0, leader)) {
                    self.builder.set_cold_block(*seldom);
                }
            }
        }
    }

    pub(super) fn write_gates(&mut self) {
        for (header, gate) in self.gates.clone() {
            let Some(cost) = self.unrolled.get(&header).map(|unrolled| unrolled.cost(header))
            else {
                continue;
            };
            let (Some(first), Some(plain)) =
                (self.blocks.get(&(1, header)).copied(), self.blocks.get(&(0, header)).copied())
            else {
                continue;
            };
            self.builder.switch_to_block(gate);
            let (fuel, cost) = (self.builder.use_var(self.fuel), self.int(cost));
            let (enough, pay) = (ule(&mut self.builder, cost, fuel), self.builder.create_block());
            self.builder.ins().brif(enough, pay, &[], plain, &[]);
            self.builder.switch_to_block(pay);
            let left = self.builder.ins().isub(fuel, cost);
            self.builder.def_var(self.fuel, left);
            self.builder.ins().jump(first, &[]);
        }
    }

    /// Loads the large numbers that instructions in unrolled loops give. Cranelift would make such a constant anew wherever it is used;
    /// of a number from memory it knows nothing, and keeps it in a register.
    pub(super) fn load_literals(&mut self) {
        let leaders = self.unrolled.values().flat_map(|unrolled| unrolled.blocks());
        let insns = leaders.flat_map(|leader| loops::insns(self.subject, self.analysis, leader));
        let results = insns.filter_map(|at| self.analysis.fact(at)?.result);
        let large: BTreeSet<_> = results.filter(|number| *number > u32::MAX.into()).collect();
        self.literals = large.into_iter().collect();
        for literal in &self.literals {
            let addr = std::ptr::from_ref(literal).expose_provenance();
            let addr = self.builder.ins().iconst(types::I64, addr as i64);
            self.loaded.push(self.builder.ins().load(types::I64, FIELD, addr, 0));
        }
    }

    /// A number that an instruction gives.
    pub(super) fn result(&mut self, number: u64) -> Value {
        let at = self.copy.and_then(|_| self.literals.binary_search(&number).ok());
        let loaded = at.and_then(|at| self.loaded.get(at).copied());
        loaded.unwrap_or_else(|| self.int(number))
    }

    /// Takes from the fuel what the way is charged with, from the block that is being translated to another one.
    pub(super) fn charge(&mut self, at: usize, amount: u64, to: usize) {
        let (back, amount) = self.settle(amount, to);
        if back > 0 {
            // This turns off the dearest way around, or leaves the loop.
            let seldom = self.builder.current_block();
            seldom.into_iter().for_each(|block| self.builder.set_cold_block(block));
            let fuel = self.builder.use_var(self.fuel);
            let left = self.builder.ins().iadd_imm_s(fuel, back as i64);
            self.builder.def_var(self.fuel, left);
        }
        if amount > 0 {
            self.burn(at, amount);
        }
    }

    /// Whether nothing is to be done for [`Translation::charge`].
    pub(super) fn is_free(&self, amount: u64, to: usize) -> bool {
        self.settle(amount, to) == (0, 0)
    }

    /// What comes back on the way, if it was paid in advance, and what is to be paid.
    fn settle(&self, amount: u64, to: usize) -> (u64, u64) {
        let in_copy = self.copy.and_then(|copy| Some((copy, self.unrolled.get(&copy.1)?)));
        in_copy
            .map_or((0, amount), |(copy, unrolled)| unrolled.settle(copy, self.leader, to, amount))
    }

    /// Says that a block is translated next.
    pub(super) fn begin(&mut self, copy: usize, at: usize) {
        let mut loops = self.unrolled.iter().filter(|_| copy > 0);
        let header = loops.find_map(|(header, of)| of.contains(at).then_some(*header));
        self.copy = header.map(|header| (copy, header));
        self.leader = at;
    }

    /// The block that begins with an instruction, as seen from the copy that is being translated.
    pub(super) fn destination(&self, at: usize) -> Option<Block> {
        let inside = self.copy.and_then(|(copy, header)| {
            let unrolled = self.unrolled.get(&header)?;
            match at == header {
                true if copy == unrolled.copies => None,
                true => Some((copy + 1, at)),
                false => unrolled.contains(at).then_some((copy, at)),
            }
        });
        match inside {
            Some(place) => self.blocks.get(&place),
            None => self.gates.get(&at).or_else(|| self.blocks.get(&(0, at))),
        }
        .copied()
    }
}
