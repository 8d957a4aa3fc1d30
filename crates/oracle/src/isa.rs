//! Random programs over the instruction set: arithmetic, forward branches, memory accesses, atomics.
//!
//! A program fills r0 to r8, a part of the stack and a part of a map value with random numbers, works on
//! them, and leaves all of it in the map value, whose address stays in r9. Every program passes the
//! kernel's verifier.

use bpfarray_core::insn::{Insn, Reg, X, alu, atomic, class, jmp, mode, pseudo, size};

use crate::create::MapCreate;
use crate::programs::Assembled;
use crate::rng::Rng;

/// Registers that programs work on, from r0.
const REGS: i16 = 9;
/// Slots of 8 bytes that programs work on, in the map value from its start and in the stack downwards
/// from its end.
const SLOTS: i16 = 8;
/// Bytes of the map value: slots, registers, slots of the stack.
const RESULT_SIZE: u32 = (SLOTS + REGS + SLOTS) as u32 * 8;

const ALU_OPS: [u8; 12] = [
    alu::ADD,
    alu::SUB,
    alu::MUL,
    alu::DIV,
    alu::OR,
    alu::AND,
    alu::LSH,
    alu::RSH,
    alu::MOD,
    alu::XOR,
    alu::MOV,
    alu::ARSH,
];
const JUMPS: [u8; 11] = [
    jmp::JEQ,
    jmp::JGT,
    jmp::JGE,
    jmp::JSET,
    jmp::JNE,
    jmp::JSGT,
    jmp::JSGE,
    jmp::JLT,
    jmp::JLE,
    jmp::JSLT,
    jmp::JSLE,
];
const SIZES: [u8; 4] = [size::B, size::H, size::W, size::DW];

/// The program of a seed, with up to 60 random instructions between filling and saving.
pub fn random(seed: u64) -> Assembled {
    let rng = &mut Rng::new(seed);
    let len = rng.within(1, 60) as usize;
    let mut insns = Insn::ld_imm64(Reg::R9, Reg::new(pseudo::MAP_IDX_VALUE), 0).to_vec();
    for slot in 0..SLOTS {
        insns.extend(Insn::ld_imm64(Reg::R0, Reg::R0, value(rng)));
        insns.push(Insn::stx_mem(size::DW, Reg::R10, Reg::R0, -8 * (slot + 1)));
        insns.extend(Insn::ld_imm64(Reg::R0, Reg::R0, value(rng)));
        insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::R0, 8 * slot));
    }
    for reg in 0..REGS {
        insns.extend(Insn::ld_imm64(Reg::new(reg as u8), Reg::R0, value(rng)));
    }
    // Every branch doubles the paths the kernel's verifier may have to walk.
    let mut branches = 6;
    for left in (0..len).rev() {
        match rng.below(10) {
            0 if branches > 0 && left > 0 => {
                branches -= 1;
                branch(rng, left, &mut insns);
            }
            1 => insns.push(memory_access(rng)),
            2 => atomic_in_value(rng, &mut insns),
            _ => insns.push(arithmetic(rng)),
        }
    }
    for reg in 0..REGS {
        insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::new(reg as u8), 8 * (SLOTS + reg)));
    }
    for slot in 0..SLOTS {
        insns.push(Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, -8 * (slot + 1)));
        insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::R1, 8 * (SLOTS + REGS + slot)));
    }
    insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    Assembled::raw_tp(insns, vec![MapCreate::array(MapCreate::ARRAY, RESULT_SIZE, 1)])
}

fn reg(rng: &mut Rng) -> Reg {
    Reg::new(rng.below(REGS as u32) as u8)
}

fn value(rng: &mut Rng) -> u64 {
    let edge = rng.pick(&[0, 1, 0x7f, 0x80, 0x7fff, 0x8000, i32::MAX as u64, 1 << 31, u64::MAX]);
    match rng.below(4) {
        0 => edge,
        1 => edge << 32 | rng.pick(&[0, 1, 0xffff_ffff, 0x8000_0000]),
        2 => rng.next_u64() >> rng.below(64),
        _ => rng.next_u64(),
    }
}

fn arithmetic(rng: &mut Rng) -> Insn {
    let (class, bits) = rng.pick(&[(class::ALU, 32), (class::ALU64, 64)]);
    let dst = reg(rng);
    match rng.below(14) {
        12 => Insn::new(class | alu::NEG, dst, Reg::R0, 0, 0),
        13 => {
            // In class ALU64 a byte swap, in class ALU a conversion to little or big endian.
            let source = if bits == 32 && rng.percent(50) { X } else { 0 };
            Insn::new(class | alu::END | source, dst, Reg::R0, 0, rng.pick(&[16, 32, 64]))
        }
        n => {
            let op = ALU_OPS[n as usize];
            let signed = i16::from(matches!(op, alu::DIV | alu::MOD) && rng.percent(50));
            if rng.percent(60) {
                let sign_extend: &[i16] = if bits == 32 { &[0, 8, 16] } else { &[0, 8, 16, 32] };
                let off = if op == alu::MOV { rng.pick(sign_extend) } else { signed };
                return Insn::new(class | op | X, dst, reg(rng), off, 0);
            }
            let imm = match op {
                alu::LSH | alu::RSH | alu::ARSH => rng.below(bits) as i32,
                alu::DIV | alu::MOD => (value(rng) as i32).max(1) * rng.pick(&[1, -1]),
                _ => value(rng) as i32,
            };
            Insn::new(class | op, dst, Reg::R0, signed, imm)
        }
    }
}

/// A forward branch over at most `left` instructions.
fn branch(rng: &mut Rng, left: usize, insns: &mut Vec<Insn>) {
    let distance = rng.within(1, left.min(4) as u32) as i16;
    let unconditional = rng.percent(20);
    let (class, op, dst) = (rng.pick(&[class::JMP, class::JMP32]), rng.pick(&JUMPS), reg(rng));
    // What an unconditional jump jumps over must still be reachable, so a branch skips that jump.
    let off = if unconditional { 1 } else { distance };
    insns.push(match rng.below(2) {
        0 => Insn::new(class | op | X, dst, reg(rng), off, 0),
        _ => Insn::new(class | op, dst, Reg::R0, off, value(rng) as i32),
    });
    if unconditional {
        insns.push(match class {
            class::JMP => Insn::ja(distance),
            _ => Insn::new(class | jmp::JA, Reg::R0, Reg::R0, 0, distance.into()),
        });
    }
}

/// A base register and the offset of an aligned object of this size in the slots behind it.
fn place(rng: &mut Rng, base: Reg, size: u8) -> (Reg, i16) {
    let bytes = i16::from([4_u8, 2, 1, 8][usize::from(size >> 3)]);
    let offset = bytes * rng.below((SLOTS * 8 / bytes) as u32) as i16;
    (base, if base == Reg::R10 { offset - SLOTS * 8 } else { offset })
}

fn memory_access(rng: &mut Rng) -> Insn {
    let size = rng.pick(&SIZES);
    let base = rng.pick(&[Reg::R9, Reg::R10]);
    let (base, off) = place(rng, base, size);
    match rng.below(4) {
        0 => Insn::ldx_mem(size, reg(rng), base, off),
        1 if size != size::DW => Insn::new(class::LDX | mode::MEMSX | size, reg(rng), base, off, 0),
        2 => Insn::st_mem(size, base, off, value(rng) as i32),
        _ => Insn::stx_mem(size, base, reg(rng), off),
    }
}

/// An atomic operation on the map value, the memory whose contents no verifier keeps track of:
/// Linux 6.18 sometimes takes a stack slot for what it was before an atomic operation, and removes
/// branches that are alive.
fn atomic_in_value(rng: &mut Rng, insns: &mut Vec<Insn>) {
    let size = rng.pick(&[size::W, size::DW]);
    let (base, off) = place(rng, Reg::R9, size);
    let op = rng.pick(&[
        atomic::ADD,
        atomic::OR,
        atomic::AND,
        atomic::XOR,
        atomic::ADD | atomic::FETCH,
        atomic::OR | atomic::FETCH,
        atomic::AND | atomic::FETCH,
        atomic::XOR | atomic::FETCH,
        atomic::XCHG,
        atomic::CMPXCHG,
        atomic::LOAD_ACQ,
        atomic::STORE_REL,
    ]);
    insns.push(match op {
        atomic::LOAD_ACQ => Insn::atomic(size, op, reg(rng), base, off),
        _ => Insn::atomic(size, op, base, reg(rng), off),
    });
    if op == atomic::CMPXCHG && size == size::W {
        // On x86-64, Linux 6.18 sometimes forgets to clear the upper half of r0, which the machine's
        // cmpxchg leaves as it was when it succeeds.
        insns.push(Insn::alu32_reg(alu::MOV, Reg::R0, Reg::R0));
    }
}
