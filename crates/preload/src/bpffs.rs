//! Paths under `/sys/fs/bpf`.
//!
//! **Invariant.** Strings are read up to their NUL, as the function whose place is taken does; a path that is no bpffs path
//! is handed on as it came.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bpfarray_syscall::BPFFS;

use crate::fdinfo;
use crate::real::{self, set_errno};
use crate::state::{caught, kernel};

/// # Kernel
/// `BPF_FS_MAGIC`
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Where a path leads; `None` for one that is not under bpffs.
///
/// # Safety
/// `path` must be null or a string.
unsafe fn translate(path: *const c_char) -> Option<CString> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    // Other paths need no root directory, of which there may be none yet.
    if !path.to_bytes().starts_with(BPFFS.as_bytes()) {
        return None;
    }
    let inside = caught(|| Ok(kernel()?.root().translate(OsStr::from_bytes(path.to_bytes()))));
    CString::new(inside.ok()??.as_os_str().as_bytes()).ok()
}

/// Functions that take a path, with what comes before and after it.
macro_rules! translated {
    ($($name:ident, $real:ident, ($($before:ident: $before_type:ty,)*) path ($($after:ident: $after_type:ty),*) -> $result:ty;)*) => {
        $(
            /// # Safety
            /// As the function of libc.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(
                $($before: $before_type,)* path: *const c_char $(, $after: $after_type)*
            ) -> $result {
                // SAFETY: a path is a string.
                let inside = unsafe { translate(path) };
                let path = inside.as_ref().map_or(path, |inside| inside.as_ptr());
                // SAFETY: the caller's promise; the other path is a string, too.
                unsafe { real::$real($($before,)* path $(, $after)*) }
            }
        )*
    };
}

translated! {
    mkdir, mkdir, () path (mode: c_uint) -> c_int;
    mkdirat, mkdirat, (dir: c_int,) path (mode: c_uint) -> c_int;
    rmdir, rmdir, () path () -> c_int;
    unlink, unlink, () path () -> c_int;
    unlinkat, unlinkat, (dir: c_int,) path (flags: c_int) -> c_int;
    access, access, () path (mode: c_int) -> c_int;
    faccessat, faccessat, (dir: c_int,) path (mode: c_int, flags: c_int) -> c_int;
    stat, stat, () path (buf: *mut libc::stat) -> c_int;
    stat64, stat, () path (buf: *mut libc::stat) -> c_int;
    lstat, lstat, () path (buf: *mut libc::stat) -> c_int;
    lstat64, lstat, () path (buf: *mut libc::stat) -> c_int;
    fstatat, fstatat, (dir: c_int,) path (buf: *mut libc::stat, flags: c_int) -> c_int;
    fstatat64, fstatat, (dir: c_int,) path (buf: *mut libc::stat, flags: c_int) -> c_int;
    statx, statx, (dir: c_int,) path (flags: c_int, mask: c_uint, buf: *mut libc::statx) -> c_int;
    chmod, chmod, () path (mode: c_uint) -> c_int;
    opendir, opendir, () path () -> *mut libc::DIR;
}

/// Opens the pin of a link, which is reading what its iterator says; `None` for other files.
fn open_link(inside: &CStr, flags: c_int) -> Option<c_int> {
    let path = Path::new(OsStr::from_bytes(inside.to_bytes()));
    let opened = caught(|| kernel()?.open_pin(path, flags).transpose());
    opened.map(|text| text.map(IntoRawFd::into_raw_fd)).unwrap_or_else(|errno| {
        set_errno(errno.raw());
        Some(-1)
    })
}

/// Functions that open a path, which may also be the information on a descriptor.
macro_rules! opened {
    ($($name:ident, $real:ident, ($($before:ident: $before_type:ty,)*);)*) => {
        $(
            /// The mode is there only with some flags; it comes in the same register either way.
            ///
            /// # Safety
            /// As the function of libc.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(
                $($before: $before_type,)* path: *const c_char, flags: c_int, mode: c_uint
            ) -> c_int {
                // SAFETY: a path is a string.
                if let Some(fd) = unsafe { fdinfo::open(path) } {
                    return fd;
                }
                // SAFETY: a path is a string.
                let inside = unsafe { translate(path) };
                if let Some(fd) = inside.as_deref().and_then(|inside| open_link(inside, flags)) {
                    return fd;
                }
                let path = inside.as_ref().map_or(path, |inside| inside.as_ptr());
                // SAFETY: the caller's promise; the other path is a string, too.
                unsafe { real::$real($($before,)* path, flags, mode) }
            }
        )*
    };
}

opened! {
    open, open, ();
    open64, open, ();
    openat, openat, (dir: c_int,);
    openat64, openat, (dir: c_int,);
}

/// # Safety
/// As `statfs`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs(path: *const c_char, buf: *mut libc::statfs) -> c_int {
    // SAFETY: a path is a string.
    let Some(inside) = (unsafe { translate(path) }) else {
        // SAFETY: the caller's promise.
        return unsafe { real::statfs(path, buf) };
    };
    // SAFETY: the caller's promise; the other path is a string, too.
    let result = unsafe { real::statfs(inside.as_ptr(), buf) };
    if result == 0 {
        // SAFETY: the call has just filled in `buf`.
        unsafe { (*buf).f_type = BPF_FS_MAGIC };
    }
    result
}

/// # Safety
/// As `statfs64`, which is the same here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs64(path: *const c_char, buf: *mut libc::statfs) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { statfs(path, buf) }
}

/// # Safety
/// As `mount`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mount(
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: c_ulong,
    data: *const c_void,
) -> c_int {
    // SAFETY: a type is null or a string.
    let is_bpffs = !kind.is_null() && unsafe { CStr::from_ptr(kind) } == c"bpf";
    if is_bpffs {
        // SAFETY: a path is a string.
        if unsafe { translate(target) }.is_some() {
            return 0;
        }
        // It would be a door to the kernel's objects.
        set_errno(libc::EPERM);
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { real::mount(source, target, kind, flags, data) }
}
