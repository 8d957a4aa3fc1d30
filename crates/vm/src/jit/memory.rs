//! Memory for machine code.
//!
//! **Invariant.** The bytes of a [`CodeMemory`] are written once, before any of them can be executed, and
//! never again: the mapping is writable, and then readable and executable, and never both. It is
//! unmapped when dropped. Whoever keeps an address in it keeps the `CodeMemory` too: a
//! [`Compiled`](super::Compiled) owns it and is owned by its program, which a run borrows or, after a
//! tail call, a lane keeps.
//!
//! What the bytes do when they are executed is no matter of this file but of [`super::entry`].
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use bpfarray_core::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use wasmtime_internal_jit_icache_coherence as icache;

/// Machine code.
#[derive(Debug)]
pub(super) struct CodeMemory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to no thread, and nobody writes to it any more.
unsafe impl Send for CodeMemory {}
// SAFETY: as above; all methods only read.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// Executable memory with these bytes.
    ///
    /// # Errors
    /// What `mmap` and `mprotect` say: no memory, or a system that allows no new code.
    pub(super) fn new(code: &[u8]) -> Result<Self, Errno> {
        let errno = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
        let len = code.len().max(1);
        // SAFETY: without MAP_FIXED the kernel picks an unused place, so no memory in use changes.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let base = NonNull::new(base.map_err(errno)?.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        let memory = Self { base, len };
        // SAFETY: the mapping is new, writable, `code.len()` bytes long at least, and nobody else knows it.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), base.as_ptr(), code.len()) };
        let start = base.as_ptr().cast();
        // SAFETY: the range is the mapping made above. Clearing caches changes no memory.
        let coherent = unsafe { icache::clear_cache(start, len) }
            .and_then(|()| icache::pipeline_flush_mt())
            .map_err(|_| Errno::EINVAL);
        // SAFETY: the range is the mapping made above, to which nobody has a reference.
        unsafe { mprotect(start, len, MprotectFlags::READ | MprotectFlags::EXEC) }
            .map_err(errno)?;
        coherent.map(|()| memory)
    }

    /// Address of the first byte.
    pub(super) fn addr(&self) -> usize {
        self.base.as_ptr().expose_provenance()
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `base` on are mapped readable while `self` lives, and nobody writes to them.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping; by the invariant nobody uses an address in it after this.
        // A failure could only leave it mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_never_writable_and_executable_and_goes_with_its_owner() {
        // So much that no other test's code takes its place.
        let memory = CodeMemory::new(&[0xc3; 5 << 20]).unwrap();
        assert!(memory.bytes().iter().all(|byte| *byte == 0xc3));
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let range = memory.addr()..memory.addr() + memory.bytes().len();
        // Neighbours with the same protection are one line.
        let holds = |line: &&str| {
            let ends = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let [start, end] = <[&str; 2]>::from(ends.unwrap());
            let [start, end] = [start, end].map(|end| usize::from_str_radix(end, 16).unwrap());
            start <= range.start && range.end <= end
        };
        let text = maps();
        let line = text.lines().find(holds).unwrap();
        assert!(line.contains(" r-xp "), "{line}");
        assert!(!text.lines().any(|line| line.contains(" rwx")), "{text}");
        drop(memory);
        assert!(!maps().lines().any(|line| holds(&line)));
    }
}
