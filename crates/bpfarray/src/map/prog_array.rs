//! The slots of a PROG_ARRAY.

use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::map::prog_array::{Owner, OwnerError};

use crate::lane::Lane;
use crate::object::ProgramObject;
use crate::slot::Slots;
use crate::sync::{Mutex, lock};

/// Programs in slots, all alike.
pub(crate) struct ProgArray {
    owner: Mutex<Option<Owner>>,
    programs: Slots<Arc<dyn ProgramObject>>,
}

impl ProgArray {
    pub(crate) fn new(len: u32) -> Result<Self, Errno> {
        Ok(Self { owner: Mutex::new(None), programs: Slots::new(len)? })
    }

    /// Makes a program's properties those of the map, if it is the first, or compares them.
    pub(crate) fn claim(&self, program: &Owner) -> Result<(), OwnerError> {
        lock(&self.owner).get_or_insert(*program).compatible(program)
    }

    pub(crate) fn owner(&self) -> Option<Owner> {
        *lock(&self.owner)
    }

    pub(crate) fn insert(
        &self,
        index: u32,
        program: Arc<dyn ProgramObject>,
    ) -> Result<(), OwnerError> {
        self.claim(&program.owner())?;
        self.programs.replace(index, Some(program));
        Ok(())
    }

    pub(crate) fn remove(&self, index: u32) -> bool {
        self.programs.replace(index, None).unwrap_or(false)
    }

    /// Empties all slots. The owner stays.
    ///
    /// # Kernel
    /// `bpf_fd_array_map_clear`
    pub(crate) fn clear(&self) {
        self.programs.clear_where(|_| true);
    }

    pub(crate) fn get<'lane>(
        &'lane self,
        lane: &'lane Lane,
        index: u32,
    ) -> Option<&'lane Arc<dyn ProgramObject>> {
        self.programs.get(lane, index)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::MapType;
    use crate::map::testing::{ARRAY, create, objects};
    use crate::{HandleMode, Map, MapRef, Object, UpdateError, rcu};
    use std::sync::Weak;

    /// A program that refers to maps, as most that do tail calls refer to their own map.
    struct Program {
        id: u32,
        prog_type: u32,
        _maps: Vec<MapRef>,
    }

    impl ProgramObject for Program {
        fn id(&self) -> u32 {
            self.id
        }

        fn owner(&self) -> Owner {
            Owner {
                prog_type: self.prog_type,
                jited: false,
                xdp_has_frags: false,
                expected_attach_type: 0,
            }
        }
    }

    fn program(id: u32, prog_type: u32, maps: Vec<MapRef>) -> Arc<dyn ProgramObject> {
        Arc::new(Program { id, prog_type, _maps: maps })
    }

    fn put(map: &Map, index: u32, program: &Arc<dyn ProgramObject>) -> Result<(), UpdateError> {
        map.update_object(index, &Object::Program(Arc::clone(program)), 0)
    }

    fn id_at(map: &MapRef, index: u32) -> Option<u32> {
        map.tail_call(&Lane::enter(), u64::from(index), 0).map(|program| program.id())
    }

    #[test]
    fn tail_calls_go_to_filled_slots_within_the_budget() {
        let map = objects(MapType::PROG_ARRAY, 4);
        put(&map, 3, &program(7, 6, Vec::new())).unwrap();
        let lane = Lane::enter();
        let id = |index, done| map.tail_call(&lane, index, done).map(|program| program.id());
        assert_eq!((id(3, 0), id(3, 32), id(3, 33)), (Some(7), Some(7), None));
        assert_eq!((id(0, 0), id(4, 0), id((1 << 32) + 3, 0)), (None, None, Some(7)));
        let found = map.tail_call(&lane, 3, 0).unwrap().downcast_ref::<Program>();
        assert_eq!(found.map(|program| program.id), Some(7));
        assert!(create(ARRAY).tail_call(&lane, 0, 0).is_none());
    }

    #[test]
    fn the_first_program_owns_the_map_even_when_it_is_gone() {
        let map = objects(MapType::PROG_ARRAY, 2);
        assert_eq!(map.owner(), None);
        put(&map, 0, &program(7, 6, Vec::new())).unwrap();
        let error = put(&map, 0, &program(8, 1, Vec::new())).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
        assert_eq!(id_at(&map, 0), Some(7), "a failed update leaves the slot alone");
        map.delete_elem(0).unwrap();
        assert_eq!(map.delete_elem(0).unwrap_err().errno(), Errno::ENOENT);
        assert_eq!(map.owner().map(|owner| owner.prog_type), Some(6));
        assert!(put(&map, 0, &program(8, 1, Vec::new())).is_err());
        put(&map, 1, &program(9, 6, Vec::new())).unwrap();
        let mut id = [0; 4];
        map.lookup_elem(1, &mut id, 0).unwrap();
        assert_eq!(u32::from_ne_bytes(id), 9);
    }

    #[test]
    fn a_program_that_refers_to_the_map_owns_it_too() {
        let map = objects(MapType::PROG_ARRAY, 2);
        let owner = |prog_type| program(1, prog_type, Vec::new()).owner();
        assert_eq!(map.claim_owner(&owner(1)), Ok(()));
        assert_eq!(map.claim_owner(&owner(6)).unwrap_err().errno(), Errno::EINVAL);
        assert!(put(&map, 0, &program(7, 6, Vec::new())).is_err());
        assert_eq!(create(ARRAY).claim_owner(&owner(6)), Ok(()));
    }

    #[test]
    fn the_last_handle_takes_the_programs_with_it_and_a_new_one_finds_an_empty_map() {
        let handle = objects(MapType::PROG_ARRAY, 2);
        let map = handle.to_ref();
        put(&handle, 1, &program(7, 6, vec![map.clone()])).unwrap();
        let second = handle.with_mode(HandleMode::ReadOnly);
        drop(handle.clone());
        drop(handle);
        assert_eq!((id_at(&map, 1), map.is_without_handles()), (Some(7), false));
        drop(second);
        assert_eq!((id_at(&map, 1), map.is_without_handles()), (None, true));
        let again = map.with_mode(HandleMode::ReadWrite);
        assert_eq!(id_at(&map, 1), None);
        put(&again, 0, &program(8, 6, Vec::new())).unwrap();
        assert_eq!(id_at(&map, 0), Some(8));
        drop(again);
        assert_eq!(id_at(&map, 0), None);
    }

    #[test]
    fn a_frozen_map_loses_its_programs_with_the_last_handle_all_the_same() {
        let handle = objects(MapType::PROG_ARRAY, 1);
        put(&handle, 0, &program(7, 6, Vec::new())).unwrap();
        handle.freeze().unwrap();
        assert_eq!(handle.delete_elem(0).unwrap_err().errno(), Errno::EPERM);
        let map = handle.to_ref();
        drop(handle);
        assert_eq!(id_at(&map, 0), None);
    }

    #[test]
    fn programs_and_maps_that_hold_each_other_are_not_leaked() {
        let map = objects(MapType::PROG_ARRAY, 1);
        let in_map = program(7, 6, vec![map.to_ref()]);
        put(&map, 0, &in_map).unwrap();
        let watched: (Weak<dyn ProgramObject>, _) =
            (Arc::downgrade(&in_map), Arc::downgrade(&map.inner));
        drop(in_map);
        assert!(watched.0.upgrade().is_some_and(|program| program.id() == 7));
        drop(map);
        rcu::barrier().unwrap();
        assert!(watched.0.upgrade().is_none() && watched.1.upgrade().is_none());
    }

    #[test]
    fn a_running_program_finishes_on_the_program_it_found() {
        let map = objects(MapType::PROG_ARRAY, 1);
        let old = program(7, 6, Vec::new());
        put(&map, 0, &old).unwrap();
        let lane = Lane::enter();
        let found = map.tail_call(&lane, 0, 0).unwrap();
        put(&map, 0, &program(8, 6, Vec::new())).unwrap();
        assert_eq!((found.id(), Arc::strong_count(&old)), (7, 2));
        assert_eq!(id_at(&map, 0), Some(8));
        drop(lane);
        rcu::barrier().unwrap();
        assert_eq!(Arc::strong_count(&old), 1);
    }
}
