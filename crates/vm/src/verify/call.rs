//! Calls of helpers: what they leave behind, and the functions they call.

use bpfarray::possible_cpus;
use bpfarray_core::attr::MapFlags;
use bpfarray_core::helper_id;
use bpfarray_core::insn::Reg;
use bpfarray_core::map::Kind as MapKind;

use super::explore::Explorer;
use super::memory::Access;
use super::proto::{Arg, Proto, Ret, proto};
use super::range::Range;
use super::rule::Rule;
use super::state::{Return, State};
use super::value::{Base, Pointer, Value};
use super::{Fact, KnownMap, VerifyErrorKind as Kind};

/// Bytes of a map's key.
pub(super) const KEY_SIZE: i64 = 4;

fn forget_packet(state: &mut State) {
    state.forget(|pointer| {
        matches!(pointer.base, Base::Packet | Base::PacketMeta | Base::PacketEnd)
    });
}

/// The function that a value is the address of.
fn function(value: Value) -> Option<usize> {
    match value {
        Value::Pointer(pointer) => match (pointer.base, pointer.place()) {
            (Base::Function(target), Some(0)) => Some(target),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a helper that takes maps takes those of this kind; helpers of hosts take any.
///
/// # Kernel
/// `check_map_func_compatibility`
fn takes_map(helper: u32, kind: MapKind) -> bool {
    match helper {
        helper_id::MAP_LOOKUP_ELEM => {
            matches!(kind, MapKind::Array | MapKind::PercpuArray | MapKind::ArrayOfMaps)
        }
        helper_id::MAP_UPDATE_ELEM | helper_id::MAP_DELETE_ELEM | helper_id::FOR_EACH_MAP_ELEM => {
            matches!(kind, MapKind::Array | MapKind::PercpuArray)
        }
        helper_id::MAP_LOOKUP_PERCPU_ELEM => kind == MapKind::PercpuArray,
        helper_id::TAIL_CALL => kind == MapKind::ProgArray,
        helper_id::PERF_EVENT_READ
        | helper_id::PERF_EVENT_OUTPUT
        | helper_id::PERF_EVENT_READ_VALUE => kind == MapKind::PerfEventArray,
        helper_id::CURRENT_TASK_UNDER_CGROUP => kind == MapKind::CgroupArray,
        _ => true,
    }
}

impl Explorer<'_> {
    /// After code ran of which nothing is known.
    fn forget_all(&self, state: &mut State) {
        self.stacks_hit.set(true);
        state.forget_stacks();
        forget_packet(state);
    }

    pub(super) fn call(&mut self, at: usize, helper: u32, state: &mut State) -> Result<(), Kind> {
        // A tail call is an instruction of the engine's.
        let is_ours = helper == helper_id::TAIL_CALL
            || self.env.helpers.get(helper).is_some_and(|helper| helper.is_builtin());
        let result = match proto(helper).filter(|_| is_ours) {
            Some(proto) => self.call_known(at, helper, &proto, state)?,
            None => {
                // A host's helper may write where it wants and call functions.
                self.found(at, Fact::None);
                self.let_anything_call();
                self.forget_all(state);
                Value::UNKNOWN
            }
        };
        state.clobber_caller_saved();
        state.set(Reg::R0, result);
        Ok(())
    }

    fn call_known(
        &mut self,
        at: usize,
        helper: u32,
        proto: &Proto,
        state: &mut State,
    ) -> Result<Value, Kind> {
        let map = self.check_map_kind(helper, proto, state)?;
        if self.env.strict {
            self.check_call(helper, proto, state)?;
        }
        let fact = match (helper, map) {
            (helper_id::MAP_LOOKUP_ELEM, Some(map)) => Fact::Lookup(map),
            (helper_id::TAIL_CALL, Some(KnownMap::Listed(map))) => Fact::TailCall { map },
            (helper_id::LOOP, _) if state.get(Reg::new(4)).is_null() => {
                function(state.get(Reg::R2)).map_or(Fact::None, |function| Fact::Loop { function })
            }
            _ => Fact::None,
        };
        self.found(at, fact);
        self.fill_buffers(proto, state);
        if proto.moves_packet {
            forget_packet(state);
        }
        match helper {
            helper_id::MAP_LOOKUP_ELEM => return Ok(self.lookup(at, state)),
            helper_id::MAP_LOOKUP_PERCPU_ELEM => {
                let map = self.map_with_values(state.get(Reg::R1));
                return Ok(self.element(map, false));
            }
            // What is called no times is not looked at.
            helper_id::LOOP if state.get(Reg::R1).number().umax == 0 => {}
            helper_id::FOR_EACH_MAP_ELEM | helper_id::LOOP => {
                if function(state.get(Reg::R2)).is_some() {
                    // As often as it likes, so a way back here is no endless loop.
                    state.rounds += 1;
                    self.call_back(at, state)?;
                } else {
                    self.let_anything_call();
                    self.forget_all(state);
                }
            }
            helper_id::TIMER_SET_CALLBACK => {
                self.call_later(state.get(Reg::R1), state.get(Reg::R2));
            }
            helper_id::TAIL_CALL => {
                // The other program returns to this one's caller.
                let mut gone = state.clone();
                if gone.depth() > 1 {
                    self.forget_all(&mut gone);
                }
                gone.set(Reg::R0, Value::UNKNOWN);
                self.leave(at, gone)?;
            }
            helper_id::GET_SMP_PROCESSOR_ID => {
                let last = u64::from(possible_cpus()).saturating_sub(1);
                return Ok(Value::range(Range::unsigned(0, last)));
            }
            _ => {}
        }
        Ok(match proto.ret {
            Ret::Void => Value::Unreadable,
            Ret::ObjectOrNull if self.env.strict => {
                let id = self.new_id();
                state.owned.push(id);
                Value::Pointer(Pointer { id, maybe_null: true, ..Pointer::to(Base::Object) })
            }
            _ => Value::UNKNOWN,
        })
    }

    /// The map that is handed to a helper, if it is known; refuses one of a kind that the helper does not take.
    fn check_map_kind(
        &self,
        helper: u32,
        proto: &Proto,
        state: &State,
    ) -> Result<Option<KnownMap>, Kind> {
        let Some(place) = proto.args.iter().position(|arg| *arg == Arg::Map) else {
            return Ok(None);
        };
        let Value::Pointer(Pointer { base: Base::Map(map), .. }) =
            state.get(Reg::new(place as u8 + 1))
        else {
            return Ok(None);
        };
        match map.layout(self.env.maps).map(|layout| layout.kind()) {
            Some(kind) if !takes_map(helper, kind) => {
                Err(Kind::MapKind { helper, map: map.name(self.env.maps), kind })
            }
            _ => Ok(Some(map)),
        }
    }

    /// Makes the stack that of after a helper has written to its buffers.
    fn fill_buffers(&mut self, proto: &Proto, state: &mut State) {
        for (place, arg) in proto.args.iter().enumerate() {
            let reg = Reg::new(place as u8 + 1);
            let len = match arg {
                Arg::Long => 8,
                Arg::Fill | Arg::FillOrNull => {
                    i64::try_from(state.get(Reg::new(place as u8 + 2)).number().umax)
                        .unwrap_or(i64::MAX)
                }
                _ => continue,
            };
            let base = state.get(reg);
            let is_short = len <= i64::from(u32::MAX);
            let access = Access { write: true, indirect: true };
            let allowed = is_short && self.reach(reg.index(), base, 0, len, access).is_ok();
            match base {
                Value::Pointer(pointer) if allowed => {
                    if let Base::Stack(frame) = pointer.base {
                        self.use_stack(state, &pointer, 0);
                        let (lo, hi) = pointer.span();
                        self.scrub(state, frame, lo, hi - lo + len);
                        state.overwrite(frame, lo, hi - lo + len);
                    }
                }
                Value::Number(_) if base.is_null() => {}
                _ => {
                    self.stacks_hit.set(true);
                    state.forget_stacks();
                }
            }
        }
    }

    /// Calls the function that was handed to a helper once more.
    pub(super) fn call_back(&mut self, site: usize, state: &State) -> Result<(), Kind> {
        let [map, callback, third] = [Reg::R1, Reg::R2, Reg::R3].map(|reg| state.get(reg));
        let Some(target) = function(callback) else { return Ok(()) };
        if state.lock.is_some() {
            // It was taken by the call before.
            self.forbid(|| Rule::CallUnderLock)?;
        }
        let mut args = [Value::Unreadable; 5];
        if self.insns[site].imm as u32 == helper_id::LOOP {
            // The kernel does not know how far it counts.
            let index = if self.env.strict { Range::ANY } else { Range::bytes(4) };
            args[0] = Value::range(index);
            args[1] = third;
        } else {
            (args[0], args[3]) = (map, third);
            args[1] = Value::to(Base::Key);
            args[2] = match self.map_with_values(map) {
                Some(map) => Value::to(Base::Value(map)),
                None => Value::UNKNOWN,
            };
        }
        let mut state = state.clone();
        state.rounds += 1;
        self.enter(target, args, Return::Helper(site), state)
    }

    /// A timer calls a function with map, key and value, from nowhere.
    fn call_later(&mut self, timer: Value, callback: Value) {
        let (Value::Pointer(timer), Some(target)) = (timer, function(callback)) else {
            return self.let_anything_call();
        };
        match timer.base {
            Base::Value(map) if timer.place().is_some() && !timer.maybe_null => {
                let mut args = [Value::Unreadable; 5];
                args[0] = Value::to(Base::Map(map));
                args[1] = Value::to(Base::Key);
                args[2] = Value::to(Base::Value(map));
                self.start(target, args);
            }
            _ => self.let_anything_call(),
        }
    }

    /// The map whose address this is, if its elements have addresses.
    fn map_with_values(&self, value: Value) -> Option<KnownMap> {
        let Value::Pointer(Pointer { base: Base::Map(map), maybe_null: false, .. }) = value else {
            return None;
        };
        let kind = map.layout(self.env.maps)?.kind();
        matches!(kind, MapKind::Array | MapKind::PercpuArray).then_some(map)
    }

    /// The address of an element, or 0 unless it is sure to be there.
    fn element(&mut self, map: Option<KnownMap>, there: bool) -> Value {
        let Some(map) = map else { return Value::UNKNOWN };
        let pointer = Pointer { maybe_null: !there, ..Pointer::to(Base::Value(map)) };
        let id = if there && !self.has_identity(pointer.base) { 0 } else { self.new_id() };
        Value::Pointer(Pointer { id, ..pointer })
    }

    /// Whether it matters which one of several objects a pointer is to.
    pub(super) fn has_identity(&self, base: Base) -> bool {
        match base {
            Base::Value(map) => map.special_fields(self.env.maps).is_some_and(|fields| {
                fields.as_slice().iter().any(|field| field.kind.name() == super::args::LOCK)
            }),
            Base::Object => true,
            _ => false,
        }
    }

    /// Whether a map has an element with this index, whichever of the maps it is that it can be.
    fn has_index(&self, map: KnownMap, index: Option<u64>) -> bool {
        let layout = map.layout(self.env.maps);
        let layout = layout.filter(|layout| !layout.map_flags().contains(MapFlags::INNER_MAP));
        layout.zip(index).is_some_and(|(layout, index)| index < u64::from(layout.max_entries()))
    }

    fn lookup(&mut self, at: usize, state: &mut State) -> Value {
        let (map, key) = (state.get(Reg::R1), state.get(Reg::R2));
        let reached =
            self.reach(Reg::R2.index(), key, 0, KEY_SIZE, Access { write: false, indirect: true });
        // What is put in the call's place reads not only the key but also, with some maps, the map, which has
        // to be there.
        let known = match map {
            Value::Pointer(Pointer { base: Base::Map(map), maybe_null: false, .. }) => Some(map),
            _ => None,
        };
        self.note(at, reached.is_ok() && self.is_provable(key) && known.is_some());
        if let Some(known) = self.map_with_values(map) {
            let index = match key {
                Value::Pointer(pointer) if reached.is_ok() => match (pointer.base, pointer.place())
                {
                    (Base::Stack(frame), Some(place)) => {
                        state.load(frame, place, KEY_SIZE).and_then(|index| index.number().value())
                    }
                    _ => None,
                },
                _ => None,
            };
            return self.element(Some(known), self.has_index(known, index));
        }
        match known {
            Some(KnownMap::Listed(outer)) => {
                let outer_map = self.env.maps.get(outer as usize);
                if outer_map.is_none_or(|map| map.inner_template().is_none()) {
                    return Value::UNKNOWN;
                }
                let inner = Pointer::to(Base::Map(KnownMap::Inner(outer)));
                Value::Pointer(Pointer { id: self.new_id(), maybe_null: true, ..inner })
            }
            _ => Value::UNKNOWN,
        }
    }

    /// What has to be true where a function ends.
    ///
    /// # Kernel
    /// `check_return_code`, `prepare_func_exit`
    pub(super) fn check_leave(&self, state: &State, result: Value) -> Result<(), Kind> {
        if !self.env.strict {
            return Ok(());
        }
        let in_range = |what, min: i64, max: i64| match result {
            Value::Number(number) if number.range.smin >= min && number.range.smax <= max => Ok(()),
            Value::Number(number) => Err(Kind::Rule(Rule::Returned {
                what,
                range: number.range.signed_bounds(),
                min,
                max,
            })),
            _ => Err(Kind::Rule(Rule::ReturnsPointer)),
        };
        match state.ret() {
            Return::To(_) => match result {
                Value::Pointer(Pointer { base: Base::Stack(_), .. }) => {
                    Err(Kind::Rule(Rule::ReturnsStack))
                }
                _ => Ok(()),
            },
            Return::Helper(_) => {
                self.read(state, Reg::R0)?;
                in_range("At callback return", 0, 1)
            }
            Return::Later | Return::Global | Return::Out => {
                self.read(state, Reg::R0)?;
                if state.lock.is_some() {
                    return Err(Kind::Rule(Rule::EndUnderLock(
                        "BPF_EXIT instruction in main prog",
                    )));
                }
                if let Some(id) = state.owned.first() {
                    return Err(Kind::Rule(Rule::Unreleased(*id)));
                }
                let (prog_type, attach_type) = (self.env.prog_type, self.env.attach_type);
                match state.ret() {
                    Return::Later => in_range("At async callback return", 0, 0),
                    Return::Global if result.is_pointer() => Err(Kind::Rule(Rule::ReturnsPointer)),
                    Return::Global => Ok(()),
                    _ => match crate::prog_type::return_range(prog_type, attach_type) {
                        Some((min, max)) => in_range("At program exit", min, max),
                        None => Ok(()),
                    },
                }
            }
        }
    }
}
