//! The memory of one map.

use std::sync::Arc;

use bpfarray_core::map::Kind;
use bpfarray_core::map::cpu_flags::Cpus;
use bpfarray_core::{Errno, Layout, PPTR_SIZE, VALUE_OFFSET};

use crate::cpu::possible_cpus;
use crate::memory::{Memory, OutOfBounds};
use crate::window::Extent;

/// A header page and what follows it, and for a PERCPU_ARRAY a part of each CPU's window.
pub(crate) struct Area {
    whole: Memory,
    payload: Memory,
    percpu: Box<[Memory]>,
}

/// Bytes of memory that the machine has.
fn memory_of_the_machine() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

impl Area {
    pub(crate) fn allocate(layout: &Layout) -> Result<Self, Errno> {
        let extent = match layout.kind() {
            Kind::PercpuArray => Some(Extent::new(layout.window_len())?),
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => None,
        };
        Self::allocate_over(layout, extent)
    }

    /// Allocates all but the windows' parts.
    pub(crate) fn allocate_over(
        layout: &Layout,
        extent: Option<Arc<Extent>>,
    ) -> Result<Self, Errno> {
        let len = layout
            .payload_len()
            .checked_add(u64::from(VALUE_OFFSET))
            .and_then(|len| usize::try_from(len).ok())
            .ok_or(Errno::ENOMEM)?;
        // The last page is whole where values can be mapped.
        let len = len.next_multiple_of(VALUE_OFFSET as usize);
        Self::over(layout, Memory::anonymous(len)?, extent)
    }

    /// The area in `whole`, which begins with the header page, and in the windows.
    pub(crate) fn over(
        layout: &Layout,
        whole: Memory,
        extent: Option<Arc<Extent>>,
    ) -> Result<Self, Errno> {
        let no_memory = |_: OutOfBounds| Errno::ENOMEM;
        let payload_len = layout.max_entries() as usize * layout.stride() as usize;
        let payload = whole.view(VALUE_OFFSET as usize, payload_len).map_err(no_memory)?;
        let percpu = match extent {
            None => Box::default(),
            Some(extent) => {
                // Values take memory when they are written, but the table is written here.
                if layout.payload_len() > memory_of_the_machine() / 2 {
                    return Err(Errno::ENOMEM);
                }
                let elem_size = u64::from(layout.elem_size());
                for index in 0..u64::from(layout.max_entries()) {
                    let at = index as usize * PPTR_SIZE as usize;
                    let offset = extent.offset() + index * elem_size;
                    payload.store(at, PPTR_SIZE as usize, offset).map_err(no_memory)?;
                }
                (0..possible_cpus())
                    .map(|cpu| {
                        let values = extent.memory(cpu)?;
                        values.view(0, layout.window_len() as usize).map_err(no_memory)
                    })
                    .collect::<Result<_, Errno>>()?
            }
        };
        Ok(Self { whole, payload, percpu })
    }

    /// Lets values that nobody has written yet come from a NUMA node.
    pub(crate) fn prefer_node(&self, node: u32) {
        self.whole.prefer_node(node);
    }

    /// Address of the header page.
    pub(crate) fn addr(&self) -> u64 {
        self.whole.addr()
    }

    /// Bytes from there to the end of the last element.
    pub(crate) fn len(&self) -> usize {
        VALUE_OFFSET as usize + self.payload.len()
    }

    /// The `max_entries` values of an ARRAY, entries of a PERCPU_ARRAY's `pptrs` table, or
    /// pointers of other maps; the surplus slots are outside.
    pub(crate) fn payload(&self) -> &Memory {
        &self.payload
    }

    /// Whole pages of values, padding and what is behind them.
    pub(crate) fn pages(&self, offset: usize, len: usize) -> Result<Memory, OutOfBounds> {
        self.whole.view(VALUE_OFFSET as usize + offset, len)
    }

    /// The `max_entries` values of each CPU; none for other maps.
    pub(crate) fn percpu(&self) -> &[Memory] {
        &self.percpu
    }

    /// Copies a per-CPU element at an offset, padded to 8 bytes for each CPU, or of one CPU.
    pub(crate) fn read_percpu(
        &self,
        offset: usize,
        cpus: Cpus,
        values: &mut [u8],
    ) -> Result<(), OutOfBounds> {
        match cpus {
            Cpus::Each => {
                let size = values.len() / self.percpu.len().max(1);
                let parts = values.chunks_exact_mut(size.max(1));
                self.percpu.iter().zip(parts).try_for_each(|(cpu, part)| cpu.read(offset, part))
            }
            // All CPUs have no common value; the rules let no such lookup through.
            Cpus::One(_) | Cpus::All => {
                self.percpu_of(cpus).iter().try_for_each(|cpu| cpu.read(offset, values))
            }
        }
    }

    /// Replaces a per-CPU element at an offset: by `len` bytes of each CPU's part, or by one value.
    pub(crate) fn write_percpu(
        &self,
        offset: usize,
        cpus: Cpus,
        values: &[u8],
        len: usize,
    ) -> Result<(), OutOfBounds> {
        match cpus {
            Cpus::Each => {
                let size = values.len() / self.percpu.len().max(1);
                let parts = values.chunks_exact(size.max(1)).map(|part| &part[..len.min(size)]);
                self.percpu.iter().zip(parts).try_for_each(|(cpu, part)| cpu.write(offset, part))
            }
            Cpus::One(_) | Cpus::All => {
                self.percpu_of(cpus).iter().try_for_each(|cpu| cpu.write(offset, values))
            }
        }
    }

    fn percpu_of(&self, cpus: Cpus) -> &[Memory] {
        match cpus {
            Cpus::Each | Cpus::All => &self.percpu,
            Cpus::One(cpu) => self.percpu.get(cpu as usize).map_or(&[], std::slice::from_ref),
        }
    }
}
