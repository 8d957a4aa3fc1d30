//! Descriptors of perf events for output of programs, which are pipes that say when there are records.
//!
//! A perf event is readable once for each time it wakes its reader: polling it takes that away, and no reading. A pipe stays
//! readable. So `poll` and `select` empty those that it reports, and `epoll` watches for edges.
//!
//! **Invariant.** Every call goes to the real function with the arguments as they came, but for requests to events, and for the events
//! that `epoll` is to watch such a descriptor for, which get one bit more. Structures of the caller are read as the real function does.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong};

use bpfarray_syscall::Kernel;

use crate::real::{self, result_of};
use crate::state::{caught, kernel, kernel_in_use};

/// What the requests to perf events have in their second byte.
const PERF_REQUESTS: c_ulong = b'$' as c_ulong;

/// libc's `ioctl` takes its argument as a variable one; it comes in the same register.
///
/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    if request >> 8 & 0xff == PERF_REQUESTS {
        let asked = || {
            let Ok(kernel) = kernel() else { return Ok(None) };
            // SAFETY: the program's promise to the kernel: results may be written where the request says.
            unsafe { kernel.event_ioctl(fd, request as u32, argument as u64) }.transpose()
        };
        if let Some(result) = caught(asked).transpose() {
            return result_of(result);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { real::ioctl(fd, request, argument) }
}

/// Runs `body` if a descriptor is one of an event.
fn if_event(fd: c_int, body: impl FnOnce(&Kernel)) {
    let Some(kernel) = kernel_in_use() else { return };
    let _ = caught(|| {
        if kernel.is_event(fd) {
            body(kernel);
        }
        Ok(())
    });
}

/// Takes the wake-ups that `poll` has reported.
///
/// # Safety
/// `fds` must be what `poll` has just filled in.
unsafe fn take_reported(fds: *const libc::pollfd, count: libc::nfds_t) {
    for at in 0..count as usize {
        // SAFETY: the caller's promise.
        let polled = unsafe { fds.add(at).read() };
        if polled.revents & libc::POLLIN != 0 {
            if_event(polled.fd, |kernel| kernel.take_wakeup(polled.fd));
        }
    }
}

/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let ready = unsafe { real::poll(fds, count, timeout) };
    if ready > 0 && kernel_in_use().is_some() {
        // SAFETY: the call has just filled them in.
        unsafe { take_reported(fds, count) };
    }
    ready
}

/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    let ready = unsafe { real::ppoll(fds, count, timeout, mask) };
    if ready > 0 && kernel_in_use().is_some() {
        // SAFETY: the call has just filled them in.
        unsafe { take_reported(fds, count) };
    }
    ready
}

/// What programs that were compiled with checks call in place of `poll`, with the size of `fds` in bytes.
///
/// # Safety
/// As `poll`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __poll_chk(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: c_int,
    size: usize,
) -> c_int {
    check(count, size);
    // SAFETY: the caller's promise.
    unsafe { poll(fds, count, timeout) }
}

/// The same for `ppoll`.
///
/// # Safety
/// As `ppoll`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __ppoll_chk(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
    size: usize,
) -> c_int {
    check(count, size);
    // SAFETY: the caller's promise.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// Ends a program that would let more descriptors be written to than there are, as libc does.
fn check(count: libc::nfds_t, size: usize) {
    if size / size_of::<libc::pollfd>() < count as usize {
        // SAFETY: it takes nothing, and does not return.
        unsafe { libc::abort() };
    }
}

/// Takes the wake-ups that `select` has reported.
///
/// # Safety
/// `read` must be null, or what `select` has just filled in.
unsafe fn take_selected(count: c_int, read: *const libc::fd_set) {
    if read.is_null() || kernel_in_use().is_none() {
        return;
    }
    // Longer sets, which C programs may have, are of descriptors that small numbers leave room for.
    for fd in 0..count.min(libc::FD_SETSIZE as c_int) {
        // SAFETY: the caller's promise; descriptors below `count` are in the set.
        if unsafe { libc::FD_ISSET(fd, read) } {
            if_event(fd, |kernel| kernel.take_wakeup(fd));
        }
    }
}

/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    timeout: *mut libc::timeval,
) -> c_int {
    // SAFETY: the caller's promise.
    let ready = unsafe { real::select(count, read, write, except, timeout) };
    if ready > 0 {
        // SAFETY: the call has just filled it in.
        unsafe { take_selected(count, read) };
    }
    ready
}

/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pselect(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    let ready = unsafe { real::pselect(count, read, write, except, timeout, mask) };
    if ready > 0 {
        // SAFETY: the call has just filled it in.
        unsafe { take_selected(count, read) };
    }
    ready
}

/// # Safety
/// As the function of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    let is_watched = matches!(operation, libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD);
    let mut edges = None;
    if is_watched && !event.is_null() {
        if_event(fd, |kernel| {
            // The kernel polls it then, too.
            kernel.take_wakeup(fd);
            // SAFETY: the caller's promise; a structure in C may be anywhere.
            let mut event = unsafe { event.read_unaligned() };
            event.events |= libc::EPOLLET as u32;
            edges = Some(event);
        });
    }
    let event = edges.as_mut().map_or(event, |edges| &raw mut *edges);
    // SAFETY: the caller's promise.
    unsafe { real::epoll_ctl(epoll, operation, fd, event) }
}
