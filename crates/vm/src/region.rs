//! The memory of maps that a program may touch, found by address.

use std::mem::offset_of;

use bpfarray::{Lane, MapRef, Memory, possible_cpus, window_base};
use bpfarray_core::VALUE_OFFSET;
use bpfarray_core::map::Kind;

use crate::fault::AccessReason;

/// One range of addresses, made of elements of equal size.
#[derive(Clone, Debug)]
struct Region {
    start: u64,
    memory: Memory,
    elem_size: u64,
    value_size: u64,
    readable: bool,
    writable: bool,
    /// The map, if values have special fields.
    fields_of: Option<MapRef>,
}

/// Where an access was: what code of Cranelift tries before it asks for the next one. An access is in the
/// memory if it begins `len` bytes behind `start` at most, and in a value if `mask` of that and the
/// size of the access are `room` together at most.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Hit {
    start: u64,
    len: u64,
    mask: u64,
    room: u64,
}

impl Hit {
    /// No access was anywhere.
    pub(crate) const NOWHERE: Self = Self { start: 0, len: 0, mask: 0, room: 0 };

    /// All of it.
    pub(crate) const fn numbers(self) -> [u64; 4] {
        [self.start, self.len, self.mask, self.room]
    }

    /// Where the fields are.
    pub(crate) const START: usize = offset_of!(Self, start);
    pub(crate) const LEN: usize = offset_of!(Self, len);
    pub(crate) const MASK: usize = offset_of!(Self, mask);
    pub(crate) const ROOM: usize = offset_of!(Self, room);
}

/// What programs may do with the values of a PERCPU_ARRAY.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct PercpuValue {
    size: u32,
    readable: bool,
    writable: bool,
}

impl PercpuValue {
    /// Whether bytes from `off` on can be accessed.
    pub(crate) fn allows(self, off: i64, size: u32, write: bool) -> bool {
        let inside = off >= 0 && off <= i64::from(self.size) - i64::from(size);
        inside && if write { self.writable } else { self.readable }
    }
}

/// Ranges of addresses, ascending. Those of maps never overlap.
#[derive(Clone, Debug)]
pub(crate) struct Ranges(Vec<Region>);

/// The maps of a program, and all memory besides stack and context that it may touch. Made once, then
/// shared by all runs.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    ranges: Ranges,
    /// Ascending by address.
    maps: Vec<MapRef>,
    /// The addresses of these, in a place that stays in the cache.
    addrs: Box<[u64]>,
    /// Those of the maps that hold maps.
    outer: Vec<MapRef>,
    /// Base address of each CPU's window.
    windows: Vec<u64>,
}

impl Regions {
    /// The memory of these maps, and the variables of each CPU. Where the address space has no room for the
    /// latter, programs that read them fault.
    pub(crate) fn new(maps: &[MapRef]) -> Self {
        let of_maps = maps.iter().flat_map(MapRef::regions);
        let of_cpus =
            (0..possible_cpus()).map_while(|cpu| bpfarray::Region::cpu_variables(cpu).ok());
        let ranges = Ranges::new(of_maps.chain(of_cpus));
        let mut maps = maps.to_vec();
        maps.sort_by_key(MapRef::addr);
        maps.dedup_by_key(|map| map.addr());
        let addrs = maps.iter().map(MapRef::addr).collect();
        let outer = maps.iter().filter(|map| map.inner_template().is_some()).cloned().collect();
        let windows = (0..possible_cpus()).map_while(|cpu| window_base(cpu).ok()).collect();
        Self { ranges, maps, addrs, outer, windows }
    }

    /// The program's own maps, ascending by address.
    pub(crate) fn maps(&self) -> &[MapRef] {
        &self.maps
    }

    /// Where among [`Regions::maps`] the map is that has this address.
    pub(crate) fn position(&self, addr: u64) -> Option<usize> {
        // A processor foresees where it finds one of a few.
        match self.addrs.len() {
            ..=8 => self.addrs.iter().position(|known| *known == addr),
            _ => self.addrs.binary_search(&addr).ok(),
        }
    }

    /// The map that programs know by this address.
    pub(crate) fn map<'lane>(&'lane self, lane: &'lane Lane, addr: u64) -> Option<&'lane MapRef> {
        match self.position(addr) {
            Some(index) => self.maps.get(index),
            None => self.inner_at(lane, addr).filter(|inner| inner.addr() == addr),
        }
    }

    /// The inner map that an address is in.
    fn inner_at<'lane>(&'lane self, lane: &'lane Lane, addr: u64) -> Option<&'lane MapRef> {
        self.outer.iter().find_map(|outer| outer.inner_map_at(lane, addr))
    }

    /// The map in whose values an address is, if they have special fields.
    pub(crate) fn map_with_fields<'lane>(
        &'lane self,
        lane: &'lane Lane,
        addr: u64,
    ) -> Option<&'lane MapRef> {
        match self.ranges.region_at(addr) {
            Some(region) => region.fields_of.as_ref(),
            None => self.inner_at(lane, addr),
        }
    }

    /// The memory of the inner map that an address is in.
    pub(crate) fn inner_ranges(&self, lane: &Lane, addr: u64) -> Option<Ranges> {
        Some(Ranges::new(self.inner_at(lane, addr)?.regions()))
    }

    /// All memory that is the program's own, without that of inner maps.
    #[inline]
    pub(crate) fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// What may be done with the values to which all entries from `first` to `last` of a table of pointers lead,
    /// if it is one of a PERCPU_ARRAY.
    pub(crate) fn percpu_value(&self, first: u64, last: u64) -> Option<PercpuValue> {
        let at = self.addrs.partition_point(|addr| *addr <= first).checked_sub(1)?;
        let map = self.maps.get(at).filter(|map| map.layout().kind() == Kind::PercpuArray)?;
        let table = map.addr() + u64::from(VALUE_OFFSET);
        let len = 8 * u64::from(map.max_entries());
        let inside = |addr: u64| {
            addr.checked_sub(table).is_some_and(|off| off < len && off.is_multiple_of(8))
        };
        let values = map.regions().into_iter().next_back()?;
        let values = Some(values).filter(|values| values.fields_of.is_none())?;
        (inside(first) && inside(last)).then_some(PercpuValue {
            size: values.value_size,
            readable: values.readable,
            writable: values.writable,
        })
    }

    /// What the per-CPU move adds on a CPU.
    pub(crate) fn window(&self, cpu: u32) -> u64 {
        self.windows.get(cpu as usize).copied().unwrap_or(0)
    }
}

impl Ranges {
    fn new(regions: impl IntoIterator<Item = bpfarray::Region>) -> Self {
        let mut regions: Vec<Region> = regions.into_iter().map(Region::from).collect();
        regions.sort_by_key(|region| region.start);
        // A map that is named twice is there once.
        regions.dedup_by_key(|region| region.start);
        Self(regions)
    }

    /// Whether an address is in one of them.
    pub(crate) fn contains(&self, addr: u64) -> bool {
        self.region_at(addr).is_some()
    }

    fn region_at(&self, addr: u64) -> Option<&Region> {
        let behind = self.0.partition_point(|region| region.start <= addr);
        let region = behind.checked_sub(1).and_then(|at| self.0.get(at))?;
        region.contains(addr).then_some(region)
    }

    /// The memory and the offset in it of an access. `hint` is where the last access was found.
    #[inline]
    pub(crate) fn locate(
        &self,
        addr: u64,
        size: usize,
        write: bool,
        hint: &mut usize,
    ) -> Result<(&Memory, usize), AccessReason> {
        let region = match self.0.get(*hint) {
            Some(region) if region.contains(addr) => region,
            _ => {
                *hint = self.0.partition_point(|region| region.start <= addr).wrapping_sub(1);
                let region = self.0.get(*hint).filter(|region| region.contains(addr));
                region.ok_or(AccessReason::Nowhere)?
            }
        };
        Ok((&region.memory, region.check(addr, size as u64, write)?))
    }

    /// Whether a value of some bytes can be accessed at each of the addresses from `first` to `last` that are a
    /// multiple of `stride` apart.
    pub(crate) fn allow(&self, first: u64, last: u64, stride: u64, size: u64, write: bool) -> bool {
        let at = self.0.partition_point(|region| region.start <= first).checked_sub(1);
        let Some(region) = at.and_then(|at| self.0.get(at)).filter(|at| at.contains(first)) else {
            return false;
        };
        if !region.contains(last) || region.check(first, size, write).is_err() {
            return false;
        }
        let elem = |addr: u64| (addr - region.start) / region.elem_size;
        // Between the two there may be a field that nobody may touch.
        let is_plain = first == last || region.fields_of.is_none();
        stride.is_multiple_of(region.elem_size)
            || is_plain && elem(first) == elem(last) && region.check(last, size, write).is_ok()
    }

    /// The numbers by which an access in the same memory as `addr` can be judged, if they are of the simple
    /// kind, for accesses of this direction.
    pub(crate) fn hit(&self, addr: u64, write: bool) -> Option<Hit> {
        let at = self.0.partition_point(|region| region.start <= addr).checked_sub(1)?;
        let region = self.0.get(at).filter(|region| region.contains(addr))?;
        let allowed = region.readable && (region.writable || !write) && region.fields_of.is_none();
        let len = region.memory.len() as u64;
        let single = len <= region.elem_size;
        (allowed && (single || region.elem_size.is_power_of_two())).then_some(Hit {
            start: region.start,
            len,
            mask: if single { u64::MAX } else { region.elem_size - 1 },
            room: region.value_size,
        })
    }
}

impl Region {
    #[inline]
    fn contains(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.start) < self.memory.len() as u64
    }

    /// Offset of an access that begins here, if all of it is in one value.
    #[inline]
    fn check(&self, addr: u64, size: u64, write: bool) -> Result<usize, AccessReason> {
        let offset = addr - self.start;
        let in_elem = if offset < self.elem_size {
            offset
        } else if self.elem_size.is_power_of_two() {
            offset & (self.elem_size - 1)
        } else {
            offset % self.elem_size
        };
        if size > self.value_size || in_elem > self.value_size - size {
            return Err(AccessReason::PastValue);
        }
        if let Some(map) = &self.fields_of
            && let Some(field) = map.special_fields().overlapping(in_elem, size)
        {
            return Err(AccessReason::Field(field.kind.name()));
        }
        match write {
            true if !self.writable => Err(AccessReason::ReadOnly),
            false if !self.readable => Err(AccessReason::WriteOnly),
            _ => Ok(offset as usize),
        }
    }
}

impl From<bpfarray::Region> for Region {
    fn from(region: bpfarray::Region) -> Self {
        Self {
            start: region.memory.addr(),
            memory: region.memory,
            // An element of no bytes has no place where an access could be.
            elem_size: u64::from(region.elem_size).max(1),
            value_size: u64::from(region.value_size),
            readable: region.readable,
            writable: region.writable,
            fields_of: region.fields_of,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bpfarray::Map;
    use bpfarray::attr::{MapAttr, MapFlags, MapType};
    use bpfarray_core::VALUE_OFFSET;

    fn map(map_type: MapType, value_size: u32, max_entries: u32, map_flags: MapFlags) -> Map {
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size,
            max_entries,
            map_flags,
            ..MapAttr::default()
        };
        Map::create(&attr).unwrap()
    }

    fn check(
        regions: &Regions,
        addr: u64,
        size: usize,
        write: bool,
    ) -> Result<usize, AccessReason> {
        regions.ranges().locate(addr, size, write, &mut 0).map(|(_, offset)| offset)
    }

    #[test]
    fn an_access_stays_in_one_value() {
        for value_size in [12, 20, 4097] {
            let map = map(MapType::ARRAY, value_size, 3, MapFlags::empty());
            let regions = Regions::new(&[map.to_ref()]);
            let value = |index| {
                let base = map.addr() + u64::from(VALUE_OFFSET);
                base + index * u64::from(map.layout().elem_size())
            };
            let size = u64::from(value_size);
            for index in 0..3 {
                assert!(check(&regions, value(index) + size - 4, 4, true).is_ok());
                let past = Err(AccessReason::PastValue);
                assert_eq!(check(&regions, value(index) + size - 3, 4, false), past);
                assert_eq!(check(&regions, value(index) + size, 1, false), past);
            }
            assert_eq!(check(&regions, value(0) - 1, 1, false), Err(AccessReason::Nowhere));
            assert_eq!(check(&regions, u64::MAX, 8, false), Err(AccessReason::Nowhere));
        }
    }

    #[test]
    fn flags_of_the_map_bind_its_programs() {
        for (flags, read, write) in [
            (MapFlags::RDONLY_PROG, Ok(0), Err(AccessReason::ReadOnly)),
            (MapFlags::WRONLY_PROG, Err(AccessReason::WriteOnly), Ok(0)),
        ] {
            let map = map(MapType::ARRAY, 8, 1, flags);
            let regions = Regions::new(&[map.to_ref()]);
            let addr = map.addr() + u64::from(VALUE_OFFSET);
            assert_eq!(check(&regions, addr, 8, false), read);
            assert_eq!(check(&regions, addr, 8, true), write);
        }
    }

    #[test]
    fn per_cpu_pointers_are_read_only_and_values_are_not() {
        let map = map(MapType::PERCPU_ARRAY, 8, 2, MapFlags::empty());
        let regions = Regions::new(&[map.to_ref(), map.to_ref()]);
        let pptrs = map.addr() + u64::from(VALUE_OFFSET);
        assert!(check(&regions, pptrs + 8, 8, false).is_ok());
        assert_eq!(check(&regions, pptrs, 8, true), Err(AccessReason::ReadOnly));
        for cpu in 0..possible_cpus() {
            let value = map.prog_lookup_percpu_elem(1, cpu).unwrap();
            assert!(check(&regions, value, 8, true).is_ok());
            let window = regions.window(cpu);
            assert!(check(&regions, window, 8, false).is_ok());
            assert_eq!(check(&regions, window, 8, true), Err(AccessReason::ReadOnly));
        }
    }
}
