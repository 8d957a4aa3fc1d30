//! Maps with memory: what `BPF_MAP_CREATE` makes, and what a handle can do with it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bpfarray_core::Layout;
use bpfarray_core::attr::{CreateError, Creator, MapAttr, MapFlags, MapType};
use bpfarray_core::map::{
    self, DeleteError, FreezeError, HandleMode, Kind, LookupError, NextKeyError, UpdateError,
    array, percpu_array,
};

use crate::area::Area;
use crate::cpu::possible_cpus;
use crate::file::MapFile;
use crate::gate::WriteGate;
use crate::memory::OutOfBounds;

/// Values with a `bpf_spin_lock` do not exist yet.
pub(crate) const SPIN_LOCK: bool = false;

/// A handle to a map: what a file descriptor from `bpf(2)` is.
///
/// A clone is another handle with the same mode. The map goes when the last one is dropped.
///
/// ```
/// use bpfarray::Map;
/// use bpfarray::attr::{MapAttr, MapType};
/// let sizes = MapAttr { key_size: 4, value_size: 4, max_entries: 3, ..MapAttr::default() };
/// let attr = MapAttr { map_type: MapType::ARRAY, ..sizes };
/// let map = Map::create(&attr)?;
/// map.update_elem(1, &7u32.to_ne_bytes(), 0)?;
/// let mut value = [0; 4];
/// map.lookup_elem(1, &mut value, 0)?;
/// assert_eq!(u32::from_ne_bytes(value), 7);
/// assert_eq!(map.lookup_elem(3, &mut value, 0).unwrap_err().errno(), bpfarray::Errno::ENOENT);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Every operation may run at the same time as any other. A value that is read while it is written
/// can be part old, part new, but each aligned 8-byte unit of it is one or the other.
///
/// # Kernel
/// `struct bpf_map`
#[derive(Clone)]
#[doc(alias = "bpf_map")]
pub struct Map {
    pub(crate) inner: Arc<Inner>,
    mode: HandleMode,
}

pub(crate) struct Inner {
    id: u32,
    name: String,
    pub(crate) layout: Layout,
    pub(crate) area: Area,
    pub(crate) gate: WriteGate,
}

impl Map {
    /// Creates a map whose lookups are masked against Spectre v1.
    ///
    /// # Errors
    /// The variants of [`CreateError`] in their order.
    ///
    /// # Kernel
    /// `map_create`
    #[doc(alias = "map_create")]
    #[doc(alias = "BPF_MAP_CREATE")]
    pub fn create(attr: &MapAttr) -> Result<Self, CreateError> {
        Self::create_as(attr, &Creator::default())
    }

    /// Creates a map for a certain creator.
    ///
    /// Values are zero and take up no memory before they are written. A PERCPU_ARRAY needs 8 bytes
    /// per element from the start, to find its values.
    ///
    /// # Errors
    /// The variants of [`CreateError`] in their order.
    pub fn create_as(attr: &MapAttr, creator: &Creator<'_>) -> Result<Self, CreateError> {
        let layout = attr.check(creator)?;
        let needed = layout.window_len().saturating_mul(u64::from(possible_cpus()));
        let no_memory = CreateError::NoMemory(needed.saturating_add(layout.payload_len()));
        let area = Area::allocate(&layout).map_err(|_| no_memory)?;
        let map = Self::assemble(attr, layout, area, None)?;
        Ok(map.with_mode(HandleMode::of(attr.map_flags)))
    }

    /// A map from its parts.
    pub(crate) fn assemble(
        attr: &MapAttr,
        layout: Layout,
        area: Area,
        file: Option<Arc<MapFile>>,
    ) -> Result<Self, CreateError> {
        static LAST_ID: AtomicU32 = AtomicU32::new(0);
        // Bytes from 0x80 on that are allowed in a name are Latin-1 letters.
        let name = attr.check_name()?.iter().map(|&byte| char::from(byte)).collect();
        let id = LAST_ID
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| last.checked_add(1))
            .map_err(|_| CreateError::NoMemory(layout.payload_len()))?
            + 1;
        let inner = Inner { id, name, layout, area, gate: WriteGate::new(file) };
        Ok(Self::of_inner(Arc::new(inner), HandleMode::ReadWrite))
    }

    pub(crate) fn of_inner(inner: Arc<Inner>, mode: HandleMode) -> Self {
        Self { inner, mode }
    }

    /// Another handle to the same map, with a mode of its own.
    ///
    /// # Kernel
    /// `BPF_MAP_GET_FD_BY_ID` with `open_flags`
    #[must_use]
    pub fn with_mode(&self, mode: HandleMode) -> Self {
        Self { inner: Arc::clone(&self.inner), mode }
    }

    /// What this handle may do.
    pub fn mode(&self) -> HandleMode {
        self.mode
    }

    /// The map's id: positive, and never used again in this process.
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// The map's name, at most 15 characters.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The map's type.
    pub fn map_type(&self) -> MapType {
        self.layout().kind().map_type()
    }

    /// Bytes of a key, always 4.
    pub fn key_size(&self) -> u32 {
        size_of::<u32>() as u32
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> u32 {
        self.layout().value_size()
    }

    /// Number of elements.
    pub fn max_entries(&self) -> u32 {
        self.layout().max_entries()
    }

    /// Flags of the map, without those of the handle.
    pub fn map_flags(&self) -> MapFlags {
        self.layout().map_flags()
    }

    /// All sizes of the map.
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// Whether handles can no longer write.
    pub fn is_frozen(&self) -> bool {
        self.inner.gate.is_frozen()
    }

    /// Bytes the kernel would account to such a map. What is used here is less, until all values
    /// are written.
    ///
    /// # Kernel
    /// `array_map_mem_usage`
    #[doc(alias = "array_map_mem_usage")]
    pub fn mem_usage(&self) -> u64 {
        self.layout().mem_usage(possible_cpus())
    }

    /// Bytes that [`Map::lookup_elem`] and [`Map::update_elem`] move: the value, or for a
    /// PERCPU_ARRAY one value, rounded up to 8 bytes, for each possible CPU.
    ///
    /// # Kernel
    /// `bpf_map_value_size`
    #[doc(alias = "bpf_map_value_size")]
    pub fn user_size(&self) -> u64 {
        self.layout().user_size(possible_cpus())
    }

    /// Copies an element into `value`, which must have [`Map::user_size`] bytes.
    ///
    /// A PERCPU_ARRAY gives the values of all CPUs, one after the other, with the padding behind
    /// each.
    ///
    /// # Errors
    /// The variants of [`LookupError`] in their order.
    ///
    /// # Kernel
    /// `array_map_lookup_elem`, `bpf_percpu_array_copy`
    #[doc(alias = "BPF_MAP_LOOKUP_ELEM")]
    #[doc(alias = "bpf_percpu_array_copy")]
    pub fn lookup_elem(&self, index: u32, value: &mut [u8], flags: u64) -> Result<(), LookupError> {
        map::check_lookup(self.mode, flags, SPIN_LOCK)?;
        let Inner { layout, area, .. } = &*self.inner;
        let no_entry = LookupError::NoEntry { index, max_entries: layout.max_entries() };
        let offset = match layout.kind() {
            Kind::Array => array::lookup_elem(layout, index),
            Kind::PercpuArray => percpu_array::lookup_elem(layout, index),
        };
        let offset = offset.ok_or(no_entry)? as usize;
        if value.len() as u64 != self.user_size() {
            return Err(LookupError::Buffer(self.user_size()));
        }
        match layout.kind() {
            Kind::Array => area.payload().read(offset, value),
            Kind::PercpuArray => {
                let parts = value.chunks_exact_mut(layout.elem_size() as usize);
                area.percpu().iter().zip(parts).try_for_each(|(cpu, part)| cpu.read(offset, part))
            }
        }
        .map_err(|OutOfBounds { .. }| no_entry)
    }

    /// Replaces an element by `value`, which must have [`Map::user_size`] bytes.
    ///
    /// A PERCPU_ARRAY takes the values of all CPUs, one after the other, with the padding behind
    /// each.
    ///
    /// # Errors
    /// The variants of [`UpdateError`] in their order.
    ///
    /// # Kernel
    /// `array_map_update_elem`, `bpf_percpu_array_update`
    #[doc(alias = "BPF_MAP_UPDATE_ELEM")]
    pub fn update_elem(&self, index: u32, value: &[u8], flags: u64) -> Result<(), UpdateError> {
        let write = self.inner.gate.enter();
        map::check_update(self.mode, write.frozen(), flags, SPIN_LOCK)?;
        if value.len() as u64 != self.user_size() {
            return Err(UpdateError::Buffer(self.user_size()));
        }
        let Inner { layout, area, .. } = &*self.inner;
        match layout.kind() {
            Kind::Array => {
                let offset = array::update_elem(layout, index, flags, SPIN_LOCK)?;
                area.payload().write(offset as usize, value)
            }
            Kind::PercpuArray => {
                let offset = percpu_array::update_elem(layout, index, flags)? as usize;
                let parts = value.chunks_exact(layout.elem_size() as usize);
                area.percpu().iter().zip(parts).try_for_each(|(cpu, part)| cpu.write(offset, part))
            }
        }
        .map_err(|OutOfBounds { .. }| self.no_index(index))
    }

    /// Deletes an element, which arrays never allow.
    ///
    /// # Errors
    /// The variants of [`DeleteError`] in their order.
    ///
    /// # Kernel
    /// `array_map_delete_elem`
    #[doc(alias = "BPF_MAP_DELETE_ELEM")]
    pub fn delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        let write = self.inner.gate.enter();
        map::check_delete(self.mode, write.frozen())?;
        self.type_delete_elem(index)
    }

    pub(crate) fn type_delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        match self.layout().kind() {
            Kind::Array => array::delete_elem(self.layout(), index),
            Kind::PercpuArray => percpu_array::delete_elem(self.layout(), index),
        }
    }

    /// The index after `key`, or the first one without a key or after a key that does not exist.
    ///
    /// # Errors
    /// The variants of [`NextKeyError`] in their order.
    ///
    /// # Kernel
    /// `array_map_get_next_key`
    #[doc(alias = "BPF_MAP_GET_NEXT_KEY")]
    pub fn get_next_key(&self, key: Option<u32>) -> Result<u32, NextKeyError> {
        map::check_next_key(self.mode)?;
        match self.layout().kind() {
            Kind::Array | Kind::PercpuArray => map::get_next_key(self.layout(), key),
        }
    }

    /// Ends writing through handles, for good. Programs may still write, unless the map is
    /// [`MapFlags::RDONLY_PROG`].
    ///
    /// # Errors
    /// The variants of [`FreezeError`] in their order. Typed arrays that can write count as
    /// writers.
    ///
    /// # Concurrency
    /// When this returns, all that handles will ever write has been written.
    ///
    /// # Kernel
    /// `map_freeze`
    #[doc(alias = "BPF_MAP_FREEZE")]
    #[doc(alias = "map_freeze")]
    pub fn freeze(&self) -> Result<(), FreezeError> {
        self.inner.gate.freeze(self.mode)
    }

    pub(crate) fn no_index(&self, index: u32) -> UpdateError {
        UpdateError::Index { index, max_entries: self.max_entries() }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("mode", &self.mode)
            .field("layout", self.layout())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::Errno;
    use crate::attr::elem_flags::F_LOCK;

    const ARRAY: MapAttr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 12,
        max_entries: 5,
        map_flags: MapFlags::empty(),
        numa_node: 0,
        map_name: *b"counters\0\0\0\0\0\0\0\0",
        map_ifindex: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
        btf_vmlinux_value_type_id: 0,
        map_extra: 0,
    };
    const PERCPU: MapAttr = MapAttr { map_type: MapType::PERCPU_ARRAY, ..ARRAY };

    fn create(attr: MapAttr) -> Map {
        Map::create(&attr).unwrap()
    }

    #[test]
    fn a_map_knows_what_it_was_created_from() {
        let flags = MapFlags::RDONLY | MapFlags::MMAPABLE;
        let map = create(MapAttr { map_flags: flags, ..ARRAY });
        assert_eq!((map.name(), map.map_type()), ("counters", MapType::ARRAY));
        assert_eq!((map.key_size(), map.value_size(), map.max_entries()), (4, 12, 5));
        assert_eq!(map.map_flags(), MapFlags::MMAPABLE);
        assert_eq!(map.mode(), HandleMode::ReadOnly);
        assert_eq!((map.mem_usage(), map.user_size()), (8192, 12));
        assert_eq!(create(PERCPU).user_size(), 16 * u64::from(possible_cpus()));
    }

    #[test]
    fn ids_increase_even_past_maps_that_are_gone() {
        let first = create(ARRAY).id();
        assert!(first > 0);
        assert!(create(ARRAY).id() > first);
    }

    #[test]
    fn a_name_in_latin_1_is_read_as_such() {
        let map = create(MapAttr { map_name: *b"caf\xe9\0ignored\0\0\0\0", ..ARRAY });
        assert_eq!(map.name(), "café");
    }

    #[test]
    fn memory_is_missed_before_the_name() {
        let huge = MapAttr {
            value_size: i32::MAX as u32,
            max_entries: 1 << 31,
            map_name: [b'-'; 16],
            ..ARRAY
        };
        let error = Map::create(&huge).unwrap_err();
        assert_eq!(error, CreateError::NoMemory(1 << 62));
        let percpu = MapAttr { value_size: 32768, max_entries: 1 << 23, ..PERCPU };
        assert_eq!(Map::create(&percpu).unwrap_err().errno(), Errno::ENOMEM);
        let bad_name = MapAttr { map_name: [b'-'; 16], ..ARRAY };
        assert_eq!(Map::create(&bad_name).unwrap_err(), CreateError::Name);
    }

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
    fn a_frozen_map_can_be_read_but_not_written() {
        let map = create(ARRAY);
        let write_only = map.with_mode(HandleMode::WriteOnly);
        assert_eq!(map.with_mode(HandleMode::ReadOnly).freeze(), Err(FreezeError::NotWritable));
        assert_eq!(map.delete_elem(9), Err(DeleteError::Unsupported));
        assert_eq!(write_only.freeze(), Ok(()));
        assert!(map.is_frozen());
        assert_eq!(map.freeze(), Err(FreezeError::NotWritable));
        assert_eq!(map.update_elem(9, &[0; 12], 9), Err(UpdateError::NotWritable));
        assert_eq!(map.delete_elem(9), Err(DeleteError::NotWritable));
        assert_eq!(map.lookup_elem(0, &mut [0; 12], 0), Ok(()));
        assert_eq!(map.get_next_key(Some(0)), Ok(1));
        assert_eq!(write_only.get_next_key(None), Err(NextKeyError::NotReadable));
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
}
