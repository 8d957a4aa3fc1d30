//! The function `syscall`.
//!
//! **Invariant.** What is neither bpf(2) nor `perf_event_open` for output of programs goes to the real function with the arguments as
//! they came.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};
use std::io::Write;
use std::sync::OnceLock;

use bpfarray_syscall::{Errno, trace_line};

use crate::descriptor;
use crate::real::{self, result_of};
use crate::state::{caught, kernel};

/// In the environment, asks for a line on each bpf(2) call.
const TRACE_VARIABLE: &str = "BPFARRAY_TRACE";

/// libc's `syscall` takes what the call needs, as variable arguments; they come in the same registers as seven plain ones
/// do.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    match number {
        libc::SYS_bpf => {
            // SAFETY: the program's promise to the kernel: it may write where the attributes say.
            c_long::from(result_of(caught(|| unsafe { bpf(a as u32, b as u64, c as u32) })))
        }
        libc::SYS_perf_event_open => {
            let opened = caught(|| {
                let (pid, cpu, group_fd) = (b as c_int, c as c_int, d as c_int);
                let Ok(kernel) = kernel() else { return Ok(None) };
                // SAFETY: the program's promise to the kernel: it may write to the attributes.
                let opened =
                    unsafe { kernel.perf_event_open(a as u64, pid, cpu, group_fd, e as u64) };
                opened.transpose()
            });
            match opened.transpose() {
                Some(result) => result_of(result).into(),
                // SAFETY: the caller's promise.
                None => unsafe { real::syscall(number, a, b, c, d, e, f) },
            }
        }
        // Programs also close and replace descriptors this way.
        libc::SYS_close => {
            // SAFETY: the caller's promise.
            let result = unsafe { descriptor::close(a as c_int) };
            result.into()
        }
        libc::SYS_close_range => {
            // SAFETY: the caller's promise.
            let result = unsafe { descriptor::close_range(a as u32, b as u32, c as c_int) };
            result.into()
        }
        libc::SYS_dup3 => {
            // SAFETY: the caller's promise.
            let result = unsafe { descriptor::dup3(a as c_int, b as c_int, c as c_int) };
            result.into()
        }
        // SAFETY: the caller's promise.
        _ => unsafe { real::syscall(number, a, b, c, d, e, f) },
    }
}

/// # Safety
/// As `Kernel::bpf`.
unsafe fn bpf(cmd: u32, attr: u64, size: u32) -> Result<c_int, Errno> {
    let kernel = kernel()?;
    // SAFETY: the caller's promise.
    let call = || unsafe { kernel.bpf(cmd, attr, size) };
    if !is_traced() {
        return call();
    }
    // Before the call, which may write to the block.
    let shown = kernel.describe(cmd, attr, size);
    let result = call();
    let line = trace_line(&shown, result);
    // In one piece, so that lines of several processes don't mix.
    let _ = std::io::stderr().write_all(line.as_bytes());
    result
}

fn is_traced() -> bool {
    static TRACED: OnceLock<bool> = OnceLock::new();
    *TRACED.get_or_init(|| std::env::var_os(TRACE_VARIABLE).is_some_and(|value| !value.is_empty()))
}
