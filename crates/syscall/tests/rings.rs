//! Perf events of a root directory: who keeps them, and several processes that write to one ring.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bpfarray::perf::{EventOutputError, F_CURRENT_CPU};
use bpfarray::{HandleMode, Lane, Map, MapRef, possible_cpus};
use bpfarray_syscall::{Errno, Kernel, Root};
use rustix::thread::{CpuSet, sched_setaffinity};

const MAP_CREATE: u32 = 0;
const UPDATE: u32 = 2;
const OBJ_PIN: u32 = 6;
const PERF_EVENT_ARRAY: u64 = 4;

const PAGE: usize = 4096;
/// Pages of the rings, with the first.
const PAGES: usize = 9;
const DATA: usize = (PAGES - 1) * PAGE;
const HEAD: u64 = 1024;
const TAIL: u64 = 1032;

/// While one test starts a process, that one has the descriptors of the others.
static ALONE: Mutex<()> = Mutex::new(());

struct User {
    kernel: Kernel,
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn address<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>().expose_provenance() as u64
}

impl User {
    fn new(name: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("bpfarray-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self { kernel: Kernel::new(Root::open(&path).unwrap()), path, _alone: alone }
    }

    fn call(&self, cmd: u32, words: &[u64]) -> Result<i32, Errno> {
        let mut block = words.to_vec();
        let size = (block.len() * 8) as u32;
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), size) }
    }

    /// A PERF_EVENT_ARRAY with a slot for each CPU, by this name.
    fn table(&self, name: &str) -> i32 {
        let sizes = [PERF_EVENT_ARRAY | 4 << 32, 4 | u64::from(possible_cpus()) << 32, 0];
        let fd = self.call(MAP_CREATE, &sizes).unwrap();
        let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
        self.call(OBJ_PIN, &[address(path.as_ptr()), fd.cast_unsigned().into()]).unwrap();
        fd
    }

    /// An event for CPU 0.
    fn event(&self) -> i32 {
        const SOFTWARE: u64 = 1;
        const SIZE: u64 = 64;
        const OUTPUT: u64 = 10;
        const RAW: u64 = 1 << 10;
        let mut block = [SOFTWARE | SIZE << 32, OUTPUT, 1, RAW, 0, 0, 1, 0];
        let (attr, cloexec) = (address(block.as_mut_ptr()), 8);
        // SAFETY: the block has the size it says.
        unsafe { self.kernel.perf_event_open(attr, -1, 0, -1, cloexec) }.unwrap().unwrap()
    }

    fn put(&self, map: i32, index: u32, value: i32) -> Result<i32, Errno> {
        let (key, value) = (address(&raw const index), address(&raw const value));
        self.call(UPDATE, &[map.cast_unsigned().into(), key, value, 0])
    }

    /// Where the ring is.
    fn map(&self, fd: i32) -> u64 {
        let (len, prot) = ((PAGES * PAGE) as u64, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: no place is asked for.
        unsafe { self.kernel.mmap(0, len, prot, libc::MAP_SHARED, fd, 0) }.unwrap().unwrap()
    }

    fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    /// Whether the event with this id is there, once somebody has looked for those that nobody refers to: that happens every
    /// 16 events.
    fn is_there(&self, id: u32) -> bool {
        (0..16).for_each(|_| self.close(self.event()));
        let path = self.path.join("perf-event").join(id.to_string());
        let signal = path.with_extension("signal");
        assert_eq!(path.exists(), signal.exists());
        path.exists()
    }

    fn spawn(&self, role: &str) -> Victim {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "another_process", "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, &self.path)
            .stdout(Stdio::null())
            .spawn();
        Victim(child.unwrap())
    }
}

/// A process that is killed at the end, also of a test that fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What another process is to do, and where.
const ROLE: &str = "BPFARRAY_TEST_ROLE";
const PLACE: &str = "BPFARRAY_TEST_PLACE";

/// Does what it was started for. Nothing when it runs as a test.
#[test]
fn another_process() {
    let (Some(role), Some(path)) = (std::env::var_os(ROLE), std::env::var_os(PLACE)) else {
        return;
    };
    let kernel = Kernel::new(Root::open(PathBuf::from(path)).unwrap());
    write_for_ever(&kernel, role.to_str().unwrap().parse().unwrap());
}

fn run_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    // There may be no other CPU.
    let _ = sched_setaffinity(None, &cpus);
}

/// A pinned map, as programs have it.
fn for_programs(kernel: &Kernel, name: &str) -> MapRef {
    let (directory, path) = (kernel.directory(), kernel.root().pins().join(name));
    let map = Map::open_in(&directory, path, HandleMode::ReadWrite).unwrap().to_ref();
    map.refresh_slots().unwrap();
    map
}

/// Records that say who wrote them: up to 20 times the same number, in which there is the writer's.
fn write_for_ever(kernel: &Kernel, writer: u32) {
    let map = for_programs(kernel, "rings");
    run_on(0);
    let lane = Lane::enter();
    assert_eq!(lane.cpu(), 0);
    // Still in the lane, as a program that was moved while it ran could not be: so both writers really run at once.
    run_on(writer as usize);
    for number in 0_u32.. {
        let data = vec![(number << 1 | writer).to_ne_bytes(); 1 + number as usize % 20].concat();
        match map.perf_event_output(&lane, F_CURRENT_CPU, &[&data]) {
            Ok(()) | Err(EventOutputError::NoSpace) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The ring in its file, as its reader.
struct Reader {
    file: File,
    tail: u64,
    /// Numbers that each writer wrote last.
    last: [Option<u32>; 2],
    whole: u64,
    lost: u64,
}

impl Reader {
    fn of(user: &User) -> Self {
        let path = user.path.join("perf-event/1");
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { file, tail: 0, last: [None; 2], whole: 0, lost: 0 }
    }

    fn word(&self, offset: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, PAGE as u64 + offset).unwrap();
        u64::from_ne_bytes(word)
    }

    fn read(&mut self) {
        let head = self.word(HEAD);
        assert!(head - self.tail <= DATA as u64, "{head} {}", self.tail);
        let mut data = vec![0; DATA];
        self.file.read_exact_at(&mut data, 2 * PAGE as u64).unwrap();
        let at = |position: u64, len: usize| -> Vec<u8> {
            (0..len).map(|byte| data[(position as usize + byte) % DATA]).collect()
        };
        let number = |position| u32::from_ne_bytes(at(position, 4).try_into().unwrap());
        while self.tail < head {
            let (kind, len) = (number(self.tail), u64::from(number(self.tail + 4) >> 16));
            assert!(len >= 8 && self.tail + len <= head, "{len} bytes at {}", self.tail);
            match kind {
                2 => self.lost += u64::from(number(self.tail + 16)),
                9 => {
                    let first = number(self.tail + 12);
                    let count = 1 + (first >> 1) % 20;
                    assert_eq!(len, u64::from(8 + (4 + 4 * count).next_multiple_of(8)));
                    let words = (0..count).map(|word| number(self.tail + 12 + 4 * u64::from(word)));
                    assert!(words.into_iter().all(|word| word == first), "a torn record");
                    let last = &mut self.last[first as usize & 1];
                    assert!(*last < Some(first), "{last:?} before {first}");
                    *last = Some(first);
                    self.whole += 1;
                }
                other => panic!("a record of type {other} at {}", self.tail),
            }
            self.tail += len;
        }
        self.file.write_all_at(&self.tail.to_ne_bytes(), PAGE as u64 + TAIL).unwrap();
    }
}

#[test]
fn records_stay_whole_whichever_processes_write_and_are_killed() {
    let user = User::new("ring-kills");
    let (table, event) = (user.table("rings"), user.event());
    user.map(event);
    user.put(table, 0, event).unwrap();
    let mut reader = Reader::of(&user);
    for kill in 0..10 {
        let mut victims = [0, 1].map(|writer: u32| user.spawn(&writer.to_string()));
        reader.last = [None; 2];
        let before = reader.whole;
        for _ in 0..20_000 {
            reader.read();
            if reader.whole > before + 500 && reader.last.iter().all(Option::is_some) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(kill * 371));
        for victim in &mut victims {
            assert_eq!(victim.0.try_wait().unwrap(), None, "it failed");
        }
        drop(victims);
        reader.read();
        assert!(
            reader.last.iter().all(Option::is_some),
            "one waits for the other: {:?}",
            reader.last
        );
    }
    assert!(reader.whole > 5_000 && reader.lost > 0, "{} {}", reader.whole, reader.lost);
}

#[test]
fn an_event_is_there_for_descriptors_mappings_and_slots() {
    let user = User::new("ring-references");
    let event = user.event();
    assert!(user.is_there(1), "it has a descriptor");
    user.close(event);
    assert!(!user.is_there(1));

    let mapped = user.event();
    let at = user.map(mapped);
    user.close(mapped);
    let id = 2 + 32;
    assert!(user.is_there(id), "it is mapped");
    let at = std::ptr::without_provenance_mut(at as usize);
    // SAFETY: the mapping that was made above, which nobody uses.
    unsafe { rustix::mm::munmap(at, PAGES * PAGE) }.unwrap();
    assert!(!user.is_there(id));

    let (table, kept) = (user.table("table"), user.event());
    let id = id + 32 + 1;
    user.put(table, 0, kept).unwrap();
    user.close(kept);
    assert!(user.is_there(id), "it is in a slot");
    user.close(table);
    assert!(!user.is_there(id), "the slot went with the open file through which it was filled");
}
