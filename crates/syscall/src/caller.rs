//! Whose call this thread answers, where it is that of another process: what the kernel knows as `current`. Threads of
//! [`seccomp`](crate::seccomp) set it; everywhere else the caller is the thread itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use bpfarray_core::Errno;
use rustix::process::{ForeignRawFd, Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::seccomp::Waiting;

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };

    static AHEAD: RefCell<Ahead> = const { RefCell::new(Ahead { start: 0, len: 0, bytes: [0; PAGE] }) };

    /// Threads of other processes whose calls this one has answered. A descriptor stays with its thread: if that ends, it is of no use,
    /// whoever gets the number.
    static THREADS: RefCell<HashMap<i32, OwnedFd>> = RefCell::default();
}

/// No page is smaller.
const PAGE: usize = 4096;

/// A page of the caller's, which was read for a part of it. Keys and values are often on the stack beside the attributes, and each
/// system call saved is a tenth of what an operation on an element takes.
struct Ahead {
    start: u64,
    len: usize,
    bytes: [u8; PAGE],
}

impl Ahead {
    fn get(&self, addr: u64, len: usize) -> Option<&[u8]> {
        let offset = usize::try_from(addr.checked_sub(self.start)?).ok()?;
        self.bytes.get(..self.len)?.get(offset..)?.get(..len)
    }
}

/// Reads the caller's memory with `read`, or from what was read ahead.
///
/// # Errors
/// Those of `read`.
pub(crate) fn read(
    addr: u64,
    buf: &mut [u8],
    read: impl FnOnce(u64, &mut [u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let offset = (addr % PAGE as u64) as usize;
    if buf.is_empty() {
        return Ok(());
    }
    if buf.len() > PAGE - offset {
        return read(addr, buf);
    }
    AHEAD.with_borrow_mut(|ahead| {
        if let Some(known) = ahead.get(addr, buf.len()) {
            buf.copy_from_slice(known);
            return Ok(());
        }
        ahead.len = 0;
        let start = addr - offset as u64;
        read(start, &mut ahead.bytes)?;
        (ahead.start, ahead.len) = (start, PAGE);
        buf.copy_from_slice(&ahead.bytes[offset..offset + buf.len()]);
        Ok(())
    })
}

/// What was read ahead may be old: the call has written, or another one comes.
pub(crate) fn forget_ahead() {
    AHEAD.with_borrow_mut(|ahead| ahead.len = 0);
}

/// # Kernel
/// `PIDFD_THREAD`
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// How many threads of others are remembered.
const REMEMBERED: usize = 64;

struct Current {
    /// A thread of another process, which waits for the answer.
    waiting: Arc<Waiting>,
    /// What the call makes for it, and the flags of the descriptor that this will be.
    file: Option<(File, i32)>,
}

/// Runs `body` for a thread of another process. Gives its result, and the file that the caller shall have.
pub(crate) fn with<R>(waiting: Arc<Waiting>, body: impl FnOnce() -> R) -> (R, Option<(File, i32)>) {
    /// Also when `body` panics.
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            CURRENT.take();
        }
    }
    CURRENT.set(Some(Current { waiting, file: None }));
    forget_ahead();
    let clear = Clear;
    let result = body();
    let file = CURRENT.with_borrow_mut(|current| current.as_mut()?.file.take());
    drop(clear);
    (result, file)
}

/// The other process's thread, by which the kernel also finds its memory and descriptors.
pub(crate) fn process() -> Option<i32> {
    CURRENT.with_borrow(|current| current.as_ref().map(|current| current.waiting.tid()))
}

/// The same, or a number that is no process's.
pub(crate) fn tid() -> i32 {
    process().unwrap_or(i32::MAX)
}

/// # Errors
/// ESRCH if the caller does not wait any more. What was found by its number may then have been another one's.
pub(crate) fn still_waits() -> Result<(), Errno> {
    CURRENT.with_borrow(|current| match current {
        Some(current) if current.waiting.still_waits() => Ok(()),
        _ => Err(Errno::from_raw(libc::ESRCH)),
    })
}

/// A copy of another process's descriptor.
///
/// # Errors
/// EBADF; others where the kernel has no such way to the descriptors of a thread (before Linux 6.9).
pub(crate) fn copy_of(fd: RawFd) -> Result<OwnedFd, rustix::io::Errno> {
    use rustix::io::Errno;
    if fd < 0 {
        return Err(Errno::BADF);
    }
    let tid = process().ok_or(Errno::SRCH)?;
    let copy = |thread: &OwnedFd| pidfd_getfd(thread, fd as ForeignRawFd, PidfdGetfdFlags::empty());
    THREADS.with_borrow_mut(|threads| {
        match threads.get(&tid).map(copy) {
            None | Some(Err(Errno::SRCH)) => {}
            Some(known) => return known,
        }
        let pid = Pid::from_raw(tid).ok_or(Errno::SRCH)?;
        let thread =
            pidfd_open(pid, PIDFD_THREAD).or_else(|_| pidfd_open(pid, PidfdFlags::empty()))?;
        still_waits().map_err(|_| Errno::SRCH)?;
        let found = copy(&thread);
        if threads.len() >= REMEMBERED {
            threads.clear();
        }
        threads.insert(tid, thread);
        found
    })
}

/// Hands a new file to the caller once the call is done. Which descriptor it becomes is not known before.
pub(crate) fn give(file: File, flags: i32) {
    CURRENT.with_borrow_mut(|current| {
        if let Some(current) = current {
            current.file = Some((file, flags));
        }
    });
}

/// The caller's working directory.
pub(crate) fn current_dir() -> io::Result<PathBuf> {
    match process() {
        Some(tid) => std::fs::read_link(format!("/proc/{tid}/cwd")),
        None => std::env::current_dir(),
    }
}
