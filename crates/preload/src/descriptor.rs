//! Descriptors that are closed, replaced or mapped.
//!
//! **Invariant.** Every call goes to the real function with the arguments as they came, but for descriptors that the library
//! has open for itself, which a program doesn't know of and must not close, and for mappings of maps.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_void};

use bpfarray_syscall::Kernel;

use crate::real::{self, set_errno};
use crate::state::{caught, kernel, kernel_in_use};

/// Lets the library know that a descriptor will be another one; `false` if it is one of the library's own.
fn is_free(fd: c_int) -> bool {
    if Kernel::is_internal(fd) {
        set_errno(libc::EBADF);
        return false;
    }
    if let Some(kernel) = kernel_in_use() {
        let _ = caught(|| {
            kernel.forget(fd);
            Ok(())
        });
    }
    true
}

/// # Safety
/// As `close`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if is_free(fd) { unsafe { real::close(fd) } } else { -1 }
}

/// # Safety
/// As `dup2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if is_free(new) { unsafe { real::dup2(old, new) } } else { -1 }
}

/// # Safety
/// As `dup3`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if is_free(new) { unsafe { real::dup3(old, new, flags) } } else { -1 }
}

/// # Safety
/// As `close_range`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let Some(kernel) = kernel_in_use().filter(|_| first <= last) else {
        // SAFETY: the caller's promise.
        return unsafe { real::close_range(first, last, flags) };
    };
    const CLOEXEC: c_int = 4;
    if flags & CLOEXEC == 0 {
        let _ = caught(|| {
            kernel.forget_range(first, last);
            Ok(())
        });
    }
    let mut start = first;
    for fd in Kernel::internal_within(first, last) {
        let fd = fd.cast_unsigned();
        if start < fd {
            // SAFETY: a part of the caller's range.
            let closed = unsafe { real::close_range(start, fd - 1, flags) };
            if closed != 0 {
                return closed;
            }
        }
        start = fd + 1;
    }
    // SAFETY: the rest of the caller's range.
    if start <= last { unsafe { real::close_range(start, last, flags) } } else { 0 }
}

/// # Safety
/// As `closefrom`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: the caller's promise. libc's function does the same, and has no result.
    unsafe { close_range(first.max(0).cast_unsigned(), c_uint::MAX, 0) };
}

/// # Safety
/// As `mmap`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if fd >= 0 && flags & libc::MAP_ANONYMOUS == 0 && !Kernel::is_internal(fd) {
        let mapped = caught(|| {
            let (addr, offset) = (addr.expose_provenance() as u64, offset.cast_unsigned());
            // SAFETY: the caller's promise.
            Ok(unsafe { kernel()?.mmap(addr, len as u64, prot, flags, fd, offset) })
        });
        match mapped {
            Ok(Some(Ok(at))) => return std::ptr::with_exposed_provenance_mut(at as usize),
            Ok(Some(Err(errno))) => {
                set_errno(errno.raw());
                return libc::MAP_FAILED;
            }
            Ok(None) | Err(_) => {}
        }
    }
    // SAFETY: the caller's promise.
    unsafe { real::mmap(addr, len, prot, flags, fd, offset) }
}

/// # Safety
/// As `mmap64`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise; offsets have 64 bits in both.
    unsafe { mmap(addr, len, prot, flags, fd, offset) }
}
