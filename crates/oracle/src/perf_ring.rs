//! Rings of the live kernel: perf events for the output of programs, mapped.
//!
//! **Invariant.** `base..base + len` stays mapped, readable and writable, while a [`PerfRing`] lives. The kernel
//! writes to it whenever a program does, which in this process only happens in `BPF_PROG_TEST_RUN`; nobody makes
//! a reference to it.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use bpfarray_core::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::events::{DATA_HEAD, DATA_TAIL, PAGE, RING_PAGES, between};
use crate::sys::output_event;

/// An event with its ring.
#[derive(Debug)]
pub(crate) struct PerfRing {
    event: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

impl PerfRing {
    /// A ring for the programs on a CPU.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(cpu: u32) -> Result<Self, Errno> {
        let event = output_event(cpu)?;
        let len = (1 + RING_PAGES) * PAGE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel picks an unused place, so no memory in use changes.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &event, 0) };
        let base = base.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { event, base, len })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset == DATA_HEAD || offset == DATA_TAIL);
        // SAFETY: both offsets are multiples of 8 in the first page, which stays mapped as long as `self` is
        // borrowed; all access to these numbers is atomic.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Takes out what is in the ring.
    pub(crate) fn drain(&self) -> Vec<u8> {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        let mut data = vec![0; self.len - PAGE];
        // SAFETY: the data is behind the first page; no program runs that could make the kernel write to it.
        unsafe {
            ptr::copy_nonoverlapping(self.base.as_ptr().add(PAGE), data.as_mut_ptr(), data.len());
        }
        self.position(DATA_TAIL).store(head, Ordering::Release);
        between(&data, tail, head)
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mapping that `new` made for this ring alone. A failure could
        // only leave it mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl AsFd for PerfRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
