//! What calls of helpers leave behind.

use bpfarray_core::attr::MapFlags;
use bpfarray_core::helper_id;
use bpfarray_core::insn::Reg;
use bpfarray_core::map::Kind as MapKind;

use super::explore::{Explorer, fresh};
use super::memory::is_allowed;
use super::range::Range;
use super::state::{Base, Pointer, State, Value};
use super::{Fact, KnownMap};

/// Bytes of a map's key.
const KEY_SIZE: i64 = 4;

/// What a helper of Linux may do to the memory its program knows about.
enum Effect {
    /// Nothing to stack and packet.
    None,
    /// It writes to this argument so many bytes as that one says.
    Fills(Reg, Reg),
    /// The packet may be elsewhere afterwards.
    MovesPacket,
    /// Nobody said.
    Any,
}

fn effect(helper: u32) -> Effect {
    match helper {
        helper_id::MAP_UPDATE_ELEM
        | helper_id::MAP_DELETE_ELEM
        | helper_id::KTIME_GET_NS
        | helper_id::KTIME_GET_BOOT_NS
        | helper_id::KTIME_GET_COARSE_NS
        | helper_id::JIFFIES64
        | helper_id::TRACE_PRINTK
        | helper_id::GET_PRANDOM_U32
        | helper_id::GET_SMP_PROCESSOR_ID
        | helper_id::GET_CURRENT_PID_TGID
        | helper_id::CURRENT_TASK_UNDER_CGROUP
        | helper_id::PERF_EVENT_READ
        | helper_id::PERF_EVENT_OUTPUT
        | helper_id::CSUM_DIFF
        | helper_id::STRNCMP
        | helper_id::SPIN_LOCK
        | helper_id::SPIN_UNLOCK
        | helper_id::XDP_GET_BUFF_LEN
        | helper_id::XDP_STORE_BYTES
        | helper_id::SKB_STORE_BYTES => Effect::None,
        helper_id::GET_CURRENT_COMM => Effect::Fills(Reg::R1, Reg::R2),
        helper_id::SKB_LOAD_BYTES
        | helper_id::SKB_LOAD_BYTES_RELATIVE
        | helper_id::PERF_EVENT_READ_VALUE
        | helper_id::XDP_LOAD_BYTES => Effect::Fills(Reg::R3, Reg::R4),
        helper_id::XDP_ADJUST_HEAD | helper_id::XDP_ADJUST_META | helper_id::XDP_ADJUST_TAIL => {
            Effect::MovesPacket
        }
        _ => Effect::Any,
    }
}

fn forget_packet(state: &mut State) {
    state.forget(|pointer| matches!(pointer.base, Base::Packet | Base::PacketEnd));
}

/// After code ran of which nothing is known.
fn forget_all(state: &mut State) {
    state.forget_stacks();
    forget_packet(state);
}

impl Explorer<'_> {
    pub(super) fn call(&mut self, at: usize, helper: u32, state: &mut State) {
        // A tail call is an instruction of the engine's.
        let known = helper == helper_id::TAIL_CALL
            || self.env.helpers.get(helper).is_some_and(|helper| helper.is_builtin());
        let result = match helper {
            _ if !known => {
                // A host's helper may write where it wants and call functions.
                self.let_anything_call();
                forget_all(state);
                Value::UNKNOWN
            }
            helper_id::MAP_LOOKUP_ELEM => self.lookup(at, state),
            helper_id::MAP_LOOKUP_PERCPU_ELEM => {
                let map = self.map_with_values(state.get(Reg::R1));
                Self::element(at, map, false, state)
            }
            helper_id::FOR_EACH_MAP_ELEM | helper_id::LOOP => {
                let callback = state.get(Reg::R2);
                match callback {
                    Value::Pointer(Pointer { base: Base::Function(_), lo: 0, hi: 0, .. }) => {
                        self.call_back(at, state);
                    }
                    _ => {
                        self.let_anything_call();
                        forget_all(state);
                    }
                }
                Value::UNKNOWN
            }
            helper_id::TIMER_SET_CALLBACK => {
                self.call_later(state.get(Reg::R1), state.get(Reg::R2));
                Value::UNKNOWN
            }
            helper_id::TAIL_CALL => {
                // The other program returns to this one's caller.
                let mut gone = state.clone();
                forget_all(&mut gone);
                gone.set(Reg::R0, Value::UNKNOWN);
                self.leave(gone);
                Value::UNKNOWN
            }
            _ => {
                self.take_effect(effect(helper), state);
                match helper {
                    helper_id::GET_SMP_PROCESSOR_ID | helper_id::GET_PRANDOM_U32 => {
                        Value::Number(Range::bytes(4))
                    }
                    _ => Value::UNKNOWN,
                }
            }
        };
        state.clobber_caller_saved();
        state.set(Reg::R0, result);
    }

    /// A timer calls a function with map, key and value, from nowhere.
    fn call_later(&mut self, timer: Value, function: Value) {
        let (Value::Pointer(timer), Value::Pointer(function)) = (timer, function) else {
            return self.let_anything_call();
        };
        match (timer.base, function.base) {
            (Base::Value(map @ KnownMap::Listed(_)), Base::Function(target))
                if timer.lo == timer.hi && !timer.maybe_null =>
            {
                let mut args = [Value::UNKNOWN; 5];
                args[0] = Value::Pointer(Pointer::to(Base::Map(map)));
                args[1] = Value::Pointer(Pointer::to(Base::Key));
                args[2] = Value::Pointer(Pointer::to(Base::Value(map)));
                self.start(target, args);
            }
            _ => self.let_anything_call(),
        }
    }

    fn take_effect(&self, effect: Effect, state: &mut State) {
        match effect {
            Effect::None => {}
            Effect::MovesPacket => forget_packet(state),
            Effect::Any => forget_all(state),
            Effect::Fills(buffer, len) => {
                let base = state.get(buffer);
                let len = i64::try_from(state.get(len).number().umax).unwrap_or(i64::MAX);
                let allowed = match base {
                    Value::Pointer(pointer) if len <= i64::from(u32::MAX) => {
                        is_allowed(self.env, &pointer, 0, len, true)
                    }
                    _ => false,
                };
                match base {
                    Value::Pointer(Pointer { base: Base::Stack(frame), lo, hi, .. }) if allowed => {
                        state.overwrite(frame, lo, hi - lo + len);
                    }
                    _ => self.stored(state, base, 0, len, allowed, None),
                }
            }
        }
    }

    /// The map whose address this is, if its elements have addresses.
    pub(super) fn map_with_values(&self, value: Value) -> Option<KnownMap> {
        let Value::Pointer(Pointer { base: Base::Map(map), maybe_null: false, .. }) = value else {
            return None;
        };
        let kind = map.layout(self.env.maps)?.kind();
        matches!(kind, MapKind::Array | MapKind::PercpuArray).then_some(map)
    }

    /// The address of an element, or 0 unless it is sure to be there.
    fn element(at: usize, map: Option<KnownMap>, there: bool, state: &mut State) -> Value {
        let Some(map) = map else { return Value::UNKNOWN };
        fresh(state, at + 1);
        let id = if there { 0 } else { at + 1 };
        Value::Pointer(Pointer { id, maybe_null: !there, ..Pointer::to(Base::Value(map)) })
    }

    /// Whether a map has an element with this index, whichever of the maps it is that it can be.
    fn has_index(&self, map: KnownMap, index: Option<u64>) -> bool {
        let layout = map.layout(self.env.maps);
        let layout = layout.filter(|layout| !layout.map_flags().contains(MapFlags::INNER_MAP));
        layout.zip(index).is_some_and(|(layout, index)| index < u64::from(layout.max_entries()))
    }

    fn lookup(&mut self, at: usize, state: &mut State) -> Value {
        let (map, key) = (state.get(Reg::R1), state.get(Reg::R2));
        let key = match key {
            Value::Pointer(pointer) if is_allowed(self.env, &pointer, 0, KEY_SIZE, false) => {
                Some(pointer)
            }
            _ => None,
        };
        // What is put in the call's place reads not only the key but also, with some maps, the map, which has
        // to be the one that it is made for, and there.
        let inlined = match map {
            Value::Pointer(Pointer { base: Base::Map(map), maybe_null: false, .. }) => {
                self.facts[at] == Fact::Lookup(map)
            }
            _ => false,
        };
        self.note(at, key.is_some() && inlined);
        if let Some(known) = self.map_with_values(map) {
            let index = match key {
                Some(Pointer { base: Base::Stack(frame), lo, hi, .. }) if lo == hi => {
                    state.load(frame, lo, KEY_SIZE).and_then(|index| index.number().value())
                }
                _ => None,
            };
            return Self::element(at, Some(known), self.has_index(known, index), state);
        }
        match map {
            Value::Pointer(Pointer { base: Base::Map(KnownMap::Listed(outer)), .. }) => {
                let outer_map = self.env.maps.get(outer as usize);
                if outer_map.is_none_or(|map| map.inner_template().is_none()) {
                    return Value::UNKNOWN;
                }
                fresh(state, at + 1);
                let inner = Pointer::to(Base::Map(KnownMap::Inner(outer)));
                Value::Pointer(Pointer { id: at + 1, maybe_null: true, ..inner })
            }
            _ => Value::UNKNOWN,
        }
    }
}
