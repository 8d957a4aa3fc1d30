//! Maps as programs see them: by address, on one CPU, without regard to handles and freezing.

use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::{DeleteError, Kind, UpdateError, array, percpu_array};
use bpfarray_core::{Errno, PPTR_SIZE, VALUE_OFFSET};

use crate::lane::Lane;
use crate::map::{Map, SPIN_LOCK};
use crate::memory::Memory;
use crate::window::cpu_variables;

/// A range of addresses that programs may use, made of elements of equal size.
#[derive(Clone, Debug)]
pub struct Region {
    /// The bytes, from the first element on; its address and length are those of the range.
    pub memory: Memory,
    /// Bytes from one element to the next.
    pub elem_size: u32,
    /// Bytes of an element that belong to the value. The rest is padding.
    pub value_size: u32,
    /// Whether programs may read.
    pub readable: bool,
    /// Whether programs may write.
    pub writable: bool,
}

impl Region {
    /// The variables at the start of a CPU's window, which programs may read.
    ///
    /// # Errors
    /// As [`window_base`](crate::window_base).
    pub fn cpu_variables(cpu: u32) -> Result<Self, Errno> {
        let memory = cpu_variables(cpu)?;
        let size = memory.len() as u32;
        Ok(Self { memory, elem_size: size, value_size: size, readable: true, writable: false })
    }
}

impl Map {
    /// The address by which programs know the map. Values, or the `pptrs` table, are
    /// [`VALUE_OFFSET`] bytes after it.
    pub fn addr(&self) -> u64 {
        self.inner.area.addr()
    }

    /// Address of an element, for a PERCPU_ARRAY that of the lane's CPU.
    ///
    /// # Kernel
    /// `bpf_map_lookup_elem`
    #[doc(alias = "bpf_map_lookup_elem")]
    pub fn prog_lookup_elem(&self, lane: &Lane, index: u32) -> Option<u64> {
        match self.layout().kind() {
            Kind::Array => {
                let offset = array::lookup_elem(self.layout(), index)?;
                Some(self.addr() + u64::from(VALUE_OFFSET) + offset)
            }
            Kind::PercpuArray => self.prog_lookup_percpu_elem(index, lane.cpu()),
        }
    }

    /// Address of an element of one CPU; `None` also for a map that has no values per CPU.
    ///
    /// # Kernel
    /// `bpf_map_lookup_percpu_elem`
    #[doc(alias = "bpf_map_lookup_percpu_elem")]
    pub fn prog_lookup_percpu_elem(&self, index: u32, cpu: u32) -> Option<u64> {
        match self.layout().kind() {
            Kind::Array => None,
            Kind::PercpuArray => {
                let offset = percpu_array::lookup_elem(self.layout(), index)?;
                let values = self.inner.area.percpu().get(cpu as usize)?;
                Some(values.addr() + offset)
            }
        }
    }

    /// Replaces an element by `value`, which must have [`Map::value_size`] bytes; for a
    /// PERCPU_ARRAY that of the lane's CPU.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`] for a map that programs may only read, which verified programs
    /// don't try; [`UpdateError::Buffer`]; then [`UpdateError::Flags`], [`UpdateError::Index`],
    /// [`UpdateError::Exists`], [`UpdateError::NoSpinLock`].
    ///
    /// # Kernel
    /// `bpf_map_update_elem`
    #[doc(alias = "bpf_map_update_elem")]
    pub fn prog_update_elem(
        &self,
        lane: &Lane,
        index: u32,
        value: &[u8],
        flags: u64,
    ) -> Result<(), UpdateError> {
        if self.map_flags().contains(MapFlags::RDONLY_PROG) {
            return Err(UpdateError::NotWritable);
        }
        if value.len() != self.value_size() as usize {
            return Err(UpdateError::Buffer(u64::from(self.value_size())));
        }
        if self.is_read_only_file() {
            return Err(UpdateError::NotWritable);
        }
        let offset = array::update_elem(self.layout(), index, flags, SPIN_LOCK)?;
        let _held = match self.layout().kind() {
            Kind::Array => None,
            Kind::PercpuArray => self.inner.gate.file().and_then(|file| file.claim(lane.cpu())),
        };
        let memory = match self.layout().kind() {
            Kind::Array => Some(self.inner.area.payload()),
            Kind::PercpuArray => self.inner.area.percpu().get(lane.cpu() as usize),
        };
        memory
            .and_then(|memory| memory.write(offset as usize, value).ok())
            .ok_or_else(|| self.no_index(index))
    }

    /// Deletes an element, which arrays never allow.
    ///
    /// # Errors
    /// [`DeleteError::Unsupported`].
    ///
    /// # Kernel
    /// `bpf_map_delete_elem`
    #[doc(alias = "bpf_map_delete_elem")]
    pub fn prog_delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        self.type_delete_elem(index)
    }

    /// What is written to a file that was opened for reading only would go nowhere.
    fn is_read_only_file(&self) -> bool {
        self.inner.gate.file().is_some_and(|file| file.is_read_only())
    }

    /// What programs may touch: the values, on every CPU where there are several, and the `pptrs`
    /// table.
    pub fn regions(&self) -> Vec<Region> {
        let (elem_size, value_size) = (self.layout().elem_size(), self.value_size());
        let readable = !self.map_flags().contains(MapFlags::WRONLY_PROG);
        let writable =
            !self.map_flags().contains(MapFlags::RDONLY_PROG) && !self.is_read_only_file();
        let values = |memory: &Memory| Region {
            memory: memory.clone(),
            elem_size,
            value_size,
            readable,
            writable,
        };
        let payload = self.inner.area.payload();
        match self.layout().kind() {
            Kind::Array => vec![values(payload)],
            Kind::PercpuArray => {
                let pptrs = Region {
                    memory: payload.clone(),
                    elem_size: PPTR_SIZE,
                    value_size: PPTR_SIZE,
                    readable: true,
                    writable: false,
                };
                std::iter::once(pptrs).chain(self.inner.area.percpu().iter().map(values)).collect()
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::{MapAttr, MapType};
    use crate::cpu::possible_cpus;
    use crate::window::window_base;

    fn map(map_type: MapType, map_flags: MapFlags) -> Map {
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size: 12,
            max_entries: 5,
            map_flags,
            ..MapAttr::default()
        };
        Map::create(&attr).unwrap()
    }

    const NONE: MapFlags = MapFlags::empty();

    #[test]
    fn a_program_finds_array_values_behind_the_header_page() {
        let map = map(MapType::ARRAY, NONE);
        let lane = Lane::enter();
        assert_eq!(map.prog_lookup_elem(&lane, 0), Some(map.addr() + 4096));
        assert_eq!(map.prog_lookup_elem(&lane, 4), Some(map.addr() + 4096 + 4 * 16));
        assert_eq!(map.prog_lookup_elem(&lane, 5), None);
        assert_eq!(map.prog_lookup_percpu_elem(0, 0), None);
    }

    #[test]
    fn pptrs_and_the_base_of_a_window_make_the_address_of_an_element() {
        let map = map(MapType::PERCPU_ARRAY, NONE);
        let pptrs = &map.regions()[0];
        assert_eq!(pptrs.memory.addr(), map.addr() + 4096);
        for cpu in 0..possible_cpus() {
            for index in 0..5 {
                let pptr = pptrs.memory.load(8 * index, 8).unwrap();
                assert_eq!(
                    map.prog_lookup_percpu_elem(index as u32, cpu),
                    Some(window_base(cpu).unwrap() + pptr)
                );
            }
        }
        let lane = Lane::enter();
        assert_eq!(map.prog_lookup_elem(&lane, 2), map.prog_lookup_percpu_elem(2, lane.cpu()));
        assert_eq!(map.prog_lookup_percpu_elem(5, 0), None);
        assert_eq!(map.prog_lookup_percpu_elem(0, possible_cpus()), None);
    }

    #[test]
    fn a_program_updates_its_own_cpu_and_leaves_padding_alone() {
        let map = map(MapType::PERCPU_ARRAY, NONE);
        let all = vec![0x11; map.user_size() as usize];
        map.update_elem(1, &all, 0).unwrap();
        let lane = Lane::enter();
        map.prog_update_elem(&lane, 1, &[0x22; 12], 0).unwrap();
        let mut expected = all.clone();
        expected[lane.cpu() as usize * 16..][..12].fill(0x22);
        let mut found = all;
        map.lookup_elem(1, &mut found, 0).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn programs_get_the_errors_of_the_helpers() {
        for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
            let map = map(map_type, NONE);
            let lane = Lane::enter();
            let errno = |index, len, flags| {
                map.prog_update_elem(&lane, index, &vec![0; len], flags).map_err(UpdateError::errno)
            };
            assert_eq!(errno(4, 12, 2), Ok(()));
            assert_eq!(errno(0, 12, 1), Err(Errno::EEXIST));
            assert_eq!(errno(0, 12, 4), Err(Errno::EINVAL));
            assert_eq!(errno(5, 12, 1), Err(Errno::E2BIG));
            assert_eq!(errno(5, 12, 3), Err(Errno::EINVAL));
            assert_eq!(errno(0, 16, 0), Err(Errno::EFAULT));
            assert_eq!(map.prog_delete_elem(9).unwrap_err().errno(), Errno::EINVAL);
        }
    }

    #[test]
    fn existence_is_judged_before_the_lock() {
        let lane = Lane::enter();
        for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
            let map = map(map_type, NONE);
            assert_eq!(map.prog_update_elem(&lane, 0, &[0; 12], 5), Err(UpdateError::Exists));
            let past = map.prog_update_elem(&lane, 5, &[0; 12], 4).unwrap_err();
            assert_eq!(past.errno(), Errno::E2BIG);
        }
    }

    #[test]
    fn programs_write_to_frozen_maps_but_not_to_read_only_ones() {
        let lane = Lane::enter();
        let frozen = map(MapType::ARRAY, NONE);
        frozen.freeze().unwrap();
        assert_eq!(frozen.prog_update_elem(&lane, 0, &[1; 12], 0), Ok(()));
        let read_only = map(MapType::ARRAY, MapFlags::RDONLY_PROG);
        assert_eq!(
            read_only.prog_update_elem(&lane, 0, &[1; 12], 0),
            Err(UpdateError::NotWritable)
        );
    }

    #[test]
    fn regions_end_with_the_last_element() {
        let array = &map(MapType::ARRAY, MapFlags::RDONLY_PROG).regions()[..];
        let [Region { memory, elem_size: 16, value_size: 12, readable: true, writable: false }] =
            array
        else {
            panic!("{array:?}");
        };
        assert_eq!(memory.len(), 5 * 16);

        let percpu = map(MapType::PERCPU_ARRAY, MapFlags::WRONLY_PROG).regions();
        assert_eq!(percpu.len(), 1 + possible_cpus() as usize);
        assert!(percpu[0].readable && !percpu[0].writable);
        assert_eq!(percpu[0].memory.len(), 5 * 8);
        for region in &percpu[1..] {
            assert!(!region.readable && region.writable);
            assert_eq!(region.memory.len(), 5 * 16);
        }
    }
}
