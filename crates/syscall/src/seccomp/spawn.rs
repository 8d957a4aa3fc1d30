//! Starting a program whose calls are caught.
//!
//! **Invariant.** Between `fork` and `exec` the child makes system calls only, on what was made before.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::filter::filter;
use super::listener::{Listener, check_sizes, install_program};

/// Why a program could not be started with its calls caught.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The kernel has no user notification (Linux 5.14), or it is forbidden here.
    #[error("the kernel does not let system calls be answered here: {0}")]
    Unsupported(io::Error),
    /// There is a listener for this process's calls already.
    #[error("somebody else answers this process's system calls already, and there can be only one")]
    Busy,
    /// The program could not be executed.
    #[error("{0}")]
    Program(io::Error),
    /// Its memory may not be accessed, so no call could be answered.
    #[error("its memory cannot be accessed, so its calls cannot be answered here: {0}")]
    Memory(io::Error),
}

/// Starts a program; the calls of it and of all that it starts come to the listener.
///
/// # Errors
/// The program does not run then.
pub fn spawn(mut command: Command) -> Result<(Child, Listener), SpawnError> {
    check_sizes().map_err(SpawnError::Unsupported)?;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|error| SpawnError::Unsupported(error.into()))?;
    let program = filter();
    let install = move || match install_program(&program) {
        Ok(listener) => send(&theirs, Some(listener.as_fd().as_fd())),
        Err(error) => send(&theirs, None).and(Err(error)),
    };
    // SAFETY: the closure only makes system calls; what it needs is allocated.
    unsafe { command.pre_exec(install) };
    let spawned = command.spawn();
    // With it goes the other end.
    drop(command);
    let (mut child, listener) = match (spawned, receive(&ours)) {
        (Ok(child), Ok(Some(fd))) => (child, Listener::from_fd(fd)),
        (Ok(mut child), _) => {
            end(&mut child);
            return Err(SpawnError::Unsupported(io::ErrorKind::UnexpectedEof.into()));
        }
        (Err(error), Ok(None)) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(SpawnError::Busy);
        }
        (Err(error), Ok(None)) => return Err(SpawnError::Unsupported(error)),
        (Err(error), _) => return Err(SpawnError::Program(error)),
    };
    if let Err(error) = check_memory(&child) {
        end(&mut child);
        return Err(SpawnError::Memory(error));
    }
    Ok((child, listener))
}

fn end(child: &mut Child) {
    // It has ended by itself if this fails.
    let _ = child.kill().and_then(|()| child.wait());
}

/// Whether the memory of a program that was just started can be accessed: not if it may not be read, nor where ptrace is forbidden.
fn check_memory(child: &Child) -> io::Result<()> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    let pid = child.id().cast_signed();
    // SAFETY: the kernel writes at most one byte to `byte`, and checks the other address itself.
    let copied =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let error = io::Error::last_os_error();
    // At that address is nothing; it may also have ended.
    let is_fine = copied >= 0 || matches!(error.raw_os_error(), Some(libc::EFAULT | libc::ESRCH));
    if is_fine { Ok(()) } else { Err(error) }
}

/// One byte, and the listener if there is one.
fn send(socket: &OwnedFd, listener: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = listener.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What was sent; an error if nothing was.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fd)
}
