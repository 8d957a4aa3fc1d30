//! Ways by which the kernel copies between the memory of this process and a buffer, in half of the time that
//! `process_vm_readv` and `process_vm_writev` take, and as safely, for it looks at the addresses: it reads from a file in
//! memory to where a caller says, and writes what it finds there into a pipe.
//!
//! **Invariant.** A [`Page`] that somebody was given is never freed, nor is any mapping, which is [`LEN`] bytes of its file. Bytes of a slot are
//! written by who has claimed it, with atomic accesses, and read by the kernel only.
//!
//! The file is not for both directions: what is written to one may be more than the program's limit for files
//! (`RLIMIT_FSIZE`), which is a signal.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use bpfarray_core::Errno;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit};

use crate::file::INTERNAL;
use crate::user::copy_in;

/// Most bytes that are copied in these ways. A pipe takes as many at once.
pub(crate) const SLOT: usize = 1024;

/// How many pipes there can be; as many threads can read at once.
const PIPES: usize = 4;

const SLOTS: u32 = u64::BITS;
const LEN: usize = SLOT * SLOTS as usize;

struct Page {
    file: OwnedFd,
    base: u64,
    /// A bit for each slot that somebody uses.
    taken: AtomicU64,
    pipes: [OnceLock<Option<Pipe>>; PIPES],
    /// A bit for each pipe that somebody uses.
    busy: AtomicU64,
}

/// A bit of a number that stays set until this is dropped.
struct Claim<'a> {
    bits: &'a AtomicU64,
    bit: u32,
}

impl<'a> Claim<'a> {
    /// The first bit below `count` that is not set, if there is one.
    fn new(bits: &'a AtomicU64, count: u32) -> Option<Self> {
        loop {
            let bit = bits.load(Ordering::Relaxed).trailing_ones();
            if bit >= count {
                return None;
            }
            if bits.fetch_or(1 << bit, Ordering::Acquire) & 1 << bit == 0 {
                return Some(Self { bits, bit });
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.bits.fetch_and(!(1 << self.bit), Ordering::Release);
    }
}

/// A pipe with nothing in it.
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn new() -> Option<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // The program must not close them.
        let both = [&out, &into].map(AsRawFd::as_raw_fd);
        if both.map(|fd| INTERNAL.insert(fd)) != [true; 2] {
            both.iter().for_each(|fd| INTERNAL.remove(*fd));
            return None;
        }
        Some(Self { out, into })
    }

    fn copy(&self, addr: u64, buf: &mut [u8]) -> Option<Result<(), Errno>> {
        let from = ptr::without_provenance(addr as usize);
        // SAFETY: the kernel checks the address, from which it only reads.
        let copied = unsafe { libc::write(self.into.as_raw_fd(), from, buf.len()) };
        let failed = std::io::Error::last_os_error().raw_os_error();
        if copied.cast_unsigned() == buf.len()
            && rustix::io::read(&self.out, &mut *buf) == Ok(buf.len())
        {
            return Some(Ok(()));
        }
        // What came before the fault.
        while rustix::io::read(&self.out, &mut [0; SLOT]).is_ok_and(|len| len != 0) {}
        let is_other = copied == -1 && failed != Some(libc::EFAULT);
        (!is_other).then_some(Err(Errno::EFAULT))
    }
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
        // The program must not close it.
        INTERNAL.insert(file.as_raw_fd()).then_some(())?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel picks an unused place, so no memory in use changes.
        let mapped = unsafe { mmap(ptr::null_mut(), LEN, prot, MapFlags::SHARED, &file, 0) };
        let Ok(base) = mapped else {
            INTERNAL.remove(file.as_raw_fd());
            return None;
        };
        Some(Self {
            file,
            base: base.expose_provenance() as u64,
            taken: AtomicU64::new(0),
            pipes: [const { OnceLock::new() }; PIPES],
            busy: AtomicU64::new(0),
        })
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

/// What this process has of all this, which is made when it is first needed.
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
                    let base = ptr::with_exposed_provenance_mut(unused.base as usize);
                    // SAFETY: the mapping is this page's own, which nobody was given.
                    let _ = unsafe { munmap(base, LEN) };
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
        if bytes.is_empty() {
            return Some(Ok(()));
        }
        let page = self.page()?;
        let slot = Claim::new(&page.taken, SLOTS)?;
        page.copy(slot.bit, addr, bytes)
    }

    /// Copies the bytes, at most [`SLOT`], at an address. `None` if it cannot be done this way.
    ///
    /// # Errors
    /// EFAULT if some of them cannot be read. `buf` is as it was then.
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> Option<Result<(), Errno>> {
        if buf.is_empty() {
            return Some(Ok(()));
        }
        let page = self.page()?;
        let pipe = Claim::new(&page.busy, PIPES as u32)?;
        page.pipes.get(pipe.bit as usize)?.get_or_init(Pipe::new).as_ref()?.copy(addr, buf)
    }

    /// In the child: parent and child must not write to the same file.
    pub(crate) fn after_fork(&self) {
        let page = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: as in `page`.
        if let Some(page) = unsafe { page.as_ref() } {
            let pipes = page.pipes.iter().filter_map(|pipe| pipe.get()?.as_ref());
            let files = pipes.flat_map(|pipe| [&pipe.out, &pipe.into]).chain([&page.file]);
            for fd in files.map(AsRawFd::as_raw_fd) {
                INTERNAL.remove(fd);
                // SAFETY: it is this page's, which nobody uses any more: other threads are not in the child.
                unsafe { rustix::io::close(fd) };
            }
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
                        let mut back = vec![0; bytes.len()];
                        // Others may have all the pipes.
                        if scratch.read(addr, &mut back) == Some(Ok(())) {
                            assert_eq!(back, bytes);
                        }
                    }
                });
            }
        });
        let page = scratch.page().unwrap();
        assert_eq!(page.busy.load(Ordering::Relaxed), 0, "so are all pipes");
        assert_eq!(page.taken.load(Ordering::Relaxed), 0, "all slots are free again");
    }

    #[test]
    fn a_page_that_cannot_be_written_to_is_a_fault_and_takes_no_slot() {
        let scratch = Scratch::new();
        for _ in 0..2 * SLOTS {
            let literal = b"literal".as_ptr().addr() as u64;
            assert_eq!(scratch.write(literal, b"LITERAL"), Some(Err(Errno::EFAULT)));
            assert_eq!(scratch.write(4096, &[1]), Some(Err(Errno::EFAULT)));
            assert_eq!(scratch.read(4096, &mut [1]), Some(Err(Errno::EFAULT)));
        }
    }

    #[test]
    fn after_a_fault_on_the_way_nothing_is_left_in_the_pipe() {
        use rustix::mm::{MprotectFlags, mmap_anonymous, mprotect};
        const PAGE: usize = 4096;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new place; the second of its pages is taken away again.
        let base = unsafe {
            let base = mmap_anonymous(ptr::null_mut(), 2 * PAGE, prot, MapFlags::PRIVATE).unwrap();
            mprotect(base.cast::<u8>().add(PAGE).cast(), PAGE, MprotectFlags::empty()).unwrap();
            base
        };
        let end = (base.expose_provenance() + PAGE) as u64;
        let scratch = Scratch::new();
        for _ in 0..200 {
            assert_eq!(scratch.read(end - 100, &mut [7; 200]), Some(Err(Errno::EFAULT)));
            assert_eq!(scratch.write(end - 100, &[7; 200]), Some(Err(Errno::EFAULT)));
        }
        let mut buf = [7; 4];
        assert_eq!(scratch.read(end - 4, &mut buf), Some(Ok(())));
        assert_eq!(scratch.write(end - 4, &[9; 4]), Some(Ok(())));
        assert_eq!(scratch.read(end - 4, &mut buf), Some(Ok(())));
        assert_eq!(buf, [9; 4]);
        // SAFETY: the mapping made above, into which nothing points any more.
        unsafe { munmap(base, 2 * PAGE).unwrap() };
    }

    #[test]
    fn after_a_fork_there_is_another_file() {
        let scratch = Scratch::new();
        let before = scratch.page().unwrap().base;
        scratch.after_fork();
        assert_ne!(scratch.page().unwrap().base, before);
    }
}
