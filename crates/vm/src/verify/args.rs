//! What strict mode asks of a call: that the program may make it, and the kinds and sizes of its arguments.

use bpfarray::HandleMode;
use bpfarray::btf::FieldMask;
use bpfarray_core::attr::MapFlags;
use bpfarray_core::helper_id;
use bpfarray_core::insn::Reg;
use bpfarray_core::map::Kind as MapKind;

use super::alu::FAR;
use super::call::KEY_SIZE;
use super::explore::Explorer;
use super::memory::Access;
use super::proto::{Arg, Proto};
use super::rule::Rule;
use super::state::{Lock, State};
use super::value::{Base, Pointer, Value};
use super::{KnownMap, VerifyErrorKind as Kind, helper_name};

/// Name of the field that is a spin lock.
pub(super) const LOCK: &str = "bpf_spin_lock";

/// What can hold bytes, in the kernel's words.
pub(super) const MEMORY: &str =
    "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";

const READ: Access = Access { write: false, indirect: true };
const WRITE: Access = Access { write: true, indirect: true };

impl Explorer<'_> {
    /// Checks a call of a helper of Linux.
    ///
    /// # Kernel
    /// `check_helper_call`
    pub(super) fn check_call(
        &mut self,
        helper: u32,
        proto: &Proto,
        state: &mut State,
    ) -> Result<(), Kind> {
        if state.lock.is_some() && helper != helper_id::SPIN_UNLOCK {
            return Err(Kind::Rule(Rule::CallUnderLock));
        }
        if !proto.on.has(self.env.prog_type, self.env.attach_type) {
            return Err(Kind::Rule(Rule::HelperForType(helper_name(helper))));
        }
        if proto.gpl_only && !self.env.gpl_compatible {
            return Err(Kind::Rule(Rule::Gpl));
        }
        let mut map = None;
        for (place, arg) in proto.args.iter().enumerate() {
            let reg = Reg::new(place as u8 + 1);
            let value = self.read(state, reg)?;
            if *arg == Arg::Map
                && let Value::Pointer(Pointer { base: Base::Map(known), .. }) = value
            {
                map = Some(known);
            }
            self.check_arg(helper, proto, *arg, (reg, value), map, state).map_err(Kind::Rule)?;
        }
        let is_write = matches!(helper, helper_id::MAP_UPDATE_ELEM | helper_id::MAP_DELETE_ELEM);
        let layout = map.and_then(|map| map.layout(self.env.maps));
        if is_write
            && layout.is_some_and(|layout| layout.map_flags().contains(MapFlags::RDONLY_PROG))
        {
            return Err(Kind::Rule(Rule::MapWrite(String::new())));
        }
        Ok(())
    }

    /// # Kernel
    /// `check_func_arg`
    fn check_arg(
        &mut self,
        helper: u32,
        proto: &Proto,
        arg: Arg,
        (reg, value): (Reg, Value),
        map: Option<KnownMap>,
        state: &mut State,
    ) -> Result<(), Rule> {
        let number = reg.index();
        let expected =
            |expected| Rule::ArgType { reg: number, is: self.type_name(value), expected };
        let pointer = match value {
            Value::Pointer(pointer) if !pointer.maybe_null => Some(pointer),
            _ => None,
        };
        let base = pointer.map(|pointer| pointer.base);
        let layout = map.and_then(|map| map.layout(self.env.maps));
        let is_packet = matches!(base, Some(Base::Packet | Base::PacketMeta | Base::PacketEnd));
        if is_packet && !proto.takes_packet && arg != Arg::Anything {
            return Err(Rule::PacketArg);
        }
        match arg {
            Arg::Anything => {}
            Arg::Ctx if base == Some(Base::Ctx) => {
                match pointer.and_then(|pointer| pointer.place()) {
                    Some(0) => {}
                    Some(off) => return Err(Rule::ModifiedCtx { reg: number, off }),
                    None => return Err(Rule::VariableCtx(String::new())),
                }
            }
            Arg::Ctx => return Err(expected("ctx")),
            Arg::Map if !matches!(base, Some(Base::Map(_))) => return Err(expected("map_ptr")),
            Arg::Map if helper == helper_id::TIMER_INIT => self.check_timer_map(state, map)?,
            Arg::Map => {}
            Arg::Key => self.check_memory((reg, value), KEY_SIZE, READ, state)?,
            Arg::Value => {
                let size = layout.map_or(0, |layout| i64::from(layout.value_size()));
                self.check_memory((reg, value), size, READ, state)?;
            }
            Arg::MemOrNull | Arg::FillOrNull if value.is_null() => {}
            // The size that comes next says how much.
            Arg::Mem | Arg::MemOrNull | Arg::Fill | Arg::FillOrNull => {
                if !is_memory(base) {
                    return Err(expected(MEMORY));
                }
            }
            Arg::Long => {
                if let Some(Pointer { base: Base::Stack(_), off, var, .. }) = pointer
                    && (off % 8 != 0 || !var.is_multiple_of(8))
                {
                    return Err(Rule::Misaligned {
                        what: "stack ",
                        var: var.bits.to_string(),
                        at: off,
                        off: 0,
                        size: 8,
                    });
                }
                self.check_memory((reg, value), 8, WRITE, state)?;
            }
            Arg::Size | Arg::SizeOrZero => {
                let before = Reg::new(number as u8 - 1);
                let fills = matches!(proto.args[number - 2], Arg::Fill | Arg::FillOrNull);
                let access = if fills { WRITE } else { READ };
                self.check_size(arg == Arg::SizeOrZero, (reg, value), before, access, state)?;
            }
            Arg::Function if matches!(base, Some(Base::Function(_))) => {}
            Arg::Function => return Err(expected("func")),
            Arg::StackOrNull if value.is_null() || matches!(base, Some(Base::Stack(_))) => {}
            Arg::StackOrNull => return Err(expected("fp")),
            Arg::Lock => self.check_lock(helper, reg, value, state)?,
            Arg::Timer => {
                self.check_field((reg, value), FieldMask::TIMER, "bpf_timer")?;
            }
            Arg::Kptr => {
                let kptr = FieldMask::KPTR_REF.union(FieldMask::KPTR_PERCPU);
                self.check_field((reg, value), kptr, "kptr")?;
            }
            Arg::ObjectOrNull if value.is_null() => {}
            Arg::ObjectOrNull => match pointer {
                Some(Pointer { base: Base::Object, id, .. }) if state.owned.contains(&id) => {
                    state.owned.retain(|owned| *owned != id);
                    state.forget(|pointer| pointer.base == Base::Object && pointer.id == id);
                }
                _ => return Err(expected("ptr_")),
            },
            Arg::Seq if base == Some(Base::Object) => {}
            Arg::Seq => return Err(expected("trusted_ptr_")),
            Arg::ConstStr => self.check_string((reg, value))?,
        }
        Ok(())
    }

    pub(super) fn check_memory(
        &mut self,
        (reg, value): (Reg, Value),
        size: i64,
        access: Access,
        state: &State,
    ) -> Result<(), Rule> {
        let number = reg.index();
        match value {
            Value::Pointer(pointer) if !pointer.maybe_null && is_memory(Some(pointer.base)) => {
                self.reach(number, value, 0, size, access)?;
                self.use_stack(state, &pointer, 0);
                Ok(())
            }
            _ => Err(Rule::ArgType { reg: number, is: self.type_name(value), expected: MEMORY }),
        }
    }

    /// # Kernel
    /// `check_mem_size_reg`
    fn check_size(
        &mut self,
        zero: bool,
        (reg, value): (Reg, Value),
        memory: Reg,
        access: Access,
        state: &State,
    ) -> Result<(), Rule> {
        let number = reg.index();
        let Value::Number(size) = value else {
            return Err(Rule::ArgType {
                reg: number,
                is: self.type_name(value),
                expected: "scalar",
            });
        };
        let range = size.range;
        if range.smin < 0 {
            return Err(Rule::SizeNegative(number));
        }
        if range.umin == 0 && !zero {
            return Err(Rule::SizeZero(number, range.umax));
        }
        if range.umax >= FAR as u64 {
            return Err(Rule::SizeUnbounded(number));
        }
        let buffer = state.get(memory);
        if buffer.is_null() && range.umax == 0 {
            return Ok(());
        }
        self.check_memory((memory, buffer), range.umax as i64, access, state)
    }

    /// The map of a value in which a pointer is exactly at a field of this kind.
    ///
    /// # Kernel
    /// `process_spin_lock`, `process_timer_func`, `process_kptr_func`
    fn check_field(
        &self,
        (reg, value): (Reg, Value),
        kinds: FieldMask,
        field: &'static str,
    ) -> Result<KnownMap, Rule> {
        let number = reg.index();
        let Value::Pointer(pointer @ Pointer { base: Base::Value(map), maybe_null: false, .. }) =
            value
        else {
            return Err(Rule::ArgType {
                reg: number,
                is: self.type_name(value),
                expected: "map_value",
            });
        };
        let Some(off) = pointer.place() else { return Err(Rule::FieldVariable(number, field)) };
        let fields = map.special_fields(self.env.maps);
        let fields = fields.map_or(&[][..], |fields| fields.as_slice());
        let mut of_kind = fields.iter().filter(|field| kinds.contains(field.kind.mask()));
        let Some(first) = of_kind.clone().next() else {
            return Err(Rule::NoField { map: map.name(self.env.maps), field });
        };
        if of_kind.any(|field| i64::from(field.offset) == off) {
            return Ok(map);
        }
        Err(Rule::FieldOffset { off, field, at: first.offset.into() })
    }

    fn check_timer_map(&self, state: &State, map: Option<KnownMap>) -> Result<(), Rule> {
        match state.get(Reg::R1) {
            Value::Pointer(Pointer { base: Base::Value(timer), .. }) if Some(timer) != map => {
                Err(Rule::TimerMap)
            }
            _ => Ok(()),
        }
    }

    fn check_lock(
        &self,
        helper: u32,
        reg: Reg,
        value: Value,
        state: &mut State,
    ) -> Result<(), Rule> {
        self.check_field((reg, value), FieldMask::SPIN_LOCK, LOCK)?;
        let Value::Pointer(Pointer { base, id, .. }) = value else { return Ok(()) };
        let lock = Lock { base, id };
        match (helper, state.lock) {
            (helper_id::SPIN_LOCK, None) => state.lock = Some(lock),
            (helper_id::SPIN_LOCK, Some(_)) => return Err(Rule::SecondLock),
            (_, None) => return Err(Rule::NoLock),
            (_, Some(held)) if held != lock => return Err(Rule::OtherLock),
            (_, Some(_)) => state.lock = None,
        }
        Ok(())
    }

    /// # Kernel
    /// `check_reg_const_str`
    fn check_string(&self, (reg, value): (Reg, Value)) -> Result<(), Rule> {
        let number = reg.index();
        let wrong = |why| Err(Rule::ConstStr { reg: number, why });
        let Value::Pointer(pointer @ Pointer { base: Base::Value(known), maybe_null: false, .. }) =
            value
        else {
            return Err(Rule::ArgType {
                reg: number,
                is: self.type_name(value),
                expected: "map_value",
            });
        };
        let KnownMap::Listed(index) = known else {
            return wrong("does not point to a readonly map'");
        };
        let Some(map) = self.env.maps.get(index as usize) else { return Ok(()) };
        if !map.map_flags().contains(MapFlags::RDONLY_PROG) || !map.is_frozen() {
            return wrong("does not point to a readonly map'");
        }
        let Some(off) = pointer.place() else { return wrong("is not a constant address'") };
        if map.layout().kind() != MapKind::Array || map.max_entries() != 1 {
            return wrong("is no direct value: no direct value access support for this map type");
        }
        let mut bytes = vec![0; map.value_size() as usize];
        let read = map.with_mode(HandleMode::ReadWrite).lookup_elem(0, &mut bytes, 0);
        let text =
            usize::try_from(off).ok().and_then(|off| bytes.get(off..)).filter(|_| read.is_ok());
        match text {
            Some(text) if text.contains(&0) => Ok(()),
            Some(_) => wrong("string is not zero-terminated"),
            None => wrong("points outside of its map's value"),
        }
    }
}

fn is_memory(base: Option<Base>) -> bool {
    matches!(
        base,
        Some(
            Base::Stack(_)
                | Base::Packet
                | Base::PacketMeta
                | Base::Key
                | Base::Value(_)
                | Base::Buffer { .. }
                | Base::Meta
                | Base::Memory(_)
                | Base::Object
        )
    )
}
