//! The functions whose places are taken, as the next library has them.
//!
//! **Invariant.** Each address comes from `dlsym` by the name of a libc function and is called with that function's type.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::mem::transmute;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use bpfarray_syscall::Errno;

/// The address of a libc function, which is looked for once.
fn find(place: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = place.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: `name` is a string that ends with a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    place.store(found, Ordering::Relaxed);
    found
}

macro_rules! real {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty, or $failed:expr;)*) => {
        $(
            /// # Safety
            /// As the function of libc.
            pub(crate) unsafe fn $name($($arg: $type),*) -> $result {
                static PLACE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
                const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                };
                let found = find(&PLACE, NAME);
                if found.is_null() {
                    set_errno(libc::ENOSYS);
                    return $failed;
                }
                // SAFETY: the address is that of libc's function of this name, which has this type.
                let function: unsafe extern "C" fn($($type),*) -> $result = unsafe { transmute(found) };
                // SAFETY: the caller's promise.
                unsafe { function($($arg),*) }
            }
        )*
    };
}

real! {
    syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long, or -1;
    close(fd: c_int) -> c_int, or -1;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, or -1;
    dup2(old: c_int, new: c_int) -> c_int, or -1;
    dup3(old: c_int, new: c_int, flags: c_int) -> c_int, or -1;
    mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void, or libc::MAP_FAILED;
    ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int, or -1;
    poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int, or -1;
    ppoll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: *const libc::timespec, mask: *const libc::sigset_t) -> c_int, or -1;
    select(count: c_int, read: *mut libc::fd_set, write: *mut libc::fd_set, except: *mut libc::fd_set, timeout: *mut libc::timeval) -> c_int, or -1;
    pselect(count: c_int, read: *mut libc::fd_set, write: *mut libc::fd_set, except: *mut libc::fd_set, timeout: *const libc::timespec, mask: *const libc::sigset_t) -> c_int, or -1;
    epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int, or -1;
    statfs(path: *const c_char, buf: *mut libc::statfs) -> c_int, or -1;
    mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int, or -1;
    fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE, or null_mut();
    open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int, or -1;
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int, or -1;
    mkdir(path: *const c_char, mode: c_uint) -> c_int, or -1;
    mkdirat(dir: c_int, path: *const c_char, mode: c_uint) -> c_int, or -1;
    rmdir(path: *const c_char) -> c_int, or -1;
    unlink(path: *const c_char) -> c_int, or -1;
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int, or -1;
    access(path: *const c_char, mode: c_int) -> c_int, or -1;
    faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int, or -1;
    stat(path: *const c_char, buf: *mut libc::stat) -> c_int, or -1;
    lstat(path: *const c_char, buf: *mut libc::stat) -> c_int, or -1;
    fstatat(dir: c_int, path: *const c_char, buf: *mut libc::stat, flags: c_int) -> c_int, or -1;
    statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, buf: *mut libc::statx) -> c_int, or -1;
    chmod(path: *const c_char, mode: c_uint) -> c_int, or -1;
    opendir(path: *const c_char) -> *mut libc::DIR, or null_mut();
}

/// What a function of libc gives for a result, with `errno` set for an error.
pub(crate) fn result_of(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        set_errno(errno.raw());
        -1
    })
}

/// What the calling thread finds in `errno`.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: libc gives the address of this thread's own `errno`.
    unsafe { *libc::__errno_location() = errno };
}
