//! What `/proc/self/fdinfo/N` says of maps.
//!
//! **Invariant.** Strings are read up to their NUL, as the function whose place is taken does.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use bpfarray_syscall::Errno;

use crate::real;
use crate::state::{caught, kernel};

/// Lines that the kernel has for every descriptor: pos, flags, mnt_id, ino.
const COMMON_LINES: usize = 4;

/// The descriptor that a path asks about, if it is one of this process.
fn asked(path: &str) -> Option<c_int> {
    let rest = path.strip_prefix("/proc/")?;
    let (process, rest) = rest.split_once('/')?;
    let fd = rest.strip_prefix("fdinfo/")?;
    let is_own = process == "self" || process.parse() == Ok(std::process::id());
    fd.parse().ok().filter(|_| is_own)
}

/// A file with what the kernel would say of a map's descriptor; `None` for other paths and descriptors.
///
/// # Safety
/// `path` must be null or a string.
pub(crate) unsafe fn open(path: *const c_char) -> Option<c_int> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    let fd = asked(path)?;
    caught(|| Ok(kernel()?.fdinfo(fd))).ok()?.and_then(|lines| {
        let common = common_lines(path).unwrap_or_default();
        file_of(&(common + &lines)).ok().map(IntoRawFd::into_raw_fd)
    })
}

/// The first lines of the real file, read without this library.
fn common_lines(path: &str) -> Option<String> {
    let path = std::ffi::CString::new(path).ok()?;
    // SAFETY: the path is a string; without O_CREAT, the mode is not looked at.
    let fd = unsafe { real::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor has just been opened, and nobody else knows of it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let text = std::io::read_to_string(file).ok()?;
    Some(text.split_inclusive('\n').take(COMMON_LINES).collect())
}

fn file_of(text: &str) -> Result<File, Errno> {
    // SAFETY: the name is a string.
    let fd = unsafe { libc::memfd_create(c"fdinfo".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: the descriptor has just been made, and nobody else knows of it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let written = file.write_all(text.as_bytes()).and_then(|()| file.rewind());
    written.map(|()| file).map_err(|_| Errno::ENOMEM)
}

/// # Safety
/// As `fopen`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: a path is a string.
    let Some(fd) = (unsafe { open(path) }) else {
        // SAFETY: the caller's promise.
        return unsafe { real::fopen(path, mode) };
    };
    // SAFETY: the descriptor is open and now the stream's; a mode is a string.
    unsafe { libc::fdopen(fd, mode) }
}

/// # Safety
/// As `fopen64`, which is the same here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the caller's promise.
    unsafe { fopen(path, mode) }
}
