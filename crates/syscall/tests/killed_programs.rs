//! What is left of programs when processes are killed while they load, run and pin them.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, jmp, pseudo, size};
use common::{Process, address, block};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const PROG_NEXT_ID: u32 = 11;
const MAP_NEXT_ID: u32 = 12;
const MAP_FD_BY_ID: u32 = 14;
const BTF_LOAD: u32 = 18;
const BTF_NEXT_ID: u32 = 23;

const ARRAY: u64 = 2;
const PERCPU_ARRAY: u64 = 6;

/// Names the root directory to the process that is going to be killed.
const VICTIM: &str = "BPFARRAY_TEST_VICTIM_OF_PROGRAMS";

/// How a program counts its runs.
#[derive(Copy, Clone, Debug)]
enum Counting {
    /// An atomic addition.
    Atomic,
    /// In a value for each CPU, so a run holds a lane of the map.
    InLanes,
    /// Under a lock in the value.
    Locked,
}

const ALL: [Counting; 3] = [Counting::Atomic, Counting::InLanes, Counting::Locked];

/// Types of a value with a lock and a number: 1 is the key's, 4 the value's.
fn btf() -> Vec<u8> {
    let strings = b"\0int\0long\0bpf_spin_lock\0val\0value\0lock\0count\0";
    let name =
        |name: &[u8]| strings.windows(name.len()).position(|at| at == name).unwrap() as u32 + 1;
    let (int, structure) = (1 << 24, 4 << 24);
    let types = [
        [name(b"\0int\0"), int, 4, 32].to_vec(),
        [name(b"\0long\0"), int, 8, 64].to_vec(),
        [name(b"\0bpf_spin_lock\0"), structure | 1, 4, name(b"\0val\0"), 1, 0].to_vec(),
        [name(b"\0value\0"), structure | 2, 16].to_vec(),
        [name(b"\0lock\0"), 3, 0, name(b"\0count\0"), 2, 64].to_vec(),
    ]
    .concat();
    let types_len = types.len() as u32 * 4;
    let header = [0x0001_eb9f, 24, 0, types_len, types_len, strings.len() as u32];
    let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
    words.chain(strings.iter().copied()).collect()
}

impl Counting {
    /// Where the number of runs is in the value.
    const OFFSET: i16 = 8;

    fn map(self, process: &Process) -> i32 {
        let map_type = if matches!(self, Self::InLanes) { PERCPU_ARRAY } else { ARRAY };
        let mut words = vec![(0, map_type, 4), (4, 4, 4), (8, 16, 4), (12, 2, 4)];
        let Self::Locked = self else {
            return process.call(MAP_CREATE, &mut block(&words)).unwrap();
        };
        let bytes = btf();
        let load = [(0, address(bytes.as_ptr()), 8), (16, bytes.len() as u64, 4)];
        let types = process.call(BTF_LOAD, &mut block(&load)).unwrap();
        words.extend([(48, types as u64, 4), (52, 1, 4), (56, 4, 4)]);
        let map = process.call(MAP_CREATE, &mut block(&words)).unwrap();
        process.close(types);
        map
    }

    /// Counts a run in the first value of the map, and returns 2.
    fn program(self, map: i32) -> Vec<Insn> {
        let add = match self {
            Self::Atomic => vec![
                Insn::mov64_imm(Reg::R1, 1),
                Insn::atomic(size::DW, 0, Reg::R6, Reg::R1, Self::OFFSET),
            ],
            Self::InLanes | Self::Locked => vec![
                Insn::ldx_mem(size::DW, Reg::R1, Reg::R6, Self::OFFSET),
                Insn::alu64_imm(alu::ADD, Reg::R1, 1),
                Insn::stx_mem(size::DW, Reg::R6, Reg::R1, Self::OFFSET),
            ],
        };
        let with_lock = |helper| match self {
            Self::Locked => vec![Insn::mov64_reg(Reg::R1, Reg::R6), Insn::call(helper)],
            Self::Atomic | Self::InLanes => Vec::new(),
        };
        let count = [with_lock(helper_id::SPIN_LOCK), add, with_lock(helper_id::SPIN_UNLOCK)];
        let count = count.concat();
        let lookup = [
            &[Insn::st_mem(size::W, Reg::R10, -4, 0), Insn::mov64_reg(Reg::R2, Reg::R10)][..],
            &[Insn::alu64_imm(alu::ADD, Reg::R2, -4)],
            &Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_FD), map as u64),
            &[Insn::call(helper_id::MAP_LOOKUP_ELEM), Insn::mov64_reg(Reg::R6, Reg::R0)],
            &[Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, count.len() as i16)],
        ]
        .concat();
        let end = vec![Insn::mov64_imm(Reg::R0, 2), Insn::exit()];
        [lookup, count, end].concat()
    }

    /// A program that is pinned under this name, with its map.
    fn pinned(self, process: &Process, name: &str) {
        let map = self.map(process);
        let prog = process.load(&self.program(map)).unwrap();
        process.close(map);
        process.pin(name, prog).unwrap();
        process.close(prog);
    }

    /// The name of a program that all victims run.
    const fn shared(self) -> &'static str {
        match self {
            Self::Atomic => "shared_atomic",
            Self::InLanes => "shared_lanes",
            Self::Locked => "shared_locked",
        }
    }
}

/// Loads programs and pins every other one, runs it, and runs those that others run as well, until it is killed. Does nothing when it
/// runs as a test.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(VICTIM) else { return };
    let process = Process::new(Path::new(&root));
    let first = std::process::id() as usize;
    for number in 0_usize.. {
        let counting = ALL[(first + number) % 3];
        let map = counting.map(&process);
        let prog = process.load(&counting.program(map)).unwrap();
        process.close(map);
        if number.is_multiple_of(2) {
            process.pin(&format!("{}_{number}", std::process::id()), prog).unwrap();
        }
        assert_eq!(process.run(prog, 20), Ok(2));
        let shared = process.get(ALL[(first / 3 + number) % 3].shared()).unwrap();
        assert_eq!(process.run(shared, 200), Ok(2));
        process.close(shared);
        process.close(prog);
    }
}

/// How often the only map of a program has counted, on all CPUs.
fn counted(process: &Process, prog: i32) -> u64 {
    let maps = process.maps_of(prog);
    assert_eq!(maps.len(), 1);
    let map = process.call(MAP_FD_BY_ID, &mut block(&[(0, maps[0].into(), 4)])).unwrap();
    let (key, mut values) = (0_u32, vec![0_u64; 2 * 1024]);
    let at = [address(&raw const key), address(values.as_mut_ptr())];
    let words = [(0, map as u64, 4), (8, at[0], 8), (16, at[1], 8)];
    process.call(LOOKUP, &mut block(&words)).unwrap();
    process.close(map);
    values.iter().skip(1).step_by(2).sum()
}

/// Names in the directory of a kind.
/// What is in a directory, but for files that killed processes were making, which go with a later sweep.
fn names(root: &Path, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(directory)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".new")).collect()
}

#[test]
fn of_programs_of_killed_processes_the_pinned_ones_run_and_the_others_are_gone() {
    let path = std::env::temp_dir().join(format!("bpfarray-prog-kills-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let process = Process::new(&path);
    for counting in ALL {
        counting.pinned(&process, counting.shared());
    }
    // More of them to look at it at length.
    let kills = std::env::var("BPFARRAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    for kill in 0..kills.unwrap_or(60_u64) {
        // Two at a time, so that one may wait for what the other holds when it dies.
        let victims = [(); 2].map(|()| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "victim", "--nocapture"])
                .env(VICTIM, &path)
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap()
        });
        // Times that hit every part of a round sooner or later.
        std::thread::sleep(Duration::from_micros(8_000 + kill % 60 * 517));
        for mut victim in victims {
            assert_eq!(victim.try_wait().unwrap(), None, "a victim ended by itself");
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
    }
    // What another process finds then.
    let process = Process::new(&path);
    let pins = names(&path, "pin");
    assert!(pins.len() > ALL.len(), "the victims came to nothing");
    let progs = process.ids(PROG_NEXT_ID);
    assert_eq!(progs.len(), pins.len());
    assert_eq!(process.ids(MAP_NEXT_ID).len(), pins.len(), "a map for each program");
    let types = process.ids(BTF_NEXT_ID).len();
    assert!(types > 0 && types < pins.len(), "only values with a lock have types");
    // Each has its file, and a directory of what it keeps.
    let mut expected: Vec<_> =
        progs.iter().flat_map(|id| [id.to_string(), format!("{id}.keeps")]).collect();
    let mut found = names(&path, "bpf-prog");
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let with_types = names(&path, "bpf-map").iter().filter(|name| name.ends_with(".btf")).count();
    assert_eq!(names(&path, "bpf-map").len(), pins.len() + with_types);
    assert_eq!((with_types, names(&path, "btf").len()), (types, types));
    for name in &pins {
        let prog = process.get(name).unwrap();
        let before = counted(&process, prog);
        // Whoever was killed while it ran it holds no lock, and no lane.
        assert_eq!(process.run(prog, 10), Ok(2), "{name}");
        assert_eq!(counted(&process, prog), before + 10, "{name}");
        process.close(prog);
    }
    for counting in ALL {
        let prog = process.get(counting.shared()).unwrap();
        assert!(counted(&process, prog) > 10, "nobody has run {counting:?}");
        process.close(prog);
    }
    // Without the pins nothing is left.
    pins.iter().for_each(|name| std::fs::remove_file(path.join("pin").join(name)).unwrap());
    assert_eq!(process.ids(PROG_NEXT_ID), []);
    assert_eq!(process.ids(MAP_NEXT_ID), []);
    assert_eq!(process.ids(BTF_NEXT_ID), []);
    for directory in ["bpf-prog", "bpf-map", "btf"] {
        assert_eq!(names(&path, directory), [""; 0], "{directory}");
    }
    std::fs::remove_dir_all(path).unwrap();
}
