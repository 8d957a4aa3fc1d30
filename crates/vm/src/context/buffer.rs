//! The memory of a context: its native structure on the first pages, its packet behind.

use std::mem::offset_of;
use std::ops::Range;

use bpfarray::Memory;
use bpfarray_core::Errno;

use super::convert::Field;
use crate::fault::AccessReason;

/// Every byte of a structure may be written.
pub(super) const EVERYTHING: &[Range<usize>] = std::slice::from_ref(&(0..usize::MAX));

/// One block of memory with two windows that a program may look through.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    /// Its address.
    base: u64,
    ctx_len: usize,
    /// Parts of the native structure that may be written.
    writable: &'static [Range<usize>],
    /// Fields that have another width or place for users than here.
    fields: &'static [Field],
    /// Where in the memory the packet is that programs may touch.
    packet: Range<usize>,
}

impl Buffer {
    pub(super) const BASE: usize = offset_of!(Self, base);
    pub(super) const PACKET_START: usize = offset_of!(Self, packet.start);
    pub(super) const PACKET_END: usize = offset_of!(Self, packet.end);

    /// Memory for a structure of `ctx_len` bytes and for `packet_len` bytes from [`Buffer::packet_start`] on.
    pub(super) fn new(
        ctx_len: usize,
        packet_len: usize,
        writable: &'static [Range<usize>],
        fields: &'static [Field],
    ) -> Result<Self, Errno> {
        let memory = Memory::anonymous(Self::packet_start(ctx_len) + packet_len)?;
        let base = memory.addr();
        Ok(Self { memory, base, ctx_len, writable, fields, packet: 0..0 })
    }

    /// The first page boundary behind a structure of `ctx_len` bytes.
    pub(super) const fn packet_start(ctx_len: usize) -> usize {
        (if ctx_len == 0 { 1 } else { ctx_len }).next_multiple_of(4096)
    }

    /// Address of the native structure: what the program gets in r1.
    pub(crate) fn ctx_addr(&self) -> u64 {
        self.base
    }

    pub(super) fn ctx_len(&self) -> usize {
        self.ctx_len
    }

    /// The block. Offsets into it are trusted by nobody: accesses check them.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Lets programs touch these bytes of the memory as their packet.
    pub(super) fn set_packet(&mut self, packet: Range<usize>) {
        self.packet = packet;
    }

    /// Offset of an access, `None` for an address that is not here.
    #[inline]
    pub(crate) fn locate(
        &self,
        addr: u64,
        size: usize,
        write: bool,
    ) -> Option<Result<usize, AccessReason>> {
        let at = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        if at >= self.packet.start && at < self.packet.end {
            let inside = size <= self.packet.end - at;
            return Some(if inside { Ok(at) } else { Err(AccessReason::Packet) });
        }
        if at >= self.memory.len() {
            return None;
        }
        Some(self.locate_ctx(at, size, write))
    }

    fn locate_ctx(&self, at: usize, size: usize, write: bool) -> Result<usize, AccessReason> {
        if at >= Self::packet_start(self.ctx_len) {
            return Err(AccessReason::Packet);
        }
        let inside = |range: &Range<usize>| {
            range.start <= at && at < range.end && size <= range.end.min(self.ctx_len) - at
        };
        let allowed = at < self.ctx_len
            && if write { self.writable.iter().any(inside) } else { inside(&(0..usize::MAX)) };
        if allowed { Ok(at) } else { Err(AccessReason::Context) }
    }

    /// Loads a number of 1, 2, 4 or 8 bytes, `None` for an address that is not here.
    ///
    /// Translation replaces accesses to the context's fields as users see them by native ones, where it can
    /// tell. Where it could not, because the context's address came by a way it does not follow, the
    /// field is found here: no native field has the place and the width of a users' one of another meaning.
    #[inline]
    pub(crate) fn load(&self, addr: u64, size: usize) -> Option<Result<u64, AccessReason>> {
        let at = match self.locate(addr, size, false)? {
            Ok(at) => at,
            Err(reason) => return Some(Err(reason)),
        };
        let by_user = |field: &&Field| usize::from(field.offset) == at && size == 4;
        let (at, size) = match self.fields.iter().find(by_user) {
            Some(field) => (usize::from(field.native_offset), usize::from(field.native_size)),
            None => (at, size),
        };
        Some(self.memory.load(at, size).map_err(|_| AccessReason::Nowhere))
    }
}
