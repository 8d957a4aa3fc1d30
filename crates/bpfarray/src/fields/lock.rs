//! `bpf_spin_lock`: one word in a value, 0 while nobody holds it.
//!
//! The word is part of the value, but only this module touches it: programs may not, updates skip it and mappings of such values
//! do not exist. The holder is a thread of this process (maps in files have no locks), and it lets go
//! when its [`ElementLock`] is dropped, however that comes.

use std::fmt;

use bpfarray_core::map::Kind;

use crate::map::MapRef;
use crate::memory::Memory;
use crate::sync::Backoff;

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
}

impl ElementLock {
    /// Takes the lock at an offset, unless somebody holds it.
    fn try_take(memory: &Memory, offset: usize) -> Option<Self> {
        match memory.compare_exchange(offset, SIZE, FREE, HELD) {
            Ok(FREE) => Some(Self { memory: memory.clone(), offset }),
            _ => None,
        }
    }

    /// Takes the lock at an offset, and waits for who holds it; `None` only where there is no lock.
    pub(super) fn take(memory: &Memory, offset: usize) -> Option<Self> {
        let mut backoff = Backoff::default();
        loop {
            match memory.compare_exchange(offset, SIZE, FREE, HELD) {
                Ok(FREE) => return Some(Self { memory: memory.clone(), offset }),
                Ok(_) => backoff.wait(),
                Err(_) => return None,
            }
        }
    }

    /// The address of the lock, by which programs know it.
    pub fn addr(&self) -> u64 {
        self.memory.addr() + self.offset as u64
    }
}

impl Drop for ElementLock {
    fn drop(&mut self) {
        // The place was good for taking the lock.
        let _ = self.memory.store_release(self.offset, SIZE, FREE);
    }
}

impl fmt::Debug for ElementLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ElementLock({:#x})", self.addr())
    }
}

impl MapRef {
    /// Takes the `bpf_spin_lock` of an element, unless somebody holds it. `None` also for an element that does not exist, and
    /// for values without a lock.
    ///
    /// Who waits for the lock tries again, and can do so only for as long as it likes. A thread that holds it must not
    /// wait for a program: that one may want the lock.
    ///
    /// # Kernel
    /// `bpf_spin_lock`
    #[doc(alias = "bpf_spin_lock")]
    pub fn try_lock(&self, index: u32) -> Option<ElementLock> {
        let lock = self.special_fields().spin_lock()?;
        if self.layout().kind() != Kind::Array || index >= self.max_entries() {
            return None;
        }
        let element = u64::from(index) * u64::from(self.layout().elem_size());
        let offset = usize::try_from(element + u64::from(lock)).ok()?;
        ElementLock::try_take(self.inner.area.payload(), offset)
    }
}
