//! Calls that run, find, pin and bind programs; `load.rs` has those that load them.
//!
//! None runs a program on live frames or names a device.

use super::call::{Call, Slot};
use super::load::LOG_MAX;
use super::{CTX_IN, CTX_OUT, DATA_IN, DATA_OUT, INFO, LOG, TEXT};
use crate::rng::Rng;

const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const PROG_NEXT_ID: u32 = 11;
const PROG_FD_BY_ID: u32 = 13;
const INFO_BY_FD: u32 = 15;
const PROG_BIND_MAP: u32 = 35;

/// Where more is in the memory of a request for what is known of a program.
const MAP_IDS: usize = INFO + 1024;
const XLATED: usize = INFO + 2048;

/// Names under which programs are pinned, and others that cannot be.
pub(super) const PINS: [&str; 3] = ["door_a", "door_b", "door_c"];
const PATHS: [&str; 10] = [
    "/sys/fs/bpf/door_a",
    "/sys/fs/bpf/door_a",
    "/sys/fs/bpf/door_b",
    "/sys/fs/bpf/door_b",
    "/sys/fs/bpf/door_c",
    "/sys/fs/bpf/none/door",
    "/sys/fs/bpf/door.d",
    "/sys/fs/bpf",
    "/no_such_directory/door",
    "",
];

/// Types of programs that only the kernel runs: for packets of control groups, lookups of sockets, and filters of packets.
const NOT_RUN: [u32; 3] = [8, 30, 32];

impl Call {
    /// Whether it gives a descriptor of a program.
    pub(super) const fn makes_program(&self) -> bool {
        matches!(self.cmd, PROG_LOAD | PROG_FD_BY_ID | OBJ_GET)
    }

    pub(super) fn on_programs(rng: &mut Rng, maps: usize, types: &[u32]) -> Self {
        let programs = types.len();
        let cmd = rng.pick(&[
            PROG_LOAD,
            PROG_LOAD,
            PROG_LOAD,
            PROG_LOAD,
            PROG_TEST_RUN,
            PROG_TEST_RUN,
            PROG_TEST_RUN,
            INFO_BY_FD,
            PROG_BIND_MAP,
            PROG_NEXT_ID,
            PROG_FD_BY_ID,
            OBJ_PIN,
            OBJ_GET,
        ]);
        let end = match cmd {
            PROG_LOAD => 168,
            PROG_TEST_RUN => 76,
            OBJ_PIN | OBJ_GET => 20,
            INFO_BY_FD => 16,
            PROG_BIND_MAP => 12,
            PROG_NEXT_ID => 8,
            _ => 4,
        };
        let mut call = Self::new(cmd, end);
        // Odd, so that an info block has no request for a hash.
        call.seed = rng.next_u64() | 1;
        match cmd {
            PROG_LOAD => call.load(rng, maps, programs),
            PROG_TEST_RUN => call.test_run(rng, types),
            INFO_BY_FD => call.prog_info(rng, programs),
            PROG_BIND_MAP => {
                call.prog_fd(rng, 0, programs);
                call.map_fd(rng, 4, maps);
                if rng.percent(10) {
                    call.u32(8, rng.pick(&[1, 1 << 31]));
                }
            }
            PROG_NEXT_ID => {
                call.u32(0, rng.pick(&[i32::MAX as u32, u32::MAX, i32::MAX as u32 - 1]))
            }
            PROG_FD_BY_ID => match rng.below(4) {
                0 => call.u32(0, rng.pick(&[0, u32::MAX, i32::MAX as u32])),
                _ => call.slot(0, Slot::ProgramId(rng.below(programs as u32) as usize)),
            },
            _ => call.pin_or_get(rng, programs),
        }
        call.damage(rng, end);
        call
    }

    /// A program's descriptor, or now and then something else.
    fn prog_fd(&mut self, rng: &mut Rng, at: usize, programs: usize) {
        match rng.below(20) {
            0 => self.u32(at, rng.pick(&[u32::MAX, 9999, 0x7fff_ffff])),
            1 => self.slot(at, Slot::OtherFd),
            2 => self.slot(at, Slot::Btf),
            _ => self.slot(at, Slot::Program(rng.below(programs as u32) as usize)),
        }
    }

    fn test_run(&mut self, rng: &mut Rng, types: &[u32]) {
        self.prog_fd(rng, 0, types.len());
        for (_, slot) in &mut self.slots {
            match slot {
                Slot::Program(place) if NOT_RUN.contains(&types[*place]) => *slot = Slot::OtherFd,
                _ => {}
            }
        }
        if rng.percent(10) {
            self.u32(4, 77);
        }
        if rng.percent(85) {
            let len = rng.pick(&[14, 15, 60, 64, 64, 100, 1500, 3000, 0, 1, 13, 4000, u32::MAX]);
            self.u32(8, len);
            self.pointer(rng, 16, DATA_IN);
        }
        if rng.percent(50) {
            self.u32(12, rng.pick(&[4096, 4096, 64, 0, 1, 14, 60]));
            self.pointer(rng, 24, DATA_OUT);
        }
        if rng.percent(50) {
            // More would only take longer.
            self.u32(32, rng.pick(&[1, 1, 2, 3]));
        }
        if rng.percent(5) {
            self.u32(36, 1);
        }
        if rng.percent(45) {
            self.u32(40, rng.pick(&[24, 24, 192, 192, 0, 8, 16, 96, 104, 4, 25, 200, 300, 4097]));
            self.pointer(rng, 48, CTX_IN);
        }
        if rng.percent(30) {
            self.u32(44, rng.pick(&[24, 192, 192, 256, 0, 1, 20]));
            self.pointer(rng, 56, CTX_OUT);
        }
        if rng.percent(12) {
            self.u32(64, rng.pick(&[1, 1, 8, 1 << 31]));
        }
        if rng.percent(8) {
            self.u32(68, rng.pick(&[1, 4096, u32::MAX]));
        }
        if rng.percent(5) {
            self.u32(72, rng.pick(&[1, 64, 257]));
        }
        let mut ctx = vec![0; 1024];
        let mut word =
            |at: usize, value: u32| ctx[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        match rng.below(4) {
            0 => {}
            // Bounds of a packet in XDP; a mark, a priority and the control block of a socket's buffer.
            1 => {
                word(0, rng.pick(&[0, 0, 4, 8, 12, 14, 255]));
                word(4, rng.pick(&[14, 60, 64, 64, 68, 72, 100, 0]));
            }
            2 => {
                word(8, rng.pick(&[0, 5, u32::MAX]));
                word(32, rng.pick(&[0, 6]));
                word(48, rng.pick(&[0, 7]));
            }
            // A field that must be 0, but none that names a device.
            _ => word(rng.pick(&[16, 20, 24, 28, 44, 80, 100, 188, 192, 204]), 1),
        }
        self.bytes.push((CTX_IN, ctx));
    }

    fn prog_info(&mut self, rng: &mut Rng, programs: usize) {
        self.prog_fd(rng, 0, programs);
        self.u32(4, rng.pick(&[232, 232, 232, 232, 224, 128, 64, 0, 4, 233, 240, 300, 4097]));
        self.pointer(rng, 8, INFO);
        let mut word = |at: usize, value: u32| {
            self.bytes.push((INFO + at, value.to_ne_bytes().to_vec()));
        };
        if rng.percent(40) {
            word(52, rng.pick(&[0, 1, 2, 8]));
        }
        if rng.percent(30) {
            word(20, rng.pick(&[0, 8, 16, 512]));
        }
        if rng.percent(15) {
            let at = rng.pick(&[132, 172, 176]);
            word(at, rng.pick(&[8, 16, 4, 1]));
        }
        if rng.percent(10) {
            word(rng.pick(&[144, 148]), 1);
        }
        if rng.percent(85) {
            self.places.push((INFO + 56, Slot::At(MAP_IDS)));
        }
        if rng.percent(85) {
            self.places.push((INFO + 32, Slot::At(XLATED)));
        }
    }

    fn pin_or_get(&mut self, rng: &mut Rng, programs: usize) {
        self.pointer(rng, 0, TEXT);
        let path = rng.pick(&PATHS);
        self.bytes.push((TEXT, [path.as_bytes(), b"\0"].concat()));
        match self.cmd {
            OBJ_PIN => self.prog_fd(rng, 8, programs),
            _ if rng.percent(5) => self.u32(8, 1),
            _ => {}
        }
        if rng.percent(20) {
            self.u32(12, rng.pick(&[8, 0x10, 0x18, 1, 0x4000, 0x4008, 1 << 31]));
        }
        if rng.percent(10) {
            self.u32(16, rng.pick(&[u32::MAX, 9999]));
        }
    }

    /// Takes out of what a call left behind what is not the same on both sides: ids, addresses and times, and what
    /// `docs/kernel-parity.md` lists.
    pub(super) fn hide_what_differs(&self, block: &mut [u8], arena: &mut [u8]) {
        match self.cmd {
            PROG_LOAD => {
                // There is a log, or none; what it says, other tests compare.
                let is_there = u8::from(block[140..144] != [0; 4]);
                block[140..144].copy_from_slice(&[is_there, 0, 0, 0]);
                arena[LOG..LOG + LOG_MAX as usize].fill(0);
            }
            PROG_TEST_RUN => block[36..40].fill(0),
            INFO_BY_FD => {
                // The id, machine code, the time, descriptions of machine code, the id of the types.
                for field in [4..8, 16..20, 40..48, 104..112, 128..132, 168..172] {
                    arena[INFO..][field].fill(0);
                }
                // Tags of functions in machine code, and how often the verifier saw an instruction.
                for field in [180..184, 216..220] {
                    arena[INFO..][field].fill(0);
                }
                if self.slots.iter().any(|(_, slot)| matches!(slot, Slot::Btf)) {
                    arena[INFO + 12..INFO + 16].fill(0);
                }
                arena[MAP_IDS..MAP_IDS + 64].fill(0);
                arena[XLATED..XLATED + 1024].fill(0);
            }
            _ => {}
        }
    }
}
