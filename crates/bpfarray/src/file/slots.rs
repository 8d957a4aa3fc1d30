//! Slots in a file: the ids of the objects that a map holds.
//!
//! One word of the header is odd while a slot is being changed, and another even number afterwards. So whoever finds the
//! same even number twice knows that nothing happened in between, and if a writer dies half-way, others look again each
//! time until the next one is done.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::Kind;
use rustix::fs::{SeekFrom, seek};

use super::MapFile;
use super::error::FileError;
use super::header::{PAGE, SLOT_CHANGES_OFFSET, Shape};
use super::lock::{LockKind, is_locked, try_lock};
use super::open::read_shape;

/// Bytes of an id in a slot.
const ID: usize = size_of::<u64>();

/// The byte that stands for claim 0. No file is that long.
const FIRST_CLAIM: u64 = 1 << 60;

/// The bits of a slot that name an event. The others are its claim.
const EVENT: u64 = u32::MAX as u64;

/// Bytes that are read at once.
const PART: usize = 64 << 10;

/// What the slots of a map file name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileSlots {
    /// What kind of map it is. Maps of values have no slots.
    pub kind: Kind,
    /// Slots that are filled, in order: index, and id of the object. Events that no directory lists have the id 0.
    pub filled: Vec<(u32, u64)>,
}

/// Reads which objects a map file refers to, without making a map of it. Holes in the file are skipped.
///
/// # Errors
/// As [`Map::open_file`](crate::Map::open_file).
pub fn slots_of_file(file: &File) -> Result<FileSlots, FileError> {
    let path = Path::new("map file");
    let len = file.metadata().map_err(FileError::io(path, "use"))?.len();
    let shape = read_shape(path, file, len)?;
    let mut filled = read_filled(file, &shape).map_err(FileError::io(path, "read slots of"))?;
    let kind = shape.layout.kind();
    if kind == Kind::PerfEventArray {
        let stays = shape.layout.map_flags().contains(MapFlags::PRESERVE_ELEMS);
        filled.retain(|&(_, word)| stays || is_claimed(file, word));
    }
    let filled = filled.into_iter().map(|(index, word)| (index, object_of(kind, word))).collect();
    Ok(FileSlots { kind, filled })
}

/// Empties all slots of a map file, as if nobody used the map any more. There must be no other writer.
///
/// # Errors
/// As [`slots_of_file`].
///
/// # Kernel
/// `bpf_fd_array_map_clear`
#[doc(alias = "bpf_fd_array_map_clear")]
pub fn empty_slots_of_file(file: &File) -> Result<(), FileError> {
    let empty = |filled: Vec<(u32, u64)>| {
        let mut changes = [0; ID];
        file.read_exact_at(&mut changes, SLOT_CHANGES_OFFSET as u64)?;
        let changes = u64::from_le_bytes(changes) | 1;
        file.write_all_at(&changes.to_le_bytes(), SLOT_CHANGES_OFFSET as u64)?;
        for (index, _) in filled {
            file.write_all_at(&[0; ID], PAGE + u64::from(index) * ID as u64)?;
        }
        let changes = changes.wrapping_add(1);
        file.write_all_at(&changes.to_le_bytes(), SLOT_CHANGES_OFFSET as u64)
    };
    let slots = slots_of_file(file)?;
    empty(slots.filled).map_err(FileError::io(Path::new("map file"), "empty slots of"))
}

fn read_filled(file: &File, shape: &Shape) -> io::Result<Vec<(u32, u64)>> {
    let mut filled = Vec::new();
    if !shape.layout.kind().holds_objects() {
        return Ok(filled);
    }
    let end = PAGE + u64::from(shape.layout.max_entries()) * ID as u64;
    let mut part = vec![0; PART];
    let mut at = PAGE;
    while at < end {
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data - data % ID as u64,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            // The file system does not tell where holes are.
            Err(_) => at,
        };
        let len = end.saturating_sub(at).min(PART as u64) as usize;
        let bytes = &mut part[..len];
        file.read_exact_at(bytes, at)?;
        let first = (at - PAGE) / ID as u64;
        let ids = bytes.as_chunks::<ID>().0.iter().map(|id| u64::from_le_bytes(*id));
        filled.extend((first as u32..).zip(ids).filter(|&(_, id)| id != 0));
        at += len as u64;
    }
    Ok(filled)
}

/// The id of the object that a slot names.
pub(crate) fn object_of(kind: Kind, word: u64) -> u64 {
    if kind == Kind::PerfEventArray { word & EVENT } else { word }
}

/// Whether the opening through which an event came into a slot is still there.
fn is_claimed(file: &File, word: u64) -> bool {
    // What cannot be told is taken for filled.
    word != 0 && is_locked(file, FIRST_CLAIM + (word >> 32)).unwrap_or(true)
}

impl MapFile {
    /// What is in a slot: an id, or an event with its claim; 0 for an empty one.
    pub(crate) fn slot(&self, index: u32) -> u64 {
        self.slots.load_acquire(index as usize * ID, ID).unwrap_or(0)
    }

    /// Puts an id into a slot. There must be no other writer.
    pub(crate) fn replace_slot(&self, index: u32, id: u64) {
        let changes = self.slot_changes();
        let _ = self.header.store_release(SLOT_CHANGES_OFFSET, ID, changes | 1);
        let _ = self.slots.store_release(index as usize * ID, ID, id);
        let _ = self.header.store_release(SLOT_CHANGES_OFFSET, ID, (changes | 1).wrapping_add(1));
    }

    /// Fills a slot with an event, or one that no directory lists: 0. The slot is empty again once `owner`, an opening of this
    /// file, is closed. There must be no other writer.
    pub(crate) fn claim_slot(
        &self,
        index: u32,
        owner: BorrowedFd<'_>,
        event: u32,
    ) -> io::Result<()> {
        // A number that no slot of the file has. After 2³² changes, an old one may still be locked.
        let claim = ((self.slot_changes() >> 1) as u32).wrapping_add(1).max(1);
        if !try_lock(owner, FIRST_CLAIM + u64::from(claim), LockKind::Exclusive)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.replace_slot(index, u64::from(claim) << 32 | u64::from(event));
        Ok(())
    }

    /// Whether the opening through which an event came into a slot is still there.
    pub(crate) fn is_claimed(&self, index: u32) -> bool {
        is_claimed(&self.source.file, self.slot(index))
    }

    /// Which state the slots are in. An odd number says nothing.
    pub(crate) fn slot_changes(&self) -> u64 {
        self.header.load_acquire(SLOT_CHANGES_OFFSET, ID).unwrap_or(1)
    }

    /// The slots that are filled.
    pub(crate) fn filled_slots(&self) -> io::Result<Vec<(u32, u64)>> {
        read_filled(&self.source.file, &self.shape)
    }
}
