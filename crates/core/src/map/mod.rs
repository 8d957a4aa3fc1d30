//! Element operations: which element a key means, and whether it may be touched.
//!
//! Two callers ask. *Programs* call the functions of the modules named after map types through
//! helpers. *Handles* (in the kernel, `bpf(2)` on a file descriptor) pass the checks of this module first.

pub mod array;
pub mod array_of_maps;
pub mod cpu_flags;
pub mod fd_array;
pub mod mmap;
pub mod percpu_array;
pub mod prog_array;

use crate::attr::{MapFlags, MapType, Rules, elem_flags};
use crate::errno::Errno;
use crate::gen_lookup::InlinedLookup;
use crate::layout::Layout;
use crate::map::cpu_flags::{CpuFlagsError, Cpus, cpus};

/// The map types that are built in.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// `BPF_MAP_TYPE_ARRAY`
    #[doc(alias = "BPF_MAP_TYPE_ARRAY")]
    Array,
    /// `BPF_MAP_TYPE_PROG_ARRAY`
    #[doc(alias = "BPF_MAP_TYPE_PROG_ARRAY")]
    ProgArray,
    /// `BPF_MAP_TYPE_PERF_EVENT_ARRAY`
    #[doc(alias = "BPF_MAP_TYPE_PERF_EVENT_ARRAY")]
    PerfEventArray,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    #[doc(alias = "BPF_MAP_TYPE_PERCPU_ARRAY")]
    PercpuArray,
    /// `BPF_MAP_TYPE_CGROUP_ARRAY`
    #[doc(alias = "BPF_MAP_TYPE_CGROUP_ARRAY")]
    CgroupArray,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
    #[doc(alias = "BPF_MAP_TYPE_ARRAY_OF_MAPS")]
    ArrayOfMaps,
}

impl Kind {
    /// The kind of a map type, or `None` for a type that is not built in.
    pub const fn of(map_type: MapType) -> Option<Self> {
        match map_type {
            MapType::ARRAY => Some(Self::Array),
            MapType::PROG_ARRAY => Some(Self::ProgArray),
            MapType::PERF_EVENT_ARRAY => Some(Self::PerfEventArray),
            MapType::PERCPU_ARRAY => Some(Self::PercpuArray),
            MapType::CGROUP_ARRAY => Some(Self::CgroupArray),
            MapType::ARRAY_OF_MAPS => Some(Self::ArrayOfMaps),
            _ => None,
        }
    }

    /// The Linux number of the type.
    pub const fn map_type(self) -> MapType {
        match self {
            Self::Array => MapType::ARRAY,
            Self::ProgArray => MapType::PROG_ARRAY,
            Self::PerfEventArray => MapType::PERF_EVENT_ARRAY,
            Self::PercpuArray => MapType::PERCPU_ARRAY,
            Self::CgroupArray => MapType::CGROUP_ARRAY,
            Self::ArrayOfMaps => MapType::ARRAY_OF_MAPS,
        }
    }

    /// Whether elements are slots that hold objects (programs, events, cgroups, maps) and may be
    /// empty. The kernel calls such maps fd arrays.
    pub const fn holds_objects(self) -> bool {
        match self {
            Self::Array | Self::PercpuArray => false,
            Self::ProgArray | Self::PerfEventArray | Self::CgroupArray | Self::ArrayOfMaps => true,
        }
    }
}

/// What a handle to a map may do.
///
/// # Kernel
/// `map_get_sys_perms`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "map_get_sys_perms")]
pub enum HandleMode {
    /// Read and write.
    ReadWrite,
    /// Read.
    ReadOnly,
    /// Write.
    WriteOnly,
}

impl HandleMode {
    /// The mode that creation flags ask for.
    pub const fn of(flags: MapFlags) -> Self {
        if flags.contains(MapFlags::RDONLY) {
            Self::ReadOnly
        } else if flags.contains(MapFlags::WRONLY) {
            Self::WriteOnly
        } else {
            Self::ReadWrite
        }
    }

    pub(crate) const fn can_read(self) -> bool {
        !matches!(self, Self::WriteOnly)
    }

    pub(crate) const fn can_write(self) -> bool {
        !matches!(self, Self::ReadOnly)
    }
}

/// Why an element cannot be read. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LookupError {
    /// Flags other than 0 and `F_LOCK`.
    #[error("flags {0:#x} are not valid for a lookup")]
    Flags(u64),
    /// The handle may only write.
    #[error("the handle may not read")]
    NotReadable,
    /// `F_LOCK` on values without a `bpf_spin_lock`.
    #[error("the value has no bpf_spin_lock")]
    NoSpinLock,
    /// Flags that name no CPUs, by the rules of Linux 7.0.
    #[error(transparent)]
    CpuFlags(CpuFlagsError),
    /// Slots of this map type cannot be read back.
    #[error("slots of this map type cannot be read")]
    Unsupported,
    /// No such element, or an empty slot.
    #[error("there is no element {index} (max_entries {max_entries})")]
    NoEntry {
        /// The index asked for.
        index: u32,
        /// The number of elements.
        max_entries: u32,
    },
    /// The caller's buffer has another size than [`Layout::user_size`].
    #[error("the value buffer must hold {0} bytes")]
    Buffer(u64),
}

impl LookupError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Flags(_) | Self::NoSpinLock => Errno::EINVAL,
            Self::NotReadable => Errno::EPERM,
            Self::CpuFlags(error) => error.errno(),
            Self::Unsupported => Errno::ENOTSUPP,
            Self::NoEntry { .. } => Errno::ENOENT,
            Self::Buffer(_) => Errno::EFAULT,
        }
    }
}

/// Why an element cannot be written. The variants stand in the order in which a handle's update is checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpdateError {
    /// The handle may only read, or the map is frozen.
    #[error("the handle may not write, or the map is frozen")]
    NotWritable,
    /// `F_LOCK` on values without a `bpf_spin_lock`.
    #[error("the value has no bpf_spin_lock")]
    NoSpinLock,
    /// Flags that name no CPUs, by the rules of Linux 7.0.
    #[error(transparent)]
    CpuFlags(CpuFlagsError),
    /// The caller's value has another size than [`Layout::user_size`].
    #[error("the value must have {0} bytes")]
    Buffer(u64),
    /// Unknown flags.
    #[error("flags {0:#x} are not valid for an update")]
    Flags(u64),
    /// No such element.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of elements.
        max_entries: u32,
    },
    /// `NOEXIST`, but array elements always exist.
    #[error("the element exists, as all elements of an array do")]
    Exists,
    /// Bytes, or an object, that name no object a map of this type can hold.
    #[error("the value is no descriptor of an object that the map can hold")]
    BadDescriptor,
    /// An object of another kind than the map holds.
    #[error("the map holds objects of another kind")]
    ObjectKind,
    /// A map that does not fit into its ARRAY_OF_MAPS.
    #[error(transparent)]
    Inner(#[from] array_of_maps::InnerError),
    /// A program that does not fit into its PROG_ARRAY.
    #[error(transparent)]
    Owner(#[from] prog_array::OwnerError),
    /// A perf event that children inherit.
    #[error("an inherited event cannot be put into a map")]
    InheritedEvent,
}

impl UpdateError {
    /// The error number `bpf(2)` reports, and the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotWritable => Errno::EPERM,
            Self::NoSpinLock | Self::Flags(_) | Self::ObjectKind => Errno::EINVAL,
            Self::Buffer(_) => Errno::EFAULT,
            Self::Index { .. } => Errno::E2BIG,
            Self::Exists => Errno::EEXIST,
            Self::CpuFlags(error) => error.errno(),
            Self::BadDescriptor => Errno::EBADF,
            Self::Inner(error) => error.errno(),
            Self::Owner(error) => error.errno(),
            Self::InheritedEvent => Errno::EOPNOTSUPP,
        }
    }
}

/// Why an element cannot be deleted. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeleteError {
    /// The handle may only read, or the map is frozen.
    #[error("the handle may not write, or the map is frozen")]
    NotWritable,
    /// Elements of this map type cannot be deleted, whatever the key.
    #[error("elements of this map type cannot be deleted")]
    Unsupported,
    /// No such slot.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of elements.
        max_entries: u32,
    },
    /// The slot is empty.
    #[error("slot {0} is empty")]
    NoEntry(u32),
}

impl DeleteError {
    /// The error number `bpf(2)` reports, and the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotWritable => Errno::EPERM,
            Self::Unsupported => Errno::EINVAL,
            Self::Index { .. } => Errno::E2BIG,
            Self::NoEntry(_) => Errno::ENOENT,
        }
    }
}

/// Why an element cannot be read and deleted at once, which no array map allows. The variants stand in the
/// order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LookupAndDeleteError {
    /// Flags other than 0 and `F_LOCK`.
    #[error("flags {0:#x} are not valid for a lookup")]
    Flags(u64),
    /// The handle may not both read and write, or the map is frozen.
    #[error("the handle may not read and write, or the map is frozen")]
    NotPermitted,
    /// `F_LOCK` on values without a `bpf_spin_lock`.
    #[error("the value has no bpf_spin_lock")]
    NoSpinLock,
    /// No array map can do this.
    #[error("elements of this map type cannot be deleted by looking them up")]
    Unsupported,
}

impl LookupAndDeleteError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Flags(_) | Self::NoSpinLock => Errno::EINVAL,
            Self::NotPermitted => Errno::EPERM,
            Self::Unsupported => Errno::ENOTSUPP,
        }
    }
}

/// Why there is no next key.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NextKeyError {
    /// The handle may only write.
    #[error("the handle may not read")]
    NotReadable,
    /// The key was the last one.
    #[error("no key after the last")]
    Last,
}

impl NextKeyError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotReadable => Errno::EPERM,
            Self::Last => Errno::ENOENT,
        }
    }
}

/// Why a map cannot be frozen. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreezeError {
    /// Values with special fields, which a frozen map could not keep from changing.
    #[error("a map whose values have special fields cannot be frozen")]
    SpecialFields,
    /// The handle may only read, or the map is frozen already.
    #[error("the handle may not write, or the map is frozen")]
    NotWritable,
    /// A write is under way.
    #[error("the map is being written")]
    Busy,
}

impl FreezeError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::SpecialFields => Errno::ENOTSUPP,
            Self::NotWritable => Errno::EPERM,
            Self::Busy => Errno::EBUSY,
        }
    }
}

/// Checks a handle's lookup up to the element, and tells whose values its buffer holds.
///
/// `spin_lock` tells whether values have a `bpf_spin_lock`.
///
/// # Errors
/// [`LookupError::Flags`], [`LookupError::NotReadable`], [`LookupError::NoSpinLock`]; by the rules
/// of Linux 7.0 [`LookupError::NotReadable`], [`LookupError::NoSpinLock`], [`LookupError::CpuFlags`].
///
/// # Kernel
/// `map_lookup_elem` in `kernel/bpf/syscall.c`
pub const fn check_lookup(
    map: &Layout,
    mode: HandleMode,
    flags: u64,
    spin_lock: bool,
    possible_cpus: u32,
) -> Result<Cpus, LookupError> {
    match map.rules() {
        Rules::Linux6_18 if flags & !elem_flags::F_LOCK != 0 => {
            return Err(LookupError::Flags(flags));
        }
        Rules::Linux6_18 | Rules::Linux7_0 => {}
    }
    if !mode.can_read() {
        return Err(LookupError::NotReadable);
    }
    if flags & elem_flags::F_LOCK != 0 && !spin_lock {
        return Err(LookupError::NoSpinLock);
    }
    match cpus(map, flags, elem_flags::F_LOCK | elem_flags::F_CPU, possible_cpus) {
        Ok(cpus) => Ok(cpus),
        Err(error) => Err(LookupError::CpuFlags(error)),
    }
}

/// Checks a handle's update up to the value, and tells whose values its buffer holds.
///
/// # Errors
/// [`UpdateError::NotWritable`], [`UpdateError::NoSpinLock`]; by the rules of Linux 7.0 also
/// [`UpdateError::CpuFlags`].
///
/// # Kernel
/// `map_update_elem` in `kernel/bpf/syscall.c`
pub const fn check_update(
    map: &Layout,
    mode: HandleMode,
    frozen: bool,
    flags: u64,
    spin_lock: bool,
    possible_cpus: u32,
) -> Result<Cpus, UpdateError> {
    if !mode.can_write() || frozen {
        return Err(UpdateError::NotWritable);
    }
    if flags & elem_flags::F_LOCK != 0 && !spin_lock {
        return Err(UpdateError::NoSpinLock);
    }
    match map.rules() {
        // What else is wrong with the flags is for the map type to find, after the value.
        Rules::Linux6_18 => Ok(Cpus::Each),
        Rules::Linux7_0 => match cpus(map, flags, u64::MAX, possible_cpus) {
            Ok(cpus) => Ok(cpus),
            Err(error) => Err(UpdateError::CpuFlags(error)),
        },
    }
}

/// Checks a handle's delete up to the element: mode, freezing.
///
/// # Errors
/// [`DeleteError::NotWritable`].
///
/// # Kernel
/// `map_delete_elem` in `kernel/bpf/syscall.c`
pub const fn check_delete(mode: HandleMode, frozen: bool) -> Result<(), DeleteError> {
    if mode.can_write() && !frozen { Ok(()) } else { Err(DeleteError::NotWritable) }
}

/// Checks a handle's request to look up and delete, which no array map grants.
///
/// # Errors
/// The variants of [`LookupAndDeleteError`] in their order, at last
/// [`LookupAndDeleteError::Unsupported`].
///
/// # Kernel
/// `map_lookup_and_delete_elem`
#[doc(alias = "map_lookup_and_delete_elem")]
pub const fn check_lookup_and_delete(
    mode: HandleMode,
    frozen: bool,
    flags: u64,
    spin_lock: bool,
) -> Result<(), LookupAndDeleteError> {
    if flags & !elem_flags::F_LOCK != 0 {
        return Err(LookupAndDeleteError::Flags(flags));
    }
    if !mode.can_read() || !mode.can_write() || frozen {
        return Err(LookupAndDeleteError::NotPermitted);
    }
    if flags & elem_flags::F_LOCK != 0 && !spin_lock {
        return Err(LookupAndDeleteError::NoSpinLock);
    }
    Err(LookupAndDeleteError::Unsupported)
}

/// Checks a handle's request for the next key.
///
/// # Errors
/// [`NextKeyError::NotReadable`].
///
/// # Kernel
/// `map_get_next_key` in `kernel/bpf/syscall.c`
pub const fn check_next_key(mode: HandleMode) -> Result<(), NextKeyError> {
    if mode.can_read() { Ok(()) } else { Err(NextKeyError::NotReadable) }
}

/// Checks a request to freeze a map whose values have no special fields; `writers` counts updates under way and writable mappings.
///
/// # Errors
/// [`FreezeError::NotWritable`], [`FreezeError::Busy`].
///
/// # Kernel
/// `map_freeze`
#[doc(alias = "map_freeze")]
pub const fn check_freeze(mode: HandleMode, frozen: bool, writers: u64) -> Result<(), FreezeError> {
    if !mode.can_write() || frozen {
        return Err(FreezeError::NotWritable);
    }
    if writers != 0 {
        return Err(FreezeError::Busy);
    }
    Ok(())
}

/// The key after `key`, or the first one without a key. A key that is out of range starts over.
///
/// ```
/// use bpfarray_core::attr::{Creator, MapAttr, MapType};
/// use bpfarray_core::map::{NextKeyError, get_next_key};
/// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 8, max_entries: 3, ..MapAttr::default() };
/// let layout = attr.check(&Creator::default())?;
/// assert_eq!(get_next_key(&layout, None), Ok(0));
/// assert_eq!(get_next_key(&layout, Some(1)), Ok(2));
/// assert_eq!(get_next_key(&layout, Some(2)), Err(NextKeyError::Last));
/// assert_eq!(get_next_key(&layout, Some(3)), Ok(0));
/// # Ok::<(), bpfarray_core::attr::CreateError>(())
/// ```
///
/// # Errors
/// [`NextKeyError::Last`] after the last key.
///
/// # Kernel
/// `array_map_get_next_key`, the same for every array map
#[doc(alias = "array_map_get_next_key")]
pub const fn get_next_key(map: &Layout, key: Option<u32>) -> Result<u32, NextKeyError> {
    match key {
        Some(key) if key == map.max_entries() - 1 => Err(NextKeyError::Last),
        Some(key) if key < map.max_entries() => Ok(key + 1),
        _ => Ok(0),
    }
}

/// The instructions that replace a program's call of `bpf_map_lookup_elem` on this map, or `None`
/// where the call stays.
///
/// # Kernel
/// `map_gen_lookup` of `struct bpf_map_ops`
#[doc(alias = "map_gen_lookup")]
pub fn gen_lookup(map: &Layout) -> Option<InlinedLookup> {
    match map.kind() {
        Kind::Array => array::gen_lookup(map),
        Kind::PercpuArray => Some(percpu_array::gen_lookup(map)),
        Kind::ArrayOfMaps => Some(array_of_maps::gen_lookup(map)),
        Kind::ProgArray | Kind::PerfEventArray | Kind::CgroupArray => None,
    }
}
