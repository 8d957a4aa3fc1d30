//! Stack frames.
//!
//! Where nobody but the function's own loads and stores reaches its frame, a place that they all access
//! in the same way is a variable, and what else they access is a slot of the host's stack. Otherwise the frame is in
//! the memory of the run's stack, where helpers and other functions find it.

use std::collections::BTreeMap;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    InstBuilder, StackSlot, StackSlotData, StackSlotKind, Type, Value, types,
};
use cranelift_frontend::{FunctionBuilder, Variable};

use super::{FIELD, R10, SHARED, Translation};
use crate::interp::{FRAME_SIZE, Stack};
use crate::jit::analysis::{Analysis, Escape};
use crate::jit::trampoline;

/// Bytes that are cleared at once.
const UNIT: i64 = 16;

/// Where a frame is.
pub(super) enum Frame {
    /// Places by their offset from r10.
    Private(BTreeMap<i16, Place>),
    /// In the stack of the run. This many bytes below r10 may be other than zero when the function returns.
    Memory { used: i64 },
}

/// Where a place in a private frame is.
#[derive(Copy, Clone)]
pub(super) enum Place {
    Variable(Variable, Type),
    /// At an offset in a slot.
    Slot(StackSlot, i32),
}

impl Frame {
    pub(super) fn new(analysis: &Analysis, builder: &mut FunctionBuilder<'_>) -> Self {
        if !analysis.private {
            let used = match analysis.escape {
                Escape::Yes => FRAME_SIZE as i64,
                _ => (-analysis.lowest).clamp(0, FRAME_SIZE as i64) as u64 as i64,
            };
            return Self::Memory { used: (used + UNIT - 1) / UNIT * UNIT };
        }
        let mut places = BTreeMap::new();
        let mut accesses = analysis.slots.iter().copied().peekable();
        while let Some(first) = accesses.next() {
            let mut group = vec![first];
            let mut end = first.0 + i16::from(first.1);
            while let Some(next) = accesses.next_if(|next| next.0 < end) {
                end = end.max(next.0 + i16::from(next.1));
                group.push(next);
            }
            let (start, size, is_atomic) = first;
            match int(size) {
                Some(width) if group.len() == 1 && !is_atomic => {
                    places.insert(start, Place::Variable(builder.declare_var(width), width));
                }
                _ => {
                    let len = u32::from((end - start).unsigned_abs());
                    let data = StackSlotData::new(StackSlotKind::ExplicitSlot, len, 4);
                    let slot = builder.create_sized_stack_slot(data);
                    // Alignment in the slot is that in the frame: the slot begins at a multiple of 16.
                    for (at, ..) in group {
                        places.insert(at, Place::Slot(slot, (at - start).into()));
                    }
                }
            }
        }
        Self::Private(places)
    }
}

pub(super) fn int(size: u8) -> Option<Type> {
    Type::int(8 * u16::from(size))
}

impl Translation<'_, '_> {
    /// Makes a frame of zeroes.
    pub(super) fn enter_frame(&mut self) {
        let top = self.frame_top();
        self.set(R10, top);
        match &self.frame {
            Frame::Private(places) => {
                let places: Vec<_> = places.values().copied().collect();
                for place in places {
                    self.clear(place);
                }
            }
            Frame::Memory { used } => {
                let used = *used;
                let low = self.stack_field(Stack::LOW, FIELD);
                let clean_below = self.builder.ins().iadd_imm_s(low, FRAME_SIZE as i64 - used);
                if !self.subject.begins_runs() {
                    self.clear_memory(top, used, clean_below);
                }
                let dirty = self.stack_field(Stack::DIRTY, FIELD);
                let dirty = self.builder.ins().umin(dirty, clean_below);
                self.set_stack_field(Stack::DIRTY, dirty);
            }
        }
    }

    fn clear(&mut self, place: Place) {
        match place {
            Place::Variable(variable, width) => {
                let zero = self.builder.ins().iconst(width, 0);
                self.builder.def_var(variable, zero);
            }
            Place::Slot(slot, 0) => {
                let len = self.builder.func.sized_stack_slots[slot].size;
                let addr = self.builder.ins().stack_addr(types::I64, slot, 0);
                let mut at = 0;
                while at < len {
                    let fits = |width: &Type| at + width.bytes() <= len;
                    let widths = [types::I64, types::I32, types::I16];
                    let width = widths.into_iter().find(fits).unwrap_or(types::I8);
                    let zero = self.builder.ins().iconst(width, 0);
                    self.builder.ins().store(FIELD, zero, addr, at as i32);
                    at += width.bytes();
                }
            }
            Place::Slot(..) => {}
        }
    }

    /// Clears what this function may have left in its frame when it ran before. If others left something below
    /// that, which is seldom, the machine clears all of it.
    fn clear_memory(&mut self, top: Value, used: i64, clean_below: Value) {
        if used < FRAME_SIZE as i64 {
            let dirty = self.stack_field(Stack::DIRTY, FIELD);
            let is_dirty = self.builder.ins().icmp(IntCC::UnsignedLessThan, dirty, clean_below);
            let (clean, go_on) = (self.builder.create_block(), self.builder.create_block());
            self.builder.ins().brif(is_dirty, clean, &[], go_on, &[]);
            self.builder.switch_to_block(clean);
            self.builder.set_cold_block(clean);
            self.call_rust(trampoline::clean as *const () as usize, &[self.machine], 0);
            self.builder.ins().jump(go_on, &[]);
            self.builder.switch_to_block(go_on);
        }
        let zero = self.builder.ins().iconst(types::I8, 0);
        let zeroes = self.builder.ins().splat(types::I8X16, zero);
        for at in (UNIT..=used).step_by(UNIT as usize) {
            self.builder.ins().store(SHARED, zeroes, top, -at as i32);
        }
    }
}
