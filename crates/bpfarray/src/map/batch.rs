//! Many elements with one call.

use bpfarray_core::batch::{self, BatchError, LookupBatch, Request, UpdateBatchError};

use super::Map;
use super::reference::{Contents, Inner};
use crate::cpu::possible_cpus;
use crate::memory::OutOfBounds;
use crate::object::Object;

impl Map {
    /// Copies elements, one after the other, and their keys: as many as `keys` has room for, from the one
    /// after `in_batch` on. `values` must have [`MapRef::user_size`](super::MapRef::user_size) bytes
    /// for each key. Empty slots are left out.
    ///
    /// ```
    /// use bpfarray::Map;
    /// use bpfarray::attr::{MapAttr, MapType};
    /// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 8, max_entries: 3, ..MapAttr::default() };
    /// let map = Map::create(&attr)?;
    /// let (mut keys, mut values) = ([0; 2], [0; 16]);
    /// let first = map.lookup_batch(None, &mut keys, &mut values, 0)?;
    /// assert_eq!((first.count, keys, first.ended), (2, [0, 1], false));
    /// let rest = map.lookup_batch(first.out_batch, &mut keys, &mut values, 0)?;
    /// assert_eq!((rest.count, keys[0], rest.ended), (1, 2, true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`BatchError`] in their order. That the map ended is no error here: see
    /// [`LookupBatch::errno`].
    ///
    /// # Kernel
    /// `generic_map_lookup_batch`
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    #[doc(alias = "generic_map_lookup_batch")]
    pub fn lookup_batch(
        &self,
        in_batch: Option<u32>,
        keys: &mut [u32],
        values: &mut [u8],
        elem_flags: u64,
    ) -> Result<LookupBatch, BatchError> {
        let request = self.request(keys.len(), values.len() as u64, elem_flags);
        let cpus = batch::check_lookup(self.layout(), &request, self.inner.has_spin_lock())?;
        if keys.is_empty() {
            return Ok(LookupBatch::default());
        }
        let Inner { layout, area, contents, .. } = &*self.inner;
        let visited = batch::keys_after(layout, in_batch);
        if let Contents::Maps(_) = contents {
            return Ok(self.lookup_filled(visited, keys, values));
        }
        let wanted = keys.len();
        let count = wanted.min(visited.len());
        for (key, index) in keys.iter_mut().zip(visited.clone()) {
            *key = index;
        }
        let elem_size = layout.elem_size() as usize;
        let value_size = layout.user_size_of(cpus, possible_cpus()) as usize;
        let (first, values) = (visited.start as usize, &mut values[..count * value_size]);
        let copied = match contents {
            Contents::Array if elem_size == value_size && self.inner.fields.is_empty() => {
                area.payload().read(first * elem_size, values)
            }
            Contents::Array => {
                let mut elements = values.chunks_exact_mut(value_size).zip(first..);
                elements.try_for_each(|(value, at)| {
                    self.inner.read_value(at * elem_size, value, elem_flags)
                })
            }
            Contents::PercpuArray => {
                let mut elements = values.chunks_exact_mut(value_size).zip(first..);
                elements
                    .try_for_each(|(value, at)| self.inner.read_percpu(at * elem_size, cpus, value))
            }
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => return Err(BatchError::Unsupported),
        };
        copied.map_err(|OutOfBounds { .. }| BatchError::Buffer(request.values))?;
        let out_batch = visited.start.checked_add(count as u32).and_then(|end| end.checked_sub(1));
        Ok(LookupBatch {
            count: count as u32,
            out_batch: out_batch.filter(|_| count != 0),
            ended: count < wanted,
        })
    }

    /// The ids in slots that are filled.
    fn lookup_filled(
        &self,
        visited: std::ops::Range<u32>,
        keys: &mut [u32],
        values: &mut [u8],
    ) -> LookupBatch {
        let (mut count, mut last) = (0, None);
        let (values, _) = values.as_chunks_mut::<{ size_of::<u32>() }>();
        for index in visited {
            let Some((key, value)) = keys.get_mut(count).zip(values.get_mut(count)) else { break };
            last = Some(index);
            if let Ok(id) = self.lookup_id(index) {
                *key = index;
                *value = id.to_ne_bytes();
                count += 1;
            }
        }
        let out_batch = last.filter(|_| count != 0);
        LookupBatch { count: count as u32, out_batch, ended: count < keys.len() }
    }

    /// Replaces elements one after the other, up to the first that is refused, and gives their number.
    /// `values` must have [`MapRef::user_size`](super::MapRef::user_size) bytes for each key. For an
    /// ARRAY_OF_MAPS the bytes would be descriptors: see [`Map::update_object_batch`].
    ///
    /// # Errors
    /// The variants of [`BatchError`] in their order; then, of the first element that is refused, those
    /// of [`UpdateError`](crate::UpdateError).
    ///
    /// # Kernel
    /// `generic_map_update_batch`
    #[doc(alias = "BPF_MAP_UPDATE_BATCH")]
    #[doc(alias = "generic_map_update_batch")]
    pub fn update_batch(
        &self,
        keys: &[u32],
        values: &[u8],
        elem_flags: u64,
    ) -> Result<u32, UpdateBatchError> {
        let write = self.inner.gate.enter();
        let request = self.request(keys.len(), values.len() as u64, elem_flags);
        let cpus = batch::check_update(
            self.layout(),
            &request,
            write.frozen(),
            self.inner.has_spin_lock(),
        )?;
        let value_size = self.layout().user_size_of(cpus, possible_cpus()) as usize;
        let mut done = 0;
        while let Some(&first) = keys.get(done) {
            let run = self.dense_run(&keys[done..]);
            let bytes = &values[done * value_size..][..run * value_size];
            let stored = if run == 1 {
                self.store(first, bytes, elem_flags, cpus)
            } else {
                let at = first as usize * value_size;
                self.inner.area.payload().write(at, bytes).map_err(|_| self.no_index(first))
            };
            stored.map_err(|error| UpdateBatchError::Stopped { count: done as u32, error })?;
            done += run;
        }
        Ok(done as u32)
    }

    /// How many keys from the first on stand for values side by side in memory, without padding; at least 1.
    fn dense_run(&self, keys: &[u32]) -> usize {
        let Inner { layout, contents, .. } = &*self.inner;
        match contents {
            Contents::Array
                if layout.elem_size() == layout.value_size() && self.inner.fields.is_empty() =>
            {
                let start = keys.first().copied().unwrap_or(0);
                let room = layout.max_entries().saturating_sub(start) as usize;
                ascending(start, &keys[..keys.len().min(room)]).max(1)
            }
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => 1,
        }
    }

    /// Puts objects into slots one after the other, up to the first that is refused, and gives their
    /// number. Only an ARRAY_OF_MAPS has such batches; there must be as many objects as keys.
    ///
    /// # Errors
    /// As [`Map::update_batch`].
    ///
    /// # Concurrency
    /// As [`Map::update_object`], but waits only once, at the end.
    ///
    /// # Kernel
    /// `generic_map_update_batch`
    pub fn update_object_batch(
        &self,
        keys: &[u32],
        objects: &[Object],
        elem_flags: u64,
    ) -> Result<u32, UpdateBatchError> {
        let write = self.inner.gate.enter();
        let values = (objects.len() as u64).saturating_mul(self.user_size());
        let request = self.request(keys.len(), values, elem_flags);
        batch::check_update(self.layout(), &request, write.frozen(), self.inner.has_spin_lock())?;
        let mut stored = Ok(keys.len() as u32);
        for (done, (&key, object)) in keys.iter().zip(objects).enumerate() {
            if let Err(error) = self.store_object(key, object, elem_flags) {
                stored = Err(UpdateBatchError::Stopped { count: done as u32, error });
                break;
            }
        }
        self.wait_for_programs();
        stored
    }

    /// Deletes elements, which no array map allows in batches.
    ///
    /// # Errors
    /// [`BatchError::NotWritable`], else [`BatchError::Unsupported`].
    ///
    /// # Kernel
    /// `bpf_map_do_batch`
    #[doc(alias = "BPF_MAP_DELETE_BATCH")]
    pub fn delete_batch(&self) -> Result<(), BatchError> {
        batch::check_delete(self.mode(), self.is_frozen())
    }

    /// Copies and deletes elements, which no array map allows in batches.
    ///
    /// # Errors
    /// [`BatchError::NotReadable`], [`BatchError::NotWritable`], else [`BatchError::Unsupported`].
    ///
    /// # Kernel
    /// `bpf_map_do_batch`
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_BATCH")]
    pub fn lookup_and_delete_batch(&self) -> Result<(), BatchError> {
        batch::check_lookup_and_delete(self.mode(), self.is_frozen())
    }

    fn request(&self, keys: usize, values: u64, elem_flags: u64) -> Request {
        Request { mode: self.mode(), elem_flags, keys, values, possible_cpus: possible_cpus() }
    }
}

/// How many keys from the first on are `start`, `start + 1` and so on.
fn ascending(start: u32, keys: &[u32]) -> usize {
    /// Keys that are compared together, without a branch for each.
    const BLOCK: usize = 32;
    let matches = |at: usize, key: u32| key == start.wrapping_add(at as u32);
    if keys.get(1).is_none_or(|&second| !matches(1, second)) {
        return keys.len().min(1);
    }
    let mut run = 0;
    for block in keys.chunks(BLOCK) {
        let equal = block.iter().zip(run..).fold(true, |all, (&key, at)| all & matches(at, key));
        if !equal {
            return run
                + block.iter().zip(run..).take_while(|&(&key, at)| matches(at, key)).count();
        }
        run += block.len();
    }
    run
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::{MapAttr, MapType};
    use crate::map::testing::{ARRAY, PERCPU, create, objects};
    use crate::{Errno, HandleMode};

    /// Every byte of element `index` is `index + 1`.
    fn filled(attr: MapAttr) -> Map {
        let map = create(attr);
        for index in 0..attr.max_entries {
            let value = vec![index as u8 + 1; map.user_size() as usize];
            map.update_elem(index, &value, 0).unwrap();
        }
        map
    }

    fn lookup(map: &Map, in_batch: Option<u32>, count: usize) -> (LookupBatch, Vec<u32>, Vec<u8>) {
        let (mut keys, mut values) = (vec![99; count], vec![0; count * map.user_size() as usize]);
        let done = map.lookup_batch(in_batch, &mut keys, &mut values, 0).unwrap();
        (done, keys, values)
    }

    #[test]
    fn counts_and_cursors_are_the_kernels() {
        for attr in [ARRAY, MapAttr { value_size: 8, ..ARRAY }, PERCPU] {
            let map = filled(attr);
            let size = map.user_size() as usize;
            for start in 0..5_u32 {
                for count in 0..8_usize {
                    let in_batch = start.checked_sub(1);
                    let (done, keys, values) = lookup(&map, in_batch, count);
                    let copied = count.min(5 - start as usize);
                    assert_eq!(done.count as usize, copied);
                    assert_eq!(done.errno(), (copied < count).then_some(Errno::ENOENT));
                    let last = (copied != 0).then(|| start + copied as u32 - 1);
                    assert_eq!(done.out_batch, last);
                    for at in 0..count {
                        let index = start + at as u32;
                        let key = if at < copied { index } else { 99 };
                        let byte = if at < copied { index as u8 + 1 } else { 0 };
                        assert_eq!(keys[at], key);
                        assert!(values[at * size..][..size].iter().all(|&found| found == byte));
                    }
                }
            }
            let (end, ..) = lookup(&map, Some(4), 3);
            assert_eq!(end, LookupBatch { count: 0, out_batch: None, ended: true });
            for out_of_range in [5, 77, u32::MAX] {
                assert_eq!(lookup(&map, Some(out_of_range), 1).1, [0]);
            }
        }
    }

    #[test]
    fn holes_are_left_out_and_the_cursor_may_stand_on_one() {
        let map = objects(MapType::ARRAY_OF_MAPS, 5);
        assert_eq!(lookup(&map, None, 2).0, LookupBatch { ended: true, ..Default::default() });
        let inner = create(ARRAY);
        for index in [1, 3] {
            map.update_object(index, &Object::Map(inner.to_ref()), 0).unwrap();
        }
        let (done, keys, values) = lookup(&map, None, 5);
        assert_eq!(done, LookupBatch { count: 2, out_batch: Some(4), ended: true });
        assert_eq!(keys[..2], [1, 3]);
        assert_eq!(values[..8], [inner.id().to_ne_bytes(); 2].concat());
        assert_eq!(lookup(&map, None, 2).0.out_batch, Some(3));
        assert_eq!(lookup(&map, Some(3), 2).0.count, 0);
    }

    #[test]
    fn updates_stop_at_the_first_bad_key_and_keep_what_was_done() {
        for attr in [ARRAY, MapAttr { value_size: 8, ..ARRAY }, PERCPU] {
            let map = create(attr);
            let size = map.user_size() as usize;
            for keys in [&[0, 1, 5, 2][..], &[3, 4, 5, 6], &[4, 0, 9, 1]] {
                let values: Vec<u8> =
                    keys.iter().flat_map(|&key| vec![key as u8 + 10; size]).collect();
                let error = map.update_batch(keys, &values, 0).unwrap_err();
                assert_eq!((error.errno(), error.count()), (Errno::E2BIG, Some(2)));
                let mut value = vec![0; size];
                for &key in &keys[..2] {
                    map.lookup_elem(key, &mut value, 0).unwrap();
                    assert_eq!(value, vec![key as u8 + 10; size]);
                }
            }
            let mut value = vec![0; size];
            map.lookup_elem(2, &mut value, 0).unwrap();
            assert_eq!(value, vec![0; size], "after the bad key");
            assert_eq!(map.update_batch(&[], &[], 0), Ok(0));
        }
    }

    #[test]
    fn runs_of_keys_end_where_the_first_differs() {
        for len in [0, 1, 2, 31, 32, 33, 100] {
            let mut keys: Vec<u32> = (7..7 + len).collect();
            assert_eq!(ascending(7, &keys), len as usize);
            for broken in 1..len as usize {
                keys[broken] = 0;
                assert_eq!(ascending(7, &keys), broken);
                keys[broken] = 7 + broken as u32;
            }
        }
    }

    #[test]
    fn a_key_that_comes_twice_ends_with_its_last_value() {
        let map = create(MapAttr { value_size: 8, ..ARRAY });
        let values: Vec<u8> = (1..=4_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(map.update_batch(&[2, 3, 2, 3], &values, 0), Ok(4));
        assert_eq!(lookup(&map, Some(1), 2).2, values[16..]);
    }

    #[test]
    fn a_batch_of_maps_is_stored_up_to_the_first_that_does_not_fit() {
        let map = objects(MapType::ARRAY_OF_MAPS, 4);
        let inner = Object::Map(create(ARRAY).to_ref());
        let other = Object::Map(create(PERCPU).to_ref());
        let batch = [inner.clone(), other, inner.clone()];
        let error = map.update_object_batch(&[0, 1, 2], &batch, 0).unwrap_err();
        assert_eq!((error.errno(), error.count()), (Errno::EINVAL, Some(1)));
        assert_eq!(map.update_object_batch(&[2, 3], &[inner.clone(), inner.clone()], 0), Ok(2));
        assert_eq!(lookup(&map, None, 4).1[..3], [0, 2, 3]);
        let error = map.update_batch(&[0], &[0; 4], 0).unwrap_err();
        assert_eq!((error.errno(), error.count()), (Errno::EBADF, Some(0)));
        let error = map.update_object_batch(&[0, 1], &[inner], 0).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT);
    }

    #[test]
    fn what_has_no_batches_says_so_after_the_mode() {
        for map_type in [MapType::PROG_ARRAY, MapType::PERF_EVENT_ARRAY, MapType::CGROUP_ARRAY] {
            let map = objects(map_type, 4);
            assert_eq!(map.lookup_batch(None, &mut [], &mut [], 1), Err(BatchError::Unsupported));
            let update = map.update_batch(&[], &[], 1).unwrap_err();
            assert_eq!(update.errno(), Errno::ENOTSUPP);
            let read_only = map.with_mode(HandleMode::ReadOnly);
            assert_eq!(read_only.update_batch(&[], &[], 1).unwrap_err().errno(), Errno::EPERM);
        }
        let map = create(ARRAY);
        assert_eq!(map.delete_batch(), Err(BatchError::Unsupported));
        assert_eq!(map.lookup_and_delete_batch(), Err(BatchError::Unsupported));
        map.freeze().unwrap();
        assert_eq!(map.update_batch(&[], &[], 0).unwrap_err().errno(), Errno::EPERM);
        assert_eq!(map.delete_batch().unwrap_err().errno(), Errno::EPERM);
        assert_eq!(map.lookup_batch(None, &mut [], &mut [], 0), Ok(LookupBatch::default()));
    }
}
