//! Calls that load programs.

use super::call::{Call, Slot};
use super::{FDS, INSNS, LOG, PAGE, RECORDS, TEXT};
use crate::rng::Rng;

const BTF_LOAD: u32 = 18;

/// Bytes that a log has room for at most.
pub(super) const LOG_MAX: u32 = 4 * PAGE as u32;

/// Types of programs whose contexts begin with a number, which a load of one instruction reads.
const CONTEXTS: [u32; 5] = [1, 3, 4, 17, 31];

/// The instructions of a program, and where descriptors of maps are in them.
struct Program {
    insns: Vec<u64>,
    maps: Vec<usize>,
}

/// An instruction of its opcode, registers, offset and immediate.
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    let regs = (src << 4 | dst) as u64;
    code as u64 | regs << 8 | (off as u16 as u64) << 16 | (imm as u32 as u64) << 32
}

const EXIT: u64 = insn(0x95, 0, 0, 0, 0);

const fn ret(value: i32) -> u64 {
    insn(0xb7, 0, 0, 0, value)
}

impl Program {
    fn random(rng: &mut Rng, prog_type: u32) -> Self {
        let none = Vec::new();
        let of = |insns: &[u64]| Self { insns: insns.to_vec(), maps: Vec::new() };
        match rng.below(16) {
            0..5 => of(&[ret(rng.pick(&[0, 1, 2, -1])), EXIT]),
            // Two functions.
            5 | 6 => of(&[insn(0x85, 0, 1, 0, 1), EXIT, ret(rng.pick(&[0, 2])), EXIT]),
            // The first word of the context.
            7 if CONTEXTS.contains(&prog_type) => of(&[insn(0x61, 0, 1, 0, 0), EXIT]),
            // The first byte of a packet in XDP, which is changed.
            8 => of(&[
                insn(0x61, 2, 1, 0, 0),
                insn(0x61, 3, 1, 4, 0),
                insn(0xbf, 4, 2, 0, 0),
                insn(0x07, 4, 0, 0, 14),
                ret(1),
                insn(0x2d, 4, 3, 2, 0),
                insn(0x72, 2, 0, 0, 0x5a),
                insn(0x71, 0, 2, 1, 0),
                EXIT,
            ]),
            // By a descriptor of a map, an index into a list of them, and something else.
            9..12 => Self { insns: vec![insn(0x18, 1, 1, 0, 0), 0, ret(2), EXIT], maps: vec![0] },
            12 => Self {
                insns: vec![insn(0x18, 1, 2, 0, 0), insn(0, 0, 0, 0, 0), ret(2), EXIT],
                maps: vec![0],
            },
            13 => {
                let kind = rng.pick(&[5, 5, 6, 3, 7]);
                let index = rng.pick(&[0, 1, 2, 3]);
                Self { insns: vec![insn(0x18, 1, kind, 0, index), 0, ret(2), EXIT], maps: none }
            }
            // What is refused, for one reason or another.
            _ => of(rng.pick(&[
                &[EXIT][..],
                &[ret(0)],
                &[insn(0x79, 0, 1, 1 << 14, 0), EXIT],
                &[insn(0x85, 0, 0, 0, 99_999), EXIT],
                &[insn(0xff, 0, 0, 0, 0), EXIT],
                &[insn(0x05, 0, 0, 7, 0), EXIT],
                &[ret(0), EXIT, ret(0), EXIT],
                &[insn(0x18, 1, 0, 0, 0), EXIT],
            ])),
        }
    }
}

impl Call {
    /// Loads types: a number, a function without parameters that returns one, and two such functions.
    pub(super) fn types() -> Self {
        let strings = b"\0int\0main\0sub\0";
        let types = [
            [1, 1 << 24, 4, 1 << 24 | 32].to_vec(),
            [0, 13 << 24, 1].to_vec(),
            [5, 12 << 24, 2].to_vec(),
            [10, 12 << 24, 2].to_vec(),
        ]
        .concat();
        let len = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, len, len, strings.len() as u32];
        let words = header.iter().chain(&types).flat_map(|word: &u32| word.to_ne_bytes());
        let bytes: Vec<u8> = words.chain(strings.iter().copied()).collect();
        let mut call = Self::new(BTF_LOAD, 40);
        call.slot(0, Slot::At(INSNS));
        call.u32(16, bytes.len() as u32);
        call.bytes.push((INSNS, bytes));
        call
    }

    pub(super) fn load(&mut self, rng: &mut Rng, maps: usize, programs: usize) {
        let types = [
            1, 1, 1, 6, 6, 6, 6, 3, 4, 17, 17, 31, 31, 2, 5, 7, 8, 8, 9, 13, 14, 15, 18, 23, 25,
            30, 32, 0, 33, 99,
        ];
        let prog_type = if rng.percent(96) { rng.pick(&types) } else { u32::MAX };
        self.u32(0, prog_type);
        let program = Program::random(rng, prog_type);
        let count = program.insns.len() as u32;
        self.u32(
            4,
            match rng.below(16) {
                0 => rng.pick(&[0, 1_000_001, u32::MAX]),
                1 => rng.pick(&[count - 1, count + 1]),
                _ => count,
            },
        );
        self.pointer(rng, 8, INSNS);
        let words = program.insns.iter().chain(&[0; 8]);
        self.bytes.push((INSNS, words.flat_map(|insn| insn.to_ne_bytes()).collect()));
        for at in program.maps {
            let place = INSNS + at * 8 + 4;
            match rng.below(8) {
                0 => self.places.push((place, Slot::Closed)),
                1 => self.places.push((place, Slot::Program(0))),
                _ if maps == 0 => {}
                _ => self.places.push((place, Slot::Fd(rng.below(maps as u32) as usize))),
            }
        }
        self.pointer(rng, 16, TEXT);
        let long = [b'G'; 200];
        let license =
            rng.pick(&[&b"GPL\0"[..], b"GPL\0", b"Dual MIT/GPL\0", b"\0", b"none\0", &long]);
        self.bytes.push((TEXT, license.to_vec()));
        self.log(rng);
        if rng.percent(15) {
            self.u32(40, rng.pick(&[1, u32::MAX]));
        }
        if rng.percent(25) {
            self.u32(
                44,
                rng.pick(&[
                    1,
                    2,
                    4,
                    8,
                    0x10,
                    0x10,
                    0x10,
                    0x20,
                    0x80,
                    0x100,
                    0x3f,
                    1 << 16,
                    1 << 31,
                ]),
            );
        }
        if rng.percent(30) {
            let name = rng.pick(&[
                &b"prog"[..],
                b"a.b_C9",
                b"has space",
                b"sixteen_bytes_xx",
                b"x\0y",
                b"\xe9",
            ]);
            self.block[48..48 + name.len()].copy_from_slice(name);
        }
        if rng.percent(20) {
            self.u32(68, rng.pick(&[1, 2, 10, 24, 35, 37, 45, 58, 59, u32::MAX]));
        }
        self.records(rng);
        if rng.percent(4) {
            self.u32(108, rng.pick(&[1, u32::MAX]));
        }
        match rng.below(40) {
            0 => self.u32(112, u32::MAX),
            1 => self.slot(112, Slot::Program(rng.below(programs as u32) as usize)),
            2 => self.u32(116, 1),
            3 => self.u32(rng.pick(&[128, 136, 144, 160, 164]), rng.pick(&[1, 8])),
            _ => {}
        }
        // What may not be listed for programs that sleep, is found elsewhere.
        if rng.percent(40) && self.block[44] & 0x10 == 0 {
            self.fd_array(rng, maps);
        }
    }

    fn log(&mut self, rng: &mut Rng) {
        if rng.percent(50) {
            return;
        }
        self.u32(24, rng.pick(&[1, 1, 1, 2, 4, 5, 7, 8, 9, 12, 0, 16, u32::MAX]));
        self.pointer(rng, 32, LOG);
        // All fits, or nothing does: how long it is, differs.
        let sizes = [LOG_MAX, LOG_MAX, LOG_MAX, 1, 2, 9, 0, u32::MAX, u32::MAX >> 2];
        self.u32(28, rng.pick(&sizes));
        if rng.percent(10) {
            self.u32(140, 77);
        }
    }

    fn fd_array(&mut self, rng: &mut Rng, maps: usize) {
        self.pointer(rng, 120, FDS);
        self.bytes.push((FDS, vec![0; 64]));
        for place in 0..4 {
            let slot = match rng.below(8) {
                0 => Slot::OtherFd,
                1 => Slot::Closed,
                2 => Slot::Btf,
                _ if maps == 0 => continue,
                _ => Slot::Fd(rng.below(maps as u32) as usize),
            };
            self.places.push((FDS + place * 4, slot));
        }
        if rng.percent(60) {
            self.u32(148, rng.pick(&[1, 2, 3, 4, u32::MAX, u32::MAX / 4]));
        }
    }

    /// What a loader says about functions and lines.
    fn records(&mut self, rng: &mut Rng) {
        match rng.below(10) {
            0..4 => return,
            4 => self.slot(72, Slot::OtherFd),
            5 => self.u32(72, u32::MAX),
            _ => self.slot(72, Slot::Btf),
        }
        let mut words = |words: &mut Vec<u32>, good: &[u32]| {
            let damaged = rng.percent(10).then(|| rng.below(good.len() as u32) as usize);
            words.extend(good);
            if let Some(at) = damaged {
                let last = words.len() - good.len() + at;
                words[last] = rng.pick(&[0, 1, 2, 3, 4, 9, 77, u32::MAX]);
            }
        };
        let (mut functions, mut lines) = (Vec::new(), Vec::new());
        words(&mut functions, &[0, 3]);
        words(&mut functions, &[2, 4]);
        words(&mut lines, &[0, 1, 5, 1 << 10 | 1]);
        words(&mut lines, &[2, 1, 5, 2 << 10 | 1]);
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes.push((RECORDS, vec![0; 1536]));
        self.bytes.push((RECORDS, bytes(&functions)));
        self.bytes.push((RECORDS + 512, bytes(&lines)));
        for (rec_size, records, count, size, at) in
            [(76, 80, 88, 8, RECORDS), (92, 96, 104, 16, RECORDS + 512)]
        {
            if rng.percent(30) {
                continue;
            }
            self.u32(
                rec_size,
                if rng.percent(85) {
                    size
                } else {
                    rng.pick(&[0, 4, 12, 9, 16, 24, 252, 256, u32::MAX])
                },
            );
            self.pointer(rng, records, at);
            self.u32(count, rng.pick(&[1, 1, 2, 2, 2, 0, 3, u32::MAX]));
        }
    }
}
