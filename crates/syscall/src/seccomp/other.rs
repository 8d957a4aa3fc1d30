//! Caught calls that are not bpf(2). Most have nothing to do with BPF, and the kernel does them. Safe code.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bpfarray_core::Errno;
use libc::c_int;
use rustix::fs::{MemfdFlags, memfd_create};

use super::listener::Request;
use super::paths::{Done, PathCall, statfs};
use crate::caller;
use crate::file::proc_path;
use crate::kernel::Kernel;
use crate::path::BPFFS;
use crate::root::errno;
use crate::user::UserAddr;

/// Bytes of a path, with its NUL.
const PATH_MAX: usize = 4096;

/// What is to become of a call.
pub(super) enum Verdict {
    /// The kernel shall do it.
    PassOn,
    Done(Result<Done, Errno>),
}

/// Judges a call, for whoever `caller` says.
pub(super) fn judge(kernel: &Kernel, request: &Request) -> Verdict {
    let [a, b, c, ..] = request.arguments;
    let found = match request.number {
        libc::SYS_mmap => mmap(kernel, &request.arguments),
        libc::SYS_fstatfs => fstatfs(kernel, a as c_int, b),
        libc::SYS_mount => mount(kernel, b, c),
        libc::SYS_fsopen => fsopen(kernel, a),
        number => PathCall::of(number).and_then(|call| with_path(kernel, call, &request.arguments)),
    };
    found.map_or(Verdict::PassOn, Verdict::Done)
}

type Found = Option<Result<Done, Errno>>;

fn string(kernel: &Kernel, addr: u64, max: usize) -> Option<Vec<u8>> {
    kernel.user.read_string(UserAddr(addr), max, Errno::E2BIG).ok()
}

fn with_path(kernel: &Kernel, call: &PathCall, arguments: &[u64; 6]) -> Found {
    let path = string(kernel, call.path(arguments), PATH_MAX)?;
    if call.opens && path.starts_with(b"/proc/") {
        let text = fdinfo(kernel, std::str::from_utf8(&path).ok()?)?;
        return Some(
            file_of(&text)
                .map(|file| Done::File(file.into(), call.flags(arguments) & libc::O_CLOEXEC)),
        );
    }
    let inside = inside(kernel, &path)?;
    if call.opens {
        let flags = call.flags(arguments);
        if let Some(text) = kernel.open_pin(&inside, flags) {
            return Some(text.map(|text| Done::File(text, flags & libc::O_CLOEXEC)));
        }
    }
    Some(caller::still_waits().and_then(|()| call.make(arguments, inside)))
}

/// Where a path leads that is under bpffs.
fn inside(kernel: &Kernel, path: &[u8]) -> Option<PathBuf> {
    if !path.starts_with(BPFFS.as_bytes()) {
        return None;
    }
    kernel.root().translate(OsStr::from_bytes(path))
}

/// What `/proc/self/fdinfo/N` says of one of our descriptors; `None` for other paths and descriptors.
fn fdinfo(kernel: &Kernel, path: &str) -> Option<String> {
    /// Lines that the kernel has for every descriptor: pos, flags, mnt_id, ino.
    const COMMON_LINES: usize = 4;
    let (process, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    let fd: c_int = rest.strip_prefix("fdinfo/")?.parse().ok()?;
    let tid = caller::process()?;
    if !matches!(process, "self" | "thread-self") && process.parse() != Ok(tid) {
        return None;
    }
    let lines = kernel.fdinfo(fd)?;
    let common = fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).unwrap_or_default();
    let common: String = common.split_inclusive('\n').take(COMMON_LINES).collect();
    Some(common + &lines)
}

fn file_of(text: &str) -> Result<File, Errno> {
    let made = memfd_create("fdinfo", MemfdFlags::CLOEXEC);
    let mut file = File::from(made.map_err(|error| Errno::from_raw(error.raw_os_error()))?);
    let written = file.write_all(text.as_bytes()).and_then(|()| file.rewind());
    written.map(|()| file).map_err(|error| errno(&error))
}

/// A directory that stands for one of bpffs says so.
fn fstatfs(kernel: &Kernel, fd: c_int, out: u64) -> Found {
    let link = fs::read_link(proc_path(fd)).ok()?;
    let inside = kernel.root().translate(link)?;
    let is_directory = fs::metadata(proc_path(fd)).is_ok_and(|found| found.is_dir());
    is_directory.then(|| statfs(inside, out))
}

/// A bpffs would be a door to the kernel's objects, so nothing is mounted. Where one is expected, it is there.
fn mount(kernel: &Kernel, target: u64, kind: u64) -> Found {
    if string(kernel, kind, PATH_MAX)? != b"bpf" {
        return None;
    }
    let target = string(kernel, target, PATH_MAX)?;
    let is_there = inside(kernel, &target).is_some();
    Some(if is_there { Ok(Done::Value(0)) } else { Err(Errno::EPERM) })
}

fn fsopen(kernel: &Kernel, kind: u64) -> Found {
    (string(kernel, kind, PATH_MAX)? == b"bpf").then_some(Err(Errno::EPERM))
}

/// Nobody can map a map's values into another process, so what would be allowed is ENODEV: the first bytes of a map's file are not
/// its values.
fn mmap(kernel: &Kernel, arguments: &[u64; 6]) -> Found {
    let [_, len, prot, _, fd, offset] = *arguments;
    let refused = kernel.check_mmap(fd as c_int, len, prot as c_int, offset)?;
    Some(Err(refused.err().unwrap_or(Errno::from_raw(libc::ENODEV))))
}
