//! Maps of objects: slots that several processes fill and empty, and what stays because it is in one.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bpfarray::{Cgroup, HandleMode, Lane, Map, MapRef, SharedLanes};
use bpfarray_syscall::{Errno, Kernel, Root};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const MAP_NEXT_ID: u32 = 12;
const MAP_FD_BY_ID: u32 = 14;
const UPDATE_BATCH: u32 = 26;

const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;
const PERF_EVENT_ARRAY: u32 = 4;
const PERCPU_ARRAY: u32 = 6;
const CGROUP_ARRAY: u32 = 8;
const ARRAY_OF_MAPS: u32 = 12;

const PRESERVE_ELEMS: u32 = 0x800;

/// While one test starts a process, that one has the descriptors of the others.
static ALONE: Mutex<()> = Mutex::new(());

/// A root directory, with this process as one that uses it.
struct User {
    kernel: Kernel,
    path: PathBuf,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Drop for User {
    fn drop(&mut self) {
        if self._alone.is_some() {
            let _ = fs::remove_dir_all(&self.path);
        }
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
        Self { kernel: Kernel::new(Root::open(&path).unwrap()), path, _alone: Some(alone) }
    }

    fn call(&self, cmd: u32, words: &[u64]) -> Result<i32, Errno> {
        let mut block = words.to_vec();
        self.call_block(cmd, &mut block)
    }

    fn call_block(&self, cmd: u32, block: &mut [u64]) -> Result<i32, Errno> {
        let size = (block.len() * 8) as u32;
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), size) }
    }

    /// A map of four elements of 4 bytes.
    fn create(&self, map_type: u32, inner: i32, flags: u32) -> Result<i32, Errno> {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let inner = inner.cast_unsigned();
        self.call(MAP_CREATE, &[pair(map_type, 4), pair(4, 4), pair(flags, inner)])
    }

    fn array(&self) -> i32 {
        self.create(ARRAY, 0, 0).unwrap()
    }

    fn outer(&self) -> i32 {
        let template = self.array();
        let outer = self.create(ARRAY_OF_MAPS, template, 0).unwrap();
        self.close(template);
        outer
    }

    fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn put(&self, map: i32, index: u32, value: i32) -> Result<i32, Errno> {
        let (key, value) = (address(&raw const index), address(&raw const value));
        self.call(UPDATE, &[map.cast_unsigned().into(), key, value, 0])
    }

    fn delete(&self, map: i32, index: u32) -> Result<i32, Errno> {
        self.call(DELETE, &[map.cast_unsigned().into(), address(&raw const index)])
    }

    fn lookup(&self, map: i32, index: u32) -> Result<u32, Errno> {
        let mut value = 0_u32;
        let (key, to) = (address(&raw const index), address(&raw mut value));
        self.call(LOOKUP, &[map.cast_unsigned().into(), key, to, 0]).map(|_| value)
    }

    fn by_id(&self, id: u32) -> Result<i32, Errno> {
        self.call(MAP_FD_BY_ID, &[id.into()])
    }

    fn pin(&self, cmd: u32, name: &str, fd: i32) -> Result<i32, Errno> {
        let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
        self.call(cmd, &[address(path.as_ptr()), fd.cast_unsigned().into()])
    }

    fn ids(&self) -> Vec<u32> {
        let (mut ids, mut last) = (Vec::new(), 0);
        loop {
            let mut block = [u64::from(last)];
            if self.call_block(MAP_NEXT_ID, &mut block).is_err() {
                return ids;
            }
            last = (block[0] >> 32) as u32;
            ids.push(last);
        }
    }

    /// A pinned map, as programs of this process have it.
    fn for_programs(&self, name: &str) -> MapRef {
        let directory = self.kernel.directory();
        let path = self.kernel.root().pins().join(name);
        Map::open_in(&directory, path, HandleMode::ReadWrite).unwrap().to_ref()
    }
}

/// What another process is to do, and where.
const ROLE: &str = "BPFARRAY_TEST_ROLE";
const PLACE: &str = "BPFARRAY_TEST_PLACE";

impl User {
    fn spawn(&self, role: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "another_process", "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn run(&self, role: &str) {
        assert!(self.spawn(role).wait().unwrap().success(), "{role}");
    }
}

/// Does what it was started for. Nothing when it runs as a test.
#[test]
fn another_process() {
    let (Some(role), Some(path)) = (std::env::var_os(ROLE), std::env::var_os(PLACE)) else {
        return;
    };
    let path = PathBuf::from(path);
    let user = User { kernel: Kernel::new(Root::open(&path).unwrap()), path, _alone: None };
    let outer = user.pin(OBJ_GET, "outer", 0).unwrap();
    match role.to_str().unwrap() {
        "put a map that counts to 7 into slot 2" => {
            let inner = user.array();
            user.put(inner, 1, 7).unwrap();
            user.put(outer, 2, inner).unwrap();
        }
        "empty slot 2" => assert_eq!(user.delete(outer, 2), Ok(0)),
        "put a control group into slot 2" => {
            let group = fs::File::open(hierarchy().unwrap()).unwrap();
            user.put(outer, 2, group.as_raw_fd()).unwrap();
        }
        "fill and empty slots for ever" => fill_for_ever(&user, outer),
        other => panic!("{other}"),
    }
}

fn hierarchy() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.find(|fields| fields.get(2) == Some(&"cgroup2")).map(|fields| fields[1].to_owned())
}

#[test]
fn a_map_in_a_slot_stays_until_it_is_replaced_or_its_holder_goes() {
    let user = User::new("in-slots");
    let (outer, first) = (user.outer(), user.array());
    assert_eq!(user.ids(), [2, 3]);
    user.put(first, 3, 99).unwrap();
    user.put(outer, 0, first).unwrap();
    user.put(outer, 1, first).unwrap();
    user.close(first);
    assert_eq!(user.ids(), [2, 3], "only slots hold it");
    assert_eq!(user.lookup(outer, 1), Ok(3));
    let again = user.by_id(3).unwrap();
    assert_eq!(user.lookup(again, 3), Ok(99));
    user.close(again);
    let second = user.array();
    user.put(outer, 0, second).unwrap();
    assert_eq!(user.ids(), [2, 3, 4], "it is in the other slot");
    assert_eq!((user.delete(outer, 1), user.delete(outer, 1)), (Ok(0), Err(Errno::ENOENT)));
    assert_eq!(user.ids(), [2, 4]);
    user.close(second);
    user.pin(OBJ_PIN, "outer", outer).unwrap();
    user.close(outer);
    assert_eq!(user.ids(), [2, 4]);
    fs::remove_file(user.kernel.root().pins().join("outer")).unwrap();
    assert!(user.ids().is_empty());
}

#[test]
fn the_template_is_judged_as_the_kernel_does() {
    let user = User::new("template");
    let (array, outer) = (user.array(), user.outer());
    let create = |inner| user.create(ARRAY_OF_MAPS, inner, 0);
    assert_eq!(create(-1), Err(Errno::EBADF));
    let other = fs::File::open("/dev/null").unwrap();
    assert_eq!(create(other.as_raw_fd()), Err(Errno::EINVAL));
    assert_eq!(create(outer), Err(Errno::EINVAL), "maps of maps do not nest");
    let programs = user.create(PROG_ARRAY, 0, 0).unwrap();
    assert_eq!(create(programs), Err(Errno::ENOTSUPP));
    let percpu = user.create(PERCPU_ARRAY, 0, 0).unwrap();
    for inner in [array, percpu] {
        let map = create(inner).unwrap();
        for (index, value) in [array, percpu].into_iter().enumerate() {
            let expected = if value == inner { Ok(0) } else { Err(Errno::EINVAL) };
            assert_eq!(user.put(map, index as u32, value), expected);
        }
        assert_eq!(user.put(map, 0, map), Err(Errno::EINVAL));
        assert_eq!(user.put(map, 4, -1), Err(Errno::E2BIG));
        assert_eq!(user.put(map, 0, -1), Err(Errno::EBADF));
    }
}

#[test]
fn a_batch_fills_slots_up_to_the_first_that_is_refused() {
    let user = User::new("batch");
    let (outer, inner) = (user.outer(), user.array());
    let (keys, values) = ([3_u32, 0, 1], [inner, -1, inner]);
    let at = [address(&raw const keys), address(&raw const values)];
    let count_and_fd = 3 | u64::from(outer.cast_unsigned()) << 32;
    let mut block = [0, 0, at[0], at[1], count_and_fd, 0, 0];
    assert_eq!(user.call_block(UPDATE_BATCH, &mut block), Err(Errno::EBADF));
    assert_eq!(block[4] as u32, 1);
    assert_eq!((user.lookup(outer, 3), user.lookup(outer, 0)), (Ok(3), Err(Errno::ENOENT)));
    assert_eq!(user.lookup(outer, 1), Err(Errno::ENOENT));
}

#[test]
fn programs_find_what_another_process_put_into_a_slot() {
    let user = User::new("programs");
    let outer = user.outer();
    user.pin(OBJ_PIN, "outer", outer).unwrap();
    let map = user.for_programs("outer");
    let shared = SharedLanes::of([&map]);
    // What a program does: looks up the inner map, and in it an element.
    let run = || {
        let lane = Lane::enter();
        shared.run(&lane, || {
            let addr = map.prog_lookup_elem(&lane, 2)?;
            let inner = map.inner_map_at(&lane, addr)?;
            inner.regions()[0].memory.load(8, 4).ok()
        })
    };
    assert_eq!(run(), None);
    user.run("put a map that counts to 7 into slot 2");
    assert_eq!(run(), Some(7));
    let inner = user.by_id(user.lookup(outer, 2).unwrap()).unwrap();
    user.put(inner, 1, 8).unwrap();
    assert_eq!(run(), Some(8), "it is one memory");
    user.run("empty slot 2");
    assert_eq!(run(), None);
    let own = user.array();
    user.put(outer, 2, own).unwrap();
    assert_eq!(run(), Some(0), "this process, too, changes what its programs find");
    assert!(!shared.is_empty());
}

#[test]
fn programs_find_the_control_group_that_another_process_put_into_a_slot() {
    let Some(root) = hierarchy() else {
        eprintln!("SKIPPED: no cgroup v2 file system is mounted");
        return;
    };
    let user = User::new("cgroups");
    let groups = user.create(CGROUP_ARRAY, 0, 0).unwrap();
    user.pin(OBJ_PIN, "outer", groups).unwrap();
    let map = user.for_programs("outer");
    let shared = SharedLanes::of([&map]);
    let run = || {
        let lane = Lane::enter();
        shared.run(&lane, || map.current_task_under_cgroup(&lane, 2).map_err(|e| e.errno()))
    };
    assert_eq!(run(), Err(Errno::EAGAIN));
    user.run("put a control group into slot 2");
    let expected = Cgroup::open(&root).unwrap().holds_current_task().unwrap();
    assert_eq!(run(), Ok(expected));
    assert_eq!(user.lookup(groups, 2), Err(Errno::ENOTSUPP));
    assert_eq!(user.delete(groups, 2), Ok(0));
    assert_eq!(run(), Err(Errno::EAGAIN));
    let file = fs::File::open(format!("{root}/cgroup.procs")).unwrap();
    for wrong in [file.as_raw_fd(), groups, -1] {
        assert_eq!(user.put(groups, 0, wrong), Err(Errno::EBADF));
    }
}

/// A perf event that counts nothing; `None` where there are none.
fn perf_event() -> Option<OwnedFd> {
    const ATTR_SIZE: u64 = 64;
    const SOFTWARE: u64 = 1;
    const DUMMY: u64 = 9;
    const EXCLUDE_KERNEL: u64 = 1 << 5;
    let attr = [SOFTWARE | ATTR_SIZE << 32, DUMMY, 0, 0, 0, EXCLUDE_KERNEL, 0, 0];
    let (pid, cpu, group, flags) = (0, -1, -1, 8);
    // SAFETY: the kernel reads the block, of the length it names.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, cpu, group, flags) };
    // SAFETY: the call has just returned this descriptor.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[test]
fn events_go_with_the_open_file_through_which_they_came() {
    let user = User::new("events");
    let Some(event) = perf_event() else {
        eprintln!("SKIPPED: no perf events");
        return;
    };
    let event = event.as_raw_fd();
    let first = user.create(PERF_EVENT_ARRAY, 0, 0).unwrap();
    let second = user.by_id(1).unwrap();
    // SAFETY: the descriptor is open.
    let third = unsafe { libc::dup(first) };
    assert_eq!(user.put(first, 0, first), Err(Errno::EBADF));
    for (fd, index) in [(first, 0), (first, 1), (second, 2), (first, 3), (second, 3)] {
        assert_eq!(user.put(fd, index, event), Ok(0));
    }
    assert_eq!(user.lookup(first, 0), Err(Errno::ENOTSUPP));
    user.close(first);
    assert_eq!(user.delete(second, 0), Ok(0), "a duplicate is open");
    user.close(third);
    let left: Vec<_> = (0..4).map(|index| user.delete(second, index)).collect();
    let (ok, gone) = (Ok(0), Err(Errno::ENOENT));
    assert_eq!(
        left,
        [gone, gone, ok, ok],
        "of the file that is closed, and replaced through another"
    );

    let kept = user.create(PERF_EVENT_ARRAY, 0, PRESERVE_ELEMS).unwrap();
    let other = user.by_id(2).unwrap();
    user.put(kept, 0, event).unwrap();
    user.close(kept);
    assert_eq!((user.delete(other, 0), user.delete(other, 0)), (ok, gone));
}

/// Puts new maps into slots and takes them out, and drops their descriptors.
fn fill_for_ever(user: &User, outer: i32) {
    for number in 0_u32.. {
        let inner = user.array();
        user.put(outer, number % 4, inner).unwrap();
        user.close(inner);
        if number % 3 == 0 {
            user.delete(outer, (number + 1) % 4).ok();
        }
    }
}

#[test]
fn slots_and_references_agree_whenever_processes_are_killed() {
    let user = User::new("slot-kills");
    let outer = user.outer();
    user.pin(OBJ_PIN, "outer", outer).unwrap();
    let mut found = BTreeSet::new();
    for kill in 0..kills() {
        // Two at a time, which are in each other's way.
        let mut victims = [0; 2].map(|_| user.spawn("fill and empty slots for ever"));
        std::thread::sleep(std::time::Duration::from_micros(6_000 + kill % 60 * 211));
        for victim in &mut victims {
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
        let in_slots: BTreeSet<u32> =
            (0..4).filter_map(|index| user.lookup(outer, index).ok()).collect();
        let mut listed: BTreeSet<u32> = user.ids().into_iter().collect();
        assert!(listed.remove(&2), "the outer map");
        assert_eq!(listed, in_slots, "after {kill} kills");
        for &id in &in_slots {
            let inner = user.by_id(id).unwrap();
            assert_eq!(user.lookup(inner, 0), Ok(0));
            user.close(inner);
        }
        found.extend(in_slots);
    }
    assert!(found.len() > 10, "the victims came to nothing");
}

/// How many kills: `BPFARRAY_TEST_KILLS`, or enough for every day.
fn kills() -> u64 {
    std::env::var("BPFARRAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(40)
}
