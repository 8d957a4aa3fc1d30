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
    /// ```
    /// use bpfarray::Map;
    /// use bpfarray::attr::{Creator, MapAttr, MapType, elem_flags::F_LOCK};
    /// use bpfarray::btf::{Btf, Kind};
    /// // struct locked { u32 before; struct bpf_spin_lock lock; u64 after; };
    /// let btf = Btf::parse(include_bytes!("../../../../testdata/btf/fields.btf"))?;
    /// let attr = MapAttr {
    ///     map_type: MapType::ARRAY,
    ///     key_size: 4,
    ///     value_size: 16,
    ///     max_entries: 2,
    ///     btf_key_type_id: btf.find_by_name("int", Kind::Int).ok_or("int")?,
    ///     btf_value_type_id: btf.find_by_name("locked", Kind::Struct).ok_or("locked")?,
    ///     ..MapAttr::default()
    /// };
    /// let map = Map::create_as(&attr, &Creator { btf: Some(&btf), ..Creator::default() })?;
    /// let held = map.try_lock(1).ok_or("locked")?;
    /// assert!(map.try_lock(1).is_none());
    /// drop(held);
    ///
    /// // The lock is held while the value is copied, and stays as it is.
    /// map.update_elem(1, &[0xff; 16], F_LOCK)?;
    /// let mut value = [0; 16];
    /// map.lookup_elem(1, &mut value, F_LOCK)?;
    /// assert_eq!(value[4..8], [0; 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Kernel
    /// `bpf_spin_lock`
    #[doc(alias = "bpf_spin_lock")]
    pub fn try_lock(&self, index: u32) -> Option<ElementLock> {
        self.inner.try_lock(index)
    }
}
