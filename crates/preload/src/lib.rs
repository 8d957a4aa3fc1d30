//! Answers the bpf(2) calls of an unmodified program with bpfarray: a library for `LD_PRELOAD`, which
//! `bpfarray exec` sets up.
//!
//! It takes the place of the libc functions that programs use on BPF objects, and calls the real ones for all else:
//! - `syscall` (`call`), where the call is bpf(2), or what comes with it;
//! - what closes or replaces descriptors, and `mmap` of a map (`descriptor`);
//! - `perf_event_open` for output of programs, and what is done with its descriptors: `ioctl`, `poll`, `epoll_ctl` (`event`);
//! - paths under `/sys/fs/bpf`, which lead into the root directory, `statfs` of them, and `mount` of a bpffs, which is
//!   refused, for it would be the kernel's (`bpffs`);
//! - `/proc/self/fdinfo/N` of a map (`fdinfo`).
//!
//! A panic in a function that C calls would be an abort; all are caught here, and become EIO.
#![expect(unreachable_pub, reason = "C programs reach these functions by their names")]

mod bpffs;
mod call;
mod descriptor;
mod event;
mod fdinfo;
mod real;
mod state;
