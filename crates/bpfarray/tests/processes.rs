//! Several processes on one map: nothing is lost, nothing stays locked, nobody crashes.
//!
//! Children are this same binary, told by an environment variable what to do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, and what they share, fail by panicking"
)]

mod common;

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bpfarray::attr::elem_flags::F_LOCK;
use bpfarray::attr::{MapAttr, MapType};
use bpfarray::btf::{Btf, Kind};
use bpfarray::{
    Array, FreezeError, HandleMode, Lane, Map, PercpuArray, SharedLanes, UpdateError, possible_cpus,
};
use common::{TempDir, attr};

const ROLE: &str = "BPFARRAY_TEST_ROLE";
const PATH: &str = "BPFARRAY_TEST_PATH";

/// A child that does not outlive the test, whether that succeeds or not.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

fn spawn(role: &str, path: &Path, stdin: Stdio) -> Process {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(PATH, path)
        .stdin(stdin)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Process(child)
}

fn spawn_on(role: &str, path: &Path) -> Process {
    spawn(role, path, Stdio::null())
}

#[test]
#[ignore = "started by the other tests, in processes of their own"]
fn child() {
    let role = std::env::var(ROLE).unwrap();
    let path = std::env::var(PATH).unwrap();
    let open = || Map::open_file(&path, HandleMode::ReadWrite).unwrap();
    match role.as_str() {
        "add a million" => add_a_million(open()),
        "add a million to stdin" => {
            add_a_million(
                Map::from_fd(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap(),
            );
        }
        "count for ever" => count_for_ever(open()),
        "hold a typed array" => {
            let array = Array::<u64>::from_map(open()).unwrap();
            array.set(1, 1).unwrap();
            loop {
                std::thread::park();
            }
        }
        "hold a lock" => {
            let _held = open().try_lock(0).unwrap();
            loop {
                std::thread::park();
            }
        }
        "update under the lock" => {
            let map = open();
            (0..LOCKED_ROUNDS).for_each(|round| map.update_elem(0, &pair(round), F_LOCK).unwrap());
        }
        "update until frozen" => {
            let map = open();
            for count in 1u64.. {
                match map.update_elem(0, &count.to_ne_bytes(), 0) {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error, UpdateError::NotWritable);
                        break;
                    }
                }
            }
        }
        "read until lost" => {
            let map = open();
            let mut value = vec![0; map.user_size() as usize];
            map.update_elem(0, &vec![2; value.len()], 0).unwrap();
            while !map.has_lost_pages() {
                for index in 0..map.max_entries() {
                    map.lookup_elem(index, &mut value, 0).unwrap();
                }
            }
            map.update_elem(0, &value, 0).unwrap();
        }
        _ => panic!("{role}"),
    }
}

const LOCKED_ROUNDS: u32 = 20_000;

/// A value of struct `locked` whose two numbers are the same.
fn pair(number: u32) -> [u8; 16] {
    let mut value = [0; 16];
    value[..4].copy_from_slice(&number.to_ne_bytes());
    value[8..12].copy_from_slice(&number.to_ne_bytes());
    value
}

/// A map file of two values with a lock.
fn create_locked(path: &Path) -> Map {
    let bytes = include_bytes!("../../../testdata/btf/fields.btf");
    let btf = Btf::parse(bytes).unwrap();
    let attr = MapAttr {
        btf_key_type_id: btf.find_by_name("int", Kind::Int).unwrap(),
        btf_value_type_id: btf.find_by_name("locked", Kind::Struct).unwrap(),
        ..attr(MapType::ARRAY, 16, 2)
    };
    Map::create_file_with_btf(path, &attr, bytes).unwrap()
}

#[test]
fn the_lock_of_a_killed_process_is_free_again() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = create_locked(&path);
    let mut child = spawn_on("hold a lock", &path);
    let begin = Instant::now();
    while map.try_lock(0).is_some() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(map.try_lock(1).is_some());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| map.update_elem(0, &pair(7), F_LOCK).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        child.kill().unwrap();
        child.wait().unwrap();
        waiting.join().unwrap();
    });
    assert!(map.try_lock(0).is_some());
}

#[test]
fn processes_see_each_others_values_whole_under_the_lock() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = create_locked(&path);
    let mut children = [0; 2].map(|_| spawn_on("update under the lock", &path));
    let mut value = [0; 16];
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        map.lookup_elem(0, &mut value, F_LOCK).unwrap();
        assert_eq!(value[..4], value[8..12]);
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    map.lookup_elem(0, &mut value, 0).unwrap();
    assert_eq!(value, pair(LOCKED_ROUNDS - 1));
}

/// Runs `body` in lane 0, whatever the CPU: the other lanes are taken by other threads.
fn in_lane_0(body: impl Fn() + Sync) {
    let entered = Barrier::new(possible_cpus() as usize);
    let done = Barrier::new(possible_cpus() as usize);
    std::thread::scope(|scope| {
        for _ in 0..possible_cpus() {
            scope.spawn(|| {
                let lane = Lane::enter();
                entered.wait();
                if lane.cpu() == 0 {
                    body();
                }
                done.wait();
            });
        }
    });
}

fn add_a_million(map: Map) {
    let array = PercpuArray::<u64>::from_map(map).unwrap();
    in_lane_0(|| {
        for _ in 0..1_000_000 {
            array.add(3, 1).unwrap();
        }
    });
}

fn value(map: &Map, index: u32) -> u64 {
    let mut bytes = [0; 8];
    map.lookup_elem(index, &mut bytes, 0).unwrap();
    u64::from_ne_bytes(bytes)
}

#[test]
fn no_addition_of_two_processes_in_one_lane_is_lost() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 8, 4)).unwrap();
    let mut children = [0; 2].map(|_| spawn_on("add a million", &path));
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let array = PercpuArray::<u64>::from_map(map).unwrap();
    assert_eq!(array.get(3, 0), Some(2_000_000));
    assert_eq!(array.sum(3), Some(2_000_000));
}

#[test]
fn a_map_without_a_name_is_passed_to_children() {
    let map = Map::create_shared(&attr(MapType::PERCPU_ARRAY, 8, 4)).unwrap();
    let fd = || Stdio::from(map.as_fd().unwrap().try_clone_to_owned().unwrap());
    let mut children = [0; 2].map(|_| spawn("add a million to stdin", Path::new(""), fd()));
    let array = PercpuArray::<u64>::from_map(map.clone()).unwrap();
    in_lane_0(|| {
        // A program in this process, by address.
        let (lane, shared) = (Lane::enter(), SharedLanes::of([&map.to_ref()]));
        let values = map.regions().into_iter().find(|region| {
            Some(region.memory.addr()) == map.prog_lookup_percpu_elem(0, lane.cpu())
        });
        let values = values.unwrap().memory;
        for _ in 0..1_000_000 {
            shared.run(&lane, || {
                let count = values.load(3 * 8, 8).unwrap();
                values.store(3 * 8, 8, count + 1).unwrap();
            });
        }
    });
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(array.sum(3), Some(3_000_000));
}

/// Adds in lane 0, and after each addition says how many it has completed.
fn count_for_ever(map: Map) {
    let completed = std::env::var(PATH).unwrap() + ".completed";
    let completed = Map::open_file(completed, HandleMode::ReadWrite).unwrap();
    let completed = Array::<u64>::from_map(completed).unwrap();
    let mut slot = [0];
    std::io::stdin().read_exact(&mut slot).unwrap();
    let array = PercpuArray::<u64>::from_map(map).unwrap();
    in_lane_0(|| {
        loop {
            array.add(0, 1).unwrap();
            completed.fetch_add(u32::from(slot[0]), 1).unwrap();
        }
    });
}

#[test]
fn killed_processes_leave_nothing_locked_and_lose_no_completed_update() {
    const ROUNDS: u32 = 150;
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 8, 1)).unwrap();
    let completed =
        Map::create_file(dir.join("map.completed"), &attr(MapType::ARRAY, 8, 2)).unwrap();
    let lanes_offset = 4096 + 4096 * u64::from(possible_cpus());
    let file = File::open(&path).unwrap();
    let (mut killed, mut died_in_lane) = (0, 0);
    for round in 0..ROUNDS {
        let mut children = [0u8, 1].map(|slot| {
            let mut child = spawn("count for ever", &path, Stdio::piped());
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), &[slot]).unwrap();
            child
        });
        // Both count.
        let before = [0, 1].map(|slot| value(&completed, slot));
        let deadline = Instant::now() + Duration::from_secs(60);
        while (0..2).any(|slot| value(&completed, slot) < before[slot as usize] + 100) {
            assert!(Instant::now() < deadline, "round {round}: a lane stayed locked");
            std::thread::sleep(Duration::from_micros(200));
        }
        // One dies; the other one goes on, whether it has to take the lane back or not.
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        let survivor = value(&completed, 1);
        while value(&completed, 1) < survivor + 100 {
            assert!(Instant::now() < deadline, "round {round}: the survivor waits for ever");
            std::thread::sleep(Duration::from_micros(200));
        }
        children[1].kill().unwrap();
        assert_eq!(children[1].wait().unwrap().signal(), Some(libc::SIGKILL));
        killed += 2;
        let mut owner = [0; 8];
        file.read_exact_at(&mut owner, lanes_offset).unwrap();
        died_in_lane += u32::from(owner != [0; 8]);
    }
    assert!(died_in_lane > 0, "no process was killed while it held the lane");
    let array = PercpuArray::<u64>::from_map(map.clone()).unwrap();
    let (sum, done) = (array.sum(0).unwrap(), value(&completed, 0) + value(&completed, 1));
    assert!((done..=done + killed).contains(&sum), "{sum} added, {done} completed");
    array.add(0, 1).unwrap();
    drop(array);
    assert_eq!(map.freeze(), Ok(()), "nobody holds a lane or a lock");
}

#[test]
fn a_writer_in_another_process_keeps_a_map_from_being_frozen_while_it_lives() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 2)).unwrap();
    let mut child = spawn_on("hold a typed array", &path);
    while value(&map, 1) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(map.freeze(), Err(FreezeError::Busy));
    assert!(!map.is_frozen());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(map.freeze(), Ok(()));
}

#[test]
fn nothing_is_written_by_other_processes_after_freezing() {
    for _ in 0..20 {
        let dir = TempDir::new();
        let path = dir.join("map");
        let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 1)).unwrap();
        let mut children = [0; 2].map(|_| spawn_on("update until frozen", &path));
        while value(&map, 0) < 100 {
            std::thread::sleep(Duration::from_micros(100));
        }
        map.freeze().unwrap();
        let last = value(&map, 0);
        for child in &mut children {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(value(&map, 0), last);
    }
}

#[test]
fn a_reader_survives_that_another_process_truncates_the_file() {
    let dir = TempDir::new();
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        for len in [0, 100, 4096, 5000, 3 * 4096] {
            let path = dir.join(&format!("{map_type}-{len}"));
            // Ends with its last handle, so that only the child is left.
            let attr = MapAttr { max_entries: 64, ..attr(map_type, 1024, 1) };
            let map = Map::create_file(&path, &attr).unwrap();
            let mut child = spawn_on("read until lost", &path);
            let mut bytes = vec![0; map.user_size() as usize];
            while bytes[0] != 2 {
                map.lookup_elem(0, &mut bytes, 0).unwrap();
            }
            drop(map);
            File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
            let status = child.wait().unwrap();
            assert!(status.success(), "{map_type} cut to {len}: {status}");
        }
    }
}

#[test]
fn other_bus_errors_go_to_the_handler_that_was_there_before() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 2)).unwrap();
    let mut child = spawn_on("hold a typed array", &path);
    while value(&map, 1) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&child);
    let deadline = Instant::now() + Duration::from_secs(30);
    // The first one goes to Rust's own handler, which then steps aside.
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the signal is swallowed");
        rustix::process::kill_process(pid, rustix::process::Signal::BUS).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGBUS));
}
