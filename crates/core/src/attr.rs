//! What a map is created from: type, sizes, flags and name, with the kernel's checks in its order.

use bitflags::bitflags;

use crate::btf::{Btf, CheckBtfError};
use crate::errno::Errno;
use crate::layout::Layout;
use crate::map::Kind;
use crate::map::array_of_maps::{InnerError, check_template};

/// Bytes of a map name, including the terminating NUL.
pub const MAP_NAME_LEN: usize = 16;

/// Bytes of the hash of a program, a SHA-256.
pub const PROG_HASH_LEN: usize = 32;

/// `numa_node` meaning "no particular node".
pub const NUMA_NO_NODE: u32 = u32::MAX;

/// Largest `value_size` in bytes of an ARRAY or PERCPU_ARRAY, `INT_MAX`.
pub const VALUE_SIZE_MAX: u32 = i32::MAX as u32;

/// Largest per-CPU element in bytes, the smallest unit the kernel's per-CPU allocator promises.
#[doc(alias = "PCPU_MIN_UNIT_SIZE")]
pub const PERCPU_UNIT_SIZE: u32 = 32768;

/// A map type by its Linux number. An open set: numbers without a name here stay representable.
///
/// # Kernel
/// `enum bpf_map_type`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
#[doc(alias = "bpf_map_type")]
pub struct MapType(pub u32);

macro_rules! map_types {
    ($($value:literal $name:ident $label:literal,)*) => {
        #[allow(missing_docs)]
        impl MapType {
            $(pub const $name: Self = Self($value);)*

            /// The name bpftool prints, such as `percpu_array`; `None` for an unknown number.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($label),)*
                    _ => None,
                }
            }
        }
    };
}

map_types! {
    1 HASH "hash",
    2 ARRAY "array",
    3 PROG_ARRAY "prog_array",
    4 PERF_EVENT_ARRAY "perf_event_array",
    5 PERCPU_HASH "percpu_hash",
    6 PERCPU_ARRAY "percpu_array",
    7 STACK_TRACE "stack_trace",
    8 CGROUP_ARRAY "cgroup_array",
    9 LRU_HASH "lru_hash",
    10 LRU_PERCPU_HASH "lru_percpu_hash",
    11 LPM_TRIE "lpm_trie",
    12 ARRAY_OF_MAPS "array_of_maps",
    13 HASH_OF_MAPS "hash_of_maps",
    14 DEVMAP "devmap",
    15 SOCKMAP "sockmap",
    16 CPUMAP "cpumap",
    17 XSKMAP "xskmap",
    18 SOCKHASH "sockhash",
    19 CGROUP_STORAGE "cgroup_storage",
    20 REUSEPORT_SOCKARRAY "reuseport_sockarray",
    21 PERCPU_CGROUP_STORAGE "percpu_cgroup_storage",
    22 QUEUE "queue",
    23 STACK "stack",
    24 SK_STORAGE "sk_storage",
    25 DEVMAP_HASH "devmap_hash",
    26 STRUCT_OPS "struct_ops",
    27 RINGBUF "ringbuf",
    28 INODE_STORAGE "inode_storage",
    29 TASK_STORAGE "task_storage",
    30 BLOOM_FILTER "bloom_filter",
    31 USER_RINGBUF "user_ringbuf",
    32 CGRP_STORAGE "cgrp_storage",
    33 ARENA "arena",
}

impl core::fmt::Display for MapType {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

bitflags! {
    /// Creation flags, with the kernel's bits. Unknown bits are kept, so that they can be refused.
    #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
    pub struct MapFlags: u32 {
        /// Allocate elements on insertion (hash maps only).
        const NO_PREALLOC = 0x1;
        /// `numa_node` is valid.
        const NUMA_NODE = 0x4;
        /// The returned handle may only read. Not a property of the map.
        const RDONLY = 0x8;
        /// The returned handle may only write. Not a property of the map.
        const WRONLY = 0x10;
        /// Programs may only read values.
        const RDONLY_PROG = 0x80;
        /// Programs may only write values.
        const WRONLY_PROG = 0x100;
        /// Values can be mapped into memory.
        const MMAPABLE = 0x400;
        /// Entries outlive the handle that inserted them (PERF_EVENT_ARRAY only).
        const PRESERVE_ELEMS = 0x800;
        /// As an inner map, `max_entries` may differ from the template's.
        const INNER_MAP = 0x1000;
        /// `map_token_fd` is valid.
        const TOKEN_FD = 0x10000;

        const _ = !0;
    }
}

/// Flags of element operations. They travel as `u64`, for the kernel judges all 64 bits.
pub mod elem_flags {
    /// Create or replace.
    pub const ANY: u64 = 0;
    /// Only create. Array elements always exist.
    pub const NOEXIST: u64 = 1;
    /// Only replace.
    pub const EXIST: u64 = 2;
    /// Hold the element's `bpf_spin_lock` while copying.
    pub const F_LOCK: u64 = 4;
    /// Only the CPU whose number is in the upper half ([`Rules::Linux7_0`](super::Rules::Linux7_0)).
    #[doc(alias = "BPF_F_CPU")]
    pub const F_CPU: u64 = 8;
    /// The same value on all CPUs ([`Rules::Linux7_0`](super::Rules::Linux7_0)).
    #[doc(alias = "BPF_F_ALL_CPUS")]
    pub const F_ALL_CPUS: u64 = 16;
}

/// What a map is to be: the fields of `BPF_MAP_CREATE` that mean something without file descriptors.
///
/// ```
/// use bpfarray_core::attr::{Creator, MapAttr, MapFlags, MapType};
/// use bpfarray_core::Errno;
///
/// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 12, max_entries: 5, ..MapAttr::default() };
/// let layout = attr.check(&Creator::default())?;
/// assert_eq!((layout.elem_size(), layout.index_mask(), layout.slots()), (16, 7, 8));
///
/// let mmapable = MapAttr { map_type: MapType::PERCPU_ARRAY, map_flags: MapFlags::MMAPABLE, ..attr };
/// assert_eq!(mmapable.check(&Creator::default()).unwrap_err().errno(), Errno::EINVAL);
/// # Ok::<(), bpfarray_core::attr::CreateError>(())
/// ```
///
/// # Kernel
/// `union bpf_attr`, the part of `BPF_MAP_CREATE`
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
#[doc(alias = "bpf_attr")]
pub struct MapAttr {
    /// Map type.
    pub map_type: MapType,
    /// Key size in bytes, always 4 for arrays.
    pub key_size: u32,
    /// Value size in bytes.
    pub value_size: u32,
    /// Number of elements.
    pub max_entries: u32,
    /// Creation flags.
    pub map_flags: MapFlags,
    /// NUMA node, looked at only with [`MapFlags::NUMA_NODE`].
    pub numa_node: u32,
    /// Name, NUL padded.
    pub map_name: [u8; MAP_NAME_LEN],
    /// Network device for offloaded maps. There is none here.
    pub map_ifindex: u32,
    /// BTF type of keys, or 0.
    pub btf_key_type_id: u32,
    /// BTF type of values, or 0.
    pub btf_value_type_id: u32,
    /// BTF type of the kernel for STRUCT_OPS.
    pub btf_vmlinux_value_type_id: u32,
    /// Extra argument of bloom filters and arenas.
    pub map_extra: u64,
    /// SHA-256 of the only program that may use the map; `None` for any.
    pub excl_prog_hash: Option<[u8; PROG_HASH_LEN]>,
}

/// Who creates a map, and where.
#[derive(Copy, Clone, Debug)]
pub struct Creator<'a> {
    /// May create maps at all; in the kernel, CAP_BPF.
    pub may_create: bool,
    /// Trusts every program that will use the map, so that indexes need no masking against
    /// Spectre v1; in the kernel, CAP_PERFMON.
    #[doc(alias = "bpf_bypass_spec_v1")]
    pub bypass_spec_v1: bool,
    /// NUMA nodes that are online.
    pub online_nodes: &'a [u32],
    /// By which kernel's rules elements are handled.
    pub rules: Rules,
    /// The types that type ids are of: what `btf_fd` stands for.
    pub btf: Option<&'a Btf>,
}

/// The kernel whose rules a map follows, where kernels differ.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Rules {
    /// Linux 6.18.
    #[default]
    Linux6_18,
    /// Linux 7.0: operations on per-CPU values can name CPUs ([`elem_flags::F_CPU`] and
    /// [`elem_flags::F_ALL_CPUS`]), lookups judge flags after the handle's mode, and updates leave the padding of
    /// per-CPU values alone.
    Linux7_0,
}

impl Default for Creator<'_> {
    /// May create maps, hardened ones that follow Linux 6.18, on a machine with NUMA node 0.
    fn default() -> Self {
        Self {
            may_create: true,
            bypass_spec_v1: false,
            online_nodes: &[0],
            rules: Rules::Linux6_18,
            btf: None,
        }
    }
}

/// Why a map cannot be created. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// `btf_vmlinux_value_type_id` on a type other than STRUCT_OPS.
    #[error("btf_vmlinux_value_type_id is only for struct_ops maps")]
    VmlinuxValueType,
    /// `btf_key_type_id` without `btf_value_type_id`.
    #[error("btf_key_type_id without btf_value_type_id")]
    KeyTypeWithoutValueType,
    /// Non-zero `map_extra`.
    #[error("map_extra must be 0 for this map type")]
    MapExtra,
    /// [`MapFlags::RDONLY`] and [`MapFlags::WRONLY`] together.
    #[error("map_flags has both RDONLY and WRONLY")]
    HandleMode,
    /// The NUMA node is not online.
    #[error("numa_node {0} is not online")]
    NumaNode(u32),
    /// The map type is unknown or not built in.
    #[error("map type {} is not available", type_name(*.0))]
    MapType(MapType),
    /// A map of descriptors whose `value_size` is not 4.
    #[error("value_size must be 4 for a map of descriptors, not {0}")]
    DescriptorSize(u32),
    /// `max_entries` is 0.
    #[error("max_entries must not be 0")]
    MaxEntries,
    /// `key_size` is not 4.
    #[error("key_size must be 4, not {0}")]
    KeySize(u32),
    /// `value_size` is 0.
    #[error("value_size must not be 0")]
    ValueSize,
    /// Flags this map type does not know, or that exclude each other.
    #[error("map_flags {0:#x} are not valid for this map type")]
    Flags(u32),
    /// `value_size` is too large.
    #[error("value_size {0} is too large for this map type")]
    ValueTooLarge(u32),
    /// [`MapFlags::TOKEN_FD`] without a BPF token.
    #[error("map_token_fd is no BPF token")]
    Token,
    /// The creator may not create maps.
    #[error("not permitted to create maps")]
    NotPermitted,
    /// `map_ifindex` names a device that cannot hold maps.
    #[error("map_ifindex {0} is no device that holds maps")]
    Device(u32),
    /// An ARRAY_OF_MAPS without a template.
    #[error("an array of maps needs an inner map")]
    NoInnerMap,
    /// A template that cannot be one.
    #[error("inner map: {0}")]
    Inner(#[from] InnerError),
    /// The number of slots, rounded up to a power of two, does not fit in 32 bits.
    #[error("max_entries {0} cannot be rounded up to a power of two")]
    TooManyEntries(u32),
    /// The memory cannot be had.
    #[error("no memory for {0} bytes")]
    NoMemory(u64),
    /// The name has a character that is not allowed, or no terminating NUL.
    #[error("map_name is not valid: only letters, digits, '_' and '.', at most 15 bytes")]
    Name,
    /// Type ids, but no BTF that they are of.
    #[error("there are type ids, but btf_fd is no BTF")]
    NoBtf,
    /// Types that do not fit the map.
    #[error(transparent)]
    Btf(#[from] CheckBtfError),
}

/// A type's name, or the number of one that has none.
fn type_name(map_type: MapType) -> impl core::fmt::Display {
    core::fmt::from_fn(move |f| match map_type.name() {
        Some(name) => f.write_str(name),
        None => write!(f, "{}", map_type.0),
    })
}

impl CreateError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::VmlinuxValueType
            | Self::KeyTypeWithoutValueType
            | Self::MapExtra
            | Self::HandleMode
            | Self::NumaNode(_)
            | Self::MapType(_)
            | Self::DescriptorSize(_)
            | Self::MaxEntries
            | Self::KeySize(_)
            | Self::ValueSize
            | Self::Flags(_)
            | Self::Device(_)
            | Self::Token
            | Self::Name => Errno::EINVAL,
            Self::NoInnerMap | Self::NoBtf => Errno::EBADF,
            Self::Btf(error) => error.errno(),
            Self::Inner(error) => error.errno(),
            Self::ValueTooLarge(_) | Self::TooManyEntries(_) => Errno::E2BIG,
            Self::NotPermitted => Errno::EPERM,
            Self::NoMemory(_) => Errno::ENOMEM,
        }
    }
}

impl MapAttr {
    /// Checks everything but the name and gives the layout of the map. An ARRAY_OF_MAPS needs
    /// [`MapAttr::check_with`].
    ///
    /// # Errors
    /// As [`MapAttr::check_with`].
    pub fn check(&self, creator: &Creator<'_>) -> Result<Layout, CreateError> {
        self.check_with(creator, None)
    }

    /// Checks everything but the name and gives the layout of the map. `inner` is the template of an
    /// ARRAY_OF_MAPS; other types don't look at it.
    ///
    /// The kernel looks at the name only when the memory is there: call [`MapAttr::check_name`] after the allocation.
    ///
    /// # Errors
    /// The variants of [`CreateError`] up to [`CreateError::TooManyEntries`], in their order.
    ///
    /// # Kernel
    /// `map_create`, `array_map_alloc_check`, `array_map_alloc`, `array_of_map_alloc`
    #[doc(alias = "map_create")]
    #[doc(alias = "array_map_alloc")]
    #[doc(alias = "array_of_map_alloc")]
    pub fn check_with(
        &self,
        creator: &Creator<'_>,
        inner: Option<&Layout>,
    ) -> Result<Layout, CreateError> {
        let flags = self.map_flags - MapFlags::TOKEN_FD;
        if self.btf_vmlinux_value_type_id != 0 {
            return Err(CreateError::VmlinuxValueType);
        }
        if self.btf_key_type_id != 0 && self.btf_value_type_id == 0 {
            return Err(CreateError::KeyTypeWithoutValueType);
        }
        if self.map_extra != 0 {
            return Err(CreateError::MapExtra);
        }
        if flags.contains(MapFlags::RDONLY | MapFlags::WRONLY) {
            return Err(CreateError::HandleMode);
        }
        if let Some(node) = self.preferred_node()
            && !creator.online_nodes.contains(&node)
        {
            return Err(CreateError::NumaNode(node));
        }
        let kind = Kind::of(self.map_type).ok_or(CreateError::MapType(self.map_type))?;
        self.alloc_check(kind, flags)?;
        if self.map_flags.contains(MapFlags::TOKEN_FD) {
            return Err(CreateError::Token);
        }
        if !creator.may_create {
            return Err(CreateError::NotPermitted);
        }
        if self.map_ifindex != 0 {
            return Err(CreateError::Device(self.map_ifindex));
        }
        if kind == Kind::ArrayOfMaps {
            check_template(inner.ok_or(CreateError::NoInnerMap)?)?;
        }
        Layout::new(kind, self.value_size, self.max_entries, flags, creator.bypass_spec_v1)
            .map(|layout| layout.with(self.excl_prog_hash.is_some(), creator.rules))
            .ok_or(CreateError::TooManyEntries(self.max_entries))
    }

    /// # Kernel
    /// `fd_array_map_alloc_check`, `array_map_alloc_check`
    #[doc(alias = "array_map_alloc_check")]
    #[doc(alias = "fd_array_map_alloc_check")]
    fn alloc_check(&self, kind: Kind, flags: MapFlags) -> Result<(), CreateError> {
        let common = MapFlags::NUMA_NODE | MapFlags::RDONLY | MapFlags::WRONLY;
        let prog_access = MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG;
        let known = match kind {
            Kind::Array => common | prog_access | MapFlags::MMAPABLE | MapFlags::INNER_MAP,
            Kind::PercpuArray => common | prog_access,
            Kind::PerfEventArray => common | MapFlags::PRESERVE_ELEMS,
            Kind::ProgArray | Kind::CgroupArray | Kind::ArrayOfMaps => common,
        };
        let numa_on_percpu = kind == Kind::PercpuArray && self.preferred_node().is_some();
        if kind.holds_objects() && self.value_size != 4 {
            return Err(CreateError::DescriptorSize(self.value_size));
        }
        if self.max_entries == 0 {
            return Err(CreateError::MaxEntries);
        }
        if self.key_size != 4 {
            return Err(CreateError::KeySize(self.key_size));
        }
        if self.value_size == 0 {
            return Err(CreateError::ValueSize);
        }
        if !known.contains(flags) || flags.contains(prog_access) || numa_on_percpu {
            return Err(CreateError::Flags(flags.bits()));
        }
        let fits = self.value_size <= VALUE_SIZE_MAX
            && (kind != Kind::PercpuArray
                || self.value_size.next_multiple_of(8) <= PERCPU_UNIT_SIZE);
        if fits { Ok(()) } else { Err(CreateError::ValueTooLarge(self.value_size)) }
    }

    /// The NUMA node the map's memory shall come from: `numa_node`, where [`MapFlags::NUMA_NODE`] says that it
    /// is one.
    ///
    /// # Kernel
    /// `bpf_map_attr_numa_node`
    #[doc(alias = "bpf_map_attr_numa_node")]
    pub fn preferred_node(&self) -> Option<u32> {
        let is_given = self.map_flags.contains(MapFlags::NUMA_NODE);
        Some(self.numa_node).filter(|&node| is_given && node != NUMA_NO_NODE)
    }

    /// Checks the name and gives the part before its NUL.
    ///
    /// Bytes 0xC0 to 0xFF but for 0xD7 and 0xF7 are letters to the kernel, which thinks in Latin-1.
    ///
    /// # Errors
    /// [`CreateError::Name`] for any other character outside letters, digits, `_` and `.`, and
    /// for 16 bytes without a NUL.
    ///
    /// # Kernel
    /// `bpf_obj_name_cpy`
    #[doc(alias = "bpf_obj_name_cpy")]
    pub fn check_name(&self) -> Result<&[u8], CreateError> {
        object_name(&self.map_name).ok_or(CreateError::Name)
    }

    /// The 16-byte name field that holds `name`, cut to 15 bytes as loaders do.
    pub fn name_field(name: &str) -> [u8; MAP_NAME_LEN] {
        let mut field = [0; MAP_NAME_LEN];
        for (to, &from) in field[..MAP_NAME_LEN - 1].iter_mut().zip(name.as_bytes()) {
            *to = from;
        }
        field
    }
}

/// The name in a field for one of a map or a program: letters of Latin-1, digits, `_` and `.` before a NUL.
///
/// # Kernel
/// `bpf_obj_name_cpy`
#[doc(alias = "bpf_obj_name_cpy")]
pub fn object_name(field: &[u8; MAP_NAME_LEN]) -> Option<&[u8]> {
    let end = field.iter().position(|&b| b == 0)?;
    let name = &field[..end];
    let allowed = |&b: &u8| {
        b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || (b >= 0xc0 && b != 0xd7 && b != 0xf7)
    };
    name.iter().all(allowed).then_some(name)
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use alloc::vec::Vec;

    use super::*;

    const ARRAY: MapAttr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 4,
        map_flags: MapFlags::empty(),
        numa_node: 0,
        map_name: [0; 16],
        map_ifindex: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
        btf_vmlinux_value_type_id: 0,
        map_extra: 0,
        excl_prog_hash: None,
    };
    const PERCPU: MapAttr = MapAttr { map_type: MapType::PERCPU_ARRAY, ..ARRAY };

    fn check(attr: MapAttr) -> Result<(), CreateError> {
        attr.check(&Creator::default()).map(drop)
    }

    #[test]
    fn a_type_that_is_missing_is_named_or_else_numbered() {
        let text = |map_type| alloc::format!("{}", CreateError::MapType(map_type));
        assert_eq!(text(MapType::HASH), "map type hash is not available");
        assert_eq!(text(MapType(999)), "map type 999 is not available");
    }

    #[test]
    fn every_single_flag_is_judged_as_in_the_kernel() {
        for bit in 0..32 {
            let map_flags = MapFlags::from_bits_retain(1 << bit);
            let array = [2, 3, 4, 7, 8, 10, 12].contains(&bit);
            let percpu = [3, 4, 7, 8].contains(&bit);
            assert_eq!(check(MapAttr { map_flags, ..ARRAY }).is_ok(), array, "ARRAY bit {bit}");
            assert_eq!(check(MapAttr { map_flags, ..PERCPU }).is_ok(), percpu, "PERCPU bit {bit}");
        }
    }

    #[test]
    fn bad_flags_beat_an_oversized_value() {
        let attr = MapAttr { value_size: u32::MAX, map_flags: MapFlags::MMAPABLE, ..PERCPU };
        assert_eq!(check(attr).unwrap_err().errno(), Errno::EINVAL);
        let attr = MapAttr { value_size: u32::MAX, ..PERCPU };
        assert_eq!(check(attr).unwrap_err().errno(), Errno::E2BIG);
    }

    #[test]
    fn a_percpu_value_is_at_most_one_unit() {
        assert_eq!(check(MapAttr { value_size: 32768, ..PERCPU }), Ok(()));
        let too_large = CreateError::ValueTooLarge(32769);
        assert_eq!(check(MapAttr { value_size: 32769, ..PERCPU }), Err(too_large));
    }

    #[test]
    fn numa_no_node_is_no_node() {
        let flags = MapFlags::NUMA_NODE;
        let attr = MapAttr { map_flags: flags, numa_node: NUMA_NO_NODE, ..PERCPU };
        assert_eq!(check(attr), Ok(()));
        assert_eq!(check(MapAttr { map_flags: flags, ..ARRAY }), Ok(()));
        let attr = MapAttr { map_flags: flags, numa_node: 7, ..ARRAY };
        assert_eq!(check(attr), Err(CreateError::NumaNode(7)));
        assert_eq!(check(MapAttr { numa_node: 7, ..ARRAY }), Ok(()));
    }

    #[test]
    fn an_invalid_attribute_beats_a_missing_capability() {
        let nobody = Creator { may_create: false, ..Creator::default() };
        let bad = MapAttr { key_size: 8, ..ARRAY };
        assert_eq!(bad.check(&nobody).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(ARRAY.check(&nobody).unwrap_err().errno(), Errno::EPERM);
    }

    #[test]
    fn names_are_judged_as_in_the_kernel() {
        let name = |bytes: &[u8]| {
            let mut map_name = [0; 16];
            map_name[..bytes.len()].copy_from_slice(bytes);
            MapAttr { map_name, ..ARRAY }.check_name().map(<[u8]>::to_vec)
        };
        assert_eq!(name(b"ab\0cd"), Ok(Vec::from(b"ab")));
        for good in [&b""[..], b".", b"0", b"a_b.c", b"123456789012345", b"\xe9"] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in [&b"1234567890123456"[..], b"-", b" ", b"/", b"\xc3\xa9", b"\xd7", b"\xf7"] {
            assert_eq!(name(bad), Err(CreateError::Name), "{bad:?}");
        }
    }
}
