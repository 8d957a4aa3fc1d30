//! Loads, stores and atomic operations: which are sure to be allowed, and what they leave behind.

use bpfarray_core::attr::MapFlags;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, mode, size};

use super::explore::{Explorer, fresh};
use super::range::Range;
use super::state::{Base, Pointer, Slot, State, Value};
use super::{Environment, Fact, KnownMap, ProgType};

/// Bytes of a function's stack frame.
const FRAME: i64 = crate::interp::FRAME_SIZE as i64;
/// Bytes of the key that a callback gets.
const KEY: i64 = 4;

/// Whether `size` bytes at `off` from a pointer are there, to be read or written.
pub(super) fn is_allowed(
    env: &Environment<'_>,
    pointer: &Pointer,
    off: i64,
    size: i64,
    write: bool,
) -> bool {
    let (lo, hi) = (pointer.lo + off, pointer.hi + off + size);
    if pointer.maybe_null {
        return false;
    }
    match pointer.base {
        Base::Stack(_) => lo >= -FRAME && hi <= 0,
        Base::Packet => lo >= 0 && hi <= pointer.range,
        Base::Key => lo >= 0 && hi <= KEY,
        Base::Value(map) => is_in_value(env, map, lo, hi, write),
        Base::Ctx | Base::PacketEnd | Base::Map(_) | Base::Function(_) => false,
    }
}

fn is_in_value(env: &Environment<'_>, map: KnownMap, lo: i64, hi: i64, write: bool) -> bool {
    let (Some(layout), Some(fields)) = (map.layout(env.maps), map.special_fields(env.maps)) else {
        return false;
    };
    let denied = if write { MapFlags::RDONLY_PROG } else { MapFlags::WRONLY_PROG };
    lo >= 0
        && hi <= i64::from(layout.value_size())
        && !layout.map_flags().contains(denied)
        && fields.overlapping(lo as u64, (hi - lo) as u64).is_none()
}

/// Whether a context of this type always has all bytes that [`crate::context::convert_ctx_access`] knows of.
fn ctx_is_whole(prog_type: ProgType) -> bool {
    crate::context::min_len(prog_type).is_some()
}

impl Explorer<'_> {
    pub(super) fn access(&mut self, at: usize, insn: Insn, state: &mut State) {
        match insn.mode() {
            mode::ATOMIC => self.atomic(at, insn, state),
            _ if insn.class() == class::LDX => self.load(at, insn, state),
            _ => self.plain_store(at, insn, state),
        }
    }

    /// Notes whether the access is sure to be allowed.
    fn check(&mut self, at: usize, insn: Insn, base: Value, read: bool, write: bool) -> bool {
        let (off, size) = (i64::from(insn.off), i64::from(insn.size_bytes()));
        let allowed = match base {
            Value::Pointer(Pointer { base: Base::Ctx, lo: 0, hi: 0, .. }) => {
                matches!(self.facts[at], Fact::Ctx(_)) && ctx_is_whole(self.env.prog_type)
            }
            Value::Pointer(pointer) => [(read, false), (write, true)]
                .iter()
                .all(|(asked, write)| !asked || is_allowed(self.env, &pointer, off, size, *write)),
            Value::Number(_) => false,
        };
        self.note(at, allowed);
        allowed
    }

    fn load(&mut self, at: usize, insn: Insn, state: &mut State) {
        let base = state.get(insn.src);
        let allowed = self.check(at, insn, base, true, false);
        let bytes = insn.size_bytes();
        let unknown = match insn.mode() {
            mode::MEMSX => Range::sign_extended(bytes),
            _ => Range::bytes(bytes),
        };
        let value = match base {
            Value::Pointer(Pointer { base: Base::Ctx, .. }) => self.ctx_field(at, insn, allowed),
            Value::Pointer(Pointer { base: Base::Stack(frame), lo, hi, .. })
                if allowed && lo == hi && insn.mode() == mode::MEM =>
            {
                state.load(frame, lo + i64::from(insn.off), bytes.into())
            }
            // Other pointers, and frames, may be loaded from in a width of their own.
            _ => Some(Value::Number(unknown)),
        };
        state.set(insn.dst, value.unwrap_or(Value::Number(unknown)));
    }

    /// What a field of the context holds, where that is more than a number.
    fn ctx_field(&self, at: usize, insn: Insn, allowed: bool) -> Option<Value> {
        let packet = match (self.env.prog_type, insn.off) {
            (ProgType::XDP, 0) | (ProgType::SCHED_CLS | ProgType::SCHED_ACT, 76) => Base::Packet,
            (ProgType::XDP, 4) | (ProgType::SCHED_CLS | ProgType::SCHED_ACT, 80) => Base::PacketEnd,
            _ => match self.facts[at] {
                Fact::Ctx(access) if access.native_size as u32 == insn.size_bytes() => return None,
                _ => return Some(Value::UNKNOWN),
            },
        };
        let whole = allowed && insn.size() == size::W && insn.mode() == mode::MEM;
        Some(if whole { Value::Pointer(Pointer::to(packet)) } else { Value::UNKNOWN })
    }

    fn plain_store(&mut self, at: usize, insn: Insn, state: &mut State) {
        let base = state.get(insn.dst);
        let size = i64::from(insn.size_bytes());
        let value = match insn.class() {
            class::ST => Value::Number(Range::constant(i64::from(insn.imm) as u64)),
            _ => state.get(insn.src),
        };
        let allowed = self.check(at, insn, base, false, true);
        self.stored(state, base, i64::from(insn.off), size, allowed, Some(value));
    }

    /// Makes the stack that of after a store.
    pub(super) fn stored(
        &self,
        state: &mut State,
        base: Value,
        off: i64,
        size: i64,
        allowed: bool,
        value: Option<Value>,
    ) {
        let Value::Pointer(Pointer { base, lo, hi, .. }) = base else {
            return state.forget_stacks();
        };
        match base {
            _ if !allowed => state.forget_stacks(),
            Base::Stack(frame) if lo == hi => {
                let value = match value {
                    Some(value) if size == 8 => value,
                    Some(Value::Number(range)) => Value::Number(truncated(range, size as u32)),
                    _ => Value::UNKNOWN,
                };
                state.store(frame, Slot { at: lo + off, size, value });
            }
            Base::Stack(frame) => state.overwrite(frame, lo + off, hi - lo + size),
            _ => {}
        }
    }

    fn atomic(&mut self, at: usize, insn: Insn, state: &mut State) {
        let base = state.get(if insn.imm == atomic::LOAD_ACQ { insn.src } else { insn.dst });
        let read = insn.imm != atomic::STORE_REL;
        let write = insn.imm != atomic::LOAD_ACQ;
        let (off, size) = (i64::from(insn.off), i64::from(insn.size_bytes()));
        let mut allowed = self.check(at, insn, base, read, write);
        // These bases are aligned themselves.
        let aligned = matches!(
            base,
            Value::Pointer(Pointer { base: Base::Stack(_) | Base::Value(_), lo, hi, .. })
                if lo == hi && (lo + off) % size == 0
        );
        if !aligned {
            allowed = false;
            self.note(at, false);
        }
        if write {
            self.stored(state, base, off, size, allowed, None);
        }
        let old = Value::Number(Range::bytes(insn.size_bytes()));
        match insn.imm {
            atomic::LOAD_ACQ => state.set(insn.dst, old),
            atomic::CMPXCHG => state.set(Reg::R0, old),
            op if op & atomic::FETCH != 0 && write && read => state.set(insn.src, old),
            _ => {}
        }
    }
}

/// What is left of a number in so many bytes.
fn truncated(range: Range, bytes: u32) -> Range {
    if bytes >= 8 {
        return range;
    }
    Range::alu(alu::AND, true, 0, range, Range::constant((1 << (8 * bytes)) - 1))
}

/// A pointer moved by a number that need not be known; `id` is for the new unknown part.
pub(super) fn moved(pointer: Pointer, by: Range, id: usize, state: &mut State) -> Value {
    /// Far more than any object has bytes, and far from where sums overflow.
    const FAR: i64 = 1 << 30;
    /// The kernel's `MAX_PACKET_OFF`. No packet is where addresses wrap around within that.
    const PACKET: i64 = 0xffff;
    if pointer.maybe_null {
        return Value::UNKNOWN;
    }
    let (lo, hi) = (by.smin, by.smax);
    if lo.abs_diff(0) > FAR as u64 || hi.abs_diff(0) > FAR as u64 {
        return Value::UNKNOWN;
    }
    let moved = match pointer.base {
        Base::Stack(_) | Base::Value(_) | Base::Key => {
            Pointer { lo: pointer.lo + lo, hi: pointer.hi + hi, ..pointer }
        }
        Base::Packet if lo == hi => Pointer { lo: pointer.lo + lo, hi: pointer.hi + hi, ..pointer },
        Base::Packet if lo >= 0 && pointer.lo >= 0 => {
            fresh(state, id);
            let most = pointer.most + hi + pointer.lo;
            Pointer { lo: 0, hi: 0, id, most, range: 0, ..pointer }
        }
        _ => return Value::UNKNOWN,
    };
    let far = if moved.base == Base::Packet { PACKET - moved.most } else { FAR };
    if moved.lo < -FAR || moved.hi > far {
        return Value::UNKNOWN;
    }
    Value::Pointer(moved)
}
