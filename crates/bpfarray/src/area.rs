//! The memory of one map.

use std::sync::Arc;

use bpfarray_core::map::Kind;
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

impl Area {
    pub(crate) fn allocate(layout: &Layout) -> Result<Self, Errno> {
        let extent = match layout.kind() {
            Kind::Array => None,
            Kind::PercpuArray => Some(Extent::new(layout.window_len())?),
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
        Self::over(layout, Memory::anonymous(len)?, extent)
    }

    /// The area in `whole`, which begins with the header page, and in the windows.
    pub(crate) fn over(
        layout: &Layout,
        whole: Memory,
        extent: Option<Arc<Extent>>,
    ) -> Result<Self, Errno> {
        let no_memory = |_: OutOfBounds| Errno::ENOMEM;
        let stride = match layout.kind() {
            Kind::Array => layout.elem_size(),
            Kind::PercpuArray => PPTR_SIZE,
        };
        let payload_len = layout.max_entries() as usize * stride as usize;
        let payload = whole.view(VALUE_OFFSET as usize, payload_len).map_err(no_memory)?;
        let percpu = match extent {
            None => Box::default(),
            Some(extent) => {
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

    /// Address of the header page.
    pub(crate) fn addr(&self) -> u64 {
        self.whole.addr()
    }

    /// The `max_entries` values of an ARRAY, or entries of a PERCPU_ARRAY's `pptrs` table; the
    /// surplus slots are outside.
    pub(crate) fn payload(&self) -> &Memory {
        &self.payload
    }

    /// The `max_entries` values of each CPU; none for an ARRAY.
    pub(crate) fn percpu(&self) -> &[Memory] {
        &self.percpu
    }
}
