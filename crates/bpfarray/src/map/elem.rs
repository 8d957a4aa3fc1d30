//! Operations on elements through a handle.

use bpfarray_core::attr::Rules;
use bpfarray_core::map::cpu_flags::Cpus;
use bpfarray_core::map::{
    self, DeleteError, LookupAndDeleteError, LookupError, NextKeyError, UpdateError, array,
    fd_array, percpu_array,
};

use super::reference::{Contents, Event, Inner};
use super::{Map, MapRef, SPIN_LOCK};
use crate::cpu::possible_cpus;
use crate::gate::Write;
use crate::lane::{Lane, synchronize};
use crate::memory::OutOfBounds;
use crate::object::Object;
use crate::rcu;

impl Map {
    /// Copies an element into `value`, which must have [`MapRef::user_size`] bytes; if the flags name
    /// CPUs, [`MapRef::value_size`] bytes.
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
        let Inner { layout, area, contents, .. } = &*self.inner;
        let cpus = map::check_lookup(layout, self.mode(), flags, SPIN_LOCK, possible_cpus())?;
        let no_entry = LookupError::NoEntry { index, max_entries: layout.max_entries() };
        let check_len = |len: usize| {
            let size = layout.user_size_of(cpus, possible_cpus());
            if len as u64 == size { Ok(()) } else { Err(LookupError::Buffer(size)) }
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
                area.read_percpu(offset, cpus, value)
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

    /// Replaces an element by `value`, which must have [`MapRef::user_size`] bytes; if the flags name
    /// CPUs, [`MapRef::value_size`] bytes.
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
        let cpus = self.check_update(&write, flags)?;
        let size = self.layout().user_size_of(cpus, possible_cpus());
        if value.len() as u64 != size {
            return Err(UpdateError::Buffer(size));
        }
        self.store(index, value, flags, cpus)
    }

    fn check_update(&self, write: &Write<'_>, flags: u64) -> Result<Cpus, UpdateError> {
        let frozen = write.frozen();
        map::check_update(self.layout(), self.mode(), frozen, flags, SPIN_LOCK, possible_cpus())
    }

    /// Stores bytes of the right length.
    pub(super) fn store(
        &self,
        index: u32,
        value: &[u8],
        flags: u64,
        cpus: Cpus,
    ) -> Result<(), UpdateError> {
        let Inner { layout, area, contents, .. } = &*self.inner;
        match contents {
            Contents::Array => {
                let offset = array::update_elem(layout, index, flags, SPIN_LOCK)?;
                area.payload().write(offset as usize, value)
            }
            Contents::PercpuArray => {
                let offset = percpu_array::update_elem(layout, index, flags)? as usize;
                let len = match layout.rules() {
                    Rules::Linux6_18 => layout.elem_size(),
                    Rules::Linux7_0 => layout.value_size(),
                };
                area.write_percpu(offset, cpus, value, len as usize)
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
        self.check_update(&write, flags)?;
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
    use crate::attr::elem_flags::{F_ALL_CPUS, F_CPU, F_LOCK};
    use crate::attr::{Creator, MapAttr, MapFlags, MapType};
    use crate::map::testing::{ARRAY, PERCPU, create, objects};
    use crate::{Cgroup, Errno, EventObject, HandleMode, UnderCgroupError};
    use std::sync::{Arc, Weak};

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

    /// An event of no system.
    struct Event {
        inherits: bool,
    }

    impl EventObject for Event {
        fn inherits(&self) -> bool {
            self.inherits
        }
    }

    fn put_event(map: &Map, index: u32) -> Weak<dyn EventObject> {
        let event: Arc<dyn EventObject> = Arc::new(Event { inherits: false });
        let watched = Arc::downgrade(&event);
        map.update_object(index, &Object::PerfEvent(event), 0).unwrap();
        watched
    }

    #[test]
    fn events_go_with_the_open_file_through_which_they_came() {
        let map = objects(MapType::PERF_EVENT_ARRAY, 4);
        let other = map.with_mode(HandleMode::ReadWrite);
        let events = [put_event(&map, 0), put_event(&map, 1), put_event(&other, 2)];
        let replaced = put_event(&map, 3);
        put_event(&other, 3);
        drop(map.clone());
        let filled = |map: &MapRef| {
            let lane = Lane::enter();
            (0..4).map(|index| map.event(&lane, index).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(filled(&other), [true; 4]);
        drop(map);
        assert_eq!(filled(&other), [false, false, true, true]);
        assert_eq!(other.delete_elem(2), Ok(()));
        rcu::barrier().unwrap();
        assert!(events.iter().chain([&replaced]).all(|event| event.upgrade().is_none()));
    }

    #[test]
    fn preserved_events_outlive_their_file() {
        let attr = MapAttr {
            map_type: MapType::PERF_EVENT_ARRAY,
            value_size: 4,
            map_flags: MapFlags::PRESERVE_ELEMS,
            ..ARRAY
        };
        let map = create(attr);
        put_event(&map, 0);
        let reference = map.to_ref();
        drop(map);
        assert!(reference.event(&Lane::enter(), 0).is_some());
    }

    #[test]
    fn an_inherited_event_is_not_supported() {
        let map = objects(MapType::PERF_EVENT_ARRAY, 4);
        let event = Object::PerfEvent(Arc::new(Event { inherits: true }));
        assert_eq!(map.update_object(0, &event, 0).unwrap_err().errno(), Errno::EOPNOTSUPP);
    }

    #[test]
    fn a_task_is_under_the_control_group_in_a_slot_or_not() {
        let map = objects(MapType::CGROUP_ARRAY, 2);
        let lane = Lane::enter();
        let under =
            |index| map.current_task_under_cgroup(&lane, index).map_err(UnderCgroupError::errno);
        assert_eq!((under(1), under(2)), (Err(Errno::EAGAIN), Err(Errno::E2BIG)));
        let values = create(ARRAY).current_task_under_cgroup(&lane, 0);
        assert_eq!(values, Err(UnderCgroupError::MapType));
        let Some(root) = crate::cgroup::tests::hierarchy() else { return };
        let root = Object::Cgroup(Cgroup::open(root).unwrap());
        map.update_object(1, &root, 0).unwrap();
        assert_eq!((under(0), under(1)), (Err(Errno::EAGAIN), Ok(true)));
        map.delete_elem(1).unwrap();
        assert_eq!(under(1), Err(Errno::EAGAIN));
    }

    #[test]
    fn newer_rules_read_and_write_the_value_of_one_cpu_or_of_all() {
        let creator = Creator { rules: Rules::Linux7_0, ..Creator::default() };
        let map = Map::create_as(&PERCPU, &creator).unwrap();
        let cpus = possible_cpus();
        let last = u64::from(cpus - 1) << 32 | F_CPU;
        let all = |map: &Map| {
            let mut values = vec![0; map.user_size() as usize];
            map.lookup_elem(2, &mut values, 0).unwrap();
            values
        };
        map.update_elem(2, &[5; 12], F_ALL_CPUS).unwrap();
        map.update_elem(2, &[7; 12], last).unwrap();
        let mut expected = [[5; 12].as_slice(), &[0; 4]].concat().repeat(cpus as usize);
        let at = expected.len() - 16;
        expected[at..][..12].fill(7);
        assert_eq!(all(&map), expected);
        let mut value = [0; 12];
        map.lookup_elem(2, &mut value, last).unwrap();
        assert_eq!(value, [7; 12]);

        map.update_elem(2, &vec![9; map.user_size() as usize], 0).unwrap();
        let without_padding = [[9; 12].as_slice(), &[0; 4]].concat().repeat(cpus as usize);
        assert_eq!(all(&map), without_padding);

        let past = u64::from(cpus) << 32 | F_CPU;
        assert_eq!(map.update_elem(2, &[0; 12], past).unwrap_err().errno(), Errno::ERANGE);
        assert_eq!(map.update_elem(2, &[0; 16], last).unwrap_err().errno(), Errno::EFAULT);
        let older = create(PERCPU).update_elem(2, &vec![0; map.user_size() as usize], last);
        assert_eq!(older.unwrap_err().errno(), Errno::EINVAL);
    }

    #[test]
    fn batches_know_the_flags_for_cpus_by_newer_rules() {
        let creator = Creator { rules: Rules::Linux7_0, ..Creator::default() };
        let map = Map::create_as(&MapAttr { value_size: 8, ..PERCPU }, &creator).unwrap();
        let values: Vec<u8> = (1..=3_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(map.update_batch(&[0, 1, 2], &values, F_ALL_CPUS), Ok(3));
        let (mut keys, mut found) = ([0; 3], [0; 24]);
        for cpu in 0..u64::from(possible_cpus()) {
            map.lookup_batch(None, &mut keys, &mut found, cpu << 32 | F_CPU).unwrap();
            assert_eq!((keys, &found[..]), ([0, 1, 2], &values[..]));
        }
        let error = map.lookup_batch(None, &mut keys, &mut found, F_ALL_CPUS).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
    }
}
