//! Where the elements of a map are: strides, masks, slots and sizes.

use crate::attr::{MapFlags, Rules};
use crate::map::Kind;
use crate::map::cpu_flags::Cpus;

/// Bytes from a map's base address to its first value, or for a PERCPU_ARRAY to its `pptrs` table:
/// one page, so that values can be mapped on their own. The kernel's own offset is 312.
pub const VALUE_OFFSET: u32 = 4096;

/// The kernel's `sizeof(struct bpf_array)` up to the values, on which its memory accounting builds.
const KERNEL_HEADER_SIZE: u64 = 312;
const PAGE_SIZE: u64 = 4096;

/// Bytes of a `pptrs` entry.
pub const PPTR_SIZE: u32 = 8;

/// The sizes of a map that was found valid. Offsets and lengths are bytes, counted from the first value.
///
/// # Kernel
/// `struct bpf_array`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_array")]
pub struct Layout {
    kind: Kind,
    value_size: u32,
    max_entries: u32,
    elem_size: u32,
    index_mask: u32,
    map_flags: MapFlags,
    bypass_spec_v1: bool,
    exclusive: bool,
    rules: Rules,
}

impl Layout {
    /// `None` when the slots, rounded up to a power of two, do not fit in 32 bits.
    pub(crate) fn new(
        kind: Kind,
        value_size: u32,
        max_entries: u32,
        map_flags: MapFlags,
        bypass_spec_v1: bool,
    ) -> Option<Self> {
        let rounded = u64::from(max_entries).next_power_of_two();
        if !bypass_spec_v1 && rounded > u64::from(u32::MAX) {
            return None;
        }
        Some(Self {
            kind,
            value_size,
            max_entries,
            elem_size: value_size.next_multiple_of(8),
            index_mask: (rounded - 1) as u32,
            map_flags: map_flags - (MapFlags::RDONLY | MapFlags::WRONLY),
            bypass_spec_v1,
            exclusive: false,
            rules: Rules::Linux6_18,
        })
    }

    pub(crate) const fn with(self, exclusive: bool, rules: Rules) -> Self {
        Self { exclusive, rules, ..self }
    }

    /// What the map is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of a value, as asked for.
    pub const fn value_size(&self) -> u32 {
        self.value_size
    }

    /// Number of elements, as asked for: the bound of every lookup.
    pub const fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Bytes from one element to the next: the value size rounded up to 8.
    pub const fn elem_size(&self) -> u32 {
        self.elem_size
    }

    /// One less than the smallest power of two that is at least `max_entries`.
    pub const fn index_mask(&self) -> u32 {
        self.index_mask
    }

    /// Flags of the map, without those of the handle.
    pub const fn map_flags(&self) -> MapFlags {
        self.map_flags
    }

    /// Whether lookups go unmasked.
    pub const fn bypass_spec_v1(&self) -> bool {
        self.bypass_spec_v1
    }

    /// Whether only one program may use the map.
    #[doc(alias = "excl_prog_sha")]
    pub const fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// The kernel whose rules the map follows.
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// Number of elements memory is set aside for: `max_entries`, or the next power of two where
    /// a masked index must stay inside under speculation. No key reaches the surplus.
    pub const fn slots(&self) -> u32 {
        if self.bypass_spec_v1 { self.max_entries } else { self.index_mask + 1 }
    }

    /// Bytes from one entry to the next behind [`VALUE_OFFSET`]: the stride of an ARRAY's values, of a
    /// PERCPU_ARRAY's `pptrs`, or of the pointers to the objects that slots hold.
    pub const fn stride(&self) -> u32 {
        match self.kind {
            Kind::PercpuArray => PPTR_SIZE,
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => self.elem_size,
        }
    }

    /// Bytes of an ARRAY's values, or of the pointers of other maps, with the surplus slots.
    pub const fn payload_len(&self) -> u64 {
        self.slots() as u64 * self.stride() as u64
    }

    /// Bytes a PERCPU_ARRAY needs in the window of each CPU; 0 for other maps.
    pub const fn window_len(&self) -> u64 {
        match self.kind {
            Kind::PercpuArray => self.max_entries as u64 * self.elem_size as u64,
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => 0,
        }
    }

    /// Bytes that a lookup or update from outside moves: the value, or one rounded value for each
    /// of `possible_cpus` CPUs.
    ///
    /// # Kernel
    /// `bpf_map_value_size`
    #[doc(alias = "bpf_map_value_size")]
    pub const fn user_size(&self, possible_cpus: u32) -> u64 {
        match self.kind {
            Kind::PercpuArray => self.elem_size as u64 * possible_cpus as u64,
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => self.value_size as u64,
        }
    }

    /// Bytes that an operation moves whose flags name CPUs, or don't.
    pub const fn user_size_of(&self, cpus: Cpus, possible_cpus: u32) -> u64 {
        match cpus {
            Cpus::Each => self.user_size(possible_cpus),
            Cpus::One(_) | Cpus::All => self.value_size as u64,
        }
    }

    /// Offset of an element, masked as in every C lookup path of the kernel.
    pub(crate) const fn elem_offset(&self, index: u32) -> u64 {
        (index & self.index_mask) as u64 * self.elem_size as u64
    }

    /// Bytes the kernel accounts to a map of this shape, its `memlock` line. The surplus of
    /// rounded-up slots never counts.
    ///
    /// # Kernel
    /// `array_map_mem_usage`
    #[doc(alias = "array_map_mem_usage")]
    pub const fn mem_usage(&self, possible_cpus: u32) -> u64 {
        let n = self.max_entries as u64;
        let values = n * self.elem_size as u64;
        match self.kind {
            Kind::Array if self.map_flags.contains(MapFlags::MMAPABLE) => {
                KERNEL_HEADER_SIZE.next_multiple_of(PAGE_SIZE) + values.next_multiple_of(PAGE_SIZE)
            }
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => KERNEL_HEADER_SIZE + values,
            Kind::PercpuArray => {
                KERNEL_HEADER_SIZE + n * PPTR_SIZE as u64 + values * possible_cpus as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(kind: Kind, value_size: u32, max_entries: u32, bypass: bool) -> Option<Layout> {
        Layout::new(kind, value_size, max_entries, MapFlags::empty(), bypass)
    }

    #[test]
    fn slots_round_up_only_where_indexes_are_masked() {
        let masked = layout(Kind::Array, 12, 5, false).unwrap();
        assert_eq!((masked.elem_size(), masked.index_mask(), masked.slots()), (16, 7, 8));
        let bypass = layout(Kind::Array, 12, 5, true).unwrap();
        assert_eq!((bypass.index_mask(), bypass.slots()), (7, 5));
        assert_eq!(layout(Kind::Array, 1, 1, false).unwrap().index_mask(), 0);
    }

    #[test]
    fn more_slots_than_32_bits_are_refused_unless_bypassed() {
        assert_eq!(layout(Kind::Array, 1, 0x8000_0000, false).unwrap().slots(), 0x8000_0000);
        assert!(layout(Kind::Array, 1, 0x8000_0001, false).is_none());
        let bypass = layout(Kind::Array, 1, 0x8000_0001, true).unwrap();
        assert_eq!((bypass.slots(), bypass.index_mask()), (0x8000_0001, u32::MAX));
    }

    #[test]
    fn mem_usage_is_the_kernels_memlock() {
        let usage = |kind, value_size, n, flags| {
            Layout::new(kind, value_size, n, flags, false).unwrap().mem_usage(2)
        };
        let none = MapFlags::empty();
        assert_eq!(usage(Kind::Array, 1, 1, none), 320);
        assert_eq!(usage(Kind::Array, 8, 3, none), 336);
        assert_eq!(usage(Kind::Array, 12, 5, none), 392);
        assert_eq!(usage(Kind::Array, 8, 512, MapFlags::MMAPABLE), 8192);
        assert_eq!(usage(Kind::Array, 8, 513, MapFlags::MMAPABLE), 12288);
        assert_eq!(usage(Kind::Array, 4097, 3, MapFlags::MMAPABLE), 20480);
        assert_eq!(usage(Kind::PercpuArray, 1, 1, none), 336);
        assert_eq!(usage(Kind::PercpuArray, 12, 3, none), 432);
        assert_eq!(usage(Kind::ProgArray, 4, 3, none), 336);
    }
}
