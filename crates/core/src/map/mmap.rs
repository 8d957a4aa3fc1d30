//! Mapping the values of an ARRAY into memory.

use crate::attr::MapFlags;
use crate::errno::Errno;
use crate::layout::Layout;
use crate::map::{HandleMode, Kind};

/// Bytes of a page, the unit of mappings.
pub const PAGE_SIZE: u64 = 4096;

/// Why values cannot be mapped. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MmapError {
    /// The offset is no multiple of the page size, or the length is 0.
    #[error("offset {offset} and length {len} are no pages")]
    Pages {
        /// Byte offset asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The handle may not read, or may not write where a writable mapping is wanted.
    #[error("the handle may not map the values this way")]
    Access,
    /// Maps of this type cannot be mapped.
    #[error("maps of this type cannot be mapped")]
    MapType,
    /// Values with special fields, whose bytes are not for everybody.
    #[error("values with special fields cannot be mapped")]
    SpecialFields,
    /// A handle that may only read cannot map at all: its mapping would not be a shared one.
    #[error("a read-only handle cannot map the values")]
    ReadOnlyHandle,
    /// A writable mapping of a frozen map.
    #[error("the map is frozen")]
    Frozen,
    /// A writable mapping of values that programs rely on not to change.
    #[error("the map is read-only for programs")]
    ReadOnlyProg,
    /// The map was created without [`MapFlags::MMAPABLE`].
    #[error("the map was not created with MMAPABLE")]
    NotMmapable,
    /// Past the last page of the values.
    #[error("{len} bytes at offset {offset} are not within {pages} bytes of pages")]
    Range {
        /// Byte offset asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes of the values, rounded up to pages.
        pages: u64,
    },
}

impl MmapError {
    /// The error number `mmap(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Access | Self::ReadOnlyProg => Errno::EACCES,
            Self::MapType | Self::SpecialFields => Errno::ENOTSUPP,
            Self::Frozen => Errno::EPERM,
            Self::Pages { .. } | Self::ReadOnlyHandle | Self::NotMmapable | Self::Range { .. } => {
                Errno::EINVAL
            }
        }
    }
}

/// Checks a shared mapping of `len` bytes at byte `offset` of the values, which is to be writable or not, and may
/// have special fields.
///
/// The end is judged by the requested `max_entries`, not by the slots set aside against Spectre v1.
///
/// # Errors
/// The variants of [`MmapError`] in their order.
///
/// # Kernel
/// `bpf_map_mmap`, `array_map_mmap`
#[doc(alias = "bpf_map_mmap")]
#[doc(alias = "array_map_mmap")]
pub const fn check_mmap(
    map: &Layout,
    mode: HandleMode,
    frozen: bool,
    offset: u64,
    len: u64,
    write: bool,
    special_fields: bool,
) -> Result<(), MmapError> {
    if !offset.is_multiple_of(PAGE_SIZE) || len == 0 {
        return Err(MmapError::Pages { offset, len });
    }
    if !mode.can_read() || write && !mode.can_write() {
        return Err(MmapError::Access);
    }
    match map.kind() {
        Kind::Array => {}
        Kind::PercpuArray
        | Kind::ProgArray
        | Kind::PerfEventArray
        | Kind::CgroupArray
        | Kind::ArrayOfMaps => return Err(MmapError::MapType),
    }
    if special_fields {
        return Err(MmapError::SpecialFields);
    }
    if !mode.can_write() {
        return Err(MmapError::ReadOnlyHandle);
    }
    if write && frozen {
        return Err(MmapError::Frozen);
    }
    if write && map.map_flags().contains(MapFlags::RDONLY_PROG) {
        return Err(MmapError::ReadOnlyProg);
    }
    if !map.map_flags().contains(MapFlags::MMAPABLE) {
        return Err(MmapError::NotMmapable);
    }
    let values = map.max_entries() as u64 * map.elem_size() as u64;
    let pages = values.next_multiple_of(PAGE_SIZE);
    match len.checked_next_multiple_of(PAGE_SIZE) {
        Some(len) if offset <= pages && len <= pages - offset => Ok(()),
        _ => Err(MmapError::Range { offset, len, pages }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};

    fn map(map_type: MapType, map_flags: MapFlags) -> Layout {
        let value_size = if map_type == MapType::PROG_ARRAY { 4 } else { 8 };
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size,
            max_entries: 1024,
            map_flags,
            ..MapAttr::default()
        };
        attr.check(&Creator::default()).unwrap()
    }

    fn errno(map: &Layout, offset: u64, len: u64, write: bool) -> Result<(), Errno> {
        check_mmap(map, HandleMode::ReadWrite, false, offset, len, write, false)
            .map_err(MmapError::errno)
    }

    #[test]
    fn windows_of_whole_pages_within_the_values_are_fine() {
        let map = map(MapType::ARRAY, MapFlags::MMAPABLE);
        for (offset, len) in [(0, 1), (0, 8192), (4096, 4096), (4096, 1)] {
            assert_eq!(errno(&map, offset, len, true), Ok(()), "{offset} {len}");
        }
        for (offset, len) in
            [(0, 8193), (0, 12288), (4096, 8192), (8192, 4096), (1, 4096), (0, 0), (0, u64::MAX)]
        {
            assert_eq!(errno(&map, offset, len, false), Err(Errno::EINVAL), "{offset} {len}");
        }
    }

    #[test]
    fn types_and_flags_are_judged_as_in_the_kernel() {
        let none = MapFlags::empty();
        assert_eq!(errno(&map(MapType::ARRAY, none), 0, 1, true), Err(Errno::EINVAL));
        for map_type in [MapType::PERCPU_ARRAY, MapType::PROG_ARRAY] {
            assert_eq!(errno(&map(map_type, none), 0, 1, false), Err(Errno::ENOTSUPP));
        }
        let rdonly = map(MapType::ARRAY, MapFlags::MMAPABLE | MapFlags::RDONLY_PROG);
        assert_eq!(errno(&rdonly, 0, 1, true), Err(Errno::EACCES));
        assert_eq!(errno(&rdonly, 0, 1, false), Ok(()));
        let wronly = map(MapType::ARRAY, MapFlags::MMAPABLE | MapFlags::WRONLY_PROG);
        assert_eq!(errno(&wronly, 0, 1, true), Ok(()));
    }

    #[test]
    fn frozen_maps_are_only_mapped_for_reading() {
        let check = |flags, offset, len, write| {
            let map = map(MapType::ARRAY, MapFlags::MMAPABLE | flags);
            check_mmap(&map, HandleMode::ReadWrite, true, offset, len, write, false)
                .map_err(MmapError::errno)
        };
        assert_eq!(check(MapFlags::empty(), 0, 1 << 40, true), Err(Errno::EPERM));
        assert_eq!(check(MapFlags::RDONLY_PROG, 0, 1, true), Err(Errno::EPERM));
        assert_eq!(check(MapFlags::RDONLY_PROG, 0, 1, false), Ok(()));
    }

    #[test]
    fn handles_that_cannot_both_read_and_write_cannot_map() {
        let map = map(MapType::ARRAY, MapFlags::MMAPABLE);
        let check = |mode, write| {
            check_mmap(&map, mode, false, 0, 1, write, false).map_err(MmapError::errno)
        };
        assert_eq!(check(HandleMode::ReadOnly, true), Err(Errno::EACCES));
        assert_eq!(check(HandleMode::ReadOnly, false), Err(Errno::EINVAL));
        assert_eq!(check(HandleMode::WriteOnly, true), Err(Errno::EACCES));
        assert_eq!(check(HandleMode::WriteOnly, false), Err(Errno::EACCES));
    }
}
