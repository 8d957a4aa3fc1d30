//! What happens when a page of a mapped file is gone.
//!
//! Another process can truncate a file that is mapped here, or the disk can be full when a hole is
//! first written to. The kernel then raises SIGBUS at the access. The handler here puts a page of
//! zeros, private to this process, where the file's page was and lets the access happen again: the
//! map is damaged, the process is not. The handler never changes where execution continues.
//!
//! **Invariant.** The handler only maps over `start..end` of a [`Node`] whose numbers it has read
//! whole, and which contains the address of a fault that the kernel reports. Nodes are static; the
//! numbers of one describe a mapping that its [`Guard`] is part of, from after it was made until
//! before it is unmapped; and the mapping in which this thread faults is in use, so its guard
//! lives. All that the handler calls is async-signal-safe.
//!
//! A signal handler that somebody installs later and that does not call the earlier one takes this
//! protection away, and so does a thread that blocks SIGBUS.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, mem};

use rustix::param::page_size;

/// A mapping of a file that others can truncate, until dropped. Drop it before unmapping.
pub(super) struct Guard {
    node: &'static Node,
    /// What the node points to.
    _target: (Arc<File>, Arc<AtomicBool>),
}

/// Written under the lock of [`NODES`], with `version` odd meanwhile. `end` is 0 when not in use.
struct Node {
    version: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// Offset in the file of `start`.
    offset: AtomicU64,
    fd: AtomicU64,
    lost: AtomicPtr<AtomicBool>,
    next: Option<&'static Node>,
}

/// The first of all nodes, for the handler.
static HEAD: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());
/// All nodes, for everybody else.
static NODES: Mutex<Vec<&'static Node>> = Mutex::new(Vec::new());

impl Guard {
    /// Guards the mapping of `file` from `offset` on at the addresses in `range`, once the handler
    /// is installed. `lost` becomes true when a page is replaced.
    pub(super) fn new(
        range: Range<u64>,
        file: &Arc<File>,
        offset: u64,
        lost: &Arc<AtomicBool>,
    ) -> Self {
        let mut nodes = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = nodes.iter().find(|node| node.end.load(Ordering::Relaxed) == 0).copied();
        let node = unused.unwrap_or_else(|| {
            let node: &'static Node = Box::leak(Box::new(Node {
                version: AtomicU64::new(0),
                start: AtomicU64::new(0),
                end: AtomicU64::new(0),
                offset: AtomicU64::new(0),
                fd: AtomicU64::new(0),
                lost: AtomicPtr::new(ptr::null_mut()),
                next: nodes.last().copied(),
            }));
            nodes.push(node);
            HEAD.store(ptr::from_ref(node).cast_mut(), Ordering::Release);
            node
        });
        node.write(|| {
            node.start.store(range.start, Ordering::Relaxed);
            node.offset.store(offset, Ordering::Relaxed);
            node.fd.store(file.as_raw_fd() as u64, Ordering::Relaxed);
            node.lost.store(Arc::as_ptr(lost).cast_mut(), Ordering::Relaxed);
            node.end.store(range.end, Ordering::Relaxed);
        });
        Self { node, _target: (Arc::clone(file), Arc::clone(lost)) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _nodes = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        self.node.write(|| self.node.end.store(0, Ordering::Relaxed));
    }
}

/// What a node says, read in one piece.
struct Watched {
    start: u64,
    end: u64,
    offset: u64,
    fd: c_int,
    lost: *const AtomicBool,
}

impl Node {
    fn write(&self, change: impl FnOnce()) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        self.version.fetch_add(1, Ordering::Release);
    }

    /// `None` while it changes: then it is not about the mapping in which this thread faulted.
    fn read(&self) -> Option<Watched> {
        let version = self.version.load(Ordering::Acquire);
        let watched = Watched {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
            fd: self.fd.load(Ordering::Relaxed) as c_int,
            lost: self.lost.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let whole = version.is_multiple_of(2) && version == self.version.load(Ordering::Relaxed);
        whole.then_some(watched)
    }
}

/// Replaces the page at `addr`, and those behind the file's end with it; `false` if it is no page
/// of a guarded mapping.
fn repair(addr: u64) -> bool {
    let page = page_size() as u64;
    // SAFETY: nodes are never freed.
    let mut next = unsafe { HEAD.load(Ordering::Acquire).as_ref() };
    while let Some(node) = next {
        next = node.next;
        let Some(watched) = node.read() else { continue };
        if !(watched.start..watched.end).contains(&addr) {
            continue;
        }
        let from = addr / page * page;
        // All behind the end of the file is gone. Elsewhere it may be this page alone.
        // SAFETY: `stat` is made of numbers; fstat writes one to it; and the guard of the mapping
        // in which this thread faulted keeps `fd` open.
        let len = unsafe {
            let mut stat: libc::stat = mem::zeroed();
            if libc::fstat(watched.fd, &mut stat) == 0 { stat.st_size as u64 } else { u64::MAX }
        };
        let behind_end = watched.offset + (from - watched.start) >= len.next_multiple_of(page);
        let to = if behind_end { watched.end.next_multiple_of(page) } else { from + page };
        // SAFETY: `from..to` are pages of a mapping that its guard says nobody else manages and
        // all of whose users expect its bytes to change at any time.
        let mapped = unsafe {
            libc::mmap(
                ptr::without_provenance_mut(from as usize),
                (to - from) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the guard holds what it points to.
        unsafe { (*watched.lost).store(true, Ordering::Relaxed) };
        return true;
    }
    false
}

/// The handler that was there before.
static EARLIER: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once in a process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: `earlier` and `action` are valid `sigaction`s, for zero is a valid value of all their
    // fields; and `on_sigbus` has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut earlier: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &mut earlier) != 0 {
            return Err(io::Error::last_os_error());
        }
        let earlier = EARLIER.get_or_init(|| earlier);
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
        let action = libc::sigaction {
            sa_sigaction: handler as *const () as libc::sighandler_t,
            sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
            ..*earlier
        };
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid `siginfo_t`, whose address is
    // meaningful for BUS_ADRERR; errno is this thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        let repaired = (*info).si_code == libc::BUS_ADRERR && repair((*info).si_addr() as u64);
        *libc::__errno_location() = errno;
        if !repaired {
            call_earlier(signal, info, context);
        }
    }
}

/// # Safety
/// Only for the handler, with its own arguments.
unsafe fn call_earlier(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let earlier = EARLIER.get();
    let handler = earlier.map_or(libc::SIG_DFL, |earlier| earlier.sa_sigaction);
    // SAFETY: `info` is valid, as the caller promises.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match handler {
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restoring the default and raising the signal again touch no memory. It is
            // delivered when the handler returns, unless the access faults before.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        handler if earlier.is_some_and(|e| e.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: whoever installed it with SA_SIGINFO says that it has this signature.
            unsafe {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO says that it has this signature.
            unsafe {
                let handler: extern "C" fn(c_int) = mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
