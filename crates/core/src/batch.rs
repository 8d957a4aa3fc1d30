//! Batch operations: many elements with one call, and exact word of how far it got.

use core::ops::Range;

use crate::attr::{Rules, elem_flags};
use crate::errno::Errno;
use crate::layout::Layout;
use crate::map::cpu_flags::{CpuFlagsError, Cpus, cpus};
use crate::map::{HandleMode, Kind, UpdateError, get_next_key};

/// Why a batch is refused before its first element. The variants stand in the order in which they are
/// checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// The handle may only write, and the batch reads.
    #[error("the handle may not read")]
    NotReadable,
    /// The handle may only read, or the map is frozen, and the batch writes.
    #[error("the handle may not write, or the map is frozen")]
    NotWritable,
    /// Maps of this type have no such batch.
    #[error("maps of this type have no such batch")]
    Unsupported,
    /// Element flags other than 0 and `F_LOCK`.
    #[error("flags {0:#x} are not valid for the elements of a batch")]
    Flags(u64),
    /// `F_LOCK` on values without a `bpf_spin_lock`.
    #[error("the value has no bpf_spin_lock")]
    NoSpinLock,
    /// Element flags that name no CPUs, by the rules of Linux 7.0.
    #[error(transparent)]
    CpuFlags(CpuFlagsError),
    /// There is not one value of [`Layout::user_size`] for each key.
    #[error("the values must have {0} bytes")]
    Buffer(u64),
}

impl BatchError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotReadable | Self::NotWritable => Errno::EPERM,
            Self::Unsupported => Errno::ENOTSUPP,
            Self::Flags(_) | Self::NoSpinLock => Errno::EINVAL,
            Self::CpuFlags(error) => error.errno(),
            Self::Buffer(_) => Errno::EFAULT,
        }
    }

    /// What `bpf(2)` writes to `batch.count`; `None` where it leaves that alone.
    pub const fn count(self) -> Option<u32> {
        match self {
            Self::NotReadable
            | Self::NotWritable
            | Self::Unsupported
            | Self::Flags(_)
            | Self::NoSpinLock
            | Self::CpuFlags(_) => None,
            Self::Buffer(_) => Some(0),
        }
    }
}

/// How far a batch of lookups got.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct LookupBatch {
    /// Number of elements copied.
    pub count: u32,
    /// Where the next batch goes on: the last key looked at, which may be that of an empty slot.
    /// `None` if nothing was copied.
    pub out_batch: Option<u32>,
    /// Whether the map ended before all elements were found that were asked for.
    pub ended: bool,
}

impl LookupBatch {
    /// The error number `bpf(2)` reports besides the count: ENOENT at the end of the map.
    pub const fn errno(&self) -> Option<Errno> {
        if self.ended { Some(Errno::ENOENT) } else { None }
    }
}

/// Why a batch of updates did not get to its end.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpdateBatchError {
    /// Refused before the first element.
    #[error(transparent)]
    Refused(#[from] BatchError),
    /// An element was refused; those before it stay updated.
    #[error("element {count} of the batch: {error}")]
    Stopped {
        /// Number of elements updated.
        count: u32,
        /// Why not the next.
        error: UpdateError,
    },
}

impl UpdateBatchError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Refused(error) => error.errno(),
            Self::Stopped { error, .. } => error.errno(),
        }
    }

    /// What `bpf(2)` writes to `batch.count`; `None` where it leaves that alone.
    pub const fn count(self) -> Option<u32> {
        match self {
            Self::Refused(error) => error.count(),
            Self::Stopped { count, .. } => Some(count),
        }
    }
}

const fn has_batches(kind: Kind) -> bool {
    match kind {
        Kind::Array | Kind::PercpuArray | Kind::ArrayOfMaps => true,
        Kind::ProgArray | Kind::PerfEventArray | Kind::CgroupArray => false,
    }
}

/// A batch as its caller describes it.
#[derive(Copy, Clone, Debug)]
pub struct Request {
    /// What the handle may do.
    pub mode: HandleMode,
    /// Flags of all elements.
    pub elem_flags: u64,
    /// Number of keys.
    pub keys: usize,
    /// Bytes of all values.
    pub values: u64,
    /// Number of CPUs whose values a PERCPU_ARRAY has.
    pub possible_cpus: u32,
}

/// Checks a batch of lookups, and tells whose values its buffer holds. `spin_lock` tells whether values have a `bpf_spin_lock`.
///
/// # Errors
/// The variants of [`BatchError`] in their order.
///
/// # Kernel
/// `bpf_map_do_batch`, `generic_map_lookup_batch`
#[doc(alias = "generic_map_lookup_batch")]
#[doc(alias = "bpf_map_do_batch")]
pub fn check_lookup(map: &Layout, request: &Request, spin_lock: bool) -> Result<Cpus, BatchError> {
    if !request.mode.can_read() {
        return Err(BatchError::NotReadable);
    }
    request.check_elements(map, spin_lock, elem_flags::F_CPU)
}

/// Checks a batch of updates, and tells whose values its buffer holds.
///
/// # Errors
/// The variants of [`BatchError`] in their order.
///
/// # Kernel
/// `bpf_map_do_batch`, `generic_map_update_batch`
#[doc(alias = "generic_map_update_batch")]
pub fn check_update(
    map: &Layout,
    request: &Request,
    frozen: bool,
    spin_lock: bool,
) -> Result<Cpus, BatchError> {
    if !request.mode.can_write() || frozen {
        return Err(BatchError::NotWritable);
    }
    request.check_elements(map, spin_lock, elem_flags::F_CPU | elem_flags::F_ALL_CPUS)
}

/// Deleting in batches is for no array map.
///
/// # Errors
/// [`BatchError::NotWritable`], else [`BatchError::Unsupported`].
///
/// # Kernel
/// `bpf_map_do_batch`
pub const fn check_delete(mode: HandleMode, frozen: bool) -> Result<(), BatchError> {
    if !mode.can_write() || frozen {
        return Err(BatchError::NotWritable);
    }
    Err(BatchError::Unsupported)
}

/// Nor is looking up and deleting.
///
/// # Errors
/// [`BatchError::NotReadable`], [`BatchError::NotWritable`], else [`BatchError::Unsupported`].
///
/// # Kernel
/// `bpf_map_do_batch`
pub const fn check_lookup_and_delete(mode: HandleMode, frozen: bool) -> Result<(), BatchError> {
    if !mode.can_read() {
        return Err(BatchError::NotReadable);
    }
    check_delete(mode, frozen)
}

/// The keys that a batch of lookups goes through, to the end of the map, when the last one returned those up
/// to `in_batch`. A cursor that is out of range starts over.
///
/// ```
/// use bpfarray_core::attr::{Creator, MapAttr, MapType};
/// use bpfarray_core::batch;
/// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 8, max_entries: 3, ..MapAttr::default() };
/// let layout = attr.check(&Creator::default())?;
/// assert_eq!(batch::keys_after(&layout, None), 0..3);
/// assert_eq!(batch::keys_after(&layout, Some(0)), 1..3);
/// assert!(batch::keys_after(&layout, Some(2)).is_empty());
/// assert_eq!(batch::keys_after(&layout, Some(77)), 0..3);
/// # Ok::<(), bpfarray_core::attr::CreateError>(())
/// ```
pub fn keys_after(map: &Layout, in_batch: Option<u32>) -> Range<u32> {
    let end = map.max_entries();
    get_next_key(map, in_batch).unwrap_or(end)..end
}

impl Request {
    fn check_elements(
        &self,
        map: &Layout,
        spin_lock: bool,
        cpu_flags: u64,
    ) -> Result<Cpus, BatchError> {
        if !has_batches(map.kind()) {
            return Err(BatchError::Unsupported);
        }
        let flags = self.elem_flags;
        match map.rules() {
            Rules::Linux6_18 if flags & !elem_flags::F_LOCK != 0 => {
                return Err(BatchError::Flags(flags));
            }
            Rules::Linux6_18 | Rules::Linux7_0 => {}
        }
        if flags & elem_flags::F_LOCK != 0 && !spin_lock {
            return Err(BatchError::NoSpinLock);
        }
        let allowed = elem_flags::F_LOCK | cpu_flags;
        let cpus = cpus(map, flags, allowed, self.possible_cpus).map_err(BatchError::CpuFlags)?;
        let value_size = map.user_size_of(cpus, self.possible_cpus);
        let len = (self.keys as u64).saturating_mul(value_size);
        if self.values == len { Ok(cpus) } else { Err(BatchError::Buffer(len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};

    fn layout(map_type: MapType) -> Layout {
        let array = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 5,
            ..MapAttr::default()
        };
        let inner = array.check(&Creator::default()).unwrap();
        MapAttr { map_type, ..array }.check_with(&Creator::default(), Some(&inner)).unwrap()
    }

    const REQUEST: Request = Request {
        mode: HandleMode::ReadWrite,
        elem_flags: 0,
        keys: 2,
        values: 8,
        possible_cpus: 1,
    };

    #[test]
    fn modes_beat_support_support_beats_flags_and_flags_beat_buffers() {
        let (array, progs) = (layout(MapType::ARRAY), layout(MapType::PROG_ARRAY));
        let request = Request { elem_flags: 1, values: 7, ..REQUEST };
        let lookup = |map, request| check_lookup(map, &request, false).map_err(BatchError::errno);
        let write_only = Request { mode: HandleMode::WriteOnly, ..request };
        assert_eq!(lookup(&progs, write_only), Err(Errno::EPERM));
        assert_eq!(lookup(&progs, request), Err(Errno::ENOTSUPP));
        assert_eq!(lookup(&array, request), Err(Errno::EINVAL));
        assert_eq!(lookup(&array, Request { elem_flags: 4, ..request }), Err(Errno::EINVAL));
        assert_eq!(lookup(&array, Request { elem_flags: 0, ..request }), Err(Errno::EFAULT));
        assert_eq!(lookup(&array, REQUEST), Ok(Cpus::Each));
        let update = |request, frozen| {
            check_update(&array, &request, frozen, true).map_err(BatchError::errno)
        };
        assert_eq!(update(request, true), Err(Errno::EPERM));
        assert_eq!(update(Request { elem_flags: 1 << 32, ..REQUEST }, false), Err(Errno::EINVAL));
        assert_eq!(update(Request { elem_flags: 4, ..REQUEST }, false), Ok(Cpus::Each));
    }

    #[test]
    fn batches_are_for_values_and_maps_in_maps() {
        for (map_type, expected) in [
            (MapType::ARRAY, Ok(Cpus::Each)),
            (MapType::PERCPU_ARRAY, Err(BatchError::Buffer(16))),
            (MapType::ARRAY_OF_MAPS, Ok(Cpus::Each)),
            (MapType::PROG_ARRAY, Err(BatchError::Unsupported)),
            (MapType::PERF_EVENT_ARRAY, Err(BatchError::Unsupported)),
            (MapType::CGROUP_ARRAY, Err(BatchError::Unsupported)),
        ] {
            assert_eq!(check_lookup(&layout(map_type), &REQUEST, false), expected);
        }
        assert_eq!(check_delete(HandleMode::WriteOnly, false), Err(BatchError::Unsupported));
        assert_eq!(check_delete(HandleMode::WriteOnly, true), Err(BatchError::NotWritable));
        let both = |mode| check_lookup_and_delete(mode, false);
        assert_eq!(both(HandleMode::ReadWrite), Err(BatchError::Unsupported));
        assert_eq!(both(HandleMode::ReadOnly), Err(BatchError::NotWritable));
        assert_eq!(both(HandleMode::WriteOnly), Err(BatchError::NotReadable));
    }

    #[test]
    fn only_a_fault_changes_the_count() {
        assert_eq!(BatchError::Flags(1).count(), None);
        assert_eq!(BatchError::Buffer(8).count(), Some(0));
        let error = UpdateError::Exists;
        assert_eq!(UpdateBatchError::Stopped { count: 2, error }.count(), Some(2));
    }
}
