//! One of the two that are compared, with what it has open.
//!
//! **Invariant.** Every address in a block is one of an arena that the side owns and borrows exclusively during the call, with room
//! for the most that the command can write there; or one where nothing is mapped, or null.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::RawFd;

use bpfarray_syscall::Kernel as Door;

use super::call::{Call, Slot};
use super::maps::{Made, PROG_ARRAY};
use super::{ARENA, CURSOR, DATA_OUT, HASH, INFO, KEYS, VALUES};
use crate::kernel::Kernel;
use crate::rng::Rng;

pub(super) const SOCKET_FILTER: u32 = 1;
pub(super) const XDP: u32 = 6;

/// One that answers.
pub(super) trait Answers {
    /// # Safety
    /// As the invariant of this file.
    unsafe fn bpf(&self, cmd: u32, block: &mut [u8], size: u32) -> i64;
    fn close(&self, fd: RawFd);
}

impl Answers for Kernel {
    unsafe fn bpf(&self, cmd: u32, block: &mut [u8], size: u32) -> i64 {
        // SAFETY: the caller's promise; a size that is too long is refused before more than the block is read.
        let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, block.as_mut_ptr(), size) };
        if result < 0 {
            -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
        } else {
            result
        }
    }

    fn close(&self, fd: RawFd) {
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        unsafe { libc::close(fd) };
    }
}

impl Answers for Door {
    unsafe fn bpf(&self, cmd: u32, block: &mut [u8], size: u32) -> i64 {
        let addr = block.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the caller's promise.
        match unsafe { Self::bpf(self, cmd, addr, size) } {
            Ok(value) => value.into(),
            Err(errno) => -i64::from(errno.raw()),
        }
    }

    fn close(&self, fd: RawFd) {
        self.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        unsafe { libc::close(fd) };
    }
}

/// Gives this thread a mount namespace of its own, with a bpffs that nobody else sees.
pub(super) fn own_bpffs() -> std::io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let (none, text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: the strings end with NUL, and nothing else is handed over.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(text, c"/".as_ptr(), text, private, none))?;
        done(libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, none))
    }
}

/// A side with what it has open.
pub(super) struct Side<'a> {
    pub(super) door: &'a dyn Answers,
    pub(super) maps: Vec<(RawFd, u32)>,
    pub(super) programs: Vec<(RawFd, u32)>,
    pub(super) types: Vec<u32>,
    pub(super) btf: RawFd,
    pub(super) other: std::fs::File,
    pub(super) cgroup: Option<std::fs::File>,
    pub(super) perf_event: Option<std::fs::File>,
    pub(super) arena: Box<[u8]>,
}

/// What a call left behind.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Trace {
    pub(super) result: i64,
    pub(super) block: Vec<u8>,
    pub(super) arena: Vec<u8>,
}

impl<'a> Side<'a> {
    pub(super) fn new(door: &'a dyn Answers) -> std::io::Result<Self> {
        let other = std::fs::File::open("/dev/null")?;
        let cgroup = crate::objects::cgroup_root().and_then(|path| File::open(path).ok());
        let perf_event = crate::sys::perf_event(false).ok().map(File::from);
        let (maps, programs, arena) = (Vec::new(), Vec::new(), vec![0; ARENA].into());
        let (types, btf) = (Vec::new(), -1);
        let mut side = Self { door, maps, programs, types, btf, other, cgroup, perf_event, arena };
        side.btf = side.make(&Call::types(), &[]).result as RawFd;
        for prog_type in [XDP, SOCKET_FILTER] {
            side.load(prog_type);
        }
        Ok(side)
    }

    /// Loads a program that does nothing.
    pub(super) fn load(&mut self, prog_type: u32) {
        const INSNS: [u64; 2] = [0xb7, 0x95];
        let mut call = Call::new(5, 24);
        call.u32(0, prog_type);
        call.u32(4, INSNS.len() as u32);
        call.u64(8, INSNS.as_ptr().expose_provenance() as u64);
        call.u64(16, c"GPL".as_ptr().expose_provenance() as u64);
        self.make_program(&call, &[]);
    }

    /// The number that a slot stands for on this side.
    pub(super) fn number(&self, slot: Slot) -> u32 {
        use std::os::fd::AsRawFd;
        let fd = |file: &Option<File>| file.as_ref().map_or(-1, |file| file.as_raw_fd());
        let fd = match slot {
            Slot::Fd(map) => self.maps[map].0,
            Slot::Id(map) => return self.maps[map].1,
            Slot::OtherFd => self.other.as_raw_fd(),
            Slot::Cgroup => fd(&self.cgroup),
            Slot::PerfEvent => fd(&self.perf_event),
            Slot::Program(which) => self.programs.get(which).map_or(-1, |program| program.0),
            Slot::ProgramId(which) => {
                return self.programs.get(which).map_or(0, |program| program.1);
            }
            Slot::Btf => self.btf,
            Slot::Closed | Slot::At(_) => -1,
        };
        fd.cast_unsigned()
    }

    pub(super) fn make(&mut self, call: &Call, made: &[Made]) -> Trace {
        self.arena[..DATA_OUT].copy_from_slice(&Rng::new(call.seed).bytes(DATA_OUT));
        self.arena[DATA_OUT..].fill(0xa5);
        // An info block has no request for a hash in it, but now and then.
        self.arena[INFO..INFO + 1024].fill(0);
        for (at, key) in call.keys.iter().enumerate() {
            self.arena[KEYS + at * 4..][..4].copy_from_slice(&key.to_ne_bytes());
            self.arena[CURSOR + at * 4..][..4].copy_from_slice(&key.to_ne_bytes());
        }
        if call.seed.is_multiple_of(4) {
            let hash = self.arena.as_mut_ptr().expose_provenance() as u64 + HASH as u64;
            self.arena[INFO + 88..][..8].copy_from_slice(&hash.to_ne_bytes());
            self.arena[INFO + 96] = 32;
        }
        for (at, bytes) in &call.bytes {
            self.arena[*at..][..bytes.len()].copy_from_slice(bytes);
        }
        let mut block = call.block.clone();
        let start = self.arena.as_mut_ptr().expose_provenance() as u64;
        for &(at, slot) in &call.places {
            match slot {
                Slot::At(to) => {
                    let address = (start + to as u64).to_ne_bytes();
                    self.arena[at..at + 8].copy_from_slice(&address);
                }
                other => {
                    let number = self.number(other).to_ne_bytes();
                    self.arena[at..at + 4].copy_from_slice(&number);
                }
            }
        }
        for &(at, slot) in &call.slots {
            match slot {
                Slot::At(to) => {
                    block[at..at + 8].copy_from_slice(&(start + to as u64).to_ne_bytes());
                }
                other => {
                    block[at..at + 4].copy_from_slice(&self.number(other).to_ne_bytes());
                }
            }
        }
        for (at, &slot) in call.values.iter().enumerate() {
            let number = self.number(slot).to_ne_bytes();
            self.arena[VALUES + at * 4..][..4].copy_from_slice(&number);
        }
        let before = self.arena.to_vec();
        // SAFETY: the addresses are in this side's arena, which is borrowed exclusively; values of `BATCH_MAX`
        // elements with `VALUE_MAX` bytes for each CPU, an info block, a hash and keys fit from where they begin.
        let result = unsafe { self.door.bpf(call.cmd, &mut block, call.size) };
        for &(at, slot) in &call.slots {
            let len = if matches!(slot, Slot::At(_)) { 8 } else { 4 };
            block[at..at + len].fill(0);
        }
        if matches!(call.cmd, 11 | 12) {
            // The next id.
            block[4..8].fill(0);
        }
        let mut arena = self.arena.to_vec();
        for &(at, slot) in &call.places {
            let len = if matches!(slot, Slot::At(_)) { 8 } else { 4 };
            arena[at..at + len].fill(0);
        }
        call.hide_what_differs(&mut block, &mut arena);
        if call.is_on_objects(made) {
            // Descriptors that were put in.
            arena[VALUES..][..call.values.len() * 4].fill(0);
            let words = arena[VALUES..INFO].as_chunks_mut::<4>().0;
            let before = before[VALUES..].as_chunks::<4>().0;
            let is_lookup = matches!(call.cmd, 1 | 24);
            for (word, _) in words.iter_mut().zip(before).filter(|(a, b)| is_lookup && a != b) {
                // The id of a map or program that was found.
                let id = u32::from_ne_bytes(*word);
                let known = match call.map(made).map(|map| map.shape[0]) {
                    Some(PROG_ARRAY) => &self.programs,
                    _ => &self.maps,
                };
                if let Some(place) = known.iter().position(|&(_, other)| other == id) {
                    *word = (u32::MAX - place as u32).to_ne_bytes();
                }
            }
        }
        // Ids, and the pointer to the hash.
        arena[INFO + 4..INFO + 8].fill(0);
        arena[INFO + 88..INFO + 96].fill(0);
        Trace { result, block, arena }
    }

    /// Loads or finds a program, and gives 0 for its descriptor.
    pub(super) fn make_program(&mut self, call: &Call, made: &[Made]) -> Trace {
        let mut trace = self.make(call, made);
        if let Ok(fd) = RawFd::try_from(trace.result)
            && fd >= 0
        {
            self.keep_program(fd);
            trace.result = 0;
        }
        trace
    }

    fn keep_program(&mut self, fd: RawFd) {
        self.programs.push((fd, 0));
        let id = self.id_of(Slot::Program(self.programs.len() - 1));
        self.programs.last_mut().into_iter().for_each(|program| program.1 = id);
        self.types
            .push(self.arena[INFO..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word)));
    }

    /// Makes a map of a call, and gives 0 for its descriptor.
    pub(super) fn create(&mut self, call: &Call, made: &[Made]) -> Trace {
        let mut trace = self.make(call, made);
        if trace.result >= 0 {
            self.keep(trace.result as RawFd);
            trace.result = 0;
        }
        trace
    }

    pub(super) fn keep(&mut self, fd: RawFd) {
        self.maps.push((fd, 0));
        let id = self.id_of(Slot::Fd(self.maps.len() - 1));
        self.maps.last_mut().into_iter().for_each(|map| map.1 = id);
    }

    /// The id of an object, from its info.
    pub(super) fn id_of(&mut self, object: Slot) -> u32 {
        let mut info = Call::new(15, 16);
        // Without a request for a hash.
        info.seed = 1;
        info.u32(4, 104);
        info.slot(8, Slot::At(INFO));
        info.slot(0, object);
        self.make(&info, &[]);
        self.arena[INFO + 4..].first_chunk().map_or(0, |id| u32::from_ne_bytes(*id))
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        let objects = self.maps.drain(..).chain(self.programs.drain(..));
        for (fd, _) in objects.chain([(self.btf, 0)]).filter(|(fd, _)| *fd >= 0) {
            self.door.close(fd);
        }
    }
}
