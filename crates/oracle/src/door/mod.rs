//! Raw attribute blocks, put to the live kernel and to `bpfarray-syscall`: the same bytes, good and bad.

mod call;
mod load;
mod maps;
mod progs;
mod side;

use std::path::{Path, PathBuf};

use bpfarray_syscall::{Kernel as Door, Root};

use self::call::Call;
use self::maps::Made;
use self::side::{Side, Trace, own_bpffs};
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

/// Where more things are in calls about programs.
const INSNS: usize = 4 * PAGE;
const TEXT: usize = INSNS + 1024;
const FDS: usize = INSNS + 2048;
const RECORDS: usize = INSNS + 2560;
const DATA_IN: usize = 5 * PAGE;
const DATA_OUT: usize = 6 * PAGE;
const CTX_IN: usize = 8 * PAGE;
const CTX_OUT: usize = CTX_IN + 1024;
const LOG: usize = 9 * PAGE;
/// A packet in as many pieces as there can be ends before it.
const ARENA: usize = 24 * PAGE;

/// The most bytes that a value has on one CPU, and the most elements of a batch.
const VALUE_MAX: u32 = 40;
const BATCH_MAX: u32 = 12;

/// Compares at least `count` calls.
///
/// # Errors
/// The first difference, as text; what kept the root directory from being made.
pub fn compare(kernel: Kernel, seed: u64, count: u64) -> Result<u64, String> {
    // Its mounts are those of a thread, and go with it.
    let thread = std::thread::spawn(move || {
        own_bpffs().map_err(|error| format!("no bpffs of its own: {error}"))?;
        compare_here(&kernel, seed, count)
    });
    thread.join().map_err(|_| "the comparison panicked")?
}

fn compare_here(kernel: &Kernel, seed: u64, count: u64) -> Result<u64, String> {
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
        let mut sides = [Side::new(kernel), Side::new(&door)].into_iter();
        let (Some(Ok(mut theirs)), Some(Ok(mut ours))) = (sides.next(), sides.next()) else {
            return Err("/dev/null cannot be opened".into());
        };
        let mut made: Vec<Made> = Vec::new();
        for step in 0..60 {
            let is_create = theirs.maps.is_empty() || rng.percent(15);
            let call = match is_create {
                true => Call::create(&mut rng, made.len()),
                false if rng.percent(40) => Call::on_programs(&mut rng, made.len(), &theirs.types),
                false => Call::random(&mut rng, &made),
            };
            let makes_map = is_create || call.cmd == 14;
            let ask = |side: &mut Side<'_>| match makes_map {
                true => side.create(&call, &made),
                false if call.makes_program() => side.make_program(&call, &made),
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
        for name in progs::PINS {
            // It may not be there.
            let _ = std::fs::remove_file(Path::new("/sys/fs/bpf").join(name));
            let _ = std::fs::remove_file(door.root().pins().join(name));
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
