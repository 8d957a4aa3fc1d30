//! Arithmetic and jumps, against arithmetic on 128 bits.

use bpfarray_core::insn::{Insn, Reg, X, alu, class, jmp};
use proptest::prelude::*;

use super::{Form, R0, R1, R2, form, run_insns};

const OPS: [(u8, i16); 14] = [
    (alu::ADD, 0),
    (alu::SUB, 0),
    (alu::MUL, 0),
    (alu::DIV, 0),
    (alu::DIV, 1),
    (alu::OR, 0),
    (alu::AND, 0),
    (alu::LSH, 0),
    (alu::RSH, 0),
    (alu::MOD, 0),
    (alu::MOD, 1),
    (alu::XOR, 0),
    (alu::MOV, 0),
    (alu::ARSH, 0),
];

const CONDITIONS: [u8; 11] = [
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

/// The low bits of a number, without and with a sign.
fn both(number: u64, bits: u32) -> (i128, i128) {
    let unsigned = i128::from(number) & ((1 << bits) - 1);
    (unsigned, if unsigned >> (bits - 1) == 1 { unsigned - (1 << bits) } else { unsigned })
}

fn expected(op: u8, off: i16, bits: u32, a: u64, b: u64) -> u64 {
    let ((a, signed_a), (b, signed_b)) = (both(a, bits), both(b, bits));
    let shift = b % i128::from(bits);
    let result = match (op, off) {
        (alu::ADD, _) => a + b,
        (alu::SUB, _) => a - b,
        (alu::MUL, _) => (a as u128).wrapping_mul(b as u128) as i128,
        (alu::DIV, 0) => a.checked_div(b).unwrap_or(0),
        (alu::DIV, _) => signed_a.checked_div(signed_b).unwrap_or(0),
        (alu::OR, _) => a | b,
        (alu::AND, _) => a & b,
        (alu::LSH, _) => a << shift,
        (alu::RSH, _) => a >> shift,
        (alu::MOD, 0) => a.checked_rem(b).unwrap_or(a),
        (alu::MOD, _) => signed_a.checked_rem(signed_b).unwrap_or(a),
        (alu::XOR, _) => a ^ b,
        (alu::MOV, _) => b,
        _ => signed_a >> shift,
    };
    both(result as u64, bits).0 as u64
}

fn holds(condition: u8, bits: u32, a: u64, b: u64) -> bool {
    let ((a, signed_a), (b, signed_b)) = (both(a, bits), both(b, bits));
    match condition {
        jmp::JEQ => a == b,
        jmp::JGT => a > b,
        jmp::JGE => a >= b,
        jmp::JSET => a & b != 0,
        jmp::JNE => a != b,
        jmp::JSGT => signed_a > signed_b,
        jmp::JSGE => signed_a >= signed_b,
        jmp::JLT => a < b,
        jmp::JLE => a <= b,
        jmp::JSLT => signed_a < signed_b,
        _ => signed_a <= signed_b,
    }
}

fn with_operands(a: u64, b: u64, rest: &[Insn]) -> u64 {
    let mut insns = [Insn::ld_imm64(R1, R0, a), Insn::ld_imm64(R2, R0, b)].concat();
    insns.extend(rest);
    run_insns(&insns).unwrap()
}

fn check_alu(a: u64, b: u64) {
    for (op, off) in OPS {
        for (class, bits) in [(class::ALU64, 64), (class::ALU, 32)] {
            let reg = Insn::new(class | op | X, R1, R2, off, 0);
            let imm = Insn::new(class | op, R1, R0, off, b as i32);
            for (insn, b) in [(reg, b), (imm, b as i32 as u64)] {
                let result = with_operands(a, b, &[insn, Insn::mov64_reg(R0, R1), Insn::exit()]);
                assert_eq!(result, expected(op, off, bits, a, b), "{insn:?} {a:#x} {b:#x}");
            }
        }
    }
}

fn check_jumps(a: u64, b: u64) {
    for condition in CONDITIONS {
        for (class, bits) in [(class::JMP, 64), (class::JMP32, 32)] {
            let reg = Insn::new(class | condition | X, R1, R2, 1, 0);
            let imm = Insn::new(class | condition, R1, R0, 1, b as i32);
            for (insn, b) in [(reg, b), (imm, b as i32 as u64)] {
                let taken = [Insn::mov64_imm(R0, 1), insn, Insn::mov64_imm(R0, 0), Insn::exit()];
                let expected = holds(condition, bits, a, b);
                assert_eq!(
                    with_operands(a, b, &taken),
                    u64::from(expected),
                    "{insn:?} {a:#x} {b:#x}"
                );
            }
        }
    }
}

const EDGES: [u64; 15] = [
    0,
    1,
    2,
    31,
    32,
    63,
    64,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_8000_0000,
    u64::MAX,
];

#[test]
fn arithmetic_and_jumps_at_the_edges() {
    for a in EDGES {
        for b in EDGES {
            check_alu(a, b);
            check_jumps(a, b);
        }
    }
}

proptest! {
    // Compiling takes longer than running.
    #![proptest_config(ProptestConfig::with_cases(if form() == Form::Best { 16 } else { 256 }))]
    #[test]
    fn arithmetic_on_any_numbers(a: u64, b: u64, shift in 0_u32..64) {
        check_alu(a, b);
        check_alu(a, b >> shift);
    }

    #[test]
    fn jumps_on_any_numbers(a: u64, b: u64) {
        check_jumps(a, b);
        check_jumps(a, a ^ (b & 1));
    }
}

#[test]
fn moves_extend_the_sign_they_are_told_to() {
    let movsx = |class, off| {
        let insn = Insn::new(class | alu::MOV | X, R1, R2, off, 0);
        with_operands(7, 0x1234_5678_89ab_cdef, &[insn, Insn::mov64_reg(R0, R1), Insn::exit()])
    };
    assert_eq!(movsx(class::ALU64, 8), 0xffff_ffff_ffff_ffef);
    assert_eq!(movsx(class::ALU64, 16), 0xffff_ffff_ffff_cdef);
    assert_eq!(movsx(class::ALU64, 32), 0xffff_ffff_89ab_cdef);
    assert_eq!(movsx(class::ALU, 8), 0xffff_ffef);
    assert_eq!(movsx(class::ALU, 16), 0xffff_cdef);
}

#[test]
fn negation_and_byte_order() {
    let number = 0x0102_0304_0506_0708_u64;
    let unary = |code, imm| {
        let insn = Insn::new(code, R1, R0, 0, imm);
        with_operands(number, 0, &[insn, Insn::mov64_reg(R0, R1), Insn::exit()])
    };
    assert_eq!(unary(class::ALU64 | alu::NEG, 0), number.wrapping_neg());
    assert_eq!(unary(class::ALU | alu::NEG, 0), 0xfaf9_f8f8);
    let (to_le, to_be, swap) =
        (class::ALU | alu::END, class::ALU | alu::END | X, class::ALU64 | alu::END);
    for (code, imm, expected) in [
        (swap, 16, 0x0807),
        (swap, 32, 0x0807_0605),
        (swap, 64, 0x0807_0605_0403_0201),
        (to_le, 16, u64::from(0x0708_u16.to_le())),
        (to_le, 32, u64::from(0x0506_0708_u32.to_le())),
        (to_le, 64, number.to_le()),
        (to_be, 16, u64::from(0x0708_u16.to_be())),
        (to_be, 32, u64::from(0x0506_0708_u32.to_be())),
        (to_be, 64, number.to_be()),
    ] {
        assert_eq!(unary(code, imm), expected, "{code:#x} {imm}");
    }
}

#[test]
fn opcodes_that_do_not_exist_fault() {
    for insn in [
        Insn::new(class::ALU64 | alu::END | X, R1, R0, 0, 16),
        Insn::new(class::ALU | alu::END, R1, R0, 0, 24),
        Insn::new(class::ALU | alu::MOV | X, R1, R2, 32, 0),
        Insn::new(class::ALU64 | alu::ADD, R1, R0, 1, 0),
        Insn::new(class::ALU64 | 0xe0, R1, R0, 0, 0),
        Insn::new(class::JMP | 0xf0, R1, R0, 0, 0),
        Insn::new(class::JMP32 | jmp::EXIT, R0, R0, 0, 0),
        Insn::new(class::JMP | jmp::CALL, R0, Reg::new(2), 0, 1),
    ] {
        let fault = run_insns(&[insn, Insn::exit()]).unwrap_err().to_string();
        assert_eq!(fault, format!("instruction 0: unknown opcode {:#04x}", insn.code));
    }
}
