//! Calls of other threads, which the kernel hands over. Here they are threads of the same process.
//!
//! **Invariant.** Addresses in blocks are of the buffers beside them, which are as long as what the command reads and writes.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bpfarray_syscall::{Root, seccomp};
use rustix::fs::{FlockOperation, flock};

const CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;

/// A call of the kernel's bpf(2).
fn bpf(cmd: u32, block: &[u64]) -> Result<i64, i32> {
    // SAFETY: the invariant.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, block.as_ptr(), size_of_val(block)) };
    if result < 0 {
        Err(std::io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        Ok(result)
    }
}

fn create() -> Result<i64, i32> {
    bpf(CREATE, &[2 | 4 << 32, 8 | 4 << 32])
}

fn elem(cmd: u32, fd: i64, key: u32, value: &mut u64) -> Result<i64, i32> {
    let (key, value) = (&raw const key, &raw mut *value);
    bpf(cmd, &[fd as u64, key.expose_provenance() as u64, value.expose_provenance() as u64, 0])
}

/// Starts a thread that answers the calls of another one, and lets that run `body`. `false` where the kernel does not allow it.
fn with_answers(name: &str, body: impl FnOnce(&Root) + Send + 'static) -> bool {
    let path = std::env::temp_dir().join(format!("bpfarray-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let root = Root::open(&path).unwrap();
    let (sender, receiver): (Sender<_>, Receiver<seccomp::Listener>) = channel();
    let theirs = root.clone();
    let caller = thread::spawn(move || match seccomp::install() {
        Ok(listener) => {
            sender.send(listener).unwrap();
            body(&theirs);
        }
        Err(error) => eprintln!("SKIPPED: {error}"),
    });
    let is_possible = receiver.recv().map(|listener| {
        // Older kernels don't tell when nobody is left, so nobody waits for this thread.
        thread::spawn(move || listener.serve(root, false).unwrap())
    });
    caller.join().unwrap();
    std::fs::remove_dir_all(path).unwrap();
    is_possible.is_ok()
}

#[test]
fn calls_of_a_thread_are_answered_and_others_reach_the_kernel() {
    with_answers("seccomp-thread", |root| {
        let (fd, mut value) = (create().unwrap(), 7);
        elem(UPDATE, fd, 1, &mut value).unwrap();
        value = 0;
        elem(LOOKUP, fd, 1, &mut value).unwrap();
        assert_eq!(value, 7);
        assert_eq!(elem(LOOKUP, fd, 4, &mut value), Err(libc::ENOENT));
        assert_eq!(elem(LOOKUP, 2, 4, &mut value), Err(libc::EINVAL), "stderr is no map");
        assert_eq!(elem(LOOKUP, -1, 4, &mut value), Err(libc::EBADF));
        assert_eq!(bpf(CREATE, &[0; 600]), Err(libc::E2BIG));
        assert_eq!(std::fs::read_dir(root.path().join("bpf-map")).unwrap().count(), 1);
        std::fs::create_dir(root.pins().join("inside")).unwrap();
        assert!(std::fs::metadata("/sys/fs/bpf/inside").unwrap().is_dir());
        assert_eq!(std::fs::read_dir("/sys/fs/bpf").unwrap().count(), 1);
        assert!(std::fs::metadata("/proc/self/status").unwrap().is_file());
    });
}

#[test]
fn a_call_that_waits_keeps_no_other_from_being_answered() {
    with_answers("seccomp-waits", |root| {
        let (fd, mut value) = (create().unwrap(), 0);
        // Ids are given out under this lock.
        let ids = File::open(root.path().join("ids")).unwrap();
        flock(&ids, FlockOperation::LockExclusive).unwrap();
        let (sender, done) = channel();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || sender.send(create().is_ok()).unwrap())
            })
            .collect();
        assert!(done.recv_timeout(Duration::from_millis(100)).is_err(), "they wait");
        for key in 0..4 {
            elem(LOOKUP, fd, key, &mut value).unwrap();
        }
        flock(&ids, FlockOperation::Unlock).unwrap();
        assert_eq!([(); 3].map(|()| done.recv().unwrap()), [true; 3]);
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn calls_fail_when_nobody_answers_any_more() {
    let caller = thread::spawn(|| match seccomp::install() {
        Ok(listener) => {
            let second = seccomp::install().map(drop).map_err(|error| error.raw_os_error());
            drop(listener);
            assert_eq!(create(), Err(libc::ENOSYS));
            assert_eq!(second, Err(Some(libc::EBUSY)));
        }
        Err(error) => eprintln!("SKIPPED: {error}"),
    });
    caller.join().unwrap();
}

#[test]
fn keys_and_values_across_pages_are_read_whole() {
    with_answers("seccomp-pages", |_| {
        let fd = create().unwrap();
        let pages = vec![0x11_u8; 3 * 4096];
        let end = pages.as_ptr().addr().next_multiple_of(4096) + 4096;
        let offset = end - pages.as_ptr().addr() - 3;
        let at = (&raw const pages[offset]).expose_provenance() as u64;
        let key = 2_u32;
        let key_at = (&raw const key).expose_provenance() as u64;
        bpf(UPDATE, &[fd as u64, key_at, at, 0]).unwrap();
        let mut found = 0;
        elem(LOOKUP, fd, key, &mut found).unwrap();
        assert_eq!(found, 0x1111_1111_1111_1111);
        // What a call has read is not taken for what the next one finds there.
        let mut value = 5;
        for round in 6..9 {
            elem(UPDATE, fd, 0, &mut value).unwrap();
            elem(LOOKUP, fd, 0, &mut found).unwrap();
            assert_eq!(found, value);
            value = round;
        }
    });
}
