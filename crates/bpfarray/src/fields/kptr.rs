//! Objects of the host in the kptr fields of values.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bpfarray_core::Errno;
use bpfarray_core::btf::FieldMask;

use crate::lane::Lane;
use crate::map::{Contents, Map, MapRef};
use crate::rcu;

/// An object of the host that programs can carry from element to element, but not look into.
///
/// To programs it is a number other than 0, in the half of the address space where no program has memory.
/// Clones are the same object.
///
/// # Kernel
/// A pointer to a kernel object with a reference, in a field tagged `__kptr`
#[derive(Clone)]
#[doc(alias = "__kptr")]
pub struct Kptr {
    handle: u64,
    object: Arc<dyn Any + Send + Sync>,
}

impl Kptr {
    /// An object, and a number for it that no other one has.
    pub fn new(object: Arc<dyn Any + Send + Sync>) -> Self {
        /// What no mapping of a process can reach.
        const UPPER_HALF: u64 = 1 << 63;
        static LAST: AtomicU64 = AtomicU64::new(UPPER_HALF);
        let handle = LAST.fetch_add(8, Ordering::Relaxed) | UPPER_HALF;
        Self { handle, object }
    }

    /// The number that programs see.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// The object, as the host made it.
    pub fn object(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.object
    }
}

impl fmt::Debug for Kptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kptr({:#x})", self.handle)
    }
}

/// Why an object cannot be put into a value. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KptrError {
    /// No such element.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of elements.
        max_entries: u32,
    },
    /// There is no kptr at this offset of the value.
    #[error("there is no kptr at offset {0} of the value")]
    NoKptr(u32),
}

impl KptrError {
    /// The error number that comes closest.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Index { .. } => Errno::E2BIG,
            Self::NoKptr(_) => Errno::EINVAL,
        }
    }
}

/// What the kptr fields of a map hold, by the address of the field.
#[derive(Default)]
pub(crate) struct Kptrs(Mutex<HashMap<u64, Kptr>>);

impl Kptrs {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Kptr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self, addr: u64, new: Option<Kptr>) -> Option<Kptr> {
        let mut held = self.lock();
        match new {
            Some(new) => held.insert(addr, new),
            None => held.remove(&addr),
        }
    }

    fn handle(&self, addr: u64) -> u64 {
        self.lock().get(&addr).map_or(0, Kptr::handle)
    }

    /// Drops what a field holds, when no program can have loaded it any more.
    pub(super) fn free(&self, addr: u64) {
        if let Some(old) = self.swap(addr, None) {
            rcu::call(Box::new(old));
        }
    }
}

impl Map {
    /// Puts an object into the kptr at an offset of an element, for a PERCPU_ARRAY that of the CPU this thread runs on, and
    /// takes out what was there.
    ///
    /// So a host lends programs what they only need to hand around, such as a connection or a session: they move it
    /// between elements with `bpf_kptr_xchg`, and the host takes it back out. An update of the element drops the object.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use bpfarray::attr::{Creator, MapAttr, MapType};
    /// use bpfarray::btf::{Btf, Kind};
    /// use bpfarray::{Kptr, Map};
    /// // struct holder { u64 before; struct session __kptr *session; };
    /// let btf = Btf::parse(include_bytes!("../../../../testdata/btf/fields.btf"))?;
    /// let attr = MapAttr {
    ///     map_type: MapType::ARRAY,
    ///     key_size: 4,
    ///     value_size: 16,
    ///     max_entries: 2,
    ///     btf_key_type_id: btf.find_by_name("int", Kind::Int).ok_or("int")?,
    ///     btf_value_type_id: btf.find_by_name("holder", Kind::Struct).ok_or("holder")?,
    ///     ..MapAttr::default()
    /// };
    /// let map = Map::create_as(&attr, &Creator { btf: Some(&btf), ..Creator::default() })?;
    /// map.swap_kptr(1, 8, Some(Kptr::new(Arc::new("session 7"))))?;
    /// let session = map.swap_kptr(1, 8, None)?.ok_or("a program took it")?;
    /// assert_eq!(session.object().downcast_ref::<&str>(), Some(&"session 7"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`KptrError`] in their order.
    ///
    /// # Kernel
    /// `bpf_kptr_xchg`
    #[doc(alias = "bpf_kptr_xchg")]
    pub fn swap_kptr(
        &self,
        index: u32,
        offset: u32,
        object: Option<Kptr>,
    ) -> Result<Option<Kptr>, KptrError> {
        let lane = Lane::enter();
        let max_entries = self.max_entries();
        let value = match &self.inner.contents {
            Contents::Array | Contents::PercpuArray => self.prog_lookup_elem(&lane, index),
            Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => return Err(KptrError::NoKptr(offset)),
        };
        let addr = value.ok_or(KptrError::Index { index, max_entries })? + u64::from(offset);
        self.prog_swap_kptr(addr, object).map_err(|_| KptrError::NoKptr(offset))
    }
}

impl MapRef {
    /// Puts an object into the kptr at this address and gives what was there.
    ///
    /// # Errors
    /// The object, where there is no kptr.
    pub fn prog_swap_kptr(
        &self,
        addr: u64,
        object: Option<Kptr>,
    ) -> Result<Option<Kptr>, Option<Kptr>> {
        if !self.is_kptr(addr) {
            return Err(object);
        }
        Ok(self.inner.kptrs.swap(addr, object))
    }

    /// What a program loads from the kptr at this address: a number for the object, or 0. `None` where there is no kptr.
    pub fn prog_load_kptr(&self, addr: u64) -> Option<u64> {
        self.is_kptr(addr).then(|| self.inner.kptrs.handle(addr))
    }

    fn is_kptr(&self, addr: u64) -> bool {
        let field = self.field_at(addr).map(|at| at.field.kind.mask());
        field.is_some_and(|mask| FieldMask::KPTR.contains(mask))
    }
}
