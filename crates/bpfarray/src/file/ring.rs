//! Ring files: perf events that several processes share.
//!
//! The first page says what the event is and has the words by which writers go; what follows is what readers map.
//! `docs/format.md` describes it. What stands there about the event is read and judged once. Whoever writes to the ring holds
//! its lane, so that there is one writer at a time among all processes, of which some may have died.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bpfarray_core::Errno;
use rustix::fs::{FlockOperation, flock};

use super::header::PAGE;
use super::lanes::{Held, Lanes, Slots};
use super::seat::Seat;
use super::{Source, thread_number};
use crate::cpu::possible_cpus;
use crate::directory::Directory;
use crate::memory::Memory;

const MAGIC: [u8; 8] = *b"\x8fBPFEVT\n";
const VERSION: u32 = 1;
/// Bytes of what is written once.
const HEADER_LEN: usize = 40;
const INHERIT: u32 = 1;
const WATERMARK: u32 = 2;

/// The word of the lane.
const LANE: usize = 2176;
const WORD: usize = size_of::<u64>();

/// What an event for output of programs is.
///
/// # Kernel
/// `struct perf_event_attr`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SharedRingAttr {
    /// The number by which records of losses name the event.
    pub id: u32,
    /// The CPU whose programs write to it.
    pub cpu: u32,
    /// Whether children of the observed task inherit the event, so that no slot takes it.
    pub inherit: bool,
    /// What is in a record.
    pub sample: Sample,
    /// When its reader is woken.
    pub wakeup: Wakeup,
    /// Nanoseconds of the monotonic clock when it was opened.
    pub since: u64,
}

bitflags::bitflags! {
    /// What is in a record that a program writes.
    ///
    /// # Kernel
    /// `enum perf_event_sample_format`
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    #[doc(alias = "perf_event_sample_format")]
    pub struct Sample: u32 {
        /// Process and thread.
        const TID = 1 << 1;
        /// Nanoseconds of the monotonic clock.
        const TIME = 1 << 2;
        /// The event's number.
        const ID = 1 << 6;
        /// The CPU.
        const CPU = 1 << 7;
        /// 0.
        const PERIOD = 1 << 8;
        /// The event's number once more.
        const STREAM_ID = 1 << 9;
        /// What the program wrote.
        const RAW = 1 << 10;
        /// The event's number, before all other fields.
        const IDENTIFIER = 1 << 16;
    }
}

/// When the reader of a ring is woken.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Wakeup {
    /// Once there were so many records, and in any case by half a ring: `wakeup_events`. 0 is never by number.
    #[doc(alias = "wakeup_events")]
    Events(u32),
    /// Once there were so many bytes: `wakeup_watermark`. 0 is half a ring.
    #[doc(alias = "wakeup_watermark")]
    Watermark(u32),
}

impl SharedRingAttr {
    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let (watermark, wakeup) = match self.wakeup {
            Wakeup::Events(events) => (0, events),
            Wakeup::Watermark(bytes) => (WATERMARK, bytes),
        };
        let flags = watermark | if self.inherit { INHERIT } else { 0 };
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        let fields = [VERSION, self.id, self.cpu, flags, wakeup, self.sample.bits()];
        for (to, field) in bytes[8..32].chunks_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes[32..].copy_from_slice(&self.since.to_le_bytes());
        bytes
    }

    /// `None` for what no event can be.
    fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (fields, since) = rest.split_first_chunk::<24>()?;
        let [version, id, cpu, flags, wakeup, sample] = *fields.as_chunks::<4>().0 else {
            return None;
        };
        let number = u32::from_le_bytes;
        let cpu = number(cpu);
        if *magic != MAGIC || number(version) != VERSION || cpu >= possible_cpus() {
            return None;
        }
        let is_set = |flag| number(flags) & flag != 0;
        let (wakeup, inherit) = (number(wakeup), is_set(INHERIT));
        let wakeup =
            if is_set(WATERMARK) { Wakeup::Watermark(wakeup) } else { Wakeup::Events(wakeup) };
        let since = u64::from_le_bytes(*since.first_chunk()?);
        let sample = Sample::from_bits(number(sample))?;
        Some(Self { id: number(id), cpu, inherit, sample, wakeup, since })
    }
}

/// A ring file that is open in this process.
pub(crate) struct RingFile {
    source: Source,
    attr: SharedRingAttr,
    /// The first page.
    words: Memory,
    lane: Lanes<LaneWord, Seat>,
    directory: Arc<dyn Directory>,
}

struct LaneWord(Memory);

impl Slots for LaneWord {
    fn count(&self) -> u32 {
        1
    }

    fn replace(&self, _lane: u32, old: u64, new: u64) -> u64 {
        // The offset is inside and aligned.
        self.0.compare_exchange(LANE, WORD, old, new).unwrap_or(old)
    }

    fn free(&self, _lane: u32) {
        let _ = self.0.store_release(LANE, WORD, 0);
    }
}

impl RingFile {
    /// Makes the file of a new event, without a ring.
    pub(crate) fn create(path: &Path, attr: &SharedRingAttr) -> io::Result<()> {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(PAGE)?;
        file.write_all_at(&attr.to_bytes(), 0)
    }

    /// Opens the file of an event, for reading and writing.
    pub(crate) fn open(path: &Path, directory: &Arc<dyn Directory>) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path)?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        let attr = SharedRingAttr::from_bytes(&header).ok_or(io::ErrorKind::InvalidData)?;
        let (file, lost) = (Arc::new(file), Arc::new(AtomicBool::new(false)));
        let source = Source { file: Arc::clone(&file), shared: true, sealed: false, lost };
        let words = source.memory(PAGE as usize).map_err(from_errno)?;
        let lane = Lanes::new(LaneWord(words.clone()), Seat::take(&file)?);
        directory.opened(file.as_fd());
        Ok(Self { source, attr, words, lane, directory: Arc::clone(directory) })
    }

    pub(crate) fn attr(&self) -> &SharedRingAttr {
        &self.attr
    }

    pub(crate) fn words(&self) -> &Memory {
        &self.words
    }

    /// Waits until no other thread, of whatever process, writes to the ring, and keeps them out.
    pub(crate) fn claim(&self) -> Held<'_> {
        self.lane.claim(0, thread_number())
    }

    /// Whether no mapping that counts as a reference is there. Somebody else who asks at the same time looks like one.
    pub(crate) fn is_unmapped(&self) -> io::Result<bool> {
        match flock(&*self.source.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => flock(&*self.source.file, FlockOperation::Unlock)?,
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// The first page and a ring of `pages` pages.
    pub(crate) fn memory(&self, pages: u32) -> Result<Memory, Errno> {
        self.source.memory((pages as usize + 1) * PAGE as usize)
    }

    /// Makes room for a ring of `pages` pages, all zero. For who has the lane.
    pub(crate) fn resize(&self, pages: u32) -> io::Result<()> {
        self.source.file.set_len(PAGE)?;
        self.source.file.set_len((u64::from(pages) + 1) * PAGE)
    }
}

fn from_errno(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw())
}

impl Drop for RingFile {
    fn drop(&mut self) {
        self.directory.closing(self.source.file.as_fd());
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_an_event_is_read_as_it_was_written() {
        let events = SharedRingAttr {
            id: 7,
            cpu: possible_cpus() - 1,
            inherit: true,
            sample: Sample::RAW | Sample::TIME,
            wakeup: Wakeup::Events(1),
            since: u64::MAX - 1,
        };
        let bytes =
            SharedRingAttr { inherit: false, wakeup: Wakeup::Watermark(u32::MAX), ..events };
        for attr in [events, bytes] {
            assert_eq!(SharedRingAttr::from_bytes(&attr.to_bytes()), Some(attr));
        }
        let refused = |at: usize, byte: u8| {
            let mut bytes = events.to_bytes();
            bytes[at] = byte;
            SharedRingAttr::from_bytes(&bytes).is_none()
        };
        assert!(refused(0, 0) && refused(8, 2) && refused(18, 1) && refused(28, 1));
    }
}
