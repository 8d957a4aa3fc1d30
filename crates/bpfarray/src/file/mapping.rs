//! Files as memory.
//!
//! **Invariant.** A [`Mapping`] owns the pages it unmaps. Bytes of a file that are gone are replaced
//! by zeros when they are touched (see [`sigbus`](super::sigbus)), unless a seal keeps the file from
//! shrinking, so the mapping stays readable and writable for as long as its owner lives.
#![allow(unsafe_code)]

use std::fs::File;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bpfarray_core::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::sigbus::{self, Guard};
use crate::memory::Memory;

/// A file whose bytes become memory.
#[derive(Clone)]
pub(crate) struct Source {
    pub(super) file: Arc<File>,
    /// What is written reaches the file. Otherwise it stays in this process, and hides what others
    /// write to the same page.
    pub(super) shared: bool,
    /// Nobody can make the file shorter.
    pub(super) sealed: bool,
    /// Whether pages of the file were found gone.
    pub(super) lost: Arc<AtomicBool>,
}

/// Keeps a mapping safe to use while the file shrinks. To be dropped before unmapping.
pub(crate) struct Protection {
    _guard: Option<Guard>,
}

impl Source {
    /// Maps `len` bytes from `offset` on: at `at`, in the place of what is there, or else where
    /// there is room.
    ///
    /// # Safety
    /// Nobody may use the `len` bytes at `at`.
    pub(crate) unsafe fn map(
        &self,
        at: Option<NonNull<u8>>,
        len: usize,
        offset: u64,
    ) -> Result<(NonNull<u8>, Protection), Errno> {
        let sharing = if self.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        let mut flags = sharing | MapFlags::NORESERVE;
        flags.set(MapFlags::FIXED, at.is_some());
        let at = at.map_or(ptr::null_mut(), |at| at.as_ptr().cast());
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        if !self.sealed {
            let raw = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            sigbus::install().map_err(raw)?;
        }
        // SAFETY: the caller's promise; without MAP_FIXED no memory in use changes.
        let base = unsafe { mmap(at, len, prot, flags, &*self.file, offset) }
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        let start = base.as_ptr().expose_provenance() as u64;
        let guard = (!self.sealed)
            .then(|| Guard::new(start..start + len as u64, &self.file, offset, &self.lost));
        Ok((base, Protection { _guard: guard }))
    }

    /// The first `len` bytes as memory.
    pub(super) fn memory(&self, len: usize) -> Result<Memory, Errno> {
        // SAFETY: no place is asked for.
        let (base, protection) = unsafe { self.map(None, len, 0) }?;
        let mapping = Mapping { base, len, protection: Some(protection) };
        // SAFETY: the mapping is new and stays until its owner is dropped; pages that the file
        // loses are replaced, which `protection` or a seal takes care of.
        Ok(unsafe { Memory::from_raw(base, len, Arc::new(mapping)) })
    }
}

struct Mapping {
    base: NonNull<u8>,
    len: usize,
    protection: Option<Protection>,
}

// SAFETY: a `Mapping` only unmaps, which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: it has no method that takes `&self`.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.protection = None;
        // SAFETY: `base` and `len` are those of a mapping made for this owner alone, and the last
        // `Memory` on it is gone. A failure could only leave it mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
