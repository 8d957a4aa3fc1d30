//! Maps as programs see them: by address, on one CPU, without regard to handles and freezing.

use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::{DeleteError, UpdateError, array, percpu_array, prog_array::tail_call};
use bpfarray_core::{Errno, PPTR_SIZE as POINTER_SIZE, VALUE_OFFSET};

use std::sync::Arc;

use crate::lane::Lane;
use crate::map::{Contents, MapRef};
use crate::memory::Memory;
use crate::object::ProgramObject;
use crate::perf::EventObject;
use crate::rcu;
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
    /// The map whose values these are, if they have special fields: bytes that programs may neither read nor write.
    pub fields_of: Option<MapRef>,
}

impl Region {
    /// The variables at the start of a CPU's window, which programs may read.
    ///
    /// # Errors
    /// As [`window_base`](crate::window_base).
    pub fn cpu_variables(cpu: u32) -> Result<Self, Errno> {
        let memory = cpu_variables(cpu)?;
        let size = memory.len() as u32;
        Ok(Self {
            memory,
            elem_size: size,
            value_size: size,
            readable: true,
            writable: false,
            fields_of: None,
        })
    }
}

impl MapRef {
    /// The address by which programs know the map. Values, or the `pptrs` table, are
    /// [`VALUE_OFFSET`] bytes after it.
    pub fn addr(&self) -> u64 {
        self.inner.area.addr()
    }

    /// Address of an element, for a PERCPU_ARRAY that of the lane's CPU; for an ARRAY_OF_MAPS, the address of
    /// the map in the slot. Programs cannot look into other maps of objects, which give `None`.
    ///
    /// # Kernel
    /// `bpf_map_lookup_elem`
    #[doc(alias = "bpf_map_lookup_elem")]
    pub fn prog_lookup_elem(&self, lane: &Lane, index: u32) -> Option<u64> {
        match &self.inner.contents {
            Contents::Array => {
                let offset = array::lookup_elem(self.layout(), index)?;
                Some(self.addr() + u64::from(VALUE_OFFSET) + offset)
            }
            Contents::PercpuArray => self.prog_lookup_percpu_elem(index, lane.cpu()),
            Contents::Maps(maps) => maps.address(index),
            Contents::Programs(_) | Contents::Events(_) | Contents::Cgroups(_) => None,
        }
    }

    /// Address of an element of one CPU; `None` also for a map that has no values per CPU.
    ///
    /// # Kernel
    /// `bpf_map_lookup_percpu_elem`
    #[doc(alias = "bpf_map_lookup_percpu_elem")]
    pub fn prog_lookup_percpu_elem(&self, index: u32, cpu: u32) -> Option<u64> {
        match &self.inner.contents {
            Contents::Array
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => None,
            Contents::PercpuArray => {
                let offset = percpu_array::lookup_elem(self.layout(), index)?;
                let values = self.inner.area.percpu().get(cpu as usize)?;
                Some(values.addr() + offset)
            }
        }
    }

    /// Replaces an element by `value`, which must have [`MapRef::value_size`] bytes; for a
    /// PERCPU_ARRAY that of the lane's CPU.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`] for a map that programs may only read, and
    /// [`UpdateError::ObjectKind`] for a map of objects, which verified programs don't try;
    /// [`UpdateError::Buffer`]; then [`UpdateError::Flags`], [`UpdateError::Index`],
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
        let (memory, _held) = match &self.inner.contents {
            Contents::Array => (Some(self.inner.area.payload()), None),
            Contents::PercpuArray => {
                let held = self.inner.gate.file().and_then(|file| file.claim(lane.cpu()));
                (self.inner.area.percpu().get(lane.cpu() as usize), held)
            }
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => return Err(UpdateError::ObjectKind),
        };
        let has_lock = self.inner.has_spin_lock();
        let offset = array::update_elem(self.layout(), index, flags, has_lock)?;
        memory
            .and_then(|memory| self.inner.write_value(memory, offset as usize, value, flags).ok())
            .ok_or_else(|| self.no_index(index))
    }

    /// Deletes an element, which arrays of values never allow.
    ///
    /// # Errors
    /// [`DeleteError::Unsupported`]; for a map of objects, [`DeleteError::Index`] and
    /// [`DeleteError::NoEntry`].
    ///
    /// # Kernel
    /// `bpf_map_delete_elem`
    #[doc(alias = "bpf_map_delete_elem")]
    pub fn prog_delete_elem(&self, index: u32) -> Result<(), DeleteError> {
        let deleted = self.type_delete_elem(index);
        rcu::poll();
        deleted
    }

    /// The map in which an address is that a program has found in the slots of this ARRAY_OF_MAPS since
    /// it is in the lane: the address of the map itself, of its table, or of a value on any CPU.
    ///
    /// Takes the same few steps for thousands of maps as for one: a search among sorted ranges, without a lock.
    pub fn inner_map_at<'lane>(&'lane self, lane: &'lane Lane, addr: u64) -> Option<&'lane MapRef> {
        match &self.inner.contents {
            Contents::Maps(maps) => maps.map_at(lane, addr),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_) => None,
        }
    }

    /// The program that a tail call of this run goes to, when `done` tail calls were made before. `None`
    /// means that the program goes on after the call.
    ///
    /// # Kernel
    /// `bpf_tail_call`
    #[doc(alias = "bpf_tail_call")]
    pub fn tail_call<'lane>(
        &'lane self,
        lane: &'lane Lane,
        index: u64,
        done: u32,
    ) -> Option<&'lane Arc<dyn ProgramObject>> {
        let index = tail_call(self.max_entries(), index, done)?;
        match &self.inner.contents {
            Contents::Programs(programs) => programs.get(lane, index),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => None,
        }
    }

    /// The perf event in a slot of a PERF_EVENT_ARRAY; `None` for an empty one and for other maps.
    pub fn event<'lane>(
        &'lane self,
        lane: &'lane Lane,
        index: u32,
    ) -> Option<&'lane Arc<dyn EventObject>> {
        match &self.inner.contents {
            Contents::Events(events) => events.get(lane, index).map(|entry| &entry.event),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => None,
        }
    }

    /// Whether this thread is in the control group of a slot, or in one below it.
    ///
    /// # Errors
    /// The variants of [`UnderCgroupError`] in their order.
    ///
    /// # Kernel
    /// `bpf_current_task_under_cgroup`
    #[doc(alias = "bpf_current_task_under_cgroup")]
    pub fn current_task_under_cgroup(
        &self,
        lane: &Lane,
        index: u32,
    ) -> Result<bool, UnderCgroupError> {
        let Contents::Cgroups(cgroups) = &self.inner.contents else {
            return Err(UnderCgroupError::MapType);
        };
        let max_entries = self.max_entries();
        if index >= max_entries {
            return Err(UnderCgroupError::Index { index, max_entries });
        }
        let cgroup = cgroups.get(lane, index).ok_or(UnderCgroupError::Empty(index))?;
        cgroup.holds_current_task().map_err(|error| {
            UnderCgroupError::Unknown(error.raw_os_error().map_or(Errno::ENOENT, Errno::from_raw))
        })
    }

    /// What is written to a file that was opened for reading only would go nowhere.
    fn is_read_only_file(&self) -> bool {
        self.inner.gate.file().is_some_and(|file| file.is_read_only())
    }

    /// What programs may touch: the values, on every CPU where there are several, and the `pptrs`
    /// table or the addresses of inner maps; nothing of other maps of objects. Inner maps have regions of
    /// their own.
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
            fields_of: (!self.special_fields().is_empty()).then(|| self.clone()),
        };
        let payload = self.inner.area.payload();
        let pointers = || Region {
            memory: payload.clone(),
            elem_size: POINTER_SIZE,
            value_size: POINTER_SIZE,
            readable: true,
            writable: false,
            fields_of: None,
        };
        match &self.inner.contents {
            Contents::Array => vec![values(payload)],
            Contents::PercpuArray => std::iter::once(pointers())
                .chain(self.inner.area.percpu().iter().map(values))
                .collect(),
            Contents::Maps(_) => vec![pointers()],
            Contents::Programs(_) | Contents::Events(_) | Contents::Cgroups(_) => Vec::new(),
        }
    }
}

/// Why it cannot be told whether a thread is in the control group of a slot.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnderCgroupError {
    /// The map is no CGROUP_ARRAY, which verified programs don't try.
    #[error("the map is no CGROUP_ARRAY")]
    MapType,
    /// No such slot.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of slots.
        max_entries: u32,
    },
    /// The slot is empty.
    #[error("slot {0} is empty")]
    Empty(u32),
    /// The system does not tell in which control groups the thread is.
    #[error("cannot read the thread's control groups: {0}")]
    Unknown(Errno),
}

impl UnderCgroupError {
    /// The error number, negated the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapType => Errno::EINVAL,
            Self::Index { .. } => Errno::E2BIG,
            Self::Empty(_) => Errno::EAGAIN,
            Self::Unknown(errno) => errno,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::Map;
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
        let [
            Region {
                memory,
                elem_size: 16,
                value_size: 12,
                readable: true,
                writable: false,
                fields_of: None,
            },
        ] = array
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
