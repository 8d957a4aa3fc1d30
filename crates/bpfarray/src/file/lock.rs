//! Locks on bytes of a file, which the kernel drops with the last reference to the open file.
//!
//! **Invariant.** The only pointer handed to the kernel here is to a `flock` on the stack.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

#[derive(Copy, Clone, Debug)]
pub(super) enum LockKind {
    Shared,
    Exclusive,
    None,
}

/// Changes this open file's lock on a byte; `false` if another open file's is in the way.
///
/// Opened twice, a file has two sets of locks, even in one process.
pub(super) fn try_lock(file: &File, byte: u64, kind: LockKind) -> io::Result<bool> {
    let l_type = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::None => libc::F_UNLCK,
    };
    let start = i64::try_from(byte).map_err(|_| io::ErrorKind::InvalidInput)?;
    let lock = libc::flock {
        l_type: l_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads a `struct flock`, which `lock` is.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
