//! Programs nobody wrote: whatever the instructions, a run ends with a number or a fault, and memory
//! that is not the program's stays as it was.

use bpfarray::Map;
use bpfarray::attr::{MapFlags, MapType};
use bpfarray_core::insn::{Insn, Reg, X, alu, atomic, class, jmp, mode, pseudo, size};

use super::{Case, Form, R0, form, map};
use crate::context::Context;
use crate::prog_type::ProgType;

/// As many as take a second or two.
fn programs() -> u64 {
    if form() == Form::Best { 8_000 } else { 100_000 }
}

/// splitmix64
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A register to compute with; seldom one that holds an address from the start.
    fn reg(&mut self) -> Reg {
        Reg::new(match self.below(16) {
            0 => self.below(16) as u8,
            _ => self.one_of(&[0, 2, 3, 4, 5, 6, 7, 8, 9]),
        })
    }

    /// A register to access memory through.
    fn base(&mut self) -> Reg {
        match self.below(8) {
            0 => self.reg(),
            1 => Reg::R1,
            _ => Reg::R10,
        }
    }

    fn off(&mut self) -> i16 {
        match self.below(32) {
            0 => self.next() as i16,
            1 => self.one_of(&[0, 4, 8, 76, 80]),
            _ => -8 * (1 + self.below(64) as i16),
        }
    }

    fn imm(&mut self) -> i32 {
        match self.below(4) {
            0 => self.next() as i32,
            1 => self.one_of(&[0, 1, -1, i32::MIN, i32::MAX, 16, 32, 64]),
            _ => self.below(64) as i32 - 16,
        }
    }

    /// A jump distance from instruction `at`, mostly forwards.
    fn distance(&mut self, at: usize, len: usize) -> i32 {
        match self.below(8) {
            0 => self.below(len as u64) as i32 - at as i32 - 1,
            1 => self.imm(),
            _ => self.below((len.saturating_sub(at)).max(1) as u64) as i32,
        }
    }
}

/// One random instruction, or the two of a 64-bit immediate.
fn insn(rng: &mut Rng, at: usize, len: usize, addresses: &[u64]) -> Vec<Insn> {
    let (dst, src, off, imm) = (rng.reg(), rng.reg(), rng.off(), rng.imm());
    let (base, distance) = (rng.base(), rng.distance(at, len));
    let size = rng.one_of(&[size::B, size::H, size::W, size::DW]);
    let reg_src = rng.one_of(&[0, X]);
    vec![match rng.below(64) {
        0..16 => {
            let class = rng.one_of(&[class::ALU, class::ALU64]);
            let op = rng.below(13) as u8;
            Insn::new(class | reg_src | op << 4, dst, src, 0, imm)
        }
        16..20 => {
            let op = rng.one_of(&[alu::DIV, alu::MOD, alu::MOV, alu::END]);
            let off = rng.one_of(&[0, 1, 8, 16, 32, -1]);
            let class = rng.one_of(&[class::ALU, class::ALU64]);
            Insn::new(class | reg_src | op, dst, src, off, rng.one_of(&[16, 32, 64, 0]))
        }
        20..26 => Insn::ldx_mem(size, dst, base, off),
        26..28 => Insn::new(class::LDX | mode::MEMSX | size, dst, base, off, 0),
        28..32 => Insn::stx_mem(size, base, src, off),
        32..36 => Insn::st_mem(size, base, off, imm),
        36..40 => {
            let op = rng.one_of(&[
                atomic::ADD,
                atomic::OR | atomic::FETCH,
                atomic::AND,
                atomic::XOR | atomic::FETCH,
                atomic::XCHG,
                atomic::CMPXCHG,
                atomic::STORE_REL,
                imm,
            ]);
            Insn::atomic(size::DW, op, base, src, off)
        }
        40 => Insn::atomic(size, atomic::LOAD_ACQ, dst, base, off),
        41..48 => {
            let class = rng.one_of(&[class::JMP, class::JMP32]);
            let op = rng.one_of(&[1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 0]) << 4;
            let imm = if class == class::JMP32 && op == jmp::JA { distance } else { imm };
            Insn::new(class | reg_src | op, dst, src, distance as i16, imm)
        }
        48 => Insn::call(rng.below(212) as u32),
        49..52 => Insn::call(rng.one_of(&[1, 2, 5, 7, 8, 14, 44, 54, 65, 164, 181, 188, 195])),
        52 => Insn::new(class::JMP | jmp::CALL, R0, Reg::new(pseudo::CALL), 0, distance),
        53..55 => {
            return Insn::ld_imm64(dst, Reg::new(pseudo::FUNC), distance as u32 as u64).to_vec();
        }
        55..62 => {
            let dst = Reg::new(rng.one_of(&[1, 2, 3, 4, 5]));
            let addr = rng.one_of(addresses).wrapping_add(rng.one_of(&[0, 0, 0, 8, 9, 16, 60]));
            return Insn::ld_imm64(dst, R0, addr).to_vec();
        }
        62 => Insn::mov64_reg(Reg::new(rng.one_of(&[1, 2, 3])), Reg::R10),
        _ => Insn::new(rng.next() as u8, dst, src, distance as i16, imm),
    }]
}

pub(crate) fn program(rng: &mut Rng, maps: &[&Map]) -> Vec<Insn> {
    let mut addresses = vec![0, u64::MAX - 7, 1 << 47];
    for map in maps {
        addresses.extend([map.addr(), map.addr() + 4096]);
        addresses.extend(map.prog_lookup_percpu_elem(0, 0));
    }
    let len = 4 + rng.below(28) as usize;
    let mut insns = Vec::new();
    while insns.len() < len {
        insns.extend(insn(rng, insns.len(), len, &addresses));
    }
    insns.push(Insn::new(class::ALU64 | alu::MOV, R0, R0, 0, 0));
    insns.push(Insn::exit());
    insns
}

#[test]
fn random_programs_stay_in_their_memory() {
    let open = [
        map(MapType::ARRAY, 12, 5, MapFlags::empty()),
        map(MapType::PERCPU_ARRAY, 8, 3, MapFlags::empty()),
    ];
    let read_only = map(MapType::ARRAY, 64, 1, MapFlags::RDONLY_PROG);
    let secret = map(MapType::ARRAY, 4096, 1, MapFlags::empty());
    let canary = [0x5a; 4096];
    secret.update_elem(0, &canary, 0).unwrap();
    read_only.update_elem(0, &canary[..64], 0).unwrap();
    let maps = [&open[0], &open[1], &read_only];
    let reachable = [&open[0], &open[1], &read_only, &secret];

    let mut rng = Rng(2);
    let (mut finished, mut faulted) = (0, 0);
    for prog_type in
        [ProgType::XDP, ProgType::SCHED_CLS, ProgType::SOCKET_FILTER, ProgType::SYSCALL]
    {
        let has_packet = prog_type != ProgType::SYSCALL;
        let packet = if has_packet { &[7; 90][..] } else { &[] };
        let ctx_in = (!has_packet).then_some(&[0; 64][..]);
        let context = Context::new(prog_type, packet, ctx_in).unwrap();
        let mut case = Case::with_context(&[], context).maps(&maps);
        case.helpers.set_trace(|_| {});
        case.fuel = 1000;
        for _ in 0..programs() / 4 {
            case.insns = program(&mut rng, &reachable);
            case.context.reset(packet, ctx_in).unwrap();
            match case.run() {
                Ok(_) => finished += 1,
                Err(_) => faulted += 1,
            }
            assert!(case.context.packet().len() <= 4096);
        }
    }
    let mut bytes = [0; 4096];
    secret.lookup_elem(0, &mut bytes, 0).unwrap();
    assert_eq!(bytes, canary);
    read_only.lookup_elem(0, &mut bytes[..64], 0).unwrap();
    assert_eq!(bytes[..64], canary[..64]);
    // Were nearly all of them refused at once, this test would tell nothing.
    assert!(finished > programs() / 20, "{finished} finished, {faulted} faulted");
}
