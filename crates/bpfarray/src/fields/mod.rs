//! Values with special fields: locks, timers and objects of the host.
//!
//! The bytes of a special field belong to the map. What is copied in leaves them alone, what is copied out
//! shows them as just initialised, and programs cannot touch them but through helpers. What timers and kptrs
//! hold is not in those bytes: it is in tables beside the map, so that nothing in value memory is ever taken
//! for an address.

mod kptr;
mod lock;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod timer;

use std::ops::Range;

use bpfarray_core::VALUE_OFFSET;
use bpfarray_core::attr::elem_flags::F_LOCK;
use bpfarray_core::btf::{FieldMask, SpecialField, SpecialFields};
use bpfarray_core::map::cpu_flags::Cpus;

pub(crate) use self::kptr::Kptrs;
pub use self::kptr::{Kptr, KptrError};
pub use self::lock::ElementLock;
pub(crate) use self::timer::Timers;
pub use self::timer::{TimerCallback, TimerError, TimerStart};
use crate::map::{Contents, Inner, MapRef};
use crate::memory::{Memory, OutOfBounds};
use crate::sync::Backoff;

/// A special field of an element.
#[derive(Copy, Clone, Debug)]
pub struct ElementField<'a> {
    /// Index of the element.
    pub index: u32,
    /// The field.
    pub field: &'a SpecialField,
}

impl MapRef {
    /// The special fields of the map's values.
    ///
    /// # Kernel
    /// `record` of `struct bpf_map`
    #[doc(alias = "btf_record")]
    pub fn special_fields(&self) -> &SpecialFields {
        &self.inner.fields
    }

    /// The special field that begins at an address as programs have them.
    pub fn field_at(&self, addr: u64) -> Option<ElementField<'_>> {
        let (index, offset) = self.element_at(addr)?;
        let field = self.special_fields().find(offset)?;
        Some(ElementField { index, field })
    }

    /// The element in which an address is, and how many bytes it is behind the element's start.
    fn element_at(&self, addr: u64) -> Option<(u32, u32)> {
        let area = &self.inner.area;
        let within = |memory: &Memory| {
            let offset = addr.checked_sub(memory.addr())?;
            (offset < memory.len() as u64).then_some(offset)
        };
        let offset = match &self.inner.contents {
            Contents::Array => within(area.payload())?,
            Contents::PercpuArray => area.percpu().iter().find_map(within)?,
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => return None,
        };
        let elem_size = u64::from(self.layout().elem_size());
        Some((u32::try_from(offset / elem_size).ok()?, (offset % elem_size) as u32))
    }

    /// Address of an ARRAY's element.
    pub(crate) fn value_addr(&self, index: u32) -> u64 {
        let offset = u64::from(index) * u64::from(self.layout().elem_size());
        self.addr() + u64::from(VALUE_OFFSET) + offset
    }
}

impl Inner {
    /// Whether `F_LOCK` means something.
    pub(crate) fn has_spin_lock(&self) -> bool {
        self.fields.spin_lock().is_some()
    }

    /// Copies the element at an offset out of an ARRAY's values.
    ///
    /// # Kernel
    /// `copy_map_value`, `copy_map_value_locked`, `check_and_init_map_value`
    pub(crate) fn read_value(
        &self,
        offset: usize,
        value: &mut [u8],
        flags: u64,
    ) -> Result<(), OutOfBounds> {
        let locked = self.lock_for(offset, flags);
        self.area.payload().read(offset, value)?;
        drop(locked);
        self.fields.init(value);
        Ok(())
    }

    /// Replaces the element at an offset of an ARRAY's values, or of one CPU's, but for its special fields; those are
    /// emptied.
    ///
    /// # Kernel
    /// `copy_map_value`, `copy_map_value_locked`, `bpf_obj_free_fields`
    pub(crate) fn write_value(
        &self,
        memory: &Memory,
        offset: usize,
        value: &[u8],
        flags: u64,
    ) -> Result<(), OutOfBounds> {
        if self.fields.is_empty() {
            return memory.write(offset, value);
        }
        let locked = self.lock_for(offset, flags);
        let mut ordinary = self.fields.ordinary(value.len());
        ordinary.try_for_each(|Range { start, end }| {
            memory.write(offset + start, &value[start..end])
        })?;
        drop(locked);
        self.free_fields(memory, offset);
        Ok(())
    }

    /// Copies the element at an offset of the CPUs' values.
    ///
    /// # Kernel
    /// `bpf_percpu_array_copy`
    pub(crate) fn read_percpu(
        &self,
        offset: usize,
        cpus: Cpus,
        values: &mut [u8],
    ) -> Result<(), OutOfBounds> {
        self.area.read_percpu(offset, cpus, values)?;
        if !self.fields.is_empty() {
            let elem_size = self.layout.elem_size() as usize;
            values.chunks_mut(elem_size).for_each(|value| self.fields.init(value));
        }
        Ok(())
    }

    /// Replaces the element at an offset of the CPUs' values, but for its special fields; those are emptied.
    ///
    /// # Kernel
    /// `bpf_percpu_array_update`
    pub(crate) fn write_percpu(
        &self,
        offset: usize,
        cpus: Cpus,
        values: &[u8],
        len: usize,
    ) -> Result<(), OutOfBounds> {
        if self.fields.is_empty() {
            return self.area.write_percpu(offset, cpus, values, len);
        }
        let (elem_size, value_size) =
            (self.layout.elem_size() as usize, self.layout.value_size() as usize);
        let write = |(cpu, value): (&Memory, &[u8])| self.write_value(cpu, offset, value, 0);
        let all = self.area.percpu();
        match cpus {
            Cpus::Each => {
                let values = values.chunks_exact(elem_size).map(|value| &value[..value_size]);
                all.iter().zip(values).try_for_each(write)
            }
            Cpus::All => all.iter().try_for_each(|cpu| write((cpu, values))),
            Cpus::One(cpu) => all.get(cpu as usize).map_or(Ok(()), |cpu| write((cpu, values))),
        }
    }

    /// Takes the lock of the element at an offset, if the flags say so.
    fn lock_for(&self, offset: usize, flags: u64) -> Option<ElementLock> {
        if flags & F_LOCK == 0 || !self.has_spin_lock() {
            return None;
        }
        let index = (offset / self.layout.elem_size() as usize) as u32;
        let mut backoff = Backoff::default();
        loop {
            match self.try_lock(index) {
                Some(lock) => return Some(lock),
                None => backoff.wait(),
            }
        }
    }

    /// Lets go of what an element's special fields hold.
    ///
    /// # Kernel
    /// `bpf_obj_free_fields`
    fn free_fields(&self, memory: &Memory, offset: usize) {
        let mask = self.fields.mask();
        if mask.contains(FieldMask::TIMER) {
            self.timers.free((offset / self.layout.elem_size() as usize) as u32);
        }
        if mask.intersects(FieldMask::KPTR) {
            let kptrs = self.fields.as_slice().iter();
            for field in kptrs.filter(|field| FieldMask::KPTR.contains(field.kind.mask())) {
                self.kptrs.free(memory.addr() + offset as u64 + u64::from(field.offset));
            }
        }
    }

    /// Stops what would still happen in a map that nobody uses any more.
    ///
    /// # Kernel
    /// `array_map_free_internal_structs`
    pub(crate) fn last_user_left(&self) {
        self.timers.free_all();
    }
}
