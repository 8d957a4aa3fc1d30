//! References that no file shows by itself: what is in slots.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bpfarray::{FileSlots, empty_slots_of_file, slots_of_file};
use bpfarray_core::Errno;
use bpfarray_core::map::{HandleMode, Kind as MapKind};
use rustix::fs::{FlockOperation, flock};

use crate::event::EVENTS;
use crate::root::{Kind, Locked, errno, open_as, retry};

/// What can be seen of an object's references from outside.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Gone,
    /// It has further names: pins, or links of what keeps it.
    Named(u64),
    /// A descriptor or a mapping refers to it.
    Open,
    /// Neither, but it may be in a slot.
    Alone,
}

impl State {
    pub(crate) fn of(path: &Path) -> Result<Self, Errno> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.nlink() > 1 => Ok(Self::Named(found.nlink() - 1)),
            Ok(_) if is_open(path)? => Ok(Self::Open),
            Ok(_) => Ok(Self::Alone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Gone),
            Err(error) => Err(errno(&error)),
        }
    }
}

/// Whether a descriptor or a mapping refers to a file.
pub(crate) fn is_open(path: &Path) -> Result<bool, Errno> {
    // Permissions may be such that it cannot be read.
    let Ok(file) =
        open_as(path, HandleMode::ReadOnly).or_else(|_| open_as(path, HandleMode::WriteOnly))
    else {
        return Ok(true);
    };
    match retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        // A child that was made meanwhile has the same open file.
        Ok(()) => retry(|| flock(&file, FlockOperation::Unlock)).map(|()| false),
        Err(Errno::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Objects that are in slots, as far as somebody had to know.
#[derive(Default)]
pub(crate) struct InSlots {
    maps: std::cell::OnceCell<BTreeSet<u32>>,
    progs: std::cell::OnceCell<BTreeSet<u32>>,
}

impl Locked<'_> {
    /// Whether an object that is alone otherwise is in a slot that counts.
    pub(crate) fn is_in_slot(&self, kind: Kind, id: u32) -> Result<bool, Errno> {
        match kind {
            Kind::Map => Ok(self.maps_in_slots()?.contains(&id)),
            Kind::Prog => Ok(self.progs_in_slots()?.contains(&id)),
            Kind::Btf | Kind::Link => Ok(false),
        }
    }

    /// The maps in slots of maps that somebody refers to. Maps of maps are in no slots themselves.
    fn maps_in_slots(&self) -> Result<&BTreeSet<u32>, Errno> {
        if let Some(maps) = self.in_slots.maps.get() {
            return Ok(maps);
        }
        // A program that nobody refers to keeps no map.
        self.sweep_keepers(Kind::Map)?;
        let maps = self.in_slots_of(MapKind::ArrayOfMaps, |id| {
            let state = State::of(&self.root.object(Kind::Map, id))?;
            Ok(matches!(state, State::Named(_) | State::Open))
        })?;
        Ok(self.in_slots.maps.get_or_init(|| maps))
    }

    /// The programs in slots of maps that have users. Those of maps without users are emptied: that programs keep
    /// such a map does not count, or a program that jumps through the map in which it is would stay for ever.
    ///
    /// # Kernel
    /// `bpf_map_put_uref`, `prog_array_map_clear`
    fn progs_in_slots(&self) -> Result<&BTreeSet<u32>, Errno> {
        if let Some(progs) = self.in_slots.progs.get() {
            return Ok(progs);
        }
        let progs = self.in_slots_of(MapKind::ProgArray, |id| {
            let has_user = self.has_user(id)?;
            if !has_user {
                self.empty(id)?;
            }
            Ok(has_user)
        })?;
        Ok(self.in_slots.progs.get_or_init(|| progs))
    }

    /// Removes perf events to which no descriptor, no mapping and no slot refers.
    pub(crate) fn sweep_events(&self) -> Result<(), Errno> {
        let mut in_slots = None;
        for id in self.list_in(EVENTS)? {
            let (file, signal) = (self.root.event(id), self.root.signal(id));
            if is_open(&file)? || (signal.exists() && is_open(&signal)?) {
                continue;
            }
            let in_slots = match &mut in_slots {
                Some(known) => known,
                none => none.insert(self.events_in_slots()?),
            };
            if !in_slots.contains(&id) {
                let _ = fs::remove_file(signal);
                fs::remove_file(file).map_err(|error| errno(&error))?;
            }
        }
        Ok(())
    }

    /// The perf events in slots of maps that are there. A program that nobody refers to any more may keep such a map, and so an
    /// event, until somebody looks.
    fn events_in_slots(&self) -> Result<BTreeSet<u32>, Errno> {
        self.in_slots_of(MapKind::PerfEventArray, |id| {
            match State::of(&self.root.object(Kind::Map, id))? {
                State::Gone => Ok(false),
                State::Alone => self.is_in_slot(Kind::Map, id),
                State::Named(_) | State::Open => Ok(true),
            }
        })
    }

    /// What is in the slots of maps of a kind, of those that count.
    fn in_slots_of(
        &self,
        kind: MapKind,
        counts: impl Fn(u32) -> Result<bool, Errno>,
    ) -> Result<BTreeSet<u32>, Errno> {
        let mut found = BTreeSet::new();
        for id in self.list(Kind::Map)? {
            let file = match File::open(self.root.object(Kind::Map, id)) {
                Ok(file) => file,
                // What cannot be read refers to nothing that this user could get at.
                Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => continue,
                Err(error) => return Err(errno(&error)),
            };
            let filled = match slots_of_file(&file) {
                Ok(FileSlots { kind: found, filled, .. }) if found == kind => filled,
                _ => continue,
            };
            if !filled.is_empty() && counts(id)? {
                found.extend(filled.into_iter().filter_map(|(_, id)| u32::try_from(id).ok()));
            }
        }
        Ok(found)
    }

    /// Whether a descriptor, a mapping, a pin or a link refers to a map. Programs are no users.
    fn has_user(&self, map: u32) -> Result<bool, Errno> {
        let path = self.root.object(Kind::Map, map);
        match State::of(&path)? {
            State::Gone | State::Alone => Ok(false),
            State::Open => Ok(true),
            State::Named(names) => {
                let keeps = |prog: &&u32| {
                    self.root.name_kept_by((Kind::Prog, **prog), Kind::Map, map).exists()
                };
                let programs = self.list(Kind::Prog)?.iter().filter(keeps).count();
                Ok(names > programs as u64 || is_open(&path)?)
            }
        }
    }

    fn empty(&self, map: u32) -> Result<(), Errno> {
        let file = open_as(&self.root.object(Kind::Map, map), HandleMode::ReadWrite)?;
        empty_slots_of_file(&file).map_err(|error| error.errno())
    }

    /// Empties a PROG_ARRAY that has no users, for somebody who is about to look. Other maps stay as they are.
    pub(crate) fn empty_if_unused(&self, map: u32) -> Result<(), Errno> {
        let file = File::open(self.root.object(Kind::Map, map)).map_err(|error| errno(&error))?;
        let is_filled = slots_of_file(&file)
            .is_ok_and(|slots| slots.kind == MapKind::ProgArray && !slots.filled.is_empty());
        if is_filled && !self.has_user(map)? { self.empty(map) } else { Ok(()) }
    }
}
