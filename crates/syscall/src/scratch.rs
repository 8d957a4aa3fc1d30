//! A file in memory from which the kernel reads into the memory of this process: less than half of what
//! `process_vm_writev` takes, and as safe, for the kernel looks at the address it writes to.
//!
//! **Invariant.** A [`Page`] that somebody was given is never freed, nor is any mapping, which is [`LEN`] bytes of its file. Bytes of a slot are
//! written by who has claimed it, with atomic accesses, and read by the kernel only.
//!
//! There is no such way for the other direction: what is written to a file may be more than the program's limit for files
//! (`RLIMIT_FSIZE`), which is a signal.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use bpfarray_core::Errno;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::{Resource, getrlimit};

use crate::file::INTERNAL;
use crate::user::copy_in;

/// Most bytes that are copied this way.
pub(crate) const SLOT: usize = 1024;

const SLOTS: u32 = u64::BITS;
const LEN: usize = SLOT * SLOTS as usize;

struct Page {
    file: OwnedFd,
    base: u64,
    /// A bit for each slot that somebody uses.
    taken: AtomicU64,
}

impl Page {
    /// `None` where there is no file to be had.
    fn new() -> Option<Self> {
        let limit = getrlimit(Resource::Fsize).current;
        if limit.is_some_and(|limit| limit < LEN as u64) {
            return None;
        }
        let file = memfd_create(c"bpfarray", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&file, LEN as u64).ok()?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel picks an unused place, so no memory in use changes.
        let base = unsafe { mmap(ptr::null_mut(), LEN, prot, MapFlags::SHARED, &file, 0) }.ok()?;
        // The program must not close it.
        INTERNAL.insert(file.as_raw_fd()).then_some(())?;
        Some(Self { file, base: base.expose_provenance() as u64, taken: AtomicU64::new(0) })
    }

    fn claim(&self) -> Option<u32> {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let slot = taken.trailing_ones();
            if slot == SLOTS {
                return None;
            }
            if self.taken.fetch_or(1 << slot, Ordering::Acquire) & 1 << slot == 0 {
                return Some(slot);
            }
        }
    }

    fn copy(&self, slot: u32, addr: u64, bytes: &[u8]) -> Option<Result<(), Errno>> {
        let offset = slot as usize * SLOT;
        // SAFETY: the slot is mapped for ever, as long as `bytes` at least, and this thread's by its claim.
        unsafe { copy_in(self.base + offset as u64, bytes) };
        let to = ptr::without_provenance_mut(addr as usize);
        // SAFETY: the kernel checks the address; that the bytes there may change is the promise of who gave it.
        let copied =
            unsafe { libc::pread(self.file.as_raw_fd(), to, bytes.len(), offset as libc::off_t) };
        match copied {
            -1 if std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) => None,
            copied if copied.cast_unsigned() == bytes.len() => Some(Ok(())),
            _ => Some(Err(Errno::EFAULT)),
        }
    }
}

/// The page of this process, which is made when it is first needed.
#[derive(Debug)]
pub(crate) struct Scratch(AtomicPtr<Page>);

impl Scratch {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    fn page(&self) -> Option<&'static Page> {
        let mut page = self.0.load(Ordering::Acquire);
        if page.is_null() {
            let made = Box::into_raw(Box::new(Page::new()?));
            // Of two that are made at once, one is of no use.
            page = match self.0.compare_exchange(page, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => made,
                Err(other) => {
                    // SAFETY: nobody else has the pointer, which came from `Box::into_raw`.
                    let unused = unsafe { Box::from_raw(made) };
                    INTERNAL.remove(unused.file.as_raw_fd());
                    other
                }
            };
        }
        // SAFETY: the pointer came from `Box::into_raw`, here or in another thread, and the page is never freed.
        Some(unsafe { &*page })
    }

    /// Copies bytes, at most [`SLOT`], to an address. `None` if it cannot be done this way.
    ///
    /// # Errors
    /// EFAULT if some of them cannot be written; those before may have been.
    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) -> Option<Result<(), Errno>> {
        let page = self.page()?;
        let slot = page.claim()?;
        let copied = page.copy(slot, addr, bytes);
        page.taken.fetch_and(!(1 << slot), Ordering::Release);
        copied
    }

    /// In the child: parent and child must not write to the same file.
    pub(crate) fn after_fork(&self) {
        let page = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: as in `page`.
        if let Some(page) = unsafe { page.as_ref() } {
            let fd = page.file.as_raw_fd();
            INTERNAL.remove(fd);
            // SAFETY: it is this page's, which nobody uses any more: other threads are not in the child.
            unsafe { rustix::io::close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_copy_at_once_copy_their_own_bytes() {
        let scratch = Scratch::new();
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let scratch = &scratch;
                scope.spawn(move || {
                    let mut memory = vec![0_u8; SLOT];
                    for round in 0..200_u8 {
                        let bytes = vec![thread ^ round; SLOT - usize::from(round)];
                        let addr = memory.as_mut_ptr().expose_provenance() as u64;
                        assert_eq!(scratch.write(addr, &bytes), Some(Ok(())));
                        assert_eq!(memory[..bytes.len()], bytes);
                    }
                });
            }
        });
        let page = scratch.page().unwrap();
        assert_eq!(page.taken.load(Ordering::Relaxed), 0, "all slots are free again");
    }

    #[test]
    fn a_page_that_cannot_be_written_to_is_a_fault_and_takes_no_slot() {
        let scratch = Scratch::new();
        for _ in 0..2 * SLOTS {
            let literal = b"literal".as_ptr().addr() as u64;
            assert_eq!(scratch.write(literal, b"LITERAL"), Some(Err(Errno::EFAULT)));
            assert_eq!(scratch.write(4096, &[1]), Some(Err(Errno::EFAULT)));
        }
    }

    #[test]
    fn after_a_fork_there_is_another_file() {
        let scratch = Scratch::new();
        let before = scratch.page().unwrap().base;
        scratch.after_fork();
        assert_ne!(scratch.page().unwrap().base, before);
    }
}
