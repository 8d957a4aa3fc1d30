//! Objects of a root directory: ids, pins, and how long they stay.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bpfarray_syscall::{Errno, Kernel, Root, RootError};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const MAP_NEXT_ID: u32 = 12;
const MAP_FD_BY_ID: u32 = 14;
const INFO: u32 = 15;
const BTF_LOAD: u32 = 18;
const BTF_FD_BY_ID: u32 = 19;
const BTF_NEXT_ID: u32 = 23;

/// A root directory of one test.
struct Fixture {
    kernel: Kernel,
    path: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bpfarray-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

fn fixture(name: &str) -> Fixture {
    let path = directory(name);
    Fixture { kernel: Kernel::new(Root::open(&path).unwrap()), path }
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

impl Fixture {
    fn call(&self, cmd: u32, block: &mut [u8]) -> Result<i32, Errno> {
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), block.len() as u32) }
    }

    fn create(&self) -> i32 {
        let words = [(0, 2, 4), (4, 4, 4), (8, 8, 4), (12, 4, 4)];
        self.call(MAP_CREATE, &mut block(&words)).unwrap()
    }

    fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn next_id(&self, cmd: u32, after: u32) -> Result<u32, Errno> {
        let mut block = block(&[(0, after.into(), 4)]);
        self.call(cmd, &mut block)?;
        Ok(u32::from_ne_bytes(block[4..8].try_into().unwrap()))
    }

    fn by_id(&self, cmd: u32, id: u32) -> Result<i32, Errno> {
        self.call(cmd, &mut block(&[(0, id.into(), 4)]))
    }

    fn update(&self, fd: i32, key: u32, value: u64) -> Result<i32, Errno> {
        let at = [address(&raw const key), address(&raw const value)];
        self.call(UPDATE, &mut block(&[(0, fd as u64, 4), (8, at[0], 8), (16, at[1], 8)]))
    }

    fn lookup(&self, fd: i32, key: u32) -> Result<u64, Errno> {
        let mut value = 0_u64;
        let at = [address(&raw const key), address(&raw mut value)];
        self.call(LOOKUP, &mut block(&[(0, fd as u64, 4), (8, at[0], 8), (16, at[1], 8)]))?;
        Ok(value)
    }

    fn path(&self, cmd: u32, path: &str, fd: i32) -> Result<i32, Errno> {
        let path = std::ffi::CString::new(path).unwrap();
        self.call(cmd, &mut block(&[(0, address(path.as_ptr()), 8), (8, fd as u64, 4)]))
    }

    fn btf_id(&self, map: i32) -> u32 {
        let mut info = [0_u8; 104];
        let at = address(info.as_mut_ptr());
        self.call(INFO, &mut block(&[(0, map as u64, 4), (4, 104, 4), (8, at, 8)])).unwrap();
        u32::from_ne_bytes(info[64..68].try_into().unwrap())
    }
}

#[test]
fn ids_increase_and_a_map_goes_with_its_last_descriptor() {
    let test = fixture("ids");
    let (first, second) = (test.create(), test.create());
    assert_eq!((test.next_id(MAP_NEXT_ID, 0), test.next_id(MAP_NEXT_ID, 1)), (Ok(1), Ok(2)));
    assert_eq!(test.next_id(MAP_NEXT_ID, 2), Err(Errno::ENOENT));
    let again = test.by_id(MAP_FD_BY_ID, 1).unwrap();
    test.close(first);
    test.update(again, 3, 7).unwrap();
    assert_eq!(test.lookup(again, 3), Ok(7));
    test.close(again);
    assert_eq!(test.by_id(MAP_FD_BY_ID, 1), Err(Errno::ENOENT));
    assert_eq!(test.next_id(MAP_NEXT_ID, 0), Ok(2));
    test.close(second);
    test.create();
    assert_eq!(test.next_id(MAP_NEXT_ID, 0), Ok(3), "ids are not used again");
}

#[test]
fn a_pin_keeps_a_map_and_what_is_in_it() {
    let test = fixture("pins");
    let map = test.create();
    test.update(map, 1, 9).unwrap();
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/none/x", map), Err(Errno::ENOENT));
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/a.b", map), Err(Errno::EPERM));
    assert_eq!(test.path(OBJ_PIN, "/tmp/bpfarray_no_bpffs", map), Err(Errno::EPERM));
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/x", map), Ok(0));
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/x", map), Err(Errno::EEXIST));
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/y", -1), Err(Errno::EINVAL));
    test.close(map);
    let map = test.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!((test.lookup(map, 1), test.next_id(MAP_NEXT_ID, 0)), (Ok(9), Ok(1)));
    test.close(map);
    assert_eq!(test.path(OBJ_GET, "/sys/fs/bpf/y", 0), Err(Errno::ENOENT));
    assert_eq!(test.path(OBJ_GET, "/sys/fs/bpf", 0), Err(Errno::EACCES));
    assert_eq!(test.path(OBJ_GET, "/proc/self/exe", 0), Err(Errno::EACCES));
    fs::remove_file(test.kernel.root().pins().join("x")).unwrap();
    assert_eq!(test.next_id(MAP_NEXT_ID, 0), Err(Errno::ENOENT));
}

#[test]
fn a_number_that_was_closed_and_given_to_another_file_is_that_file() {
    let test = fixture("closed");
    let map = test.create();
    test.update(map, 0, 1).unwrap();
    test.close(map);
    assert!(test.lookup(map, 0).is_err());
    let other = File::open("/dev/null").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&other);
    assert_eq!(test.lookup(fd, 0), Err(Errno::EINVAL));
}

#[test]
fn a_map_keeps_the_btf_it_was_created_with() {
    let test = fixture("btf");
    // Type 1: an int of 4 bytes; type 2: one of 8.
    let types = [1, 1 << 24, 4, 32, 1, 1 << 24, 8, 64_u32];
    let head = [0x0001_eb9f_u32, 24, 0, 32, 32, 5];
    let mut bytes: Vec<u8> =
        head.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(b"\0int\0");
    let words = [(0, address(bytes.as_ptr()), 8), (16, bytes.len() as u64, 4)];
    let btf = test.call(BTF_LOAD, &mut block(&words)).unwrap();
    let words =
        [(0, 2, 4), (4, 4, 4), (8, 8, 4), (12, 4, 4), (48, btf as u64, 4), (52, 1, 4), (56, 2, 4)];
    let map = test.call(MAP_CREATE, &mut block(&words)).unwrap();
    let mut wrong = block(&words);
    wrong[56] = 1;
    assert_eq!(test.call(MAP_CREATE, &mut wrong), Err(Errno::EINVAL), "values have 8 bytes");
    test.close(btf);
    assert_eq!((test.btf_id(map), test.next_id(BTF_NEXT_ID, 0)), (1, Ok(1)));
    let btf = test.by_id(BTF_FD_BY_ID, 1).unwrap();
    let mut back = vec![0_u8; bytes.len()];
    let mut info = [0_u8; 32];
    info[..8].copy_from_slice(&address(back.as_mut_ptr()).to_ne_bytes());
    info[8..12].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
    let at = address(info.as_mut_ptr());
    test.call(INFO, &mut block(&[(0, btf as u64, 4), (4, 32, 4), (8, at, 8)])).unwrap();
    assert_eq!(back, bytes);
    test.close(btf);
    test.close(map);
    assert_eq!(test.next_id(MAP_NEXT_ID, 0), Err(Errno::ENOENT));
    assert_eq!(test.next_id(BTF_NEXT_ID, 0), Err(Errno::ENOENT));
    let broken = [(0, address(bytes[8..].as_ptr()), 8), (16, 24, 4)];
    assert_eq!(test.call(BTF_LOAD, &mut block(&broken)), Err(Errno::EINVAL));
}

#[test]
fn permissions_of_a_pin_are_those_of_the_map() {
    let test = fixture("permissions");
    let map = test.create();
    test.path(OBJ_PIN, "/sys/fs/bpf/x", map).unwrap();
    let mode = fs::metadata(test.kernel.root().pins().join("x")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let read_only = fs::Permissions::from_mode(0o400);
        fs::set_permissions(test.kernel.root().pins().join("x"), read_only).unwrap();
        assert_eq!(test.path(OBJ_GET, "/sys/fs/bpf/x", 0), Err(Errno::EACCES));
    }
}

#[test]
fn a_directory_that_others_can_look_into_is_no_root_directory() {
    let path = directory("open");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Root::open(&path).unwrap_err();
    assert!(matches!(error, RootError::Mode { mode: 0o755, .. }), "{error}");
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/tmp", &path).unwrap();
    let error = Root::open(&path).unwrap_err();
    assert!(matches!(error, RootError::NoDirectory(_)), "{error}");
    fs::remove_file(&path).unwrap();
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let error = Root::open("/").unwrap_err();
        assert!(matches!(error, RootError::Owner { owner: 0, .. }), "{error}");
    }
}

#[test]
fn calls_are_shown_with_the_fields_that_say_something() {
    let test = fixture("trace");
    let mut create = block(&[(0, 6, 4), (4, 4, 4), (8, 8, 4), (12, 4, 4), (16, 0x80, 4)]);
    create[28..31].copy_from_slice(b"a\"b");
    let at = address(create.as_ptr());
    assert_eq!(
        test.kernel.describe(MAP_CREATE, at, 72),
        "bpf(BPF_MAP_CREATE, {map_type=BPF_MAP_TYPE_PERCPU_ARRAY, key_size=4, value_size=8, \
         max_entries=4, map_flags=0x80, map_name=\"a\\\"b\"}, 72)"
    );
    assert_eq!(test.kernel.describe(99, 0, 8), "bpf(99, 0x0, 8)");
}
