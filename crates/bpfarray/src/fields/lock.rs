//! `bpf_spin_lock`: one word in a value, 0 while nobody holds it; in a map file, a lock on a byte of the file.
//!
//! The word is part of the value, but only this module touches it: programs may not, updates skip it and mappings of
//! such values do not exist. Whoever holds a lock lets go when the [`ElementLock`] is dropped, however that comes. A
//! process that dies can hold no word for ever, as the memory is its own, and none of its locks on a file stays.

use std::fmt;
use std::sync::Arc;

use bpfarray_core::map::Kind;

use crate::file::MapFile;
use crate::map::{Inner, MapRef};
use crate::memory::Memory;

const FREE: u64 = 0;
const HELD: u64 = 1;
/// Bytes of `struct bpf_spin_lock`.
const SIZE: usize = 4;

/// A held `bpf_spin_lock`, released when dropped.
///
/// # Kernel
/// `struct bpf_spin_lock`
#[must_use = "the lock is released when the guard is dropped"]
#[doc(alias = "bpf_spin_lock")]
pub struct ElementLock {
    memory: Memory,
    offset: usize,
    /// The file that has the lock, and the element's index.
    file: Option<(Arc<MapFile>, u32)>,
}

impl ElementLock {
    /// The address of the lock, by which programs know it.
    pub fn addr(&self) -> u64 {
        self.memory.addr() + self.offset as u64
    }
}

impl Drop for ElementLock {
    fn drop(&mut self) {
        match &self.file {
            Some((file, index)) => file.unlock_value(*index),
            // The place was good for taking the lock.
            None => drop(self.memory.store_release(self.offset, SIZE, FREE)),
        }
    }
}

impl fmt::Debug for ElementLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ElementLock({:#x})", self.addr())
    }
}

impl Inner {
    /// Takes the lock of an element, unless somebody holds it.
    pub(super) fn try_lock(&self, index: u32) -> Option<ElementLock> {
        let lock = self.fields.spin_lock()?;
        if self.layout.kind() != Kind::Array || index >= self.layout.max_entries() {
            return None;
        }
        let element = u64::from(index) * u64::from(self.layout.elem_size());
        let offset = usize::try_from(element + u64::from(lock)).ok()?;
        let memory = self.area.payload();
        let file = match self.gate.file() {
            Some(file) => file.try_lock_value(index).then(|| Some((Arc::clone(file), index)))?,
            None => match memory.compare_exchange(offset, SIZE, FREE, HELD) {
                Ok(FREE) => None,
                _ => return None,
            },
        };
        Some(ElementLock { memory: memory.clone(), offset, file })
    }
}

impl MapRef {
    /// Takes the `bpf_spin_lock` of an element, unless somebody holds it. `None` also for an element that does not exist,
    /// and for values without a lock.
    ///
    /// A thread that holds the lock must not wait for a program: that one may want it too.
    ///
    /// # Kernel
    /// `bpf_spin_lock`
    #[doc(alias = "bpf_spin_lock")]
    pub fn try_lock(&self, index: u32) -> Option<ElementLock> {
        self.inner.try_lock(index)
    }
}
