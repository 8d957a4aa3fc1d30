//! A root directory as one process sees it, and commands on it.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use bpfarray_core::insn::Insn;
use bpfarray_syscall::{Errno, Kernel, Root};

const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const TEST_RUN: u32 = 10;
const INFO: u32 = 15;

const XDP: u64 = 6;

pub(crate) struct Process {
    pub(crate) kernel: Kernel,
}

/// Fields of a block, by their offsets.
pub(crate) fn block(words: &[(usize, u64, usize)]) -> Vec<u8> {
    let mut block = vec![0; 168];
    for &(at, value, len) in words {
        block[at..at + len].copy_from_slice(&value.to_ne_bytes()[..len]);
    }
    block
}

pub(crate) fn address<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>().expose_provenance() as u64
}

impl Process {
    pub(crate) fn new(root: &Path) -> Self {
        Self { kernel: Kernel::new(Root::open(root).unwrap()) }
    }

    /// A command with a block that fits it; the buffers that it names must be long enough.
    pub(crate) fn call(&self, cmd: u32, block: &mut [u8]) -> Result<i32, Errno> {
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), block.len() as u32) }
    }

    /// An XDP program.
    pub(crate) fn load(&self, insns: &[Insn]) -> Result<i32, Errno> {
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
        let pointers = [address(bytes.as_ptr()), address(c"GPL".as_ptr())];
        let words =
            [(0, XDP, 4), (4, insns.len() as u64, 4), (8, pointers[0], 8), (16, pointers[1], 8)];
        self.call(PROG_LOAD, &mut block(&words))
    }

    pub(crate) fn run(&self, prog: i32, repeat: u32) -> Result<u32, Errno> {
        let packet = [0_u8; 64];
        let at = address(packet.as_ptr());
        let words = [(0, prog as u64, 4), (8, 64, 4), (16, at, 8), (32, repeat.into(), 4)];
        let mut block = block(&words);
        // The block ends with the fields of this command.
        self.call(TEST_RUN, &mut block[..80])?;
        Ok(u32::from_ne_bytes(block[4..8].try_into().unwrap()))
    }

    pub(crate) fn pin(&self, name: &str, fd: i32) -> Result<i32, Errno> {
        self.path(OBJ_PIN, name, fd)
    }

    pub(crate) fn get(&self, name: &str) -> Result<i32, Errno> {
        self.path(OBJ_GET, name, 0)
    }

    fn path(&self, cmd: u32, name: &str, fd: i32) -> Result<i32, Errno> {
        let path = std::ffi::CString::new(format!("/sys/fs/bpf/{name}")).unwrap();
        self.call(cmd, &mut block(&[(0, address(path.as_ptr()), 8), (8, fd as u64, 4)]))
    }

    /// Ids of the maps that a program holds.
    pub(crate) fn maps_of(&self, prog: i32) -> Vec<u32> {
        let (mut info, mut ids) = ([0_u8; 232], [0_u32; 8]);
        info[52..56].copy_from_slice(&8_u32.to_ne_bytes());
        info[56..64].copy_from_slice(&address(ids.as_mut_ptr()).to_ne_bytes());
        let at = address(info.as_mut_ptr());
        self.call(INFO, &mut block(&[(0, prog as u64, 4), (4, 232, 4), (8, at, 8)])).unwrap();
        let count = u32::from_ne_bytes(info[52..56].try_into().unwrap()) as usize;
        ids[..count].to_vec()
    }

    pub(crate) fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    /// Ids of all objects of the kind that a command steps through.
    pub(crate) fn ids(&self, cmd: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        loop {
            let mut block = block(&[(0, ids.last().copied().unwrap_or(0).into(), 4)]);
            match self.call(cmd, &mut block) {
                Ok(_) => ids.push(u32::from_ne_bytes(block[4..8].try_into().unwrap())),
                Err(errno) => {
                    assert_eq!(errno, Errno::ENOENT);
                    return ids;
                }
            }
        }
    }
}
