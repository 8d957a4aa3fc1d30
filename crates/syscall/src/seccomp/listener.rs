//! System calls that wait for an answer.
//!
//! **Invariant.** Every pointer handed to the kernel is to a structure of the type that the request is for, on this thread's
//! stack; the kernel writes to a `seccomp_notif` no more than it said that it has, which is checked once.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use bpfarray_core::Errno;
use libc::{c_ulong, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, seccomp_notif_sizes};

use super::filter::filter;
use crate::root::errno;

/// The calls that the filter of [`spawn`](super::spawn) or [`install`] catches.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// The kernel hands over to whoever answers right away, and back.
///
/// # Kernel
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`
const SYNC_WAKE_UP: c_ulong = 1;

/// Makes this thread's calls wait for answers from now on, and those of all threads and programs that it starts. They give
/// up what setuid programs would get.
///
/// # Errors
/// What the kernel says: EBUSY if there is a listener already, EINVAL from a kernel without them.
///
/// # Kernel
/// `seccomp_set_mode_filter`
pub fn install() -> io::Result<Listener> {
    install_program(&filter())
}

/// As [`install`]; does nothing but system calls.
pub(super) fn install_program(program: &[libc::sock_filter]) -> io::Result<Listener> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the call has no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let install = |flags: c_ulong| {
        let (mode, program) = (libc::SECCOMP_SET_MODE_FILTER, &raw const program);
        // SAFETY: the kernel reads `program` and as many instructions as it says.
        unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, program) }
    };
    let new = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let mut fd = install(new | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
    if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        // Before Linux 5.19 any signal takes a thread out of its call, which starts once more.
        fd = install(new);
    }
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor has just been made, and nobody else knows of it.
    Ok(Listener { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
}

/// Whether this program knows the structures of this kernel.
pub(super) fn check_sizes() -> io::Result<()> {
    let mut sizes = MaybeUninit::<seccomp_notif_sizes>::zeroed();
    let operation = libc::SECCOMP_GET_NOTIF_SIZES;
    // SAFETY: the kernel writes one structure of the operation.
    let found = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, sizes.as_mut_ptr()) };
    if found != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: any bytes are numbers, and all were zero at first.
    let sizes = unsafe { sizes.assume_init() };
    let fits = usize::from(sizes.seccomp_notif) <= size_of::<seccomp_notif>()
        && usize::from(sizes.seccomp_notif_resp) <= size_of::<seccomp_notif_resp>();
    if fits { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// A call that waits.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
    pub(super) waiting: Arc<Waiting>,
}

/// The thread whose call it is.
#[derive(Debug)]
pub(crate) struct Waiting {
    tid: i32,
    id: u64,
    listener: Arc<Listener>,
}

impl Waiting {
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether it is still there, and in this call. A thread that was killed is not, and its number may be another one's.
    pub(crate) fn still_waits(&self) -> bool {
        let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
        // SAFETY: the kernel reads a number.
        unsafe { libc::ioctl(self.listener.fd.as_raw_fd(), request, &raw const self.id) == 0 }
    }

    /// Lets the thread go on, with a value or an error number. `false` if it does not wait any more.
    pub(super) fn answer(&self, result: Result<i64, Errno>) -> bool {
        let (val, error) = match result {
            Ok(value) => (value, 0),
            Err(errno) => (0, -errno.raw()),
        };
        self.send(seccomp_notif_resp { id: self.id, val, error, flags: 0 })
    }

    /// Lets the kernel do the call.
    pub(super) fn pass_on(&self) -> bool {
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        self.send(seccomp_notif_resp { id: self.id, val: 0, error: 0, flags })
    }

    fn send(&self, answer: seccomp_notif_resp) -> bool {
        let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the kernel reads one structure of the request.
        unsafe { libc::ioctl(self.listener.fd.as_raw_fd(), request, &raw const answer) == 0 }
    }

    /// Gives the process of the thread a descriptor of an open file, and the thread its number as an answer: both happen, or neither.
    ///
    /// # Errors
    /// EMFILE; ENOENT if the thread does not wait any more.
    pub(super) fn answer_with(&self, file: &File, flags: i32) -> Result<i32, Errno> {
        self.add(file, flags, libc::SECCOMP_ADDFD_FLAG_SEND as u32)
    }

    /// Only gives the process a descriptor; the thread waits on.
    ///
    /// # Errors
    /// As [`Waiting::answer_with`].
    pub(super) fn give(&self, file: &File, flags: i32) -> Result<i32, Errno> {
        self.add(file, flags, 0)
    }

    fn add(&self, file: &File, flags: i32, how: u32) -> Result<i32, Errno> {
        let add = seccomp_notif_addfd {
            id: self.id,
            flags: how,
            srcfd: file.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: flags.cast_unsigned(),
        };
        let request = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        // SAFETY: the kernel reads one structure of the request.
        let fd = unsafe { libc::ioctl(self.listener.fd.as_raw_fd(), request, &raw const add) };
        if fd < 0 { Err(errno(&io::Error::last_os_error())) } else { Ok(fd) }
    }
}

impl Listener {
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub(super) fn as_fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Asks the kernel not to look for another processor when it wakes up who waits. Older ones don't know how.
    pub(super) fn hand_over_directly(&self) {
        let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
        // SAFETY: the request takes a number.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), request, SYNC_WAKE_UP) };
    }

    /// Waits for the next call; `None` when all who could make one have ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn receive(self: &Arc<Self>) -> io::Result<Option<Request>> {
        loop {
            let mut call = MaybeUninit::<seccomp_notif>::zeroed();
            let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
            // SAFETY: the kernel writes one structure of the request, which `check_sizes` found to be of this size.
            let received = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, call.as_mut_ptr()) };
            if received == 0 {
                // SAFETY: any bytes are numbers, and all were zero at first.
                let call = unsafe { call.assume_init() };
                let (tid, id) = (call.pid.cast_signed(), call.id);
                return Ok(Some(Request {
                    number: call.data.nr.into(),
                    arguments: call.data.args,
                    waiting: Arc::new(Waiting { tid, id, listener: Arc::clone(self) }),
                }));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Who made the call was killed before it got here, or nobody is left.
                Some(libc::ENOENT) if !self.is_over() => {}
                Some(libc::ENOENT) => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Whether all who could make a call have ended.
    fn is_over(&self) -> bool {
        let mut asked = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes to one structure.
        let count = unsafe { libc::poll(&raw mut asked, 1, 0) };
        count > 0 && asked.revents & libc::POLLHUP != 0
    }
}
