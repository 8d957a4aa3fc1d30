//! Operations on elements through a handle.

use bpfarray_core::map::{
    self, DeleteError, LookupAndDeleteError, LookupError, NextKeyError, UpdateError, array,
    fd_array, percpu_array,
};

use super::reference::{Contents, Event, Inner};
use super::{Map, MapRef, SPIN_LOCK};
use crate::lane::{Lane, synchronize};
use crate::memory::OutOfBounds;
use crate::object::Object;
use crate::rcu;

impl Map {
    /// Copies an element into `value`, which must have [`MapRef::user_size`] bytes.
    ///
    /// A PERCPU_ARRAY gives the values of all CPUs, one after the other, with the padding behind
    /// each; a PROG_ARRAY or ARRAY_OF_MAPS the id of what is in the slot.
    ///
    /// # Errors
    /// The variants of [`LookupError`] in their order.
    ///
    /// # Kernel
    /// `array_map_lookup_elem`, `bpf_percpu_array_copy`, `bpf_fd_array_map_lookup_elem`
    #[doc(alias = "BPF_MAP_LOOKUP_ELEM")]
    #[doc(alias = "bpf_percpu_array_copy")]
    pub fn lookup_elem(&self, index: u32, value: &mut [u8], flags: u64) -> Result<(), LookupError> {
        map::check_lookup(self.mode(), flags, SPIN_LOCK)?;
        let Inner { layout, area, contents, .. } = &*self.inner;
        let no_entry = LookupError::NoEntry { index, max_entries: layout.max_entries() };
        let check_len = |len: usize| {
            let fits = len as u64 == self.user_size();
            if fits { Ok(()) } else { Err(LookupError::Buffer(self.user_size())) }
        };
        match contents {
            Contents::Array => {
                let offset = array::lookup_elem(layout, index).ok_or(no_entry)? as usize;
                check_len(value.len())?;
                area.payload().read(offset, value)
            }
            Contents::PercpuArray => {
                let offset = percpu_array::lookup_elem(layout, index).ok_or(no_entry)? as usize;
                check_len(value.len())?;
                let parts = value.chunks_exact_mut(layout.elem_size() as usize);
                area.percpu().iter().zip(parts).try_for_each(|(cpu, part)| cpu.read(offset, part))
            }
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => {
                let id = self.lookup_id(index)?;
                check_len(value.len())?;
                value.copy_from_slice(&id.to_ne_bytes());
                Ok(())
            }
        }
        .map_err(|OutOfBounds { .. }| no_entry)
    }

    /// The id of the object in a slot.
    pub(super) fn lookup_id(&self, index: u32) -> Result<u32, LookupError> {
        let index = fd_array::lookup_elem(self.layout(), index)?;
        let lane = Lane::enter();
        let id = match &self.inner.contents {
            Contents::Programs(programs) => programs.get(&lane, index).map(|program| program.id()),
            Contents::Maps(maps) => maps.get(&lane, index).map(|map| map.id()),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Events(_)
            | Contents::Cgroups(_) => return Err(LookupError::Unsupported),
        };
        id.ok_or(LookupError::NoEntry { index, max_entries: self.max_entries() })
    }

    /// Replaces an element by `value`, which must have [`MapRef::user_size`] bytes.
    ///
    /// A PERCPU_ARRAY takes the values of all CPUs, one after the other, with the padding behind
    /// each. For a map of objects the bytes would be a descriptor, of which there are none here: see
    /// [`Map::update_object`].
    ///
    /// # Errors
    /// The variants of [`UpdateError`] in their order up to [`UpdateError::BadDescriptor`].
    ///
    /// # Kernel
    /// `array_map_update_elem`, `bpf_percpu_array_update`
    #[doc(alias = "BPF_MAP_UPDATE_ELEM")]
    pub fn update_elem(&self, index: u32, value: &[u8], flags: u64) -> Result<(), UpdateError> {
        let write = self.inner.gate.enter();
        map::check_update(self.mode(), write.frozen(), flags, SPIN_LOCK)?;
        if value.len() as u64 != self.user_size() {
            return Err(UpdateError::Buffer(self.user_size()));
        }
        self.store(index, value, flags)
    }

    /// Stores bytes of the right length.
    pub(super) fn store(&self, index: u32, value: &[u8], flags: u64) -> Result<(), UpdateError> {
        let Inner { layout, area, contents, .. } = &*self.inner;
        match contents {
            Contents::Array => {
                let offset = array::update_elem(layout, index, flags, SPIN_LOCK)?;
                area.payload().write(offset as usize, value)
            }
            Contents::PercpuArray => {
                let offset = percpu_array::update_elem(layout, index, flags)? as usize;
                let parts = value.chunks_exact(layout.elem_size() as usize);
                area.percpu().iter().zip(parts).try_for_each(|(cpu, part)| cpu.write(offset, part))
            }
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => {
                fd_array::update_elem(layout, index, flags)?;
                return Err(UpdateError::BadDescriptor);
            }
        }
        .map_err(|OutOfBounds { .. }| self.no_index(index))
    }

    /// Puts an object into a slot, in the place of what may be there. `flags` must be 0.
    ///
    /// # Errors
    /// The variants of [`UpdateError`] in their order. An object of the wrong kind is
    /// [`UpdateError::ObjectKind`] to a PROG_ARRAY or ARRAY_OF_MAPS and
    /// [`UpdateError::BadDescriptor`] to a PERF_EVENT_ARRAY or CGROUP_ARRAY; a map of values holds no
    /// objects at all.
    ///
    /// # Concurrency
    /// A program finds the old object or the new one. An ARRAY_OF_MAPS waits until no program has the old
    /// map any more, unless this thread is in a lane.
    ///
    /// # Kernel
    /// `bpf_fd_array_map_update_elem`, `maybe_wait_bpf_programs`
    #[doc(alias = "bpf_fd_array_map_update_elem")]
    pub fn update_object(
        &self,
        index: u32,
        object: &Object,
        flags: u64,
    ) -> Result<(), UpdateError> {
        let write = self.inner.gate.enter();
        map::check_update(self.mode(), write.frozen(), flags, SPIN_LOCK)?;
        self.store_object(index, object, flags)?;
        self.wait_for_programs();
        Ok(())
    }

    pub(super) fn store_object(
        &self,
        index: u32,
        object: &Object,
        flags: u64,
    ) -> Result<(), UpdateError> {
        let Inner { layout, contents, .. } = &*self.inner;
        if layout.kind().holds_objects() {
            fd_array::update_elem(layout, index, flags)?;
        }
        match (contents, object) {
            (Contents::Array | Contents::PercpuArray, _) => return Err(UpdateError::ObjectKind),
            (Contents::Programs(programs), Object::Program(program)) => {
                programs.insert(index, program.clone())?;
            }
            (Contents::Maps(maps), Object::Map(map)) => maps.insert(index, map.clone())?,
            (Contents::Programs(_) | Contents::Maps(_), _) => return Err(UpdateError::ObjectKind),
            (Contents::Events(events), Object::PerfEvent(event)) => {
                if event.inherits() {
                    return Err(UpdateError::InheritedEvent);
                }
                let event = Event { event: event.clone(), file: self.file.id };
                events.replace(index, Some(event));
            }
            (Contents::Cgroups(cgroups), Object::Cgroup(cgroup)) => {
                cgroups.replace(index, Some(cgroup.clone()));
            }
            (Contents::Events(_) | Contents::Cgroups(_), _) => {
                return Err(UpdateError::BadDescriptor);
            }
        }
        Ok(())
    }

    /// Waits until no program has a map any more that was replaced before.
    ///
    /// # Kernel
    /// `maybe_wait_bpf_programs`
    #[doc(alias = "maybe_wait_bpf_programs")]
    pub(super) fn wait_for_programs(&self) {
        match &self.inner.contents {
            Contents::Maps(_) => {
                // Inside a lane this is impossible, and the kernel has no such callers.
                let _ = synchronize();
            }
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_) => {}
        }
        rcu::poll();
    }

    /// Deletes an element, which arrays of values never allow, or empties a slot.
    ///
    /// # Errors
    /// The variants of [`DeleteError`] in their order.
    ///
    /// # Concurrency
    /// As [`Map::update_object`].
    ///
    /// # Kernel
    /// `array_map_delete_elem`, `fd_array_map_delete_elem`
    #[doc(alias = "BPF_MAP_DELETE_ELEM")]
    pub fn delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        let write = self.inner.gate.enter();
        map::check_delete(self.mode(), write.frozen())?;
        self.type_delete_elem(index)?;
        self.wait_for_programs();
        Ok(())
    }

    /// Copies and deletes an element, which no array map allows.
    ///
    /// # Errors
    /// The variants of [`LookupAndDeleteError`] in their order, at last
    /// [`LookupAndDeleteError::Unsupported`].
    ///
    /// # Kernel
    /// `map_lookup_and_delete_elem`
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_ELEM")]
    pub fn lookup_and_delete_elem(&self, flags: u64) -> Result<(), LookupAndDeleteError> {
        map::check_lookup_and_delete(self.mode(), self.is_frozen(), flags, SPIN_LOCK)
    }

    /// The index after `key`, or the first one without a key or after a key that does not exist. Slots count
    /// whether they are filled or not.
    ///
    /// # Errors
    /// The variants of [`NextKeyError`] in their order.
    ///
    /// # Kernel
    /// `array_map_get_next_key`
    #[doc(alias = "BPF_MAP_GET_NEXT_KEY")]
    pub fn get_next_key(&self, key: Option<u32>) -> Result<u32, NextKeyError> {
        map::check_next_key(self.mode())?;
        map::get_next_key(self.layout(), key)
    }
}

impl MapRef {
    pub(crate) fn type_delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        let Inner { layout, contents, .. } = &*self.inner;
        let was_filled = match contents {
            Contents::Array => return array::delete_elem(layout, index),
            Contents::PercpuArray => return percpu_array::delete_elem(layout, index),
            Contents::Programs(programs) => programs.remove(fd_array::delete_elem(layout, index)?),
            Contents::Maps(maps) => maps.remove(fd_array::delete_elem(layout, index)?),
            Contents::Events(events) => {
                events.replace(fd_array::delete_elem(layout, index)?, None) == Some(true)
            }
            Contents::Cgroups(cgroups) => {
                cgroups.replace(fd_array::delete_elem(layout, index)?, None) == Some(true)
            }
        };
        if was_filled { Ok(()) } else { Err(DeleteError::NoEntry(index)) }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::MapType;
    use crate::attr::elem_flags::F_LOCK;
    use crate::map::testing::{ARRAY, PERCPU, create, objects};
    use crate::{Errno, HandleMode};

    #[test]
    fn lookups_are_checked_in_the_kernels_order() {
        for attr in [ARRAY, PERCPU] {
            let map = create(attr);
            let mut right = vec![0; map.user_size() as usize];
            let mut wrong = vec![0; 13];
            assert_eq!(map.lookup_elem(4, &mut right, 0), Ok(()));
            let mut errno = |map: &Map, index, flags| {
                map.lookup_elem(index, &mut wrong, flags).unwrap_err().errno()
            };
            let write_only = map.with_mode(HandleMode::WriteOnly);
            assert_eq!(errno(&write_only, 5, 1), Errno::EINVAL);
            assert_eq!(errno(&write_only, 5, F_LOCK), Errno::EPERM);
            assert_eq!(errno(&map, 5, F_LOCK), Errno::EINVAL);
            assert_eq!(errno(&map, 5, 0), Errno::ENOENT);
            assert_eq!(errno(&map, 4, 0), Errno::EFAULT);
        }
    }

    #[test]
    fn updates_are_checked_in_the_kernels_order() {
        for attr in [ARRAY, PERCPU] {
            let map = create(attr);
            let right = vec![0; map.user_size() as usize];
            let errno = |map: &Map, index, value: &[u8], flags| {
                map.update_elem(index, value, flags).map_err(UpdateError::errno)
            };
            let read_only = map.with_mode(HandleMode::ReadOnly);
            assert_eq!(errno(&read_only, 5, &[], F_LOCK), Err(Errno::EPERM));
            assert_eq!(errno(&map, 5, &[], F_LOCK), Err(Errno::EINVAL));
            assert_eq!(errno(&map, 5, &[], 9), Err(Errno::EFAULT));
            assert_eq!(errno(&map, 5, &right, 9), Err(Errno::EINVAL));
            assert_eq!(errno(&map, 5, &right, 1), Err(Errno::E2BIG));
            assert_eq!(errno(&map, 4, &right, 1), Err(Errno::EEXIST));
            assert_eq!(errno(&map, 4, &right, 2), Ok(()));
        }
    }

    #[test]
    fn an_array_copies_value_size_bytes_and_leaves_padding_alone() {
        let map = create(ARRAY);
        let memory = &map.regions()[0].memory;
        memory.fill(0, memory.len(), 0xee).unwrap();
        map.update_elem(1, &[0x11; 12], 0).unwrap();
        let mut around = [0; 24];
        memory.read(12, &mut around).unwrap();
        assert_eq!(around[..4], [0xee; 4]);
        assert_eq!(around[4..16], [0x11; 12]);
        assert_eq!(around[16..], [0xee; 8]);
        let mut value = [0; 12];
        map.lookup_elem(1, &mut value, 0).unwrap();
        assert_eq!(value, [0x11; 12]);
    }

    #[test]
    fn a_percpu_array_copies_all_cpus_with_their_padding() {
        let map = create(PERCPU);
        let value: Vec<u8> = (0..map.user_size()).map(|byte| byte as u8 + 1).collect();
        map.update_elem(3, &value, 2).unwrap();
        let mut found = vec![0; value.len()];
        map.lookup_elem(3, &mut found, 0).unwrap();
        assert_eq!(found, value);
        for index in [2, 4] {
            map.lookup_elem(index, &mut found, 0).unwrap();
            assert!(found.iter().all(|&byte| byte == 0), "neighbour {index}");
        }
    }

    #[test]
    fn keys_start_over_past_the_end() {
        for attr in [ARRAY, PERCPU] {
            let map = create(attr);
            assert_eq!(map.get_next_key(None), Ok(0));
            assert_eq!(map.get_next_key(Some(3)), Ok(4));
            assert_eq!(map.get_next_key(Some(4)), Err(NextKeyError::Last));
            assert_eq!(map.get_next_key(Some(5)), Ok(0));
        }
    }

    #[test]
    fn nothing_is_looked_up_and_deleted_at_once() {
        let map = create(ARRAY);
        let errno = |map: &Map, flags| map.lookup_and_delete_elem(flags).unwrap_err().errno();
        let read_only = map.with_mode(HandleMode::ReadOnly);
        assert_eq!(errno(&read_only, 1), Errno::EINVAL);
        assert_eq!(errno(&read_only, F_LOCK), Errno::EPERM);
        assert_eq!(errno(&map, F_LOCK), Errno::EINVAL);
        assert_eq!(errno(&map, 0), Errno::ENOTSUPP);
        map.freeze().unwrap();
        assert_eq!(errno(&map, 0), Errno::EPERM);
    }

    const OBJECT_MAPS: [MapType; 4] = [
        MapType::PROG_ARRAY,
        MapType::PERF_EVENT_ARRAY,
        MapType::CGROUP_ARRAY,
        MapType::ARRAY_OF_MAPS,
    ];

    #[test]
    fn bytes_are_no_descriptor_and_that_is_found_last() {
        for map_type in OBJECT_MAPS {
            let map = objects(map_type, 4);
            let errno = |map: &Map, index, value: &[u8], flags| {
                map.update_elem(index, value, flags).unwrap_err().errno()
            };
            let read_only = map.with_mode(HandleMode::ReadOnly);
            assert_eq!(errno(&read_only, 9, &[], F_LOCK), Errno::EPERM);
            assert_eq!(errno(&map, 9, &[], F_LOCK), Errno::EINVAL);
            assert_eq!(errno(&map, 9, &[], 1), Errno::EFAULT);
            assert_eq!(errno(&map, 9, &[0; 4], 1), Errno::EINVAL);
            assert_eq!(errno(&map, 4, &[0; 4], 0), Errno::E2BIG);
            assert_eq!(errno(&map, 3, &[0; 4], 0), Errno::EBADF);
        }
    }

    #[test]
    fn an_empty_slot_is_no_entry_and_events_and_cgroups_cannot_be_read() {
        for map_type in OBJECT_MAPS {
            let map = objects(map_type, 4);
            let readable = [MapType::PROG_ARRAY, MapType::ARRAY_OF_MAPS].contains(&map_type);
            let expected = if readable { Errno::ENOENT } else { Errno::ENOTSUPP };
            for index in [3, 4] {
                // A buffer that is too short is found after that.
                let error = map.lookup_elem(index, &mut [], 0).unwrap_err();
                assert_eq!(error.errno(), expected, "{map_type}");
            }
            assert_eq!(map.delete_elem(3).unwrap_err().errno(), Errno::ENOENT);
            assert_eq!(map.delete_elem(4).unwrap_err().errno(), Errno::E2BIG);
            assert_eq!(map.get_next_key(Some(2)), Ok(3));
        }
    }

    #[test]
    fn an_object_of_another_kind_gets_the_errno_of_such_a_descriptor() {
        for map_type in [MapType::PROG_ARRAY, MapType::PERF_EVENT_ARRAY, MapType::CGROUP_ARRAY] {
            let map = objects(map_type, 4);
            let wrong = Object::Map(create(ARRAY).to_ref());
            let errno = |index, flags| map.update_object(index, &wrong, flags).unwrap_err().errno();
            let expected =
                if map_type == MapType::PROG_ARRAY { Errno::EINVAL } else { Errno::EBADF };
            assert_eq!(errno(3, 0), expected, "{map_type}");
            assert_eq!(errno(4, 0), Errno::E2BIG);
            assert_eq!(errno(4, 2), Errno::EINVAL);
        }
        let values = create(ARRAY);
        let object = Object::Map(values.to_ref());
        assert_eq!(values.update_object(0, &object, 0), Err(UpdateError::ObjectKind));
    }
}
