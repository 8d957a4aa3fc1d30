//! Memory that others write while we read it.
//!
//! **Invariant.** `base..base + len` of a [`Memory`] is mapped readable and writable, and `base` is
//! a multiple of 8, for as long as `owner` lives. Nothing in this crate makes a reference to these
//! bytes: every access is a relaxed (or stronger) atomic one through a raw pointer, after a bounds
//! check in [`Memory::at`]. So other threads, programs and processes may write at any time, and the
//! worst they can do is to change the numbers that are read.
//!
//! The owner could break the invariant by unmapping early. [`Block`] unmaps when dropped, which
//! needs the last `Memory` on it to be gone; other owners promise the same to [`Memory::from_raw`].
//!
//! Beyond Rust's memory model is one thing: unsynchronised atomic accesses of *different sizes* to the
//! same bytes, which programs make whenever one stores 4 bytes of a value that another reads as 8.
//! Rust's documents leave their outcome undefined. Here each of them is one machine instruction, which the
//! processor defines byte by byte, and LLVM, for which atomics of any size are opaque to each other, does
//! not reason about them. `docs/soundness.md` names this among what we trust.
#![allow(unsafe_code)]

mod atomic;
mod raw;

use std::fmt;
use std::hint::assert_unchecked;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bpfarray_core::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use self::atomic::AtomicError;
use self::raw::UNIT;

/// A piece of memory that is read and written by copying, safely from any number of threads.
///
/// A clone is another handle to the same bytes. Copies move aligned 8-byte units, so an aligned
/// `u64` never tears, nor does an aligned `u32` or `u16`.
///
/// ```
/// use bpfarray::Memory;
/// let memory = Memory::anonymous(4096)?;
/// memory.write(8, b"counters")?;
/// assert_eq!(memory.load(8, 1)?, u64::from(b'c'));
/// assert_eq!(memory.fetch_add(16, 8, 5)?, 0);
/// assert!(memory.load(4089, 8).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Plain accesses are relaxed: they order nothing. Atomic operations are sequentially consistent,
/// as the kernel's are when they fetch.
#[derive(Clone)]
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    owner: Arc<dyn Send + Sync>,
}

// SAFETY: `base` points to memory that belongs to no thread; all access to it is atomic; and the
// owner is `Send + Sync` itself.
unsafe impl Send for Memory {}
// SAFETY: as above; no method relies on `&self` being the only reference.
unsafe impl Sync for Memory {}

/// An access that is not inside a piece of memory.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{size} bytes at offset {offset} are not within {len} bytes of memory")]
pub struct OutOfBounds {
    /// Offset of the access in bytes.
    pub offset: usize,
    /// Bytes accessed.
    pub size: usize,
    /// Bytes there are.
    pub len: usize,
}

/// An anonymous mapping, unmapped when dropped.
struct Block {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Block` only unmaps, which any thread may do.
unsafe impl Send for Block {}
// SAFETY: it has no method that takes `&self`.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of a mapping that `Memory::anonymous` made for this
        // block alone, and the last `Memory` on it is gone, or it would hold the block.
        // A failure could only leave it mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Memory {
    /// `len` bytes of new memory, zero until written; untouched pages take up no memory.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for no bytes at all; [`Errno::ENOMEM`] where the address space or the
    /// system has no room.
    pub fn anonymous(len: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel picks an unused place, so no memory in use changes.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, flags) }
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        // SAFETY: the mapping is new, page aligned, and stays until its `Block` is dropped.
        Ok(unsafe { Self::from_raw(base, len, Arc::new(Block { base, len })) })
    }

    /// Lets pages that nobody has touched yet come from a NUMA node, while it has some left. `self` must begin
    /// with a page.
    ///
    /// # Kernel
    /// `bpf_map_area_alloc`, and `mbind` with `MPOL_PREFERRED`
    pub(crate) fn prefer_node(&self, node: u32) {
        // As many as Linux has at most.
        let mut nodes = [0_u64; 1024 / 64];
        let Some(word) = nodes.get_mut(node as usize / 64) else { return };
        *word = 1 << (node % 64);
        // The kernel takes one bit less than it is told.
        let max_node = nodes.len() * 64 + 1;
        // SAFETY: the call reads `max_node` bits at most, which are there, and changes from where pages of
        // this mapping come, not what they hold. It fails on a kernel without NUMA, which has only one node.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.len,
                libc::MPOL_PREFERRED,
                nodes.as_ptr(),
                max_node,
                0,
            )
        };
    }

    /// # Safety
    /// `base..base + len` must be mapped readable and writable while `owner` lives, `base` must be
    /// a multiple of 8, and nobody may hold a reference into it.
    pub(crate) unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        owner: Arc<dyn Send + Sync>,
    ) -> Self {
        Self { base, len, owner }
    }

    /// `len` bytes from `offset` on, as memory of their own that keeps the whole alive.
    ///
    /// # Errors
    /// [`OutOfBounds`], also for an offset that is no multiple of 8.
    pub(crate) fn view(&self, offset: usize, len: usize) -> Result<Self, OutOfBounds> {
        let base = self.at(offset, len)?;
        if !offset.is_multiple_of(UNIT) {
            return Err(self.out_of_bounds(offset, len));
        }
        Ok(Self { base, len, owner: Arc::clone(&self.owner) })
    }

    /// Address of the first byte, a multiple of 8.
    #[inline]
    pub fn addr(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// Number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn out_of_bounds(&self, offset: usize, size: usize) -> OutOfBounds {
        OutOfBounds { offset, size, len: self.len }
    }

    /// Where `size` bytes at `offset` are, all of them inside.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Result<NonNull<u8>, OutOfBounds> {
        if size > self.len || offset > self.len - size {
            return Err(self.out_of_bounds(offset, size));
        }
        // SAFETY: `base` is a multiple of `UNIT` by the invariant of this type; and `offset` is at
        // most `len`, so the sum stays inside the mapping or just behind its end.
        Ok(unsafe {
            assert_unchecked(self.base.as_ptr().addr().is_multiple_of(UNIT));
            self.base.add(offset)
        })
    }

    /// Copies the bytes at `offset` into `buf`.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is copied.
    #[inline]
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), OutOfBounds> {
        let at = self.at(offset, buf.len())?;
        // SAFETY: `at` checked that `buf.len()` bytes are inside.
        unsafe { raw::copy_out(at.as_ptr(), buf) };
        Ok(())
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is copied.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let at = self.at(offset, bytes.len())?;
        // SAFETY: `at` checked that `bytes.len()` bytes are inside.
        unsafe { raw::copy_in(at.as_ptr(), bytes) };
        Ok(())
    }

    /// Where the element `index` is, if the memory is an array of `T`, each at a multiple of 8.
    ///
    /// Compares the index and not its offset, which processors can scale while they load.
    #[inline(always)]
    fn elem_at<T>(&self, index: u32) -> Option<NonNull<u8>> {
        let elem_size = size_of::<T>().next_multiple_of(UNIT).max(UNIT);
        if index as usize >= self.len / elem_size {
            return None;
        }
        // SAFETY: `base` is a multiple of `UNIT` by the invariant of this type; and `index + 1` is
        // at most `len / elem_size`, so the element ends inside.
        unsafe {
            assert_unchecked(self.base.as_ptr().addr().is_multiple_of(UNIT));
            Some(self.base.add(index as usize * elem_size))
        }
    }

    /// Copies an element of an array of `T`, each at a multiple of 8; `None` past the end.
    #[inline(always)]
    pub(crate) fn read_elem<T: FromBytes + IntoBytes>(&self, index: u32) -> Option<T> {
        let at = self.elem_at::<T>(index)?;
        let mut value = T::new_zeroed();
        // SAFETY: the bytes of a `T` at `at` are inside, says `elem_at`.
        unsafe { raw::copy_out(at.as_ptr(), value.as_mut_bytes()) };
        Some(value)
    }

    /// Replaces an element of an array of `T`, each at a multiple of 8; `None` past the end.
    #[inline(always)]
    pub(crate) fn write_elem<T: IntoBytes + Immutable>(&self, index: u32, value: T) -> Option<()> {
        let at = self.elem_at::<T>(index)?;
        // SAFETY: the bytes of a `T` at `at` are inside, says `elem_at`.
        unsafe { raw::copy_in(at.as_ptr(), value.as_bytes()) };
        Some(())
    }

    /// Sets `len` bytes from `offset` on to `byte`.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is set.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), OutOfBounds> {
        let at = self.at(offset, len)?.as_ptr();
        let units = [byte; 256];
        for start in (0..len).step_by(units.len()) {
            let part = &units[..units.len().min(len - start)];
            // SAFETY: `start + part.len()` is at most `len`, and `at` checked `len` bytes.
            unsafe { raw::copy_in(at.add(start), part) };
        }
        Ok(())
    }

    /// Loads a number of 1, 2, 4 or 8 bytes in host order, zero-extended. Any alignment will do,
    /// but only an aligned number is sure to be read in one piece.
    ///
    /// # Errors
    /// [`OutOfBounds`], also for any other size.
    #[inline(always)]
    pub fn load(&self, offset: usize, size: usize) -> Result<u64, OutOfBounds> {
        let at = self.at(offset, size)?.as_ptr();
        // SAFETY: `at` checked that `size` bytes are inside.
        unsafe { raw::load(at, size) }.ok_or_else(|| self.out_of_bounds(offset, size))
    }

    /// Stores the low 1, 2, 4 or 8 bytes of a number in host order. Any alignment will do, but only
    /// an aligned number is sure to be written in one piece.
    ///
    /// # Errors
    /// [`OutOfBounds`], also for any other size.
    #[inline(always)]
    pub fn store(&self, offset: usize, size: usize, value: u64) -> Result<(), OutOfBounds> {
        let at = self.at(offset, size)?.as_ptr();
        // SAFETY: `at` checked that `size` bytes are inside.
        unsafe { raw::store(at, size, value) }.ok_or_else(|| self.out_of_bounds(offset, size))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:#x}..{:#x})", self.addr(), self.addr() + self.len as u64)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn memory(len: usize) -> Memory {
        Memory::anonymous(len).unwrap()
    }

    #[test]
    fn every_offset_and_length_is_copied_both_ways() {
        let pattern: Vec<u8> = (1..=40).collect();
        for offset in 0..17 {
            for len in 0..=pattern.len() {
                let memory = memory(64);
                memory.write(offset, &pattern[..len]).unwrap();
                let mut whole = [0; 64];
                memory.read(0, &mut whole).unwrap();
                let mut expected = [0; 64];
                expected[offset..offset + len].copy_from_slice(&pattern[..len]);
                assert_eq!(whole, expected, "write of {len} bytes at {offset}");

                let mut part = vec![0; len];
                memory.read(offset, &mut part).unwrap();
                assert_eq!(part, pattern[..len], "read of {len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn numbers_are_loaded_and_stored_at_any_alignment() {
        let value = 0x0102_0304_0506_0708_u64;
        for offset in 0..16 {
            for size in [1, 2, 4, 8] {
                let memory = memory(32);
                memory.fill(0, 32, 0xff).unwrap();
                memory.store(offset, size, value).unwrap();
                let low = if size == 8 { value } else { value & ((1 << (8 * size)) - 1) };
                assert_eq!(memory.load(offset, size), Ok(low), "{size} bytes at {offset}");
                let mut bytes = [0; 32];
                memory.read(0, &mut bytes).unwrap();
                assert_eq!(bytes.iter().filter(|&&byte| byte != 0xff).count(), size);
                let mut expected = vec![0; size];
                if cfg!(target_endian = "little") {
                    expected.copy_from_slice(&value.to_le_bytes()[..size]);
                } else {
                    expected.copy_from_slice(&value.to_be_bytes()[8 - size..]);
                }
                assert_eq!(bytes[offset..offset + size], expected);
            }
        }
    }

    #[test]
    fn an_access_over_the_end_is_refused_and_changes_nothing() {
        let memory = memory(4096);
        let bound = |offset, size| Err(OutOfBounds { offset, size, len: 4096 });
        assert_eq!(memory.write(4090, &[1; 7]), bound(4090, 7));
        assert_eq!(memory.read(4097, &mut []), bound(4097, 0));
        assert_eq!(memory.read(4096, &mut []), Ok(()));
        assert_eq!(memory.fill(1, 4096, 7), bound(1, 4096));
        assert_eq!(memory.store(usize::MAX, 8, 1), bound(usize::MAX, 8));
        assert_eq!(
            memory.load(usize::MAX - 3, 4),
            Err(OutOfBounds { offset: usize::MAX - 3, size: 4, len: 4096 })
        );
        assert_eq!(memory.load(4089, 8).ok(), None);
        for offset in (0..4096).step_by(8) {
            assert_eq!(memory.load(offset, 8), Ok(0));
        }
    }

    #[test]
    fn odd_sizes_are_no_numbers() {
        let memory = memory(64);
        for size in [0, 3, 5, 6, 7, 9, 16, usize::MAX] {
            for offset in [0, 1] {
                assert!(memory.load(offset, size).is_err(), "load {size}");
                assert!(memory.store(offset, size, 0).is_err(), "store {size}");
            }
        }
    }

    #[test]
    fn an_aligned_number_never_tears() {
        let memory = memory(64);
        let patterns = [0, u64::MAX];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..100_000 {
                    let bytes = [patterns[round % 2].to_ne_bytes(); 3].concat();
                    memory.write(3, &bytes).unwrap();
                }
            });
            for _ in 0..100_000 {
                let mut bytes = [0; 20];
                memory.read(5, &mut bytes).unwrap();
                let (unit, _) = bytes[3..].split_first_chunk().unwrap();
                assert!(patterns.contains(&u64::from_ne_bytes(*unit)), "{bytes:?}");
            }
        });
    }

    #[test]
    fn a_view_keeps_the_memory_alive() {
        let view = {
            let memory = memory(4096);
            memory.store(4000, 8, 42).unwrap();
            assert!(memory.view(4001, 8).is_err() && memory.view(4000, 97).is_err());
            memory.view(4000, 8).unwrap()
        };
        assert_eq!(view.load(0, 8), Ok(42));
        assert!(view.load(8, 1).is_err());
    }

    #[test]
    fn elements_end_with_the_last_whole_one() {
        let memory = memory(4096).view(0, 40).unwrap();
        assert_eq!(memory.write_elem(1, [7_u32, 8, 9]), Some(()));
        assert_eq!(memory.read_elem(1), Some([7_u32, 8, 9]));
        assert_eq!(memory.read_elem::<[u32; 3]>(2), None);
        assert_eq!(memory.read_elem::<u32>(4), Some(0));
        assert_eq!(memory.read_elem::<u32>(5), None);
        assert_eq!(memory.load(16, 8).unwrap() as u32, 7);
    }

    #[test]
    fn memory_that_cannot_be_had_is_enomem() {
        assert_eq!(Memory::anonymous(1 << 60).err(), Some(Errno::ENOMEM));
        assert_eq!(Memory::anonymous(0).err(), Some(Errno::EINVAL));
    }
}
