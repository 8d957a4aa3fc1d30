//! What PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY and ARRAY_OF_MAPS have in common: slots that
//! hold objects, or nothing.

use crate::attr::elem_flags;
use crate::layout::Layout;
use crate::map::{DeleteError, Kind, LookupError, UpdateError};

/// The slot whose object's id a handle's lookup reports. That the slot is empty is for the caller to find:
/// it then answers [`LookupError::NoEntry`] too.
///
/// # Errors
/// [`LookupError::Unsupported`] for events and cgroups; [`LookupError::NoEntry`].
///
/// # Kernel
/// `bpf_fd_array_map_lookup_elem`
#[doc(alias = "bpf_fd_array_map_lookup_elem")]
#[doc(alias = "fd_array_map_lookup_elem")]
pub const fn lookup_elem(map: &Layout, index: u32) -> Result<u32, LookupError> {
    match map.kind() {
        Kind::PerfEventArray | Kind::CgroupArray => Err(LookupError::Unsupported),
        Kind::Array | Kind::PercpuArray | Kind::ProgArray | Kind::ArrayOfMaps => {
            if index < map.max_entries() {
                Ok(index)
            } else {
                Err(LookupError::NoEntry { index, max_entries: map.max_entries() })
            }
        }
    }
}

/// The slot that is to be filled, before the object is looked at.
///
/// # Errors
/// [`UpdateError::Flags`] for any flag at all; [`UpdateError::Index`].
///
/// # Kernel
/// `bpf_fd_array_map_update_elem`
#[doc(alias = "bpf_fd_array_map_update_elem")]
pub const fn update_elem(map: &Layout, index: u32, flags: u64) -> Result<u32, UpdateError> {
    if flags != elem_flags::ANY {
        return Err(UpdateError::Flags(flags));
    }
    if index >= map.max_entries() {
        return Err(UpdateError::Index { index, max_entries: map.max_entries() });
    }
    Ok(index)
}

/// The slot that is to be emptied. That it is empty already is for the caller to find: it then
/// answers [`DeleteError::NoEntry`].
///
/// # Errors
/// [`DeleteError::Index`].
///
/// # Kernel
/// `__fd_array_map_delete_elem`
#[doc(alias = "fd_array_map_delete_elem")]
pub const fn delete_elem(map: &Layout, index: u32) -> Result<u32, DeleteError> {
    if index < map.max_entries() {
        Ok(index)
    } else {
        Err(DeleteError::Index { index, max_entries: map.max_entries() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};
    use crate::errno::Errno;

    fn map(map_type: MapType) -> Layout {
        let attr =
            MapAttr { map_type, key_size: 4, value_size: 4, max_entries: 3, ..MapAttr::default() };
        let inner = MapAttr { map_type: MapType::ARRAY, ..attr };
        let inner = inner.check(&Creator::default()).unwrap();
        attr.check_with(&Creator::default(), Some(&inner)).unwrap()
    }

    #[test]
    fn events_and_cgroups_cannot_be_read_back() {
        for (map_type, inside, outside) in [
            (MapType::PROG_ARRAY, Ok(2), Errno::ENOENT),
            (MapType::ARRAY_OF_MAPS, Ok(2), Errno::ENOENT),
            (MapType::PERF_EVENT_ARRAY, Err(Errno::ENOTSUPP), Errno::ENOTSUPP),
            (MapType::CGROUP_ARRAY, Err(Errno::ENOTSUPP), Errno::ENOTSUPP),
        ] {
            let map = map(map_type);
            assert_eq!(lookup_elem(&map, 2).map_err(LookupError::errno), inside);
            assert_eq!(lookup_elem(&map, 3).map_err(LookupError::errno), Err(outside));
        }
    }

    #[test]
    fn every_flag_is_refused_before_the_index_is_judged() {
        let map = map(MapType::PROG_ARRAY);
        for flags in [1, 2, 4, 8, 1 << 40] {
            assert_eq!(update_elem(&map, 9, flags).map_err(UpdateError::errno), Err(Errno::EINVAL));
        }
        assert_eq!(update_elem(&map, 3, 0).map_err(UpdateError::errno), Err(Errno::E2BIG));
        assert_eq!(delete_elem(&map, 3).map_err(DeleteError::errno), Err(Errno::E2BIG));
        assert_eq!(delete_elem(&map, 2), Ok(2));
    }
}
