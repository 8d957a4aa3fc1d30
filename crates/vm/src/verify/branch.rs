//! Conditional jumps, and what they tell.

use bpfarray_core::insn::{Insn, Reg, class, jmp};

use super::VerifyErrorKind as Kind;
use super::alu::immediate;
use super::explore::Explorer;
use super::range::Range;
use super::state::State;
use super::structure::jump_target;
use super::value::{Base, Pointer, Scalar, Value};

/// Largest unknown part of a packet pointer.
///
/// # Kernel
/// `MAX_PACKET_OFF`
const MAX_PACKET_OFF: i64 = 0xffff;

impl Explorer<'_> {
    /// Where a conditional jump goes on with `state`; the other way is left for later.
    pub(super) fn branch(
        &mut self,
        at: usize,
        insn: Insn,
        state: &mut State,
    ) -> Result<Option<usize>, Kind> {
        let Some(target) = jump_target(at, insn).map(|target| target as usize) else {
            return Ok(None);
        };
        if insn.op() == jmp::JCOND {
            // It is bounded by itself.
            state.rounds += 1;
            self.push(target, state.clone(), Some(at));
            return Ok(Some(at + 1));
        }
        let is_64 = insn.class() == class::JMP;
        let left = self.read(state, insn.dst)?;
        let right = match insn.is_reg_src() {
            true => self.read(state, insn.src)?,
            false => immediate(insn, is_64),
        };
        let mut taken = state.clone();
        let goes = self.decide(insn, is_64, true, left, right, &mut taken);
        let stays = self.decide(insn, is_64, false, left, right, state);
        Ok(match (goes, stays) {
            (true, true) => {
                self.push(target, taken, Some(at));
                Some(at + 1)
            }
            (false, true) => Some(at + 1),
            (true, false) => {
                *state = taken;
                Some(target)
            }
            (false, false) => None,
        })
    }

    /// Narrows a state to the runs in which a jump is taken, or not; tells whether there can be any.
    fn decide(
        &self,
        insn: Insn,
        is_64: bool,
        taken: bool,
        left: Value,
        right: Value,
        state: &mut State,
    ) -> bool {
        let is_equality = matches!(insn.op(), jmp::JEQ | jmp::JNE);
        let is_equal = (insn.op() == jmp::JEQ) == taken;
        match (left, right) {
            (Value::Number(a), Value::Number(b)) => {
                let compared = Range::compare(insn.op(), is_64, taken, a.range, b.range);
                let Some((x, y)) = compared else { return false };
                // A register compared with itself has told nothing.
                if insn.is_reg_src() && insn.src == insn.dst {
                    return true;
                }
                learn(insn.dst, a, x, state);
                if insn.is_reg_src() {
                    learn(insn.src, b, y, state);
                }
                true
            }
            (Value::Pointer(pointer), _)
                if is_64 && is_equality && !insn.is_reg_src() && right.is_null() =>
            {
                self.null_test(insn.dst, pointer, is_equal, state)
            }
            (Value::Pointer(a), Value::Pointer(b)) if is_64 => {
                packet_test(insn.op(), taken, a, b, state);
                if is_equality && is_equal && a.maybe_null != b.maybe_null {
                    let (reg, pointer) = if a.maybe_null { (insn.dst, a) } else { (insn.src, b) };
                    return self.null_test(reg, pointer, false, state);
                }
                true
            }
            _ => true,
        }
    }

    fn null_test(&self, reg: Reg, pointer: Pointer, is_null: bool, state: &mut State) -> bool {
        if !pointer.maybe_null {
            let is_there = match pointer.base {
                Base::Value(_) | Base::Key | Base::Map(_) => true,
                // The context may be another one than an iterator's, where nobody has to attach the program.
                Base::Meta | Base::Object => self.env.strict,
                _ => false,
            };
            return !(is_null && is_there);
        }
        let tested = |pointer: Pointer| match is_null {
            true => Value::constant(0),
            false => {
                let id = if self.has_identity(pointer.base) { pointer.id } else { 0 };
                Value::Pointer(Pointer { maybe_null: false, id, ..pointer })
            }
        };
        if pointer.id != 0 {
            state.rewrite(|value| match value {
                Value::Pointer(other) if other.id == pointer.id && other.maybe_null => {
                    tested(other)
                }
                value => value,
            });
        }
        state.set(reg, tested(pointer));
        if is_null {
            state.owned.retain(|id| *id != pointer.id);
        }
        true
    }
}

fn learn(reg: Reg, old: Scalar, range: Range, state: &mut State) {
    if range != old.range {
        let known = Scalar { range, ..old };
        state.set(reg, Value::Number(known));
        state.learn(known);
    }
}

/// What a comparison of a pointer with the end of what it points to tells of the bytes before it.
///
/// # Kernel
/// `try_match_pkt_pointers`, `find_good_pkt_pointers`
fn packet_test(op: u8, taken: bool, a: Pointer, b: Pointer, state: &mut State) {
    let is_end = |packet: &Pointer, end: &Pointer| match packet.base {
        Base::Packet => end.base == Base::PacketEnd,
        Base::PacketMeta => {
            end.base == Base::Packet && (end.id, end.off) == (0, 0) && end.var.value() == Some(0)
        }
        _ => false,
    };
    let mirrored = is_end(&b, &a);
    let (packet, end) = if mirrored { (b, a) } else { (a, b) };
    if !is_end(&packet, &end) {
        return;
    }
    // Whether the pointer is at most at the end, and whether it is before it.
    let (within, before) = match (op, taken, mirrored) {
        (jmp::JLE, true, false) | (jmp::JGT, false, false) => (true, false),
        (jmp::JGE, true, true) | (jmp::JLT, false, true) => (true, false),
        (jmp::JLT, true, false) | (jmp::JGE, false, false) => (true, true),
        (jmp::JGT, true, true) | (jmp::JLE, false, true) => (true, true),
        _ => (false, false),
    };
    // Where addresses could wrap around, a comparison says nothing.
    let most = packet.var.umax;
    let wraps =
        most > MAX_PACKET_OFF as u64 || packet.off < 0 || packet.off + most as i64 > MAX_PACKET_OFF;
    if !within || wraps {
        return;
    }
    let known = packet.off + i64::from(before);
    state.rewrite(|value| match value {
        Value::Pointer(other) if other.base == packet.base && other.id == packet.id => {
            Value::Pointer(Pointer { range: other.range.max(known), ..other })
        }
        value => value,
    });
}
