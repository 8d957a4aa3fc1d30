//! Objects in slots, through a handle.

use bpfarray_core::map::{DeleteError, LookupError, UpdateError, array, fd_array, percpu_array};

use super::reference::{Contents, Event, Inner};
use super::{Map, MapRef};
use crate::lane::{Lane, synchronize};
use crate::object::Object;
use crate::rcu;

impl Map {
    /// The id of the object in a slot.
    pub(super) fn lookup_id(&self, index: u32) -> Result<u32, LookupError> {
        let index = fd_array::lookup_elem(self.layout(), index)?;
        let no_entry = LookupError::NoEntry { index, max_entries: self.max_entries() };
        if let Some(shared) = &self.inner.shared {
            // Ids of programs and maps have 32 bits.
            let id = u32::try_from(shared.id(index)).ok().filter(|&id| id != 0);
            return id.ok_or(no_entry);
        }
        let lane = Lane::enter();
        let id = match &self.inner.contents {
            Contents::Programs(programs) => programs.get(&lane, index).map(|program| program.id()),
            Contents::Maps(maps) => maps.get(&lane, index).map(|map| map.id()),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Events(_)
            | Contents::Cgroups(_) => return Err(LookupError::Unsupported),
        };
        id.ok_or(no_entry)
    }

    /// Puts an object into a slot, in the place of what may be there. `flags` must be 0.
    ///
    /// # Errors
    /// The variants of [`UpdateError`] in their order. An object of the wrong kind is
    /// [`UpdateError::ObjectKind`] to a PROG_ARRAY or ARRAY_OF_MAPS and
    /// [`UpdateError::BadDescriptor`] to a PERF_EVENT_ARRAY or CGROUP_ARRAY; a map of values holds no
    /// objects at all. To a map in a [`Directory`](crate::Directory) an object that it does not list, so that no other
    /// process could find it, is [`UpdateError::ObjectKind`].
    ///
    /// # Concurrency
    /// A program finds the old object or the new one. An ARRAY_OF_MAPS waits until no program of this process has the old
    /// map any more, unless this thread is in a lane. Whoever changes the slots of a map in a [`Directory`](crate::Directory)
    /// holds what keeps others from changing them.
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
        if let Some(shared) = &self.inner.shared {
            shared.replace(index, self.id_for_slot(object)?);
            return Ok(());
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

    /// What stands in a slot of a shared map for an object, if it may be there.
    fn id_for_slot(&self, object: &Object) -> Result<u64, UpdateError> {
        match (&self.inner.contents, object) {
            (Contents::Maps(maps), Object::Map(map)) => {
                maps.check(map)?;
                map.listed_id().map(u64::from).ok_or(UpdateError::ObjectKind)
            }
            (Contents::Programs(_), Object::Program(program)) => {
                self.claim_owner(&program.owner())?;
                Ok(program.id().into())
            }
            (Contents::Cgroups(_), Object::Cgroup(cgroup)) => Ok(cgroup.id()),
            (Contents::Events(_) | Contents::Cgroups(_), _) => Err(UpdateError::BadDescriptor),
            _ => Err(UpdateError::ObjectKind),
        }
    }

    /// Waits until no program has a map any more that was replaced before.
    ///
    /// # Kernel
    /// `maybe_wait_bpf_programs`
    #[doc(alias = "maybe_wait_bpf_programs")]
    pub(super) fn wait_for_programs(&self) {
        self.refresh_if_used();
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
}

impl MapRef {
    pub(crate) fn type_delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        let Inner { layout, contents, shared, .. } = &*self.inner;
        if let Some(shared) = shared {
            let index = fd_array::delete_elem(layout, index)?;
            if !shared.is_filled(index, layout.map_flags()) {
                return Err(DeleteError::NoEntry(index));
            }
            shared.replace(index, 0);
            return Ok(());
        }
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
    use crate::attr::elem_flags::F_LOCK;
    use crate::attr::{MapAttr, MapFlags, MapType};
    use crate::map::testing::{ARRAY, create, objects};
    use crate::perf::Ring;
    use crate::{Cgroup, Errno, EventObject, HandleMode, UnderCgroupError};
    use std::sync::{Arc, Weak};

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

    fn put_event(map: &Map, index: u32) -> Weak<dyn EventObject> {
        let event: Arc<dyn EventObject> = Ring::new(0, 1).unwrap().0;
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
}
