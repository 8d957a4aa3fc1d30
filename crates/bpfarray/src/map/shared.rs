//! Slots of a map that several processes share.
//!
//! The file says by id what is in them. Programs need the objects themselves, so each process that runs programs has
//! them in a table of its own, and looks before each run whether the file has changed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::{Kind, UpdateError, fd_array};

use super::reference::{Contents, Event};
use super::{Map, MapRef};
use crate::directory::Directory;
use crate::file::{MapFile, object_of};
use crate::lane::Lane;
use crate::object::Object;
use crate::perf::SharedRing;
use crate::rcu;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// What a process knows of the slots in a file.
pub(crate) struct SharedSlots {
    file: Arc<MapFile>,
    directory: Arc<dyn Directory>,
    /// The state of the file that the table was made from. `NEVER` before any program ran.
    seen: AtomicU64,
    /// What the file said of the objects in the table, by index.
    held: Mutex<BTreeMap<u32, u64>>,
}

/// The number of no open file.
const NO_FILE: u64 = u64::MAX;

/// Odd, so that it is the state of no file at rest.
const NEVER: u64 = u64::MAX;

impl SharedSlots {
    /// `None` for maps of values, and for files that no directory lists.
    pub(super) fn of(file: &Arc<MapFile>) -> Option<Self> {
        let directory = Arc::clone(file.directory().filter(|_| file.kind().holds_objects())?);
        let (file, seen, held) = (Arc::clone(file), AtomicU64::new(NEVER), Mutex::default());
        Some(Self { file, directory, seen, held })
    }

    /// The id in a slot; 0 for an empty one.
    pub(super) fn id(&self, index: u32) -> u64 {
        self.file.slot(index)
    }

    pub(super) fn kind(&self) -> Kind {
        self.file.kind()
    }

    pub(super) fn file(&self) -> &MapFile {
        &self.file
    }

    /// Whether something is in a slot. Events go with the open file through which they came, unless they are to be kept.
    pub(super) fn is_filled(&self, index: u32, flags: MapFlags) -> bool {
        match self.kind() {
            Kind::PerfEventArray if !flags.contains(MapFlags::PRESERVE_ELEMS) => {
                self.file.is_claimed(index)
            }
            _ => self.id(index) != 0,
        }
    }

    /// Fills a slot, or with 0 empties it.
    pub(super) fn replace(&self, index: u32, id: u64) {
        self.file.replace_slot(index, id);
    }
}

impl Map {
    /// Puts a perf event into a slot of a PERF_EVENT_ARRAY of a [`Directory`], by the id under which that lists it; 0 for one that
    /// it does not list, of which programs find nothing. `owner` is an open file of the map for writing; once it is closed, by
    /// all who have it, the slot is empty.
    ///
    /// # Errors
    /// The variants of [`UpdateError`] in their order; an `owner` that cannot be locked is
    /// [`UpdateError::BadDescriptor`], any other map [`UpdateError::ObjectKind`].
    ///
    /// # Concurrency
    /// As [`Map::update_object`].
    ///
    /// # Kernel
    /// `perf_event_fd_array_get_ptr`, `perf_event_fd_array_release`
    pub fn claim_event_slot(
        &self,
        index: u32,
        owner: BorrowedFd<'_>,
        event: u32,
        flags: u64,
    ) -> Result<(), UpdateError> {
        let write = self.inner.gate.enter();
        self.check_update(&write, flags)?;
        let shared = self.inner.shared.as_ref();
        let shared = shared.filter(|shared| shared.kind() == Kind::PerfEventArray);
        let shared = shared.ok_or(UpdateError::ObjectKind)?;
        let index = fd_array::update_elem(self.layout(), index, flags)?;
        shared.file.claim_slot(index, owner, event).map_err(|_| UpdateError::BadDescriptor)
    }
}

impl MapRef {
    /// Whether slots of the map can hold what other processes put there, so that programs need
    /// [`MapRef::refresh_slots`] before they run.
    pub fn has_shared_slots(&self) -> bool {
        self.inner.shared.is_some()
    }

    /// Makes what programs of this process find in the slots of a shared map what the file says. That an
    /// object cannot be found makes its slot an empty one. Does nothing for other maps, and next to nothing if nothing changed.
    ///
    /// [`SharedLanes::run`](crate::SharedLanes::run) does this for the maps of a program.
    ///
    /// # Errors
    /// What reading the file reports. Slots are then as they were.
    ///
    /// # Concurrency
    /// A program that runs meanwhile finds the old object or the new one.
    pub fn refresh_slots(&self) -> io::Result<()> {
        let Some(shared) = &self.inner.shared else { return Ok(()) };
        let is_new =
            |now: u64| !now.is_multiple_of(2) || shared.seen.load(Ordering::Relaxed) != now;
        if is_new(shared.file.slot_changes()) {
            let mut held = lock(&shared.held);
            let now = shared.file.slot_changes();
            if is_new(now) {
                let is_complete = self.make_equal(shared, &mut held)?;
                // Otherwise the next run looks again.
                shared.seen.store(if is_complete { now } else { now | 1 }, Ordering::Relaxed);
            }
        }
        if let Contents::Maps(maps) = &self.inner.contents
            && maps.template().kind().holds_objects()
        {
            for map in maps.maps() {
                map.refresh_slots()?;
            }
        }
        Ok(())
    }

    /// Empties the slots of a shared PERF_EVENT_ARRAY whose events came through open files that were closed, and takes their rings
    /// from the events that nobody maps any more. The same for PERF_EVENT_ARRAYs in the slots of an ARRAY_OF_MAPS. Does nothing for
    /// other maps.
    ///
    /// # Errors
    /// What the system says of the files.
    ///
    /// # Concurrency
    /// For who keeps all others from changing slots, and from mapping rings.
    ///
    /// # Kernel
    /// `perf_event_fd_array_release`, `perf_mmap_close`
    #[doc(alias = "perf_event_fd_array_release")]
    pub fn release_events(&self) -> io::Result<()> {
        match &self.inner.contents {
            Contents::Maps(maps) if maps.template().kind() == Kind::PerfEventArray => {
                self.refresh_slots()?;
                maps.maps().into_iter().try_for_each(|map| map.release_events())
            }
            Contents::Events(events) => {
                let Some(shared) = &self.inner.shared else { return Ok(()) };
                let stays = self.map_flags().contains(MapFlags::PRESERVE_ELEMS);
                let filled = shared.file.filled_slots()?;
                for &(index, _) in &filled {
                    let can_go = !stays && !shared.file.is_read_only();
                    if can_go && !shared.file.is_claimed(index) {
                        shared.replace(index, 0);
                    }
                }
                self.refresh_slots()?;
                let lane = Lane::enter();
                let mut rings = filled.iter().filter_map(|&(index, _)| {
                    events.get(&lane, index)?.event.downcast_ref::<SharedRing>()
                });
                rings.try_for_each(SharedRing::release_if_unmapped)
            }
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => Ok(()),
        }
    }

    /// Brings the table up to date if programs of this process use it.
    pub(super) fn refresh_if_used(&self) {
        let is_used = |shared: &SharedSlots| shared.seen.load(Ordering::Relaxed) != NEVER;
        if self.inner.shared.as_ref().is_some_and(is_used) {
            // What fails is tried once more when a program runs.
            let _ = self.refresh_slots();
        }
    }

    /// Empties the table of programs, until one runs.
    pub(super) fn forget_slots(&self) {
        let (Some(shared), Contents::Programs(programs)) =
            (&self.inner.shared, &self.inner.contents)
        else {
            return;
        };
        let mut held = lock(&shared.held);
        programs.clear();
        held.clear();
        shared.seen.store(NEVER, Ordering::Relaxed);
    }

    /// Gives whether all objects were found.
    fn make_equal(&self, shared: &SharedSlots, held: &mut BTreeMap<u32, u64>) -> io::Result<bool> {
        let now: BTreeMap<u32, u64> = shared.file.filled_slots()?.into_iter().collect();
        let emptied = held.keys().copied().filter(|index| !now.contains_key(index));
        for index in emptied.collect::<Vec<_>>() {
            self.inner.contents.put(index, None);
            held.remove(&index);
        }
        let mut is_complete = true;
        for (index, id) in now {
            if held.get(&index) == Some(&id) {
                continue;
            }
            let kind = self.layout().kind();
            let object = shared.directory.object(kind, object_of(kind, id));
            let is_filled = self.inner.contents.put(index, object);
            is_complete &= is_filled;
            match is_filled {
                true => held.insert(index, id),
                false => held.remove(&index),
            };
        }
        rcu::poll();
        Ok(is_complete)
    }
}

impl Contents {
    /// Puts an object that the directory found into a slot of this process; what does not fit empties it. Gives whether
    /// the slot is filled now.
    fn put(&self, index: u32, object: Option<Object>) -> bool {
        let filled = match (self, object) {
            (Self::Maps(maps), Some(Object::Map(map))) => maps.insert(index, map).is_ok(),
            (Self::Programs(programs), Some(Object::Program(program))) => {
                programs.insert(index, program).is_ok()
            }
            (Self::Cgroups(cgroups), Some(Object::Cgroup(cgroup))) => {
                cgroups.replace(index, Some(cgroup)).is_some()
            }
            (Self::Events(events), Some(Object::PerfEvent(event))) if !event.inherits() => {
                // It goes with the slot in the file, and with no open file of this process.
                events.replace(index, Some(Event { event, file: NO_FILE })).is_some()
            }
            _ => false,
        };
        if !filled {
            match self {
                Self::Maps(maps) => drop(maps.remove(index)),
                Self::Programs(programs) => drop(programs.remove(index)),
                Self::Cgroups(cgroups) => drop(cgroups.replace(index, None)),
                Self::Events(events) => drop(events.replace(index, None)),
                Self::Array | Self::PercpuArray => {}
            }
        }
        filled
    }
}
