//! Raw attribute blocks, put to the live kernel and to `bpfarray-syscall`: the same bytes, good and bad.
//!
//! **Invariant.** Every address in a block is one of an arena that the side owns and borrows exclusively during the call, with room
//! for the most that the command can write there; or one where nothing is mapped, or null.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;

use bpfarray_syscall::{Kernel as Door, Root};

use crate::kernel::{Kernel, possible_cpus};
use crate::rng::Rng;

const BLOCK: usize = 256;
const PAGE: usize = 4096;

/// Where things are in the arena.
const KEYS: usize = 0;
const CURSOR: usize = 2048;
const VALUES: usize = PAGE;
const INFO: usize = 3 * PAGE;
const HASH: usize = INFO + 1024;
const ARENA: usize = 4 * PAGE;

/// The most bytes that a value has on one CPU, and the most elements of a batch.
const VALUE_MAX: u32 = 40;
const BATCH_MAX: u32 = 12;

/// What stands in a block for something that differs from side to side.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// A map's descriptor.
    Fd(usize),
    /// A map's id.
    Id(usize),
    /// An open descriptor of something else.
    OtherFd,
    /// A number that no descriptor has.
    Closed,
    /// A directory of control groups, if there is one here.
    Cgroup,
    /// A perf event.
    PerfEvent,
    /// A program of one of two types.
    Program(usize),
    /// A place in the arena.
    At(usize),
}

const PROG_ARRAY: u32 = 3;
const PERF_EVENT_ARRAY: u32 = 4;
const CGROUP_ARRAY: u32 = 8;
const ARRAY_OF_MAPS: u32 = 12;

/// Map types whose slots hold objects.
const OBJECT_MAPS: [u32; 4] = [PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS];

const SOCKET_FILTER: u32 = 1;
const XDP: u32 = 6;

/// What a map was made from: type, sizes and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Made {
    shape: [u32; 5],
    /// The map that was named as the inner one.
    inner: Option<usize>,
}

impl Made {
    fn of(call: &Call) -> Self {
        let word = |at: usize| {
            call.block[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let inner = call.slots.iter().find_map(|(at, slot)| match slot {
            Slot::Fd(map) if *at == 20 => Some(*map),
            _ => None,
        });
        // Without the flags of a descriptor.
        Self { shape: [word(0), word(4), word(8), word(12), word(16) & !0x18], inner }
    }

    fn holds_objects(&self) -> bool {
        OBJECT_MAPS.contains(&self.shape[0])
    }
}

/// A call.
#[derive(Clone, Debug)]
struct Call {
    cmd: u32,
    block: Vec<u8>,
    size: u32,
    slots: Vec<(usize, Slot)>,
    /// What the arena holds before, from the keys on.
    keys: Vec<u32>,
    /// Descriptors that are values in the arena.
    values: Vec<Slot>,
    seed: u64,
}

impl Call {
    fn new(cmd: u32, end: usize) -> Self {
        let (block, size) = (vec![0; BLOCK], end as u32);
        let (slots, keys, values) = (Vec::new(), Vec::new(), Vec::new());
        Self { cmd, block, size, slots, keys, values, seed: 0 }
    }

    /// Whether the map is one of objects, and so the values are descriptors or ids.
    fn is_on_objects(&self, made: &[Made]) -> bool {
        self.map(made).is_some_and(Made::holds_objects)
    }

    /// The map that the call is about.
    fn map<'a>(&self, made: &'a [Made]) -> Option<&'a Made> {
        self.slots.iter().find_map(|(_, slot)| match slot {
            Slot::Fd(map) => made.get(*map),
            _ => None,
        })
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.block[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn slot(&mut self, at: usize, slot: Slot) {
        self.slots.push((at, slot));
    }

    /// A pointer into the arena, or now and then one to nothing.
    fn pointer(&mut self, rng: &mut Rng, at: usize, to: usize) {
        match rng.below(20) {
            0 => {}
            1 => self.u64(at, rng.pick(&[1, 4095, 1 << 47, 1 << 63, u64::MAX - 3])),
            _ => self.slot(at, Slot::At(to)),
        }
    }

    fn map_fd(&mut self, rng: &mut Rng, at: usize, maps: usize) {
        match rng.below(20) {
            0 => self.u32(at, rng.pick(&[u32::MAX, 9999, 0x7fff_ffff])),
            _ if maps == 0 => {}
            1 => self.slot(at, Slot::OtherFd),
            _ => self.slot(at, Slot::Fd(rng.below(maps as u32) as usize)),
        }
    }

    /// Another size than that of the fields, or something behind them.
    fn damage(&mut self, rng: &mut Rng, end: usize) {
        match rng.below(12) {
            0 => {
                self.size = rng.pick(&[0, 4, 8, 12, 16, 24, 32, 168, 169, 176, 255, 4097, u32::MAX])
            }
            1 => {
                let at = end + rng.below((BLOCK - end) as u32) as usize;
                self.block[at] = 1;
                self.size = rng.within(end as u32, BLOCK as u32);
            }
            2 => self.size = rng.within(end as u32, 168),
            _ => {}
        }
        // What lies past the block would differ.
        if self.size > BLOCK as u32 && self.size <= 4096 {
            self.size = BLOCK as u32;
        }
    }

    fn create(rng: &mut Rng, maps: usize) -> Self {
        let mut call = Self::new(0, 92);
        let map_type = rng.pick(&[2, 2, 2, 2, 6, 6, 6, 12, 12, 12, 8, 3, 4, 0, 34, 200, u32::MAX]);
        call.u32(0, map_type);
        if map_type == 12 {
            call.map_fd(rng, 20, maps);
        }
        call.u32(4, if rng.percent(95) { 4 } else { rng.pick(&[0, 1, 8]) });
        call.u32(
            8,
            if rng.percent(93) {
                match OBJECT_MAPS.contains(&map_type) {
                    true => 4,
                    // Few sizes, so that maps are alike.
                    false => rng.pick(&[4, 4, 8, 3, 12, 17, VALUE_MAX]),
                }
            } else {
                rng.pick(&[0, 1 << 31, u32::MAX])
            },
        );
        call.u32(12, if rng.percent(95) { rng.pick(&[1, 3, 4, 4, 4, 13, 20]) } else { 0 });
        if rng.percent(30) {
            // Bit 2 needs a node, and bit 16 a token.
            call.u32(
                16,
                rng.pick(&[
                    0x4,
                    8,
                    8,
                    0x10,
                    0x10,
                    0x18,
                    0x80,
                    0x100,
                    0x180,
                    0x400,
                    0x1000,
                    0x800,
                    1,
                    2,
                    0x20,
                    1 << 31,
                ]),
            );
        }
        if rng.percent(10) {
            call.u32(24, rng.pick(&[0, 1, 7, u32::MAX]));
        }
        if rng.percent(40) {
            let name = rng.pick(&[
                &b"counters"[..],
                b"a.b_C9",
                b"has space",
                b"no-dash",
                b"sixteen_bytes_xx",
                b"x\0y",
                b"\xe9",
            ]);
            call.block[28..28 + name.len()].copy_from_slice(name);
        }
        if rng.percent(5) {
            let at = rng.pick(&[20, 48, 52, 56, 60, 64, 72, 76]);
            call.u32(at, rng.pick(&[1, 9999]));
        }
        call.damage(rng, 92);
        call
    }

    fn random(rng: &mut Rng, made: &[Made]) -> Self {
        let maps = made.len();
        let cmd = rng
            .pick(&[1, 1, 1, 2, 2, 2, 3, 4, 4, 15, 14, 12, 21, 22, 24, 24, 25, 26, 26, 27, 38, 99]);
        let end = match cmd {
            1 | 2 | 21 => 32,
            3 | 15 => 16,
            4 => 24,
            14 => 12,
            12 => 8,
            22 => 4,
            24..=27 => 56,
            _ => 8,
        };
        let mut call = Self::new(cmd, end);
        call.seed = rng.next_u64();
        let count = rng.below(BATCH_MAX + 1);
        call.keys = (0..BATCH_MAX + 2)
            .map(|_| rng.pick(&[0, 1, 2, 3, 4, 5, 7, 9, 12, 19, 20, 77, u32::MAX]))
            .collect();
        match cmd {
            1 | 2 | 3 | 4 | 21 => {
                call.map_fd(rng, 0, maps);
                call.pointer(rng, 8, KEYS);
                if cmd != 3 {
                    call.pointer(rng, 16, VALUES);
                }
                if cmd != 3 && cmd != 4 && rng.percent(25) {
                    let flags = [1, 2, 3, 4, 5, 8, 0x10, 1 << 32, 1 << 63];
                    call.u64(24, rng.pick(&flags));
                }
            }
            // A map that is frozen has little left to compare.
            22 if rng.percent(80) => call.u32(0, u32::MAX),
            22 => call.map_fd(rng, 0, maps),
            15 => {
                call.map_fd(rng, 0, maps);
                call.u32(4, rng.pick(&[104, 104, 104, 80, 88, 0, 4, 112, 200, 4097]));
                call.pointer(rng, 8, INFO);
            }
            14 => {
                match rng.below(4) {
                    0 => call.u32(0, rng.pick(&[0, u32::MAX, i32::MAX as u32])),
                    _ => call.slot(0, Slot::Id(rng.below(maps as u32) as usize)),
                }
                call.u32(8, rng.pick(&[0, 0, 8, 0x10, 0x18, 1, 0x4000]));
            }
            12 => call.u32(0, rng.pick(&[i32::MAX as u32, u32::MAX, i32::MAX as u32 - 1])),
            24..=27 => {
                if rng.percent(60) {
                    call.pointer(rng, 0, CURSOR);
                }
                call.pointer(rng, 8, CURSOR + 64);
                call.pointer(rng, 16, KEYS);
                call.pointer(rng, 24, VALUES);
                call.u32(32, count);
                call.map_fd(rng, 36, maps);
                if rng.percent(15) {
                    call.u64(40, rng.pick(&[1, 2, 4, 8, 1 << 32]));
                }
                if rng.percent(10) {
                    call.u64(48, 3);
                }
            }
            _ => {}
        }
        call.damage(rng, end);
        let map = call.map(made).filter(|map| map.holds_objects());
        if let Some(map) = map {
            if matches!(cmd, 2 | 26) {
                call.values = (0..BATCH_MAX + 2).map(|_| Slot::value(rng, map, made)).collect();
            }
            // Often a slot that may have been filled.
            if rng.percent(80) {
                let most = map.shape[3].saturating_sub(1);
                call.keys.iter_mut().for_each(|key| *key = (*key).min(most));
            }
        }
        call
    }
}

impl Slot {
    /// A descriptor to put into a map of objects, most often one that it takes.
    fn value(rng: &mut Rng, map: &Made, made: &[Made]) -> Self {
        let any = rng.below(made.len() as u32) as usize;
        match (rng.below(16), map.shape[0]) {
            (0, _) => Self::OtherFd,
            (1, _) => Self::Closed,
            (2, _) => Self::Cgroup,
            (3, _) => Self::PerfEvent,
            (4.., CGROUP_ARRAY) => Self::Cgroup,
            (4.., PERF_EVENT_ARRAY) => Self::PerfEvent,
            (4.., PROG_ARRAY) => Self::Program(rng.below(2) as usize),
            (4, _) => Self::Program(0),
            (5.., ARRAY_OF_MAPS) => {
                let template = map.inner.and_then(|inner| made.get(inner));
                let fits =
                    |at: &usize| template.is_some_and(|inner| inner.shape == made[*at].shape);
                Self::Fd((any..made.len()).chain(0..any).find(fits).unwrap_or(any))
            }
            _ => Self::Fd(any),
        }
    }
}

/// One that answers.
trait Answers {
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

/// A side with what it has open.
struct Side<'a> {
    door: &'a dyn Answers,
    maps: Vec<(RawFd, u32)>,
    programs: Vec<(RawFd, u32)>,
    other: std::fs::File,
    cgroup: Option<std::fs::File>,
    perf_event: Option<std::fs::File>,
    arena: Box<[u8]>,
}

/// What a call left behind.
#[derive(PartialEq, Eq, Debug)]
struct Trace {
    result: i64,
    block: Vec<u8>,
    arena: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(door: &'a dyn Answers) -> std::io::Result<Self> {
        let other = std::fs::File::open("/dev/null")?;
        let cgroup = crate::objects::cgroup_root().and_then(|path| File::open(path).ok());
        let perf_event = crate::sys::perf_event(false).ok().map(File::from);
        let (maps, programs, arena) = (Vec::new(), Vec::new(), vec![0; ARENA].into());
        let mut side = Self { door, maps, programs, other, cgroup, perf_event, arena };
        for prog_type in [XDP, SOCKET_FILTER] {
            side.load(prog_type);
        }
        Ok(side)
    }

    /// Loads a program that does nothing.
    fn load(&mut self, prog_type: u32) {
        const INSNS: [u64; 2] = [0xb7, 0x95];
        let mut call = Call::new(5, 24);
        call.u32(0, prog_type);
        call.u32(4, INSNS.len() as u32);
        call.u64(8, INSNS.as_ptr().expose_provenance() as u64);
        call.u64(16, c"GPL".as_ptr().expose_provenance() as u64);
        let loaded = self.make(&call, &[]);
        if let Ok(fd) = RawFd::try_from(loaded.result)
            && fd >= 0
        {
            self.programs.push((fd, 0));
            let id = self.id_of(Slot::Program(self.programs.len() - 1));
            self.programs.last_mut().into_iter().for_each(|program| program.1 = id);
        }
    }

    /// The number that a slot stands for on this side.
    fn number(&self, slot: Slot) -> u32 {
        use std::os::fd::AsRawFd;
        let fd = |file: &Option<File>| file.as_ref().map_or(-1, |file| file.as_raw_fd());
        let fd = match slot {
            Slot::Fd(map) => self.maps[map].0,
            Slot::Id(map) => return self.maps[map].1,
            Slot::OtherFd => self.other.as_raw_fd(),
            Slot::Cgroup => fd(&self.cgroup),
            Slot::PerfEvent => fd(&self.perf_event),
            Slot::Program(which) => self.programs.get(which).map_or(-1, |program| program.0),
            Slot::Closed | Slot::At(_) => -1,
        };
        fd.cast_unsigned()
    }

    fn make(&mut self, call: &Call, made: &[Made]) -> Trace {
        self.arena.copy_from_slice(&Rng::new(call.seed).bytes(ARENA));
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
        let mut block = call.block.clone();
        let start = self.arena.as_mut_ptr().expose_provenance() as u64;
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
        if call.cmd == 12 {
            // The next id.
            block[4..8].fill(0);
        }
        let mut arena = self.arena.to_vec();
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

    /// Makes a map of a call, and gives 0 for its descriptor.
    fn create(&mut self, call: &Call, made: &[Made]) -> Trace {
        let mut trace = self.make(call, made);
        if trace.result >= 0 {
            self.keep(trace.result as RawFd);
            trace.result = 0;
        }
        trace
    }

    fn keep(&mut self, fd: RawFd) {
        self.maps.push((fd, 0));
        let id = self.id_of(Slot::Fd(self.maps.len() - 1));
        self.maps.last_mut().into_iter().for_each(|map| map.1 = id);
    }

    /// The id of an object, from its info.
    fn id_of(&mut self, object: Slot) -> u32 {
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
        for (fd, _) in self.maps.drain(..).chain(self.programs.drain(..)) {
            self.door.close(fd);
        }
    }
}

/// Compares at least `count` calls.
///
/// # Errors
/// The first difference, as text; what kept the root directory from being made.
pub fn compare(kernel: Kernel, seed: u64, count: u64) -> Result<u64, String> {
    // Values of all CPUs must fit into the arena.
    let room = (INFO - VALUES) / (BATCH_MAX * VALUE_MAX.next_multiple_of(8)) as usize;
    if possible_cpus() > room {
        return Err(format!("only machines with up to {room} CPUs"));
    }
    let directory = Directory::new().map_err(|error| error.to_string())?;
    let door = Door::new(Root::open(&directory.0).map_err(|error| error.to_string())?);
    let mut done = 0;
    for seed in seed.. {
        let mut rng = Rng::new(seed);
        let mut sides = [Side::new(&kernel), Side::new(&door)].into_iter();
        let (Some(Ok(mut theirs)), Some(Ok(mut ours))) = (sides.next(), sides.next()) else {
            return Err("/dev/null cannot be opened".into());
        };
        let mut made: Vec<Made> = Vec::new();
        for step in 0..60 {
            let is_create = theirs.maps.is_empty() || rng.percent(15);
            let call = match is_create {
                true => Call::create(&mut rng, made.len()),
                false => Call::random(&mut rng, &made),
            };
            let makes_fd = is_create || call.cmd == 14;
            let ask = |side: &mut Side<'_>| match makes_fd {
                true => side.create(&call, &made),
                false => side.make(&call, &made),
            };
            let (expected, found) = (ask(&mut theirs), ask(&mut ours));
            if let Some(new) = theirs.maps.get(made.len()) {
                // One that was found by its id is one of the others.
                let same = theirs.maps.iter().position(|map| map.1 == new.1);
                let same = same.and_then(|map| made.get(map).copied());
                made.push(same.unwrap_or_else(|| Made::of(&call)));
            }
            if expected != found {
                let at = expected.arena.iter().zip(&found.arena).position(|(a, b)| a != b);
                let from = |trace: &Trace| {
                    at.map(|at| trace.arena[at & !3..].iter().take(16).copied().collect::<Vec<_>>())
                };
                let bytes = (from(&expected), from(&found));
                let block = expected.block.iter().zip(&found.block).position(|(a, b)| a != b);
                return Err(format!(
                    "seed {seed}, call {step}: {call:?}\nkernel: {}\nours: {}\nfirst byte that differs: {at:?} of the \
                     arena, {block:?} of the block\narena from there: {bytes:?}",
                    expected.result, found.result
                ));
            }
            done += 1;
        }
        if done >= count {
            break;
        }
    }
    Ok(done)
}

/// A directory that is removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> std::io::Result<Self> {
        let name = format!("bpfarray-door-{}", std::process::id());
        let shared = PathBuf::from("/dev/shm");
        let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let path = parent.join(name);
        // One of a process that had the same number and died.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
