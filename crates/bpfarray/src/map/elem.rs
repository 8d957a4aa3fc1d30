//! Operations on elements through a handle.

use bpfarray_core::attr::Rules;
use bpfarray_core::map::cpu_flags::Cpus;
use bpfarray_core::map::{
    self, DeleteError, LookupAndDeleteError, LookupError, NextKeyError, UpdateError, array,
    fd_array, percpu_array,
};

use super::Map;
use super::reference::{Contents, Inner};
use crate::cpu::possible_cpus;
use crate::gate::Write;
use crate::memory::OutOfBounds;

impl Map {
    /// Copies an element into `value`, which must have [`MapRef::user_size`](super::MapRef::user_size) bytes; if the flags name
    /// CPUs, [`MapRef::value_size`](super::MapRef::value_size) bytes.
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
        let Inner { layout, contents, .. } = &*self.inner;
        let has_lock = self.inner.has_spin_lock();
        let cpus = map::check_lookup(layout, self.mode(), flags, has_lock, possible_cpus())?;
        let no_entry = LookupError::NoEntry { index, max_entries: layout.max_entries() };
        let check_len = |len: usize| {
            let size = layout.user_size_of(cpus, possible_cpus());
            if len as u64 == size { Ok(()) } else { Err(LookupError::Buffer(size)) }
        };
        match contents {
            Contents::Array => {
                let offset = array::lookup_elem(layout, index).ok_or(no_entry)? as usize;
                check_len(value.len())?;
                self.inner.read_value(offset, value, flags)
            }
            Contents::PercpuArray => {
                let offset = percpu_array::lookup_elem(layout, index).ok_or(no_entry)? as usize;
                check_len(value.len())?;
                self.inner.read_percpu(offset, cpus, value)
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

    /// Replaces an element by `value`, which must have [`MapRef::user_size`](super::MapRef::user_size) bytes; if the flags name
    /// CPUs, [`MapRef::value_size`](super::MapRef::value_size) bytes.
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

    pub(super) fn check_update(&self, write: &Write<'_>, flags: u64) -> Result<Cpus, UpdateError> {
        let frozen = write.frozen();
        let has_lock = self.inner.has_spin_lock();
        map::check_update(self.layout(), self.mode(), frozen, flags, has_lock, possible_cpus())
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
                let offset = array::update_elem(layout, index, flags, self.inner.has_spin_lock())?;
                self.inner.write_value(area.payload(), offset as usize, value, flags)
            }
            Contents::PercpuArray => {
                let offset = percpu_array::update_elem(layout, index, flags)? as usize;
                let len = match layout.rules() {
                    Rules::Linux6_18 => layout.elem_size(),
                    Rules::Linux7_0 => layout.value_size(),
                };
                self.inner.write_percpu(offset, cpus, value, len as usize)
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
        let has_lock = self.inner.has_spin_lock();
        map::check_lookup_and_delete(self.mode(), self.is_frozen(), flags, has_lock)
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

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::elem_flags::{F_ALL_CPUS, F_CPU, F_LOCK};
    use crate::attr::{Creator, MapAttr};
    use crate::map::testing::{ARRAY, PERCPU, create};
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
