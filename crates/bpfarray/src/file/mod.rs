//! Map files: maps whose memory several processes share.
//!
//! `docs/format.md` describes the file byte by byte. What it says about itself is read and judged
//! once, when it is opened; afterwards only values, lanes and two words of the header are looked at.

mod disk;
mod error;
mod exclusive;
mod header;
mod lanes;
mod lock;
mod mapping;
mod open;
mod owner;
mod ring;
mod seat;
mod set;
mod sigbus;
mod slots;
mod template;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bpfarray_core::map::{FreezeError, HandleMode, Kind, check_freeze};

use self::header::{FROZEN_OFFSET, GENERATION_OFFSET, LANE_STRIDE, Shape};
use self::lanes::{Lanes, Slots};
use self::lock::{LockKind, try_lock};
use self::seat::Seat;
use crate::cpu::{current_cpu, possible_cpus};
use crate::directory::Directory;
use crate::memory::Memory;

pub use self::error::FileError;
pub use self::header::HeaderError;
pub(crate) use self::lanes::Held;
pub(crate) use self::mapping::{Protection, Source};
pub(crate) use self::ring::RingFile;
pub use self::ring::{Sample, SharedRingAttr, Wakeup};
pub use self::set::SharedLanes;
pub(crate) use self::slots::object_of;
pub use self::slots::{FileSlots, empty_slots_of_file, slots_of_file};

/// The byte whose lock tells other processes that one has a writable typed array. No file is that
/// long, so the lock covers no data.
const LONG_WRITERS: u64 = (1 << 62) - 1;

/// The byte whose lock is the `bpf_spin_lock` of element 0. No file is that long either.
const FIRST_VALUE_LOCK: u64 = 1 << 61;

/// Makes an open map file count as a writer for as long as it is open, so that nobody can freeze the map: what a
/// writable mapping needs that is made of it. `false` if somebody is freezing the map just now.
///
/// # Errors
/// What the system says of a lock on a byte of the file.
///
/// # Kernel
/// `bpf_map_write_active_inc`
#[doc(alias = "bpf_map_write_active_inc")]
pub fn count_as_writer(file: &File) -> std::io::Result<bool> {
    try_lock(file, LONG_WRITERS, LockKind::Shared)
}

/// The file under a map, opened once in a process.
pub(crate) struct MapFile {
    /// Device and inode.
    key: (u64, u64),
    source: Source,
    /// What the file was found to be.
    shape: Shape,
    /// The first page.
    header: Memory,
    /// The slots of a map of objects, with their ids.
    slots: Memory,
    /// None in a file that was opened for reading only.
    lanes: Option<Lanes<LaneWords, Seat>>,
    /// Typed arrays of this process that can write.
    long_writers: Mutex<u32>,
    /// Elements whose `bpf_spin_lock` this process holds: locks on bytes do not tell its threads apart.
    value_locks: Mutex<HashSet<u32>>,
    /// What lists the file.
    directory: Option<Arc<dyn Directory>>,
}

impl Drop for MapFile {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            directory.closing(self.source.file.as_fd());
        }
    }
}

/// The lane area of a file.
struct LaneWords(Memory);

impl Slots for LaneWords {
    fn count(&self) -> u32 {
        possible_cpus()
    }

    #[inline]
    fn replace(&self, lane: u32, old: u64, new: u64) -> u64 {
        let at = lane as usize * LANE_STRIDE as usize;
        // There is a word for every possible CPU. A lane of another one guards no values, so
        // nothing is lost if it is as good as free.
        self.0.compare_exchange(at, size_of::<u64>(), old, new).unwrap_or(old)
    }

    #[inline]
    fn free(&self, lane: u32) {
        let at = lane as usize * LANE_STRIDE as usize;
        let _ = self.0.store_release(at, size_of::<u64>(), 0);
    }
}

/// A number for the calling thread that no other thread of the process has.
#[inline]
fn thread_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: u32 = LAST.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl MapFile {
    /// The id under which a directory lists the file.
    pub(crate) fn listed_id(&self) -> Option<u32> {
        (self.shape.id != 0).then_some(self.shape.id)
    }

    /// What the file is a map of.
    pub(crate) fn kind(&self) -> Kind {
        self.shape.layout.kind()
    }

    pub(crate) fn directory(&self) -> Option<&Arc<dyn Directory>> {
        self.directory.as_ref()
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.lanes.is_none()
    }

    /// Waits for the lane of a CPU, and keeps it from all other processes and threads.
    #[inline]
    pub(crate) fn claim(&self, cpu: u32) -> Option<Held<'_>> {
        self.lanes.as_ref().map(|lanes| lanes.claim(cpu, thread_number()))
    }

    /// Begins to write through a handle, or says that nobody may.
    pub(crate) fn enter(&self) -> Option<Held<'_>> {
        let lanes = self.lanes.as_ref()?;
        let held = lanes.claim_any(current_cpu(), thread_number());
        // A freezer sets the word and then waits for each lane once.
        (!self.is_frozen()).then_some(held)
    }

    /// Counts in one more long writer.
    pub(crate) fn try_enter(&self) -> bool {
        let mut writers = self.long_writers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_read_only() {
            return false;
        }
        if *writers == 0 && !self.lock(LockKind::Shared) {
            // Somebody is freezing the map.
            return false;
        }
        if self.is_frozen() {
            if *writers == 0 {
                self.lock(LockKind::None);
            }
            return false;
        }
        *writers += 1;
        true
    }

    pub(crate) fn leave(&self) {
        let mut writers = self.long_writers.lock().unwrap_or_else(PoisonError::into_inner);
        *writers -= 1;
        if *writers == 0 {
            self.lock(LockKind::None);
        }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.header.load_acquire(FROZEN_OFFSET, size_of::<u64>()).is_ok_and(|frozen| frozen != 0)
    }

    pub(crate) fn freeze(&self, mode: HandleMode) -> Result<(), FreezeError> {
        let writers = self.long_writers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lanes) = &self.lanes else { return Err(FreezeError::NotWritable) };
        let thread = thread_number();
        let busy = u64::from(*writers) + u64::from(lanes.is_held_by(thread));
        check_freeze(mode, self.is_frozen(), busy)?;
        if !self.lock(LockKind::Exclusive) {
            return Err(if self.is_frozen() {
                FreezeError::NotWritable
            } else {
                FreezeError::Busy
            });
        }
        let result = check_freeze(mode, self.is_frozen(), 0);
        if result.is_ok() {
            let _ = self.header.store_release(FROZEN_OFFSET, size_of::<u64>(), 1);
            let _ = self.header.fetch_add(GENERATION_OFFSET, size_of::<u64>(), 1);
            lanes.synchronize(thread);
        }
        self.lock(LockKind::None);
        result
    }

    /// Takes the `bpf_spin_lock` of an element, unless somebody holds it: a lock on a byte of the file, which the kernel
    /// drops when the process dies.
    pub(crate) fn try_lock_value(&self, index: u32) -> bool {
        let mut held = self.value_locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Who may only read does not exclude other readers.
        let kind = if self.is_read_only() { LockKind::Shared } else { LockKind::Exclusive };
        let byte = FIRST_VALUE_LOCK + u64::from(index);
        if held.contains(&index) || !try_lock(&self.source.file, byte, kind).unwrap_or(false) {
            return false;
        }
        held.insert(index)
    }

    /// Releases the lock of an element that [`MapFile::try_lock_value`] took.
    pub(crate) fn unlock_value(&self, index: u32) {
        let mut held = self.value_locks.lock().unwrap_or_else(PoisonError::into_inner);
        let byte = FIRST_VALUE_LOCK + u64::from(index);
        // What fails to unlock stays locked to others until the file is closed.
        let _ = try_lock(&self.source.file, byte, LockKind::None);
        held.remove(&index);
    }

    /// Changes the lock on [`LONG_WRITERS`]. A lock that the file system refuses is not held.
    fn lock(&self, kind: LockKind) -> bool {
        try_lock(&self.source.file, LONG_WRITERS, kind).unwrap_or(false)
    }

    fn file(&self) -> &File {
        &self.source.file
    }

    fn has_lost_pages(&self) -> bool {
        let lost: &AtomicBool = &self.source.lost;
        lost.load(Ordering::Relaxed)
    }

    fn read_btf(&self) -> std::io::Result<Vec<u8>> {
        let mut btf = vec![0; self.shape.geometry.btf_len as usize];
        self.file().read_exact_at(&mut btf, self.shape.geometry.btf_offset)?;
        Ok(btf)
    }
}
