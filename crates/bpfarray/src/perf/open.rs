//! The system call that opens a perf event.
//!
//! **Invariant.** The only pointer is to a `perf_event_attr` on the stack, of the length it names; and a
//! descriptor is owned once, where the call has just returned it.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use bpfarray_core::Errno;

use super::event::PerfEventAttr;

/// Bytes of `struct perf_event_attr` in its first version, which every kernel takes.
const ATTR_SIZE: usize = 64;
const FORMAT_TOTAL_TIME_ENABLED: u64 = 1;
const FORMAT_TOTAL_TIME_RUNNING: u64 = 2;
const INHERIT: u64 = 1 << 1;
/// Observing the kernel as well takes rights that observing oneself does not.
const EXCLUDE_KERNEL: u64 = 1 << 5;
const FLAG_FD_CLOEXEC: u64 = 1 << 3;

/// Opens an event that counts at once and is read as count, time enabled and time running.
pub(super) fn perf_event_open(attr: &PerfEventAttr) -> Result<OwnedFd, Errno> {
    let mut flags = if attr.inherit { INHERIT } else { 0 };
    if attr.pid != -1 {
        flags |= EXCLUDE_KERNEL;
    }
    let first = u64::from_ne_bytes({
        let (kind, size) = (attr.event_type.to_ne_bytes(), (ATTR_SIZE as u32).to_ne_bytes());
        [kind[0], kind[1], kind[2], kind[3], size[0], size[1], size[2], size[3]]
    });
    let read_format = FORMAT_TOTAL_TIME_ENABLED | FORMAT_TOTAL_TIME_RUNNING;
    // type and size, config, sample_period, sample_type, read_format, flags, wakeup_events and bp_type, bp_addr
    let mut block = [first, attr.config, 0, 0, read_format, flags, 0, 0];
    let at = block.as_mut_ptr();
    // SAFETY: the kernel reads the block, of `ATTR_SIZE` bytes; should it not like the size, it writes another
    // one to the field at offset 4.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, at, attr.pid, attr.cpu, -1, FLAG_FD_CLOEXEC)
    };
    match i32::try_from(fd) {
        // SAFETY: the call has just returned this descriptor, of which nothing else in the process knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => {
            let error = std::io::Error::last_os_error();
            Err(error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))
        }
    }
}
