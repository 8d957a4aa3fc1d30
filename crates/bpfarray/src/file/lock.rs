//! Locks on bytes of a file, which the kernel drops with the last reference to the open file.
//!
//! **Invariant.** The only pointer handed to the kernel here is to a `flock` on the stack.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

#[derive(Copy, Clone, Debug)]
pub(super) enum LockKind {
    Shared,
    Exclusive,
    None,
}

fn lock_of(byte: u64, kind: LockKind) -> io::Result<libc::flock> {
    let l_type = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::None => libc::F_UNLCK,
    };
    Ok(libc::flock {
        l_type: l_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(byte).map_err(|_| io::ErrorKind::InvalidInput)?,
        l_len: 1,
        l_pid: 0,
    })
}

/// Whether another open file has a lock on a byte.
pub(super) fn is_locked(file: impl AsFd, byte: u64) -> io::Result<bool> {
    let mut lock = lock_of(byte, LockKind::Exclusive)?;
    // SAFETY: F_OFD_GETLK reads and writes a `struct flock`, which `lock` is.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Changes this open file's lock on a byte; `false` if another open file's is in the way.
///
/// Opened twice, a file has two sets of locks, even in one process.
pub(super) fn try_lock(file: impl AsFd, byte: u64, kind: LockKind) -> io::Result<bool> {
    let lock = lock_of(byte, kind)?;
    // SAFETY: F_OFD_SETLK reads a `struct flock`, which `lock` is.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
