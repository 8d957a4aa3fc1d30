//! Values mapped into memory, as a guard that copies.

use bpfarray_core::map::mmap::{MmapError, PAGE_SIZE, check_mmap};

use crate::map::Map;
use crate::memory::{Memory, OutOfBounds};

/// A window on the values of an ARRAY that was created with `MMAPABLE`.
///
/// It shows the values as they lie in memory: elements at multiples of the element size, their padding, and
/// the rest of the last page. Like a mapping in the kernel it keeps the map and counts as its user,
/// and a writable one keeps the map from being frozen.
///
/// ```
/// use bpfarray::attr::{MapAttr, MapFlags, MapType};
/// use bpfarray::{FreezeError, Map};
/// let attr = MapAttr {
///     map_type: MapType::ARRAY, key_size: 4, value_size: 12, max_entries: 3, map_flags: MapFlags::MMAPABLE,
///     ..MapAttr::default()
/// };
/// let map = Map::create(&attr)?;
/// let mapping = map.mmap(0, 4096, true)?;
/// mapping.write(16, b"hello")?; // element 1
/// let mut value = [0; 12];
/// map.lookup_elem(1, &mut value, 0)?;
/// assert_eq!(&value[..5], b"hello");
/// assert_eq!(map.freeze(), Err(FreezeError::Busy));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Bytes may change at any time. Aligned units of 8 bytes are copied in one piece.
#[derive(Debug)]
pub struct Mapping {
    memory: Memory,
    map: Map,
    writable: bool,
}

/// Why bytes of a mapping cannot be written.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MappingError {
    /// The mapping is for reading. It cannot become writable.
    #[error("the mapping is read-only")]
    ReadOnly,
    /// Not within the mapping.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

impl Map {
    /// Maps `len` bytes of the values, from byte `offset` on, which must be a multiple of 4096; `len` is
    /// rounded up to whole pages.
    ///
    /// # Errors
    /// The variants of [`MmapError`] in their order.
    ///
    /// # Kernel
    /// `bpf_map_mmap`
    #[doc(alias = "bpf_map_mmap")]
    pub fn mmap(&self, offset: u64, len: u64, writable: bool) -> Result<Mapping, MmapError> {
        let has_fields = !self.special_fields().is_empty();
        let check = |frozen| {
            check_mmap(self.layout(), self.mode(), frozen, offset, len, writable, has_fields)
        };
        check(self.is_frozen())?;
        if writable && !self.inner.gate.try_enter() {
            return Err(MmapError::Frozen);
        }
        let len = len.next_multiple_of(PAGE_SIZE);
        let memory = self.inner.area.pages(offset as usize, len as usize);
        let map = self.clone();
        match memory {
            Ok(memory) => Ok(Mapping { memory, map, writable }),
            Err(OutOfBounds { len: pages, .. }) => {
                if writable {
                    self.inner.gate.leave();
                }
                Err(MmapError::Range { offset, len, pages: pages as u64 })
            }
        }
    }
}

impl Mapping {
    /// Bytes that are mapped, whole pages.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Always `false`: a mapping has bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Copies bytes at `offset` from the mapping's start.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is copied.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        self.memory.read(offset, bytes)
    }

    /// Copies bytes to `offset` from the mapping's start.
    ///
    /// # Errors
    /// The variants of [`MappingError`] in their order; nothing is copied then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MappingError> {
        if !self.writable {
            return Err(MappingError::ReadOnly);
        }
        Ok(self.memory.write(offset, bytes)?)
    }
}

impl Drop for Mapping {
    /// # Kernel
    /// `bpf_map_mmap_close`
    fn drop(&mut self) {
        if self.writable {
            self.map.inner.gate.leave();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::{MapAttr, MapFlags, MapType};
    use crate::{Errno, FreezeError, HandleMode};

    fn map(value_size: u32, max_entries: u32) -> Map {
        let attr = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size,
            max_entries,
            map_flags: MapFlags::MMAPABLE,
            ..MapAttr::default()
        };
        Map::create(&attr).unwrap()
    }

    #[test]
    fn a_mapping_shows_elements_padding_and_the_rest_of_the_page() {
        let map = map(12, 3);
        map.update_elem(2, &[7; 12], 0).unwrap();
        let mapping = map.mmap(0, 1, true).unwrap();
        assert_eq!(mapping.len(), 4096);
        let mut bytes = [0; 12];
        mapping.read(32, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 12]);
        mapping.write(48, b"tail").unwrap();
        mapping.write(12, b"pad").unwrap();
        map.update_elem(0, &[1; 12], 0).unwrap();
        drop(mapping);
        let mapping = map.mmap(0, 4096, false).unwrap();
        let mut kept = [0; 4];
        mapping.read(48, &mut kept).unwrap();
        assert_eq!(&kept, b"tail");
        mapping.read(12, &mut kept).unwrap();
        assert_eq!(&kept[..3], b"pad");
        assert!(mapping.read(4093, &mut kept).is_err());
    }

    #[test]
    fn writable_mappings_block_freezing_and_read_only_ones_do_not() {
        let map = map(8, 1024);
        let first = map.mmap(0, 4096, true).unwrap();
        let second = map.mmap(4096, 4096, true).unwrap();
        drop(first);
        assert_eq!(map.freeze(), Err(FreezeError::Busy));
        drop(second);
        let reader = map.mmap(0, 8192, false).unwrap();
        map.freeze().unwrap();
        assert_eq!(reader.write(0, &[1]), Err(MappingError::ReadOnly));
        assert_eq!(map.mmap(0, 1, true).unwrap_err().errno(), Errno::EPERM);
        assert!(map.mmap(0, 1, false).is_ok());
    }

    #[test]
    fn a_mapping_keeps_its_map() {
        let mapping = map(8, 1).mmap(0, 1, true).unwrap();
        mapping.write(0, &[9]).unwrap();
        let mut value = [0; 8];
        mapping.map().lookup_elem(0, &mut value, 0).unwrap();
        assert_eq!(value[0], 9);
        let read_only = mapping.map().with_mode(HandleMode::ReadOnly);
        assert_eq!(read_only.mmap(0, 1, false).unwrap_err().errno(), Errno::EINVAL);
    }
}
