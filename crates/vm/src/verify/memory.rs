//! Loads, stores and atomic operations: which are sure to be allowed, and what they leave behind.

use bpfarray::HandleMode;
use bpfarray_core::attr::MapFlags;
use bpfarray_core::insn::{Insn, Reg, atomic, class, mode};
use bpfarray_core::map::Kind as MapKind;

use super::alu::FAR;
use super::explore::Explorer;
use super::range::Range;
use super::rule::{Rule, detail};
use super::state::{Slot, State};
use super::value::{Base, Pointer, Value};
use super::{Fact, KnownMap, ProgType, VerifyErrorKind as Kind};
use crate::prog_type::AttachType;

/// Bytes of a function's stack frame.
const FRAME: i64 = crate::interp::FRAME_SIZE as i64;
/// Bytes of the key that a callback gets.
const KEY: i64 = 4;

/// What is done to memory.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) write: bool,
    /// By a helper, on the program's behalf.
    pub(super) indirect: bool,
}

impl Access {
    pub(super) const READ: Self = Self { write: false, indirect: false };
    pub(super) const WRITE: Self = Self { write: true, indirect: false };

    fn stack_words(self) -> &'static str {
        if self.write { "write to" } else { "read from" }
    }
}

impl Explorer<'_> {
    /// Checks that `size` bytes at `off` from what a register holds are there, to be read or written.
    ///
    /// # Kernel
    /// `check_mem_access`, `check_helper_mem_access`
    pub(super) fn reach(
        &self,
        reg: usize,
        value: Value,
        off: i64,
        size: i64,
        access: Access,
    ) -> Result<(), Rule> {
        let no_access = || Rule::MemAccess { reg, is: self.type_name(value) };
        let Value::Pointer(pointer) = value else { return Err(no_access()) };
        if pointer.maybe_null {
            return Err(no_access());
        }
        let (lo, hi) = pointer.span();
        let lo = lo.saturating_add(off);
        let hi = hi.saturating_add(off).saturating_add(size);
        match pointer.base {
            Base::Stack(_) if lo >= -FRAME && hi <= 0 => Ok(()),
            Base::Stack(_) => Err(match pointer.place() {
                Some(at) => Rule::Stack { reg, access: access.stack_words(), off: at + off, size },
                None => Rule::StackVariable {
                    reg,
                    access: access.stack_words(),
                    var: pointer.var.bits.to_string(),
                    size,
                },
            }),
            Base::Packet | Base::PacketMeta => {
                if access.write && self.env.prog_type == ProgType::SOCKET_FILTER {
                    return Err(Rule::PacketWrite);
                }
                if pointer.var.smin < 0 {
                    return Err(Rule::MinNegative(reg));
                }
                let (start, end) = (pointer.off + off, pointer.off + off + size);
                if start >= 0 && end <= pointer.range {
                    return Ok(());
                }
                let Pointer { id, off: at, range, .. } = pointer;
                Err(Rule::OutsidePacket { reg, off: at + off, size, id, at, range })
            }
            Base::Key if access.write => Err(Rule::KeyWrite(reg)),
            Base::Key => {
                let object = ("map value", format!("key_size={KEY} "));
                self.region(reg, object, KEY, &pointer, off, size)
            }
            Base::Value(map) => self.reach_value(reg, map, &pointer, off, size, access),
            Base::Buffer { writable } if access.write && !writable => {
                Err(Rule::ReadOnly { reg, is: self.type_name(value) })
            }
            Base::Memory(len) => {
                let object = ("memory", format!("mem_size={len} "));
                self.region(reg, object, len.into(), &pointer, off, size)
            }
            Base::Buffer { writable } if self.env.strict => {
                self.reach_buffer(reg, writable, &pointer, off, size)
            }
            Base::Meta if access.write => Err(Rule::OnlyRead),
            Base::Meta => reach_meta(&pointer, off, size),
            Base::Map(_) if access.write => Err(Rule::ReadOnly { reg, is: self.type_name(value) }),
            _ => Err(no_access()),
        }
    }

    /// Whether accesses that the rules allow need no check. What an iterator hands out, also to a function of the program, has the
    /// bytes that the map has for whose elements the program is called, and the context may be another one than an iterator's.
    pub(super) fn is_provable(&self, value: Value) -> bool {
        let Value::Pointer(pointer) = value else { return true };
        match pointer.base {
            Base::Buffer { .. } | Base::Meta => false,
            Base::Memory(_) => self.env.attach_type != AttachType::TRACE_ITER,
            _ => true,
        }
    }

    /// Any place that is known, from the beginning on: that it is there is for who attaches the program to see to.
    ///
    /// # Kernel
    /// `check_buffer_access`
    fn reach_buffer(
        &self,
        reg: usize,
        writable: bool,
        pointer: &Pointer,
        off: i64,
        size: i64,
    ) -> Result<(), Rule> {
        let what = if writable { "rdwr" } else { "rdonly" };
        let off = pointer.off.saturating_add(off);
        if off < 0 {
            return Err(Rule::BufferNegative { reg, what, off, size });
        }
        if pointer.var.value() != Some(0) {
            return Err(Rule::BufferVariable { reg, what, off, var: pointer.var.bits.to_string() });
        }
        let reached = if writable { &self.buffers.value } else { &self.buffers.key };
        reached.set(reached.get().max(off.saturating_add(size)));
        Ok(())
    }

    fn reach_value(
        &self,
        reg: usize,
        map: KnownMap,
        pointer: &Pointer,
        off: i64,
        size: i64,
        access: Access,
    ) -> Result<(), Rule> {
        let maps = self.env.maps;
        let (Some(layout), Some(fields)) = (map.layout(maps), map.special_fields(maps)) else {
            return Err(Rule::MemAccess { reg, is: "map_value".to_owned() });
        };
        let flags = layout.map_flags();
        let value_size = layout.value_size();
        if access.write && flags.contains(MapFlags::RDONLY_PROG) {
            return Err(Rule::MapWrite(detail(value_size, off + pointer.off, size)));
        }
        if !access.write && flags.contains(MapFlags::WRONLY_PROG) {
            return Err(Rule::MapRead(detail(value_size, off + pointer.off, size)));
        }
        let object = ("map value", format!("value_size={value_size} "));
        self.region(reg, object, value_size.into(), pointer, off, size)?;
        let (lo, hi) = pointer.span();
        match fields.overlapping((lo + off) as u64, (hi - lo + size) as u64) {
            None => Ok(()),
            Some(field) if access.indirect => Err(Rule::SpecialFieldIndirect(field.kind.name())),
            Some(field) => Err(Rule::SpecialField(field.kind.name())),
        }
    }

    /// Whether bytes are in an object of this name and size.
    ///
    /// # Kernel
    /// `check_mem_region_access`
    fn region(
        &self,
        reg: usize,
        (what, context): (&'static str, String),
        len: i64,
        pointer: &Pointer,
        off: i64,
        size: i64,
    ) -> Result<(), Rule> {
        let (lo, hi) = pointer.span();
        let (lo, hi) = (lo.saturating_add(off), hi.saturating_add(off));
        // Bounds may be as far away as numbers go. The kernel judges by signed ones below and by unsigned ones above.
        let inside = |start: i64| start >= 0 && start <= len - size;
        let is_bounded = !self.env.strict || pointer.var.umax < FAR as u64;
        let outside =
            |off: i64, side| Rule::Outside { reg, what, context: context.clone(), off, size, side };
        if inside(lo) && inside(hi) && is_bounded {
            return Ok(());
        }
        if pointer.var.smin < 0 && lo < 0 {
            return Err(Rule::MinNegative(reg));
        }
        if !inside(lo) {
            let is_fixed = pointer.var.value().is_some();
            return Err(outside(lo, if is_fixed { "offset" } else { "min value" }));
        }
        if hi >= FAR || !is_bounded {
            return Err(Rule::Unbounded(reg));
        }
        Err(outside(hi, "max value"))
    }

    /// Remembers how much stack a function uses.
    pub(super) fn use_stack(&mut self, state: &State, pointer: &Pointer, off: i64) {
        if let Base::Stack(frame) = pointer.base
            && let Some(frame) = state.frames().get(frame)
        {
            let used = self.stack.entry(frame.function).or_default();
            *used = (*used).max(-(pointer.span().0 + off)).min(FRAME);
        }
    }

    /// Notes whether the access of an instruction is sure to be allowed.
    fn check(
        &mut self,
        at: usize,
        reg: Reg,
        off: i16,
        value: Value,
        access: Access,
        state: &State,
    ) -> Result<bool, Kind> {
        let (insn, reg) = (self.insns[at], reg.index());
        let size = i64::from(insn.size_bytes());
        if let Value::Pointer(Pointer { base: Base::Ctx, .. }) = value {
            return self.check_ctx(at, reg, value, access);
        }
        if !self.found(at, Fact::None) {
            self.forbid(|| Rule::DifferentPointers)?;
        }
        let reached = self.reach(reg, value, off.into(), size, access);
        let allowed = reached.is_ok();
        match reached {
            Ok(()) => {}
            Err(rule) => self.forbid(|| rule)?,
        }
        if let Value::Pointer(pointer) = value {
            if allowed {
                self.use_stack(state, &pointer, off.into());
            }
            self.check_alignment(insn, &pointer, off, size)?;
        }
        self.note(at, allowed && self.is_provable(value));
        Ok(allowed)
    }

    /// # Kernel
    /// `check_ptr_alignment`, for a processor that takes other accesses at any address
    fn check_alignment(
        &self,
        insn: Insn,
        pointer: &Pointer,
        off: i16,
        size: i64,
    ) -> Result<(), Kind> {
        let what = match pointer.base {
            Base::Stack(_) => "stack ",
            Base::Value(_) if insn.mode() == mode::ATOMIC => "value ",
            Base::Buffer { .. } if insn.mode() == mode::ATOMIC => "",
            _ => return Ok(()),
        };
        if pointer.var.is_multiple_of(size) && (pointer.off + i64::from(off)) % size == 0 {
            return Ok(());
        }
        self.forbid(|| {
            let var = match pointer.var.value() {
                Some(n) => (n as i64).to_string(),
                None => pointer.var.bits.to_string(),
            };
            Rule::Misaligned { what, var, at: pointer.off, off, size }
        })
    }

    pub(super) fn access(&mut self, at: usize, insn: Insn, state: &mut State) -> Result<(), Kind> {
        match insn.mode() {
            mode::ATOMIC => self.atomic(at, insn, state),
            _ if insn.class() == class::LDX => self.load(at, insn, state),
            _ => self.plain_store(at, insn, state),
        }
    }

    fn load(&mut self, at: usize, insn: Insn, state: &mut State) -> Result<(), Kind> {
        let base = self.read(state, insn.src)?;
        let allowed = self.check(at, insn.src, insn.off, base, Access::READ, state)?;
        let value = self.loaded(at, insn, base, allowed, state)?;
        state.set(insn.dst, value);
        Ok(())
    }

    /// What a load finds.
    fn loaded(
        &mut self,
        at: usize,
        insn: Insn,
        base: Value,
        allowed: bool,
        state: &mut State,
    ) -> Result<Value, Kind> {
        let bytes = insn.size_bytes();
        let plain = insn.mode() != mode::MEMSX;
        let unknown =
            Value::range(if plain { Range::bytes(bytes) } else { Range::sign_extended(bytes) });
        let Value::Pointer(pointer) = base else { return Ok(unknown) };
        let place = pointer.place().map(|place| place + i64::from(insn.off));
        Ok(match (pointer.base, place) {
            (Base::Ctx, _) => self.ctx_field(at, insn, allowed),
            (Base::Stack(frame), _) if allowed => {
                let size = i64::from(bytes);
                let Some(place) = place else { return Ok(unknown) };
                if state.is_part_of_pointer(frame, place, size) {
                    self.forbid(|| Rule::FillSize)?;
                }
                match state.fill(frame, place, size) {
                    Some(value) if plain => value,
                    Some(value) => Value::range(value.number().sign_extend_bytes(bytes)),
                    None => unknown,
                }
            }
            (Base::Value(map), Some(place)) if allowed => {
                self.frozen(map, place, bytes, plain)?.unwrap_or(unknown)
            }
            // The first field is the address of the output.
            (Base::Meta, Some(0)) if allowed => Value::to(Base::Object),
            _ => unknown,
        })
    }

    /// What is in a value that can no longer change.
    ///
    /// # Kernel
    /// `bpf_map_is_rdonly`, `bpf_map_direct_read`
    fn frozen(
        &self,
        map: KnownMap,
        at: i64,
        bytes: u32,
        plain: bool,
    ) -> Result<Option<Value>, Kind> {
        let KnownMap::Listed(index) = map else { return Ok(None) };
        let Some(map) = self.env.maps.get(index as usize) else { return Ok(None) };
        let layout = map.layout();
        // What other processes share may change whatever they have agreed on.
        let is_constant = layout.kind() == MapKind::Array
            && layout.map_flags().contains(MapFlags::RDONLY_PROG)
            && map.is_frozen()
            && !map.is_shared();
        if !is_constant {
            return Ok(None);
        }
        if layout.max_entries() != 1 {
            self.forbid(|| Rule::FrozenElements(map.name().to_owned()))?;
            return Ok(None);
        }
        let mut value = vec![0; layout.value_size() as usize];
        if map.with_mode(HandleMode::ReadWrite).lookup_elem(0, &mut value, 0).is_err() {
            return Ok(None);
        }
        let found = usize::try_from(at).ok().and_then(|at| value.get(at..at + bytes as usize));
        Ok(found.map(|found| {
            let mut wide = [0; 8];
            wide[..found.len()].copy_from_slice(found);
            let n = Range::constant(u64::from_le_bytes(wide));
            Value::range(if plain { n } else { n.sign_extend_bytes(bytes) })
        }))
    }

    fn plain_store(&mut self, at: usize, insn: Insn, state: &mut State) -> Result<(), Kind> {
        let size = i64::from(insn.size_bytes());
        let value = match insn.class() {
            class::ST => Value::constant(i64::from(insn.imm) as u64),
            _ => {
                self.read(state, insn.src)?;
                self.copy(insn.src, state)
            }
        };
        let base = self.read(state, insn.dst)?;
        let allowed = self.check(at, insn.dst, insn.off, base, Access::WRITE, state)?;
        self.check_spill(base, value, size, state)?;
        self.stored(state, base, i64::from(insn.off), size, allowed, Some(value));
        Ok(())
    }

    /// Pointers go to the stack whole, and those into a frame not to that of a caller.
    ///
    /// # Kernel
    /// `check_stack_write_fixed_off`
    fn check_spill(&self, to: Value, value: Value, size: i64, state: &State) -> Result<(), Kind> {
        let (Value::Pointer(to), Value::Pointer(spilled)) = (to, value) else { return Ok(()) };
        let Base::Stack(frame) = to.base else { return Ok(()) };
        if matches!(spilled.base, Base::Stack(_)) && frame + 1 != state.depth() {
            self.forbid(|| Rule::SpillToCaller)?;
        }
        if size != 8 && to.place().is_some() {
            self.forbid(|| Rule::SpillSize)?;
        }
        Ok(())
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
        let pointer = match base {
            Value::Pointer(pointer) if allowed => pointer,
            _ => {
                self.stacks_hit.set(true);
                return state.forget_stacks();
            }
        };
        match (pointer.base, pointer.place()) {
            (Base::Stack(frame), Some(place)) => {
                let value = match value {
                    Some(value) if size == 8 => value,
                    Some(Value::Number(number))
                        if Range::bytes(size as u32).contains(&number.range) =>
                    {
                        Value::Number(number)
                    }
                    Some(Value::Number(number)) => {
                        Value::range(number.range.truncated(size as u32))
                    }
                    _ => Value::UNKNOWN,
                };
                self.scrub(state, frame, place + off, size);
                state.store(frame, Slot { at: place + off, size, value: value.into() });
            }
            (Base::Stack(frame), None) => {
                let (lo, hi) = pointer.span();
                self.scrub(state, frame, lo + off, hi - lo + size);
                state.overwrite(frame, lo + off, hi - lo + size);
            }
            _ => {}
        }
    }

    /// In strict mode, what is stored in some of eight bytes takes from the others what was known of them.
    ///
    /// # Kernel
    /// `scrub_spilled_slot`
    pub(super) fn scrub(&self, state: &mut State, frame: usize, at: i64, size: i64) {
        if self.env.strict {
            state.scrub(frame, at, size);
        }
    }

    fn atomic(&mut self, at: usize, insn: Insn, state: &mut State) -> Result<(), Kind> {
        let is_load = insn.imm == atomic::LOAD_ACQ;
        let (reg, other) = if is_load { (insn.src, insn.dst) } else { (insn.dst, insn.src) };
        let write = !is_load;
        let read = insn.imm != atomic::STORE_REL;
        let base = self.read(state, reg)?;
        if !is_load {
            self.read(state, other)?;
        }
        if insn.imm == atomic::CMPXCHG {
            self.read(state, Reg::R0)?;
        }
        if let Value::Pointer(Pointer {
            base: Base::Ctx | Base::Packet | Base::PacketMeta, ..
        }) = base
        {
            let access = if is_load { "loads from" } else { "stores into" };
            self.forbid(|| Rule::Atomic { access, reg: reg.index(), is: self.type_name(base) })?;
        }
        let (off, size) = (i64::from(insn.off), i64::from(insn.size_bytes()));
        let fetched = match insn.imm {
            atomic::CMPXCHG => Some(Reg::R0),
            op if read && write && op & atomic::FETCH != 0 => Some(insn.src),
            _ => None,
        };
        if fetched == Some(reg) && base.is_pointer() {
            // The kernel has put what was read there before it asks whether it can be written.
            let var = Range::bytes(insn.size_bytes()).bits.to_string();
            self.forbid(|| Rule::Misaligned { what: "", var, at: 0, off: insn.off, size })?;
        }
        let mut allowed = true;
        for (asked, access) in [(read, Access::READ), (write, Access::WRITE)] {
            allowed &= !asked || self.check(at, reg, insn.off, base, access, state)?;
        }
        // These bases are aligned themselves.
        let aligned = matches!(
            base,
            Value::Pointer(Pointer { base: Base::Stack(_) | Base::Value(_), off: at, var, .. })
                if var.is_multiple_of(size) && (at + off) % size == 0
        );
        if !aligned {
            allowed = false;
            self.note(at, false);
        }
        if let Value::Pointer(pointer) = base
            && let (Base::Stack(frame), Some(place)) = (pointer.base, pointer.place())
            && read
            && state.is_part_of_pointer(frame, place + off, size)
        {
            self.forbid(|| Rule::FillSize)?;
        }
        let old = Value::range(Range::bytes(insn.size_bytes()));
        let found = match (is_load, base) {
            (true, Value::Pointer(pointer)) => match (pointer.base, pointer.place()) {
                (Base::Stack(frame), Some(place)) if allowed => {
                    state.fill(frame, place + off, size).unwrap_or(old)
                }
                _ => old,
            },
            _ => old,
        };
        if write {
            let value = (!read).then(|| state.get(insn.src));
            self.check_spill(base, value.unwrap_or(Value::UNKNOWN), size, state)?;
            self.stored(state, base, off, size, allowed, value);
        }
        match insn.imm {
            atomic::LOAD_ACQ => state.set(insn.dst, found),
            atomic::CMPXCHG => state.set(Reg::R0, old),
            op if op & atomic::FETCH != 0 && write && read => state.set(insn.src, old),
            _ => {}
        }
        Ok(())
    }

    /// A load of packet bytes, which ends the function where the packet ends before them.
    ///
    /// # Kernel
    /// `check_ld_abs`
    pub(super) fn load_packet(
        &mut self,
        at: usize,
        insn: Insn,
        state: &mut State,
    ) -> Result<(), Kind> {
        let takes_packets = matches!(
            self.env.prog_type,
            ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT
        );
        if !takes_packets {
            self.forbid(|| Rule::LoadPacketType)?;
        }
        if state.lock.is_some() {
            self.forbid(|| Rule::EndUnderLock("BPF_LD_[ABS|IND]"))?;
        }
        if insn.mode() == mode::IND {
            self.read(state, insn.src)?;
        }
        let context = self.read(state, Reg::new(6))?;
        if context != Value::to(Base::Ctx) {
            self.forbid(|| Rule::LoadPacketCtx)?;
        }
        let mut ended = state.clone();
        ended.set(Reg::R0, Value::constant(0));
        self.leave(at, ended)?;
        state.clobber_caller_saved();
        state.set(Reg::R0, Value::range(Range::bytes(4)));
        Ok(())
    }
}

/// Whether bytes are in one of the fields of `struct bpf_iter_meta`, which are of 8 bytes each. The first one, a pointer, is read whole.
///
/// # Kernel
/// `btf_struct_walk`
fn reach_meta(pointer: &Pointer, off: i64, size: i64) -> Result<(), Rule> {
    const SIZE: i64 = 24;
    let place = pointer.place().and_then(|place| place.checked_add(off));
    let Some(off) = place else { return Err(Rule::MetaVariable(pointer.var.bits.to_string())) };
    let is_field = off >= 0 && off <= SIZE - size && off % 8 + size <= 8;
    if is_field && (off >= 8 || size == 8) { Ok(()) } else { Err(Rule::MetaAccess { off, size }) }
}
