//! A process that forks while its threads are inside commands. Alone in its process.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bpfarray_syscall::{Kernel, Root};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;

fn create(kernel: &Kernel) -> Option<i32> {
    create_from(kernel, &[2, 4, 8, 4, 0, 0])
}

fn create_from(kernel: &Kernel, block: &[u32; 6]) -> Option<i32> {
    let at = block.as_ptr().expose_provenance() as u64;
    // SAFETY: the command writes to no address in its block.
    unsafe { kernel.bpf(MAP_CREATE, at, 24) }.ok()
}

/// Puts a map into a slot.
fn put(kernel: &Kernel, outer: i32, key: u32, inner: i32) -> bool {
    elem(kernel, UPDATE, outer, key, &mut inner.cast_unsigned().into())
}

/// Whether the command on an element went well.
fn elem(kernel: &Kernel, cmd: u32, fd: i32, key: u32, value: &mut u64) -> bool {
    let key = (&raw const key).expose_provenance() as u64;
    let value = (&raw mut *value).expose_provenance() as u64;
    let block = [fd.cast_unsigned().into(), key, value, 0_u64];
    let at = block.as_ptr().expose_provenance() as u64;
    // SAFETY: the command writes at most a value of 8 bytes, to `value`.
    unsafe { kernel.bpf(cmd, at, 32) }.is_ok()
}

fn close(kernel: &Kernel, fd: i32) {
    kernel.forget(fd);
    // SAFETY: the descriptor came from a command, and nothing else owns it.
    unsafe { libc::close(fd) };
}

/// Forks, and tells whether all went well in the child.
fn fork(kernel: &Kernel, fd: i32, outer: i32, number: u64) -> bool {
    let guard = kernel.before_fork();
    // SAFETY: the child does what a program would do with the library, and leaves without returning.
    match unsafe { libc::fork() } {
        0 => {
            guard.in_child();
            let mut value = number;
            let stored = elem(kernel, UPDATE, fd, 3, &mut value);
            value = 0;
            let found = elem(kernel, LOOKUP, fd, 3, &mut value) && value == number;
            let made = create(kernel).is_some_and(|inner| put(kernel, outer, 3, inner));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!(stored && found && made))) }
        }
        child => {
            drop(guard);
            let mut status = -1;
            // SAFETY: the status is written to an `i32`.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            child > 0 && status == 0
        }
    }
}

#[test]
fn children_of_a_busy_process_have_working_descriptors_and_wait_for_no_lock() {
    let path = std::env::temp_dir().join(format!("bpfarray-fork-{}", std::process::id()));
    let kernel = Kernel::new(Root::open(&path).unwrap());
    let fd = create(&kernel).unwrap();
    let outer = create_from(&kernel, &[12, 4, 4, 4, 0, fd.cast_unsigned()]).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for key in 0..2 {
            let (kernel, stop) = (&kernel, &stop);
            scope.spawn(move || {
                let mut value = 0;
                while !stop.load(Ordering::Relaxed) {
                    assert!(elem(kernel, LOOKUP, fd, key, &mut value));
                    value += 1;
                    assert!(elem(kernel, UPDATE, fd, key, &mut value));
                    let inner = create(kernel).unwrap();
                    assert!(put(kernel, outer, key, inner));
                    close(kernel, inner);
                }
            });
        }
        let failed = (0..50).filter(|&number| !fork(&kernel, fd, outer, number)).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
    let mut value = 0;
    assert!(elem(&kernel, LOOKUP, fd, 3, &mut value));
    assert_eq!(value, 49, "the last child's");
    std::fs::remove_dir_all(path).unwrap();
}
