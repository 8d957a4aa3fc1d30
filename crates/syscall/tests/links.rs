//! Links of a root directory: what they keep, who can iterate, and what is left when processes die.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bpfarray_core::btf::{Btf, Kind};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, jmp, size};
use bpfarray_syscall::{Errno, Kernel, Root};

const MAP_CREATE: u32 = 0;
const UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_NEXT_ID: u32 = 11;
const MAP_NEXT_ID: u32 = 12;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_NEXT_ID: u32 = 31;
const ITER_CREATE: u32 = 33;

const TRACING: u64 = 26;
const TRACE_ITER: u64 = 28;
const META: i16 = 0;
const KEY: i16 = 16;
const VALUE: i16 = 24;

/// What loaders name iterators by; `None` where the running kernel does not tell.
fn iterator_id() -> Option<u64> {
    let id = fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|bytes| {
        Btf::find_in(&bytes, "bpf_iter_bpf_map_elem", Kind::Func).unwrap().map(u64::from)
    });
    if id.is_none() {
        eprintln!("SKIPPED: the running kernel has no readable /sys/kernel/btf/vmlinux");
    }
    id
}

/// While one test starts a process, that one has the descriptors of the others.
static STARTS: RwLock<()> = RwLock::new(());

/// A root directory of one test, as one process sees it.
struct Fixture {
    kernel: Kernel,
    path: PathBuf,
    iterator_id: u64,
    /// Whether the directory goes with it.
    is_first: bool,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.is_first {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The guard keeps processes from being started.
fn fixture(name: &str) -> Option<(Fixture, RwLockReadGuard<'static, ()>)> {
    let nobody_starts = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    Some((alone(name)?, nobody_starts))
}

fn alone(name: &str) -> Option<Fixture> {
    let path = std::env::temp_dir().join(format!("bpfarray-link-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    let iterator_id = iterator_id()?;
    Some(Fixture {
        kernel: Kernel::new(Root::open(&path).unwrap()),
        path,
        iterator_id,
        is_first: true,
    })
}

/// Fields of a block, by their offsets.
fn block(words: &[(usize, u64, usize)]) -> Vec<u8> {
    let mut block = vec![0; 168];
    for &(at, value, len) in words {
        block[at..at + len].copy_from_slice(&value.to_ne_bytes()[..len]);
    }
    block
}

fn address<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>().expose_provenance() as u64
}

/// Writes so many bytes of a key or value, and returns this.
fn writes(field: i16, count: i32, result: i32) -> Vec<Insn> {
    vec![
        Insn::mov64_reg(Reg::new(6), Reg::R1),
        Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, field),
        Insn::mov64_imm(Reg::R0, 0),
        Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, 5),
        Insn::ldx_mem(size::DW, Reg::R1, Reg::new(6), META),
        Insn::ldx_mem(size::DW, Reg::R1, Reg::R1, 0),
        Insn::mov64_imm(Reg::R3, count),
        Insn::call(helper_id::SEQ_WRITE),
        Insn::mov64_imm(Reg::R0, result),
        Insn::exit(),
    ]
}

impl Fixture {
    /// What another process makes of the same directory.
    fn other_process(&self) -> Self {
        let kernel = Kernel::new(Root::open(&self.path).unwrap());
        Self { kernel, path: self.path.clone(), iterator_id: self.iterator_id, is_first: false }
    }

    fn call(&self, cmd: u32, words: &[(usize, u64, usize)]) -> Result<i32, Errno> {
        let mut block = block(words);
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), block.len() as u32) }
    }

    fn map(&self, value_size: u64, entries: u64) -> i32 {
        self.call(MAP_CREATE, &[(0, 2, 4), (4, 4, 4), (8, value_size, 4), (12, entries, 4)])
            .unwrap()
    }

    fn put(&self, map: i32, key: u32, value: u64) {
        let at = [address(&raw const key), address(&raw const value)];
        self.call(UPDATE, &[(0, map as u64, 4), (8, at[0], 8), (16, at[1], 8)]).unwrap();
    }

    fn load(&self, insns: &[Insn]) -> i32 {
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
        let license = c"GPL";
        let words = [
            (0, TRACING, 4),
            (4, insns.len() as u64, 4),
            (8, address(bytes.as_ptr()), 8),
            (16, address(license.as_ptr()), 8),
            (68, TRACE_ITER, 4),
            (108, self.iterator_id, 4),
        ];
        self.call(PROG_LOAD, &words).unwrap()
    }

    fn link(&self, prog: i32, map: i32) -> i32 {
        let info = [map, 0, 0, 0];
        let words =
            [(0, prog as u64, 4), (8, TRACE_ITER, 4), (16, address(info.as_ptr()), 8), (24, 16, 4)];
        self.call(LINK_CREATE, &words).unwrap()
    }

    fn replace(&self, link: i32, prog: i32) {
        self.call(LINK_UPDATE, &[(0, link as u64, 4), (4, prog as u64, 4)]).unwrap();
    }

    fn pin(&self, fd: i32, name: &str) {
        let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
        self.call(OBJ_PIN, &[(0, address(path.as_ptr()), 8), (8, fd as u64, 4)]).unwrap();
    }

    fn get(&self, name: &str) -> i32 {
        let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
        self.call(OBJ_GET, &[(0, address(path.as_ptr()), 8)]).unwrap()
    }

    /// Closes descriptors as a program does.
    fn close(&self, fds: &[i32]) {
        for &fd in fds {
            self.kernel.forget(fd);
            // SAFETY: the descriptor came from a command, and nothing else owns it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    fn iterate(&self, link: i32) -> Result<Vec<u8>, Errno> {
        let fd = self.call(ITER_CREATE, &[(0, link as u64, 4)])?;
        let mut text = Vec::new();
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        File::from(unsafe { OwnedFd::from_raw_fd(fd) }).read_to_end(&mut text).unwrap();
        Ok(text)
    }

    /// How many links, programs and maps are listed.
    fn counts(&self) -> [usize; 3] {
        [LINK_NEXT_ID, PROG_NEXT_ID, MAP_NEXT_ID].map(|cmd| {
            let (mut count, mut id) = (0, 0);
            loop {
                let mut block = block(&[(0, id, 4)]);
                // SAFETY: the command writes to the block only.
                match unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), 8) } {
                    Ok(_) => id = u32::from_ne_bytes(block[4..8].try_into().unwrap()).into(),
                    Err(errno) => {
                        assert_eq!(errno, Errno::ENOENT);
                        return count;
                    }
                }
                count += 1;
            }
        })
    }
}

#[test]
fn a_link_keeps_its_program_and_map_until_its_last_descriptor_is_closed() {
    let Some((here, _nobody_starts)) = fixture("keeps") else { return };
    let (prog, map) = (here.load(&writes(VALUE, 8, 0)), here.map(8, 2));
    here.put(map, 1, 0x0102_0304);
    let link = here.link(prog, map);
    here.close(&[prog, map]);
    assert_eq!(here.other_process().counts(), [1, 1, 1]);
    let values = [0_u64.to_ne_bytes(), 0x0102_0304_u64.to_ne_bytes()].concat();
    assert_eq!(here.iterate(link).unwrap(), values);
    here.pin(link, "link");
    here.close(&[link]);
    let there = here.other_process();
    let again = there.get("link");
    fs::remove_file(here.kernel.root().pins().join("link")).unwrap();
    assert_eq!(there.iterate(again).unwrap(), values);
    assert_eq!(here.counts(), [1, 1, 1]);
    there.close(&[again]);
    // Who asks for the last of a row finds that what kept it is gone.
    for cmd in [MAP_NEXT_ID, PROG_NEXT_ID, LINK_NEXT_ID] {
        assert_eq!(here.call(cmd, &[]), Err(Errno::ENOENT));
    }
    let left = fs::read_dir(here.path.join("bpf-link")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_program_that_was_replaced_goes_and_the_other_one_stays() {
    let Some((here, _nobody_starts)) = fixture("replaced") else { return };
    let (keys, values) = (here.load(&writes(KEY, 4, 0)), here.load(&writes(VALUE, 8, 0)));
    let map = here.map(8, 1);
    let link = here.link(keys, map);
    here.close(&[keys, map]);
    assert_eq!(here.iterate(link).unwrap().len(), 4);
    here.replace(link, values);
    here.replace(link, values);
    here.close(&[values]);
    assert_eq!(here.counts(), [1, 1, 1]);
    // Another process had the first one remembered.
    assert_eq!(here.iterate(link).unwrap().len(), 8);
    here.close(&[link]);
    assert_eq!(here.counts(), [0, 0, 0]);
}

#[test]
fn a_program_that_reaches_too_far_does_not_run_for_a_link_that_it_was_put_into() {
    let Some((here, _nobody_starts)) = fixture("far") else { return };
    let map = here.map(4, 1);
    let link = here.link(here.load(&writes(VALUE, 4, 0)), map);
    // The kernel does not look at how far it reaches.
    here.replace(link, here.load(&writes(VALUE, 8, 0)));
    assert_eq!(here.iterate(link), Err(Errno::EACCES));
}

#[test]
fn text_that_is_not_complete_is_an_error() {
    let Some((here, _nobody_starts)) = fixture("incomplete") else { return };
    let map = here.map(8, 2);
    let gives_up = here.link(here.load(&writes(KEY, 4, 1)), map);
    assert_eq!(here.iterate(gives_up), Err(Errno::EAGAIN));
    let (long, prog) = (here.map(32 << 10, 1), here.load(&writes(VALUE, 32 << 10, 0)));
    assert_eq!(here.iterate(here.link(prog, long)), Err(Errno::E2BIG));
}

#[test]
fn many_elements_without_text_are_visited_to_the_end() {
    let Some((here, _nobody_starts)) = fixture("many") else { return };
    let map = here.map(1, 1_000_001);
    // Writes only what it does not find with the last key, but for the end, where there is none.
    let mut insns = writes(KEY, 4, 0);
    insns.splice(
        4..4,
        [
            Insn::ldx_mem(size::W, Reg::R3, Reg::R2, 0),
            Insn::jmp_imm(jmp::JNE, Reg::R3, 1_000_000, 5),
        ],
    );
    insns[3] = Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, 7);
    let link = here.link(here.load(&insns), map);
    assert_eq!(here.iterate(link).unwrap(), 1_000_000_u32.to_ne_bytes());
}

#[test]
fn opening_a_pin_is_reading_what_the_iterator_says_of_the_map_now() {
    let Some((here, _nobody_starts)) = fixture("opened") else { return };
    let map = here.map(8, 1);
    let link = here.link(here.load(&writes(VALUE, 8, 0)), map);
    here.pin(link, "link");
    here.pin(map, "map");
    let pins = here.kernel.root().pins();
    let there = here.other_process();
    for value in [1_u64, 2] {
        here.put(map, 0, value);
        let opened = there.kernel.open_pin(&pins.join("link"), libc::O_RDONLY).unwrap().unwrap();
        let mut text = Vec::new();
        File::from(opened).read_to_end(&mut text).unwrap();
        assert_eq!(text, value.to_ne_bytes());
    }
    let opened = |name, flags| there.kernel.open_pin(&pins.join(name), flags);
    assert!(opened("map", libc::O_RDONLY).is_none());
    assert!(opened("none", libc::O_RDONLY).is_none());
    assert!(opened("link", libc::O_PATH).is_none());
    assert!(opened("link", libc::O_CREAT | libc::O_EXCL).is_none());
}

/// Names the root directory to the process that is going to be killed.
const VICTIM: &str = "BPFARRAY_TEST_LINK_VICTIM";

/// Makes links, changes their programs and pins every other one, until it is killed. Does nothing when it runs as a test.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(VICTIM) else { return };
    let path = PathBuf::from(root);
    let kernel = Kernel::new(Root::open(&path).unwrap());
    let here = Fixture { kernel, path, iterator_id: iterator_id().unwrap(), is_first: false };
    for number in 0_u64.. {
        let (first, second) = (here.load(&writes(KEY, 4, 0)), here.load(&writes(VALUE, 8, 0)));
        let map = here.map(8, 2);
        let link = here.link(first, map);
        if number == 0 {
            println!("begun");
            std::io::stdout().flush().unwrap();
        }
        if number % 2 == 0 {
            here.pin(link, &format!("{}_{number}", std::process::id()));
        }
        here.replace(link, second);
        here.close(&[first, second, map, link]);
    }
}

#[test]
fn of_links_of_killed_processes_only_pinned_ones_are_left_with_what_they_link() {
    let _starts = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    let Some(here) = alone("kills") else { return };
    // More of them to look at it at length.
    let kills = std::env::var("BPFARRAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    for kill in 0..kills.unwrap_or(30_u64) {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, &here.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = victim.stdout.take().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"begun") {
            let mut byte = [0];
            said.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        // Times that hit every part of a round sooner or later.
        std::thread::sleep(Duration::from_micros(kill % 30 * 437));
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    let pins: Vec<_> = fs::read_dir(here.kernel.root().pins()).unwrap().collect();
    assert!(!pins.is_empty(), "the victims came to nothing");
    let [links, progs, maps] = here.counts();
    assert_eq!((links, maps), (pins.len(), pins.len()));
    // One whose process died in the middle of a change keeps two.
    assert!(progs >= links && progs <= 2 * links, "{progs} programs of {links} links");
    for pin in pins {
        let name = pin.unwrap().file_name().into_string().unwrap();
        let link = here.get(&name);
        assert!(matches!(here.iterate(link).unwrap().len(), 8 | 16));
        here.close(&[link]);
        fs::remove_file(here.kernel.root().pins().join(name)).unwrap();
    }
    assert_eq!(here.counts(), [0, 0, 0]);
}

#[test]
fn a_dead_map_hides_no_held_one_behind_it() {
    let Some((here, _nobody_starts)) = fixture("deadmap") else { return };
    let dead = here.map(8, 1);
    let prog = here.load(&writes(VALUE, 8, 0));
    here.pin(prog, "prog");
    let _held = here.map(8, 1);
    here.close(&[dead]);
    assert_eq!(here.call(MAP_NEXT_ID, &[]), Ok(0));
}

#[test]
fn what_a_dead_link_kept_is_gone_also_behind_a_pinned_one() {
    let Some((here, _nobody_starts)) = fixture("deadlink") else { return };
    let (p1, m1) = (here.load(&writes(VALUE, 8, 0)), here.map(8, 1));
    let l1 = here.link(p1, m1);
    here.pin(l1, "link");
    let (p2, m2) = (here.load(&writes(VALUE, 8, 0)), here.map(8, 1));
    let l2 = here.link(p2, m2);
    let m3 = here.map(8, 1);
    here.call(35, &[(0, p2 as u64, 4), (4, m3 as u64, 4)]).unwrap();
    here.close(&[l2, p2, m2, m3]);
    assert_eq!(here.other_process().call(14, &[(0, 3, 4)]), Err(Errno::ENOENT));
}
