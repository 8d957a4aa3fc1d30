//! Programs in the slots of a PROG_ARRAY: references in a circle, and slots that are emptied with the last user.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bpfarray_syscall::{Errno, Kernel, Root};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const TEST_RUN: u32 = 10;
const PROG_NEXT_ID: u32 = 11;
const MAP_NEXT_ID: u32 = 12;
const PROG_FD_BY_ID: u32 = 13;
const MAP_FD_BY_ID: u32 = 14;

const SOCKET_FILTER: u64 = 1;
const XDP: u64 = 6;

/// While one test starts a process, that one has the descriptors of the others.
static ALONE: Mutex<()> = Mutex::new(());

/// A root directory of one test.
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

/// An instruction: opcode and registers, offset, immediate.
fn insn(code: u8, regs: u8, off: u16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(regs) << 8
        | u64::from(off) << 16
        | u64::from(imm.cast_unsigned()) << 32
}

/// r0 = value; exit
fn returning(value: i32) -> Vec<u64> {
    vec![insn(0xb7, 0, 0, value), insn(0x95, 0, 0, 0)]
}

/// Jumps through slot 1 of a map, or gives 7.
fn jumping(map: i32) -> Vec<u64> {
    let head = [insn(0x18, 0x12, 0, map), 0, insn(0xb7, 3, 0, 1), insn(0x85, 0, 0, 12)];
    [&head[..], &returning(7)].concat()
}

impl User {
    fn new(name: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("bpfarray-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self { kernel: Kernel::new(Root::open(&path).unwrap()), path, _alone: alone }
    }

    fn call(&self, cmd: u32, block: &mut [u64]) -> Result<i32, Errno> {
        let size = (block.len() * 8) as u32;
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), size) }
    }

    /// A PROG_ARRAY of four slots.
    fn create(&self) -> i32 {
        self.call(MAP_CREATE, &mut [3 | 4 << 32, 4 | 4 << 32]).unwrap()
    }

    fn load(&self, prog_type: u64, insns: &[u64]) -> Result<i32, Errno> {
        let license = c"GPL";
        let count = insns.len() as u64;
        let (insns, license) = (address(insns.as_ptr()), address(license.as_ptr()));
        self.call(PROG_LOAD, &mut [prog_type | count << 32, insns, license])
    }

    fn put(&self, map: i32, index: u32, value: i32) -> Result<i32, Errno> {
        let (key, value) = (address(&raw const index), address(&raw const value));
        self.call(UPDATE, &mut [map.cast_unsigned().into(), key, value, 0])
    }

    fn lookup(&self, map: i32, index: u32) -> Result<u32, Errno> {
        let mut value = 0_u32;
        let (key, to) = (address(&raw const index), address(&raw mut value));
        self.call(LOOKUP, &mut [map.cast_unsigned().into(), key, to, 0]).map(|_| value)
    }

    fn run(&self, prog: i32) -> u32 {
        let packet = [0_u8; 64];
        let mut block = [0; 10];
        block[0] = prog.cast_unsigned().into();
        (block[1], block[2]) = (64, address(packet.as_ptr()));
        self.call(TEST_RUN, &mut block).unwrap();
        (block[0] >> 32) as u32
    }

    fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn by_id(&self, cmd: u32, id: u64) -> Result<i32, Errno> {
        self.call(cmd, &mut [id])
    }

    fn pin(&self, cmd: u32, fd: i32) -> i32 {
        let path = c"/sys/fs/bpf/jumps";
        self.call(cmd, &mut [address(path.as_ptr()), fd.cast_unsigned().into()]).unwrap()
    }

    fn ids(&self, cmd: u32) -> Vec<u64> {
        let (mut ids, mut last) = (Vec::new(), 0);
        loop {
            let mut block = [last];
            if self.call(cmd, &mut block).is_err() {
                return ids;
            }
            last = block[0] >> 32;
            ids.push(last);
        }
    }
}

#[test]
fn a_program_stays_in_its_slot_and_is_jumped_to() {
    let user = User::new("jumps");
    let map = user.create();
    let target = user.load(XDP, &returning(42)).unwrap();
    let caller = user.load(XDP, &jumping(map)).unwrap();
    assert_eq!(user.run(caller), 7);
    user.put(map, 1, target).unwrap();
    user.close(target);
    assert_eq!((user.run(caller), user.lookup(map, 1)), (42, Ok(1)));
    assert_eq!(user.ids(PROG_NEXT_ID), [1, 2]);
    let target = user.by_id(PROG_FD_BY_ID, 1).unwrap();
    assert_eq!(user.run(target), 42);
    user.close(target);
    let other = user.load(XDP, &returning(43)).unwrap();
    user.put(map, 1, other).unwrap();
    user.close(other);
    assert_eq!((user.run(caller), user.ids(PROG_NEXT_ID)), (43, vec![2, 3]));
}

#[test]
fn only_programs_like_the_first_get_in() {
    let user = User::new("owners");
    let map = user.create();
    let xdp = user.load(XDP, &returning(1)).unwrap();
    let filter = user.load(SOCKET_FILTER, &returning(1)).unwrap();
    assert_eq!(
        (user.put(map, 0, map), user.put(map, 0, -1)),
        (Err(Errno::EINVAL), Err(Errno::EBADF))
    );
    user.put(map, 0, xdp).unwrap();
    assert_eq!(user.put(map, 0, filter), Err(Errno::EINVAL));
    assert_eq!(user.load(SOCKET_FILTER, &jumping(map)), Err(Errno::EINVAL));
    let owner = user.kernel.fdinfo(map).unwrap();
    assert!(owner.contains("owner_prog_type:\t6\nowner_jited:\t"), "{owner}");
}

#[test]
fn a_circle_of_a_program_and_its_map_goes_with_the_maps_last_user() {
    let user = User::new("circle");
    let map = user.create();
    let caller = user.load(XDP, &jumping(map)).unwrap();
    user.put(map, 1, caller).unwrap();
    // It jumps to itself until it may no more.
    assert_eq!(user.run(caller), 7);
    user.close(caller);
    assert_eq!((user.ids(PROG_NEXT_ID), user.ids(MAP_NEXT_ID)), (vec![1], vec![1]));
    user.close(map);
    assert!(user.ids(PROG_NEXT_ID).is_empty() && user.ids(MAP_NEXT_ID).is_empty());
}

#[test]
fn slots_are_emptied_with_the_last_descriptor_and_a_pin_is_a_user() {
    let user = User::new("users");
    let map = user.create();
    let caller = user.load(XDP, &jumping(map)).unwrap();
    let target = user.load(XDP, &returning(42)).unwrap();
    user.put(map, 1, target).unwrap();
    user.close(target);
    user.pin(OBJ_PIN, map);
    user.close(map);
    assert_eq!(user.run(caller), 42, "a pin is a user");
    let map = user.pin(OBJ_GET, 0);
    fs::remove_file(user.kernel.root().pins().join("jumps")).unwrap();
    assert_eq!(user.run(caller), 42, "a descriptor is, too");
    user.close(map);
    assert_eq!(user.run(caller), 7, "a program is none");
    assert_eq!((user.ids(PROG_NEXT_ID), user.ids(MAP_NEXT_ID)), (vec![1], vec![1]));
    // The map is there for others to use.
    let map = user.by_id(MAP_FD_BY_ID, 1).unwrap();
    assert_eq!(user.lookup(map, 1), Err(Errno::ENOENT));
    let target = user.load(XDP, &returning(44)).unwrap();
    user.put(map, 1, target).unwrap();
    assert_eq!(user.run(caller), 44);
    user.close(map);
    let map = user.by_id(MAP_FD_BY_ID, 1).unwrap();
    assert_eq!(user.lookup(map, 1), Err(Errno::ENOENT), "empty again");
}

#[test]
fn slots_are_emptied_when_the_last_user_was_killed() {
    let user = User::new("killed-user");
    let map = user.create();
    let caller = user.load(XDP, &jumping(map)).unwrap();
    let target = user.load(XDP, &returning(42)).unwrap();
    user.put(map, 1, target).unwrap();
    user.close(target);
    user.kernel.forget(map);
    // SAFETY: the descriptor came from a command, and nothing else owns it.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let mut holder = Command::new("sleep").arg("600").stdin(Stdio::from(map)).spawn().unwrap();
    assert_eq!((user.run(caller), user.ids(PROG_NEXT_ID)), (42, vec![1, 2]));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!((user.run(caller), user.ids(PROG_NEXT_ID)), (7, vec![1]));
}

#[test]
fn maps_and_programs_that_come_and_go_leave_no_open_files() {
    let user = User::new("come-and-go");
    let open_files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    for round in 0..50 {
        let map = user.create();
        let caller = user.load(XDP, &jumping(map)).unwrap();
        user.put(map, 1, caller).unwrap();
        assert_eq!(user.run(caller), 7);
        // In either order.
        let (first, second) = if round % 2 == 0 { (map, caller) } else { (caller, map) };
        user.close(first);
        user.close(second);
    }
    assert!(user.ids(MAP_NEXT_ID).is_empty());
    assert!(open_files() <= before + 4, "{before} before, {} after", open_files());
}
