//! Per-CPU memory: one window of addresses for each CPU, all laid out alike.
//!
//! A per-CPU object has the same *offset* in every window; its address on a CPU is the offset plus
//! the base of that CPU's window. The first page of each window holds variables of the CPU.
//!
//! **Invariant.** The windows are one reservation that is never unmapped once it is published. Of
//! an [`Extent`], and of the first pages, every window's part is readable and writable; everything
//! else is inaccessible. Extents do not overlap, as one allocator under a lock hands them out, and
//! go back to it only when the last [`Memory`] on them is gone and their pages are inaccessible
//! again.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bpfarray_core::Errno;
use range_alloc::RangeAllocator;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;

use crate::cpu::possible_cpus;
use crate::file::{Protection, Source};
use crate::memory::Memory;

/// Bytes from one window to the next, where there is room.
const STRIDE_MAX: usize = 64 << 30;
/// The least that is tried, for a process whose address space is limited.
const STRIDE_MIN: usize = 16 << 20;

/// Offset in bytes of a CPU's number, a `u32`, from the base of its window.
#[doc(alias = "pcpu_hot")]
pub const CPU_NUMBER_OFFSET: u32 = 64;

/// Address of the first byte of a CPU's window. Adding it to a per-CPU offset gives the address of
/// that CPU's copy: the per-CPU move of inlined lookups.
///
/// # Errors
/// [`Errno::ENOMEM`] where the address space has no room for windows, [`Errno::EINVAL`] for a `cpu`
/// that is not below [`possible_cpus`].
///
/// # Kernel
/// `__per_cpu_offset`
#[doc(alias = "__per_cpu_offset")]
pub fn window_base(cpu: u32) -> Result<u64, Errno> {
    let windows = Windows::get()?;
    Ok(windows.at(cpu, 0)?.as_ptr().expose_provenance() as u64)
}

/// How far from the base of its window an address is; `None` outside of all windows.
pub(crate) fn offset_of(addr: u64) -> Option<u64> {
    let windows = WINDOWS.get()?;
    let from_base = addr.checked_sub(windows.base.as_ptr().addr() as u64)?;
    let stride = windows.stride as u64;
    (from_base / stride < u64::from(windows.cpus)).then(|| from_base % stride)
}

/// The variables of a CPU, at the start of its window.
pub(crate) fn cpu_variables(cpu: u32) -> Result<Memory, Errno> {
    let windows = Windows::get()?;
    let base = windows.at(cpu, 0)?;
    // SAFETY: the first page of every window is readable and writable for good.
    Ok(unsafe { Memory::from_raw(base, page_size(), Arc::new(())) })
}

/// The reservation, made when it is needed first.
static WINDOWS: OnceLock<Windows> = OnceLock::new();

/// Windows of equal size, one after the other.
struct Windows {
    base: NonNull<u8>,
    stride: usize,
    cpus: u32,
    free: Mutex<RangeAllocator<usize>>,
}

// SAFETY: `base` is the address of memory that belongs to no thread.
unsafe impl Send for Windows {}
// SAFETY: page protections change only for ranges that the locked allocator has given to the
// caller.
unsafe impl Sync for Windows {}

impl Windows {
    fn get() -> Result<&'static Self, Errno> {
        match WINDOWS.get() {
            Some(windows) => Ok(windows),
            None => {
                let windows = Self::reserve(possible_cpus(), STRIDE_MAX)?;
                Ok(WINDOWS.get_or_init(|| windows))
            }
        }
    }

    /// Windows for `cpus` CPUs, as large as there is room but not larger than `stride`.
    fn reserve(cpus: u32, mut stride: usize) -> Result<Self, Errno> {
        let base = loop {
            // SAFETY: without MAP_FIXED no memory in use changes.
            match unsafe { inaccessible(None, stride.saturating_mul(cpus as usize)) } {
                Ok(base) => break base,
                Err(_) if stride > STRIDE_MIN => stride /= 2,
                Err(errno) => return Err(errno),
            }
        };
        let page = page_size();
        let free = Mutex::new(RangeAllocator::new(page..stride));
        let windows = Self { base, stride, cpus, free };
        windows.enable(&(0..page))?;
        for cpu in 0..cpus {
            let base = windows.at(cpu, 0)?;
            // SAFETY: the page was just enabled; and if `self` is dropped, which unmaps it, then
            // before anybody else has seen it, and after this `Memory`.
            let variables = unsafe { Memory::from_raw(base, page, Arc::new(())) };
            variables
                .store(CPU_NUMBER_OFFSET as usize, size_of::<u32>(), u64::from(cpu))
                .map_err(|_| Errno::EINVAL)?;
        }
        Ok(windows)
    }

    /// Where `offset` is in the window of `cpu`.
    fn at(&self, cpu: u32, offset: usize) -> Result<NonNull<u8>, Errno> {
        if cpu >= self.cpus || offset >= self.stride {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the sum is less than `cpus * stride`, the length of the reservation.
        Ok(unsafe { self.base.add(cpu as usize * self.stride + offset) })
    }

    fn allocate(&self, len: u64) -> Result<Range<usize>, Errno> {
        let len = usize::try_from(len)
            .ok()
            .and_then(|len| len.checked_next_multiple_of(page_size()))
            .filter(|len| (1..self.stride).contains(len))
            .ok_or(Errno::ENOMEM)?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.allocate_range(len).map_err(|_| Errno::ENOMEM)
    }

    /// Makes a range usable in every window.
    fn enable(&self, range: &Range<usize>) -> Result<(), Errno> {
        for cpu in 0..self.cpus {
            let at = self.at(cpu, range.start)?.as_ptr().cast::<c_void>();
            // SAFETY: the range is inside the reservation, and it is the caller's.
            unsafe { mprotect(at, range.len(), MprotectFlags::READ | MprotectFlags::WRITE) }
                .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        }
        Ok(())
    }

    /// Gives the pages of a range back to the system, in every window.
    fn disable(&self, range: &Range<usize>) -> Result<(), Errno> {
        for cpu in 0..self.cpus {
            let at = self.at(cpu, range.start)?;
            // SAFETY: the range is inside the reservation, and nobody uses it any more.
            unsafe { inaccessible(Some(at), range.len()) }?;
        }
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        // A range that could not be disabled is never handed out again: its bytes are not zero.
        if self.disable(&range).is_ok() {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).free_range(range);
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        // SAFETY: only a reservation that was never published is dropped: a published one is a
        // static.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.stride * self.cpus as usize) };
    }
}

/// Maps inaccessible memory: at `at`, in the place of what is there, or else where there is room.
///
/// # Safety
/// Nobody may use the `len` bytes at `at`.
unsafe fn inaccessible(at: Option<NonNull<u8>>, len: usize) -> Result<NonNull<u8>, Errno> {
    let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    flags.set(MapFlags::FIXED, at.is_some());
    let at = at.map_or(ptr::null_mut(), |at| at.as_ptr().cast());
    // SAFETY: the caller's promise.
    let base = unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags) }
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    NonNull::new(base.cast()).ok_or(Errno::ENOMEM)
}

/// The same bytes in every window, zero at first, given back when dropped.
pub(crate) struct Extent {
    windows: &'static Windows,
    range: Range<usize>,
    /// Of mapped files, one for each CPU.
    protections: Vec<Protection>,
}

impl Extent {
    /// `len` bytes in each CPU's window, in pages that no other extent shares.
    pub(crate) fn new(len: u64) -> Result<Arc<Self>, Errno> {
        Self::new_in(Windows::get()?, len)
    }

    fn new_in(windows: &'static Windows, len: u64) -> Result<Arc<Self>, Errno> {
        let extent = Self { windows, range: windows.allocate(len)?, protections: Vec::new() };
        windows.enable(&extent.range)?;
        Ok(Arc::new(extent))
    }

    /// `len` bytes of a file in each CPU's window, from the page at `offset_of(cpu)` on.
    pub(crate) fn of_file(
        len: u64,
        source: &Source,
        offset_of: impl Fn(u32) -> u64,
    ) -> Result<Arc<Self>, Errno> {
        let windows = Windows::get()?;
        let range = windows.allocate(len)?;
        let mut extent = Self { windows, range, protections: Vec::new() };
        for cpu in 0..windows.cpus {
            let at = windows.at(cpu, extent.range.start)?;
            // SAFETY: the range was allocated for this extent, which nobody else has seen.
            let mapped = unsafe { source.map(Some(at), extent.range.len(), offset_of(cpu)) };
            extent.protections.push(mapped?.1);
        }
        Ok(Arc::new(extent))
    }

    /// Offset of the first byte from the base of each window.
    pub(crate) fn offset(&self) -> u64 {
        self.range.start as u64
    }

    /// The part of the extent that belongs to `cpu`, which must be a possible CPU.
    pub(crate) fn memory(self: &Arc<Self>, cpu: u32) -> Result<Memory, Errno> {
        let base = self.windows.at(cpu, self.range.start)?;
        let owner = Arc::clone(self);
        // SAFETY: `range` was enabled in all windows and stays so until the extent is dropped,
        // which `owner` puts off; a page is a multiple of 8 bytes.
        Ok(unsafe { Memory::from_raw(base, self.range.len(), owner) })
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.protections.clear();
        self.windows.release(self.range.clone());
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn windows(cpus: u32, stride: usize) -> &'static Windows {
        Box::leak(Box::new(Windows::reserve(cpus, stride).unwrap()))
    }

    #[test]
    fn each_cpu_finds_its_number_in_its_window() {
        for cpu in 0..possible_cpus() {
            let variables = cpu_variables(cpu).unwrap();
            assert_eq!(variables.addr(), window_base(cpu).unwrap());
            assert_eq!(variables.load(CPU_NUMBER_OFFSET as usize, 4), Ok(u64::from(cpu)));
        }
        assert_eq!(window_base(possible_cpus()), Err(Errno::EINVAL));
    }

    #[test]
    fn an_address_in_any_window_has_the_offset_of_the_object() {
        let extent = Extent::new(100).unwrap();
        for cpu in 0..possible_cpus() {
            let addr = extent.memory(cpu).unwrap().addr();
            assert_eq!(offset_of(addr + 99), Some(extent.offset() + 99));
        }
        let base = window_base(0).unwrap();
        let end = base + Windows::get().unwrap().stride as u64 * u64::from(possible_cpus());
        assert_eq!((offset_of(base - 1), offset_of(end)), (None, None));
        assert_eq!(offset_of(base), Some(0));
    }

    #[test]
    fn an_extent_is_at_the_same_offset_of_every_window() {
        let windows = windows(5, 1 << 24);
        let extent = Extent::new_in(windows, 100).unwrap();
        let addr = |cpu| extent.memory(cpu).unwrap().addr();
        assert_eq!(addr(0), windows.base.as_ptr().addr() as u64 + extent.offset());
        for cpu in 1..5 {
            assert_eq!(addr(cpu) - addr(cpu - 1), 1 << 24);
            extent.memory(cpu).unwrap().store(0, 8, u64::from(cpu)).unwrap();
        }
        assert_eq!(extent.memory(3).unwrap().load(0, 8), Ok(3));
        assert!(extent.memory(5).is_err());
    }

    #[test]
    fn extents_share_no_page() {
        let windows = windows(1, 1 << 24);
        let first = Extent::new_in(windows, 1).unwrap();
        let second = Extent::new_in(windows, 1).unwrap();
        assert!(first.offset().abs_diff(second.offset()) >= page_size() as u64);
        assert!(first.offset() >= page_size() as u64);
    }

    #[test]
    fn a_dropped_extent_is_handed_out_again_as_zeros() {
        let windows = windows(2, 1 << 24);
        let all = (1 << 24) - page_size() as u64;
        let extent = Extent::new_in(windows, all).unwrap();
        let memory = extent.memory(1).unwrap();
        memory.fill(0, memory.len(), 0xff).unwrap();
        assert_eq!(Extent::new_in(windows, 1).err(), Some(Errno::ENOMEM));
        drop(extent);
        assert_eq!(Extent::new_in(windows, 1).err(), Some(Errno::ENOMEM), "memory is in use");
        drop(memory);
        let extent = Extent::new_in(windows, all).unwrap();
        assert_eq!(extent.memory(1).unwrap().load(0, 8), Ok(0));
    }

    #[test]
    fn a_stride_that_does_not_fit_is_halved() {
        let windows = Windows::reserve(1024, 1 << 42).unwrap();
        assert!(windows.stride < 1 << 42 && windows.stride.is_power_of_two());
    }

    #[test]
    fn more_than_a_window_is_refused() {
        for len in [64 << 30, u64::MAX, 0] {
            assert_eq!(Extent::new(len).err(), Some(Errno::ENOMEM), "{len}");
        }
    }
}
