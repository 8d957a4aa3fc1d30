//! The memory of a ring, and how records are written into it.

use bpfarray_core::Errno;

use super::EventOutputError;
use crate::memory::{AtomicError, Memory, OutOfBounds};

pub(crate) const PAGE: usize = 4096;

/// Offsets in `struct perf_event_mmap_page`.
pub(super) mod page {
    pub(super) const CAPABILITIES: usize = 40;
    pub(super) const SIZE: usize = 72;
    pub(in super::super) const DATA_HEAD: usize = 1024;
    pub(in super::super) const DATA_TAIL: usize = 1032;
    pub(in super::super) const DATA_OFFSET: usize = 1040;
    pub(in super::super) const DATA_SIZE: usize = 1048;
}

/// Words of the page before the ring, by which only writers go.
pub(super) mod count {
    /// Up to where records were written.
    pub(in super::super) const HEAD: usize = 2072;
    /// Records that were lost since the last one that said so.
    pub(in super::super) const LOST: usize = 2080;
    /// Records that were lost in all.
    pub(in super::super) const LOST_SAMPLES: usize = 2088;
}

const WORD: usize = size_of::<u64>();

pub(super) const RECORD_LOST: u32 = 2;
pub(super) const RECORD_SAMPLE: u32 = 9;
/// Where a sample comes from: the kernel, say all that programs write.
const MISC_KERNEL: u16 = 1;

/// Bytes of `struct perf_event_header`.
pub(super) const HEADER: u64 = 8;
/// Bytes of a record that says how many were lost: header, id of the event, number.
const LOST_LEN: u64 = HEADER + 16;
/// Bytes of the length in front of a sample's data.
pub(super) const RAW_SIZE: u64 = 4;

/// A page for writers, a page like `struct perf_event_mmap_page`, and the data. There is one writer at a time, who can
/// be sure of no number in it: positions are only used by their remainder.
#[derive(Debug)]
pub(super) struct Pages {
    counts: Memory,
    ring: Memory,
    /// Bytes of data, a power of two.
    size: u64,
    /// The event's number in reports of losses.
    id: u64,
    /// The reader cannot say how far it is, so old records make room for new ones.
    overwrites: bool,
}

impl Pages {
    /// Over memory of two pages and `size` bytes of data.
    pub(super) fn new(memory: &Memory, id: u64, overwrites: bool) -> Result<Self, Errno> {
        let no_memory = |_| Errno::ENOMEM;
        let ring_len = memory.len().saturating_sub(PAGE);
        let counts = memory.view(0, PAGE).map_err(no_memory)?;
        let ring = memory.view(PAGE, ring_len).map_err(no_memory)?;
        let size = ring_len.checked_sub(PAGE).filter(|size| size.is_power_of_two());
        let size = size.ok_or(Errno::EINVAL)? as u64;
        Ok(Self { counts, ring, size, id, overwrites })
    }

    /// Fills in what readers find in the first page of a new ring.
    pub(super) fn describe(&self) -> Result<(), OutOfBounds> {
        /// `cap_bit0_is_deprecated`
        const NONE: u64 = 2;
        /// Bytes of the fields that are there.
        const FIELDS: u64 = 96;
        self.ring.store(page::CAPABILITIES, WORD, NONE)?;
        self.ring.store(page::SIZE, size_of::<u32>(), FIELDS)?;
        self.ring.store(page::DATA_OFFSET, WORD, PAGE as u64)?;
        self.ring.store(page::DATA_SIZE, WORD, self.size)
    }

    /// The ring as readers map it.
    pub(super) fn ring(&self) -> &Memory {
        &self.ring
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn count(&self, offset: usize) -> u64 {
        self.counts.load(offset, WORD).unwrap_or(0)
    }

    pub(super) fn set_count(&self, offset: usize, count: u64) {
        // All offsets are inside, so the memory refuses none.
        let _ = self.counts.store(offset, WORD, count);
    }

    /// Writes a record, or counts it as lost: `fields` of the program, and then its data, unless there is to be none. Gives the
    /// position behind it. For the only writer.
    ///
    /// # Errors
    /// [`EventOutputError::TooLong`], [`EventOutputError::NoSpace`].
    pub(super) fn output(
        &self,
        fields: &[u8],
        parts: Option<&[&[u8]]>,
    ) -> Result<u64, EventOutputError> {
        let sum: usize = parts.unwrap_or_default().iter().map(|part| part.len()).sum();
        let padded = parts.map_or(0, |_| (sum as u64 + RAW_SIZE).next_multiple_of(8));
        let too_long = |_| EventOutputError::TooLong(sum);
        let len = u16::try_from(HEADER + fields.len() as u64 + padded).map_err(too_long)?;
        // All offsets are inside, so the memory refuses none.
        match self.write(len, fields, parts.map(|parts| ((padded - RAW_SIZE) as u32, parts))) {
            Ok(Some(end)) => Ok(end),
            Ok(None) | Err(_) => Err(self.lose()),
        }
    }

    /// Counts a record as lost.
    pub(super) fn lose(&self) -> EventOutputError {
        for count in [count::LOST, count::LOST_SAMPLES] {
            self.set_count(count, self.count(count).wrapping_add(1));
        }
        EventOutputError::NoSpace
    }

    /// Whether records of `len` bytes fit between head and tail, one byte staying free.
    ///
    /// # Kernel
    /// `ring_buffer_has_space`
    fn has_space(&self, head: u64, len: u64) -> Result<bool, AtomicError> {
        if self.overwrites {
            return Ok(true);
        }
        // Acquire: the reader has read what is overwritten now.
        let tail = self.ring.load_acquire(page::DATA_TAIL, WORD)?;
        Ok(tail.wrapping_sub(head).wrapping_sub(1) & (self.size - 1) >= len)
    }

    /// Copies bytes to a position, around the end of the ring as often as they cross it. Gives the position behind.
    fn put(&self, position: u64, mut bytes: &[u8]) -> Result<u64, AtomicError> {
        let end = position.wrapping_add(bytes.len() as u64);
        let mut at = (position & (self.size - 1)) as usize;
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(self.size as usize - at));
            self.ring.write(PAGE + at, here)?;
            (at, bytes) = (0, rest);
        }
        Ok(end)
    }

    fn put_header(
        &self,
        position: u64,
        kind: u32,
        misc: u16,
        len: u16,
    ) -> Result<u64, AtomicError> {
        let mut header = [0; HEADER as usize];
        header[..4].copy_from_slice(&kind.to_ne_bytes());
        header[4..6].copy_from_slice(&misc.to_ne_bytes());
        header[6..].copy_from_slice(&len.to_ne_bytes());
        self.put(position, &header)
    }

    /// Writes a record of `len` bytes; `None` where there is no room.
    ///
    /// # Kernel
    /// `__perf_output_begin`, `perf_output_sample`
    fn write(
        &self,
        len: u16,
        fields: &[u8],
        raw: Option<(u32, &[&[u8]])>,
    ) -> Result<Option<u64>, AtomicError> {
        let start = self.count(count::HEAD);
        let lost = self.count(count::LOST);
        let lost_len = if lost == 0 { 0 } else { LOST_LEN };
        if !self.has_space(start, lost_len + u64::from(len))? {
            return Ok(None);
        }
        let mut at = start;
        if lost != 0 {
            at = self.put_header(at, RECORD_LOST, 0, LOST_LEN as u16)?;
            at = self.put(at, &self.id.to_ne_bytes())?;
            at = self.put(at, &lost.to_ne_bytes())?;
            self.set_count(count::LOST, 0);
        }
        let end = at.wrapping_add(len.into());
        at = self.put_header(at, RECORD_SAMPLE, MISC_KERNEL, len)?;
        at = self.put(at, fields)?;
        if let Some((raw_size, parts)) = raw {
            at = self.put(at, &raw_size.to_ne_bytes())?;
            for part in parts {
                at = self.put(at, part)?;
            }
            // The kernel leaves there what was in the ring before.
            self.put(at, &[0; 8][..end.wrapping_sub(at).min(8) as usize])?;
        }
        self.set_count(count::HEAD, end);
        // Release: whoever sees the new head sees the record.
        self.ring.store_release(page::DATA_HEAD, WORD, end)?;
        Ok(Some(end))
    }
}
