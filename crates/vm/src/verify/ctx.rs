//! Accesses to the context of a program, which become accesses to its native form.

use bpfarray_core::insn::{Insn, mode, size};

use super::explore::Explorer;
use super::memory::Access;
use super::range::Range;
use super::rule::Rule;
use super::value::{Base, Pointer, Value};
use super::{Fact, ProgType, VerifyErrorKind as Kind};
use crate::context::{CtxAccess, convert_ctx_access};
use crate::prog_type::AttachType;

impl Explorer<'_> {
    /// An access to the context, which has a form of its own.
    pub(super) fn check_ctx(
        &mut self,
        at: usize,
        reg: usize,
        value: Value,
        access: Access,
    ) -> Result<bool, Kind> {
        let insn = self.insns[at];
        let Value::Pointer(pointer) = value else { return Ok(false) };
        if pointer.place() != Some(0) {
            self.forbid(|| match pointer.place() {
                Some(off) => Rule::ModifiedCtx { reg, off },
                None => Rule::VariableCtx(pointer.var.bits.to_string()),
            })?;
            self.found(at, Fact::None);
            self.note(at, false);
            return Ok(false);
        }
        let (offset, bytes) = (insn.off, insn.size_bytes());
        // A sign-extending load has no wider form, so it cannot load a pointer.
        let possible = |access: &CtxAccess| match insn.mode() {
            mode::MEM => true,
            mode::MEMSX => access.native_size == bytes as usize,
            _ => false,
        };
        let fact = usize::try_from(offset)
            .ok()
            .and_then(|off| {
                convert_ctx_access(self.env.prog_type, off, bytes as usize, access.write)
            })
            .filter(|_| !self.env.strict || self.has_field(offset, bytes))
            .filter(possible)
            .map(Fact::Ctx)
            .ok_or(Kind::CtxAccess { offset, size: bytes })?;
        if !self.found(at, fact) {
            self.forbid(|| Rule::DifferentPointers)?;
            return Ok(false);
        }
        // Whether a context of this type always has all bytes that a conversion knows of.
        let allowed = crate::context::min_len(self.env.prog_type).is_some();
        self.note(at, allowed);
        Ok(allowed)
    }

    /// Whether programs that are attached like this one have a field of the context.
    fn has_field(&self, offset: i16, bytes: u32) -> bool {
        const EGRESS_IFINDEX: i16 = 20;
        /// `struct bpf_iter__bpf_map_elem`
        const ITER_SIZE: i16 = 32;
        match (self.env.prog_type, self.env.attach_type) {
            (ProgType::XDP, attach_type) => {
                offset != EGRESS_IFINDEX || attach_type == AttachType::XDP_DEVMAP
            }
            (ProgType::TRACING, AttachType::TRACE_ITER) => offset < ITER_SIZE && bytes == 8,
            _ => true,
        }
    }

    /// What a field of the context holds.
    pub(super) fn ctx_field(&self, at: usize, insn: Insn, allowed: bool) -> Value {
        let bytes = insn.size_bytes();
        let is_tc = matches!(self.env.prog_type, ProgType::SCHED_CLS | ProgType::SCHED_ACT);
        let is_iter = self.env.attach_type == AttachType::TRACE_ITER;
        let or_null = |base| Value::Pointer(Pointer { maybe_null: true, ..Pointer::to(base) });
        let pointer = match (self.env.prog_type, insn.off) {
            (ProgType::XDP, 0) => Value::to(Base::Packet),
            (ProgType::XDP, 4) => Value::to(Base::PacketEnd),
            (ProgType::XDP, 8) => Value::to(Base::PacketMeta),
            (_, 76) if is_tc => Value::to(Base::Packet),
            (_, 80) if is_tc => Value::to(Base::PacketEnd),
            (_, 140) if is_tc => Value::to(Base::PacketMeta),
            (ProgType::TRACING, 0) if is_iter => Value::to(Base::Meta),
            (ProgType::TRACING, 8) if is_iter => Value::to(Base::Object),
            (ProgType::TRACING, 16) if is_iter => or_null(Base::Buffer { writable: false }),
            (ProgType::TRACING, 24) if is_iter => or_null(Base::Buffer { writable: true }),
            _ => {
                return match self.facts[at] {
                    Some(Fact::Ctx(access)) if access.native_size as u32 == bytes => {
                        Value::range(match insn.mode() {
                            mode::MEMSX => Range::sign_extended(bytes),
                            _ => Range::bytes(bytes),
                        })
                    }
                    _ => Value::UNKNOWN,
                };
            }
        };
        let whole = if self.env.prog_type == ProgType::TRACING { size::DW } else { size::W };
        let is_known =
            (allowed || self.env.strict) && insn.size() == whole && insn.mode() == mode::MEM;
        if is_known { pointer } else { Value::UNKNOWN }
    }
}
