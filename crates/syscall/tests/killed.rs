//! References of other processes, and what processes leave behind that are killed.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use bpfarray_syscall::{Errno, Kernel, Root};

const MAP_CREATE: u32 = 0;
const MAP_NEXT_ID: u32 = 12;

fn call(kernel: &Kernel, cmd: u32, block: &mut [u32; 4]) -> Result<i32, Errno> {
    let addr = block.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: these commands write to the block only.
    unsafe { kernel.bpf(cmd, addr, if cmd == MAP_NEXT_ID { 8 } else { 16 }) }
}

/// While one test starts a process, that one has the descriptors of the other test.
static ALONE: Mutex<()> = Mutex::new(());

/// Names the root directory to the process that is going to be killed.
const VICTIM: &str = "BPFARRAY_TEST_VICTIM";

/// Pins a map under a name that nobody has.
fn pin(kernel: &Kernel, fd: i32, name: &str) -> Result<i32, Errno> {
    let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
    let block = [path.as_ptr().expose_provenance() as u64, u64::from(fd.cast_unsigned())];
    // SAFETY: the command writes to no address in its block.
    unsafe { kernel.bpf(6, block.as_ptr().expose_provenance() as u64, 16) }
}

/// Makes maps, writes to them and pins every other one, until it is killed. Does nothing when it runs as a test.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(VICTIM) else { return };
    let kernel = Kernel::new(Root::open(root).unwrap());
    for number in 0_u64.. {
        let fd = call(&kernel, MAP_CREATE, &mut [2, 4, 8, 4]).unwrap();
        let (key, value) = (1_u32, number);
        let at = [(&raw const key).expose_provenance(), (&raw const value).expose_provenance()];
        let block = [u64::from(fd.cast_unsigned()), at[0] as u64, at[1] as u64, 0];
        // SAFETY: the command writes to no address in its block.
        unsafe { kernel.bpf(2, block.as_ptr().expose_provenance() as u64, 32) }.unwrap();
        if number % 2 == 0 {
            pin(&kernel, fd, &format!("{}_{number}", std::process::id())).unwrap();
        }
        kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

#[test]
fn nothing_is_locked_or_left_behind_but_pins_after_processes_were_killed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::temp_dir().join(format!("bpfarray-kills-{}", std::process::id()));
    let kernel = Kernel::new(Root::open(&path).unwrap());
    // More of them to look at it at length.
    let kills = std::env::var("BPFARRAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    for kill in 0..kills.unwrap_or(60_u64) {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Times that hit every part of a round sooner or later.
        std::thread::sleep(std::time::Duration::from_micros(5_000 + kill % 60 * 137));
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    let pins = std::fs::read_dir(kernel.root().pins()).unwrap().count();
    let (mut listed, mut id) = (0, 0);
    loop {
        let mut block = [id, 0, 0, 0];
        match call(&kernel, MAP_NEXT_ID, &mut block) {
            Ok(_) => id = block[1],
            Err(errno) => {
                assert_eq!(errno, Errno::ENOENT);
                break;
            }
        }
        listed += 1;
    }
    assert!(pins > 0, "the victims came to nothing");
    assert_eq!(listed, pins);
    let fd = call(&kernel, MAP_CREATE, &mut [2, 4, 8, 4]).unwrap();
    assert_eq!(pin(&kernel, fd, "last"), Ok(0));
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_descriptor_in_another_process_keeps_the_map_until_that_process_is_killed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::temp_dir().join(format!("bpfarray-killed-{}", std::process::id()));
    let kernel = Kernel::new(Root::open(&path).unwrap());
    let fd = call(&kernel, MAP_CREATE, &mut [2, 4, 8, 4]).unwrap();
    // SAFETY: the descriptor came from a command, and nothing else owns it.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(map)).spawn().unwrap();
    kernel.forget(fd);
    assert_eq!(call(&kernel, MAP_NEXT_ID, &mut [0; 4]), Ok(0));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(call(&kernel, MAP_NEXT_ID, &mut [0; 4]), Err(Errno::ENOENT));
    std::fs::remove_dir_all(path).unwrap();
}
