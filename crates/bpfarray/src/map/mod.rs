//! Maps with memory: what `BPF_MAP_CREATE` makes, and what a handle can do with it.

mod array_of_maps;
mod batch;
mod elem;
mod fd_array;
mod info;
mod prog_array;
mod reference;
mod shared;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bpfarray_core::attr::{CreateError, Creator, MapAttr};
use bpfarray_core::map::{FreezeError, HandleMode};

use crate::numa::online_nodes;

pub use self::info::MapInfo;
pub(crate) use self::reference::Contents;
pub use self::reference::MapRef;
pub(crate) use self::reference::{InSlots, Inner};

/// A handle to a map: what a file descriptor from `bpf(2)` is.
///
/// A clone is the same handle once more, as `dup` makes it. A handle is also a [`MapRef`], what
/// programs have of a map, and can do all that it can. The map goes when the last handle and the
/// last reference are dropped; a PROG_ARRAY loses its programs with the last handle.
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
/// A `struct file` over a `struct bpf_map`, and the user reference it holds
#[derive(Clone)]
#[doc(alias = "bpf_map_fops")]
pub struct Map {
    file: Arc<File>,
}

/// An open file: what the clones of a handle share.
struct File {
    map: MapRef,
    mode: HandleMode,
    id: u64,
}

impl Drop for File {
    /// # Kernel
    /// `bpf_map_release`
    fn drop(&mut self) {
        self.map.release(self.id);
    }
}

impl Map {
    /// Creates a map whose lookups are masked against Spectre v1, on any of the machine's NUMA nodes.
    ///
    /// # Errors
    /// As [`Map::create_with`], where there is no inner map.
    pub fn create(attr: &MapAttr) -> Result<Self, CreateError> {
        let creator = Creator { online_nodes: online_nodes(), ..Creator::default() };
        Self::create_with(attr, &creator, None)
    }

    /// Creates a map for a certain creator.
    ///
    /// # Errors
    /// As [`Map::create_with`], where there is no inner map.
    pub fn create_as(attr: &MapAttr, creator: &Creator<'_>) -> Result<Self, CreateError> {
        Self::create_with(attr, creator, None)
    }

    /// Creates a map for a certain creator; an ARRAY_OF_MAPS, for maps that look like `inner`. Only the
    /// sizes and flags of `inner` are kept.
    ///
    /// Where the attributes have type ids, [`Creator::btf`] has the types, and values get the special
    /// fields that these describe.
    ///
    /// Values are zero and take up no memory before they are written. A PERCPU_ARRAY needs 8 bytes
    /// per element from the start, to find its values.
    ///
    /// ```
    /// use bpfarray::attr::{Creator, MapAttr, MapType};
    /// use bpfarray::{Lane, Map, Object};
    /// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 4, max_entries: 3, ..MapAttr::default() };
    /// let (inner, other) = (Map::create(&attr)?, Map::create(&attr)?);
    /// let attr = MapAttr { map_type: MapType::ARRAY_OF_MAPS, ..attr };
    /// let outer = Map::create_with(&attr, &Creator::default(), Some(&inner))?;
    /// outer.update_object(2, &Object::Map(other.to_ref()), 0)?;
    /// let lane = Lane::enter();
    /// assert_eq!(outer.prog_lookup_elem(&lane, 2), Some(other.addr()));
    /// assert_eq!(outer.inner_map_at(&lane, other.addr()).map(|map| map.id()), Some(other.id()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`CreateError`] in their order.
    ///
    /// # Kernel
    /// `map_create`
    #[doc(alias = "map_create")]
    #[doc(alias = "BPF_MAP_CREATE")]
    pub fn create_with(
        attr: &MapAttr,
        creator: &Creator<'_>,
        inner: Option<&MapRef>,
    ) -> Result<Self, CreateError> {
        let layout = attr.check_with(creator, inner.map(|inner| inner.layout()))?;
        let map = MapRef::new(Inner::create(attr, layout, creator, inner)?);
        Ok(map.with_mode(HandleMode::of(attr.map_flags)))
    }

    /// A reference that is no handle, for a program.
    ///
    /// # Kernel
    /// `bpf_map_inc`
    #[doc(alias = "bpf_map_inc")]
    #[must_use]
    pub fn to_ref(&self) -> MapRef {
        self.file.map.clone()
    }

    /// What this handle may do.
    pub fn mode(&self) -> HandleMode {
        self.file.mode
    }

    /// Ends writing through handles, for good. Programs may still write, unless the map is
    /// [`MapFlags::RDONLY_PROG`](crate::attr::MapFlags::RDONLY_PROG).
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
        if !self.special_fields().is_empty() {
            return Err(FreezeError::SpecialFields);
        }
        self.inner.gate.freeze(self.mode())
    }
}

impl Deref for Map {
    type Target = MapRef;

    #[inline]
    fn deref(&self) -> &MapRef {
        &self.file.map
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("map", &self.file.map).field("mode", &self.mode()).finish()
    }
}

/// Attributes for tests.
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod testing {
    use super::*;
    use bpfarray_core::attr::{MapFlags, MapType};
    use bpfarray_core::btf::{Btf, Kind};

    pub(crate) const ARRAY: MapAttr = MapAttr {
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
        excl_prog_hash: None,
    };
    pub(crate) const PERCPU: MapAttr = MapAttr { map_type: MapType::PERCPU_ARRAY, ..ARRAY };

    pub(crate) fn create(attr: MapAttr) -> Map {
        Map::create(&attr).unwrap()
    }

    /// Types of values with special fields.
    pub(crate) fn fields_btf() -> Btf {
        Btf::parse(include_bytes!("../../../../testdata/btf/fields.btf")).unwrap()
    }

    /// What an ARRAY of such structs is created from.
    pub(crate) fn attr_of(btf: &Btf, name: &str, max_entries: u32) -> MapAttr {
        let value = btf.find_by_name(name, Kind::Struct).unwrap();
        MapAttr {
            value_size: btf.size_of(value).unwrap(),
            max_entries,
            btf_key_type_id: btf.find_by_name("int", Kind::Int).unwrap(),
            btf_value_type_id: value,
            ..ARRAY
        }
    }

    /// An ARRAY of structs with special fields.
    pub(crate) fn with_fields(name: &str, max_entries: u32) -> Map {
        let btf = fields_btf();
        let creator = Creator { btf: Some(&btf), ..Creator::default() };
        Map::create_as(&attr_of(&btf, name, max_entries), &creator).unwrap()
    }

    /// A map of objects; an ARRAY_OF_MAPS takes maps like `ARRAY`.
    pub(crate) fn objects(map_type: MapType, max_entries: u32) -> Map {
        let attr = MapAttr { map_type, value_size: 4, max_entries, ..ARRAY };
        Map::create_with(&attr, &Creator::default(), Some(&create(ARRAY))).unwrap()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::testing::{ARRAY, PERCPU, create};
    use super::*;
    use crate::attr::{MapFlags, MapType};
    use crate::cpu::possible_cpus;
    use crate::{DeleteError, Errno, NextKeyError, UpdateError};

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
    fn pages_come_from_the_node_that_was_asked_for() {
        let node = *crate::online_nodes().last().unwrap();
        let map_flags = MapFlags::NUMA_NODE;
        let map = create(MapAttr { map_flags, numa_node: node, ..ARRAY });
        // The system may have no such file; one that has lists the policy of each mapping.
        let Ok(maps) = std::fs::read_to_string("/proc/self/numa_maps") else { return };
        let mapping = maps.lines().find(|line| line.starts_with(&format!("{:x}", map.addr())));
        let mapping = mapping.unwrap();
        assert!(mapping.contains(&format!("prefer:{node}")), "{mapping}");
        let offline = MapAttr { map_flags, numa_node: 4096, ..ARRAY };
        assert_eq!(Map::create(&offline).unwrap_err(), CreateError::NumaNode(4096));
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
}
