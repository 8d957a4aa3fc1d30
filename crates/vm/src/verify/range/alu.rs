//! Arithmetic on numbers of which only so much is known.

use bpfarray_core::insn::{Insn, alu, class};

use super::bounds::{Half, Wide};
use super::{Range, Tnum};

impl Range {
    /// The results of an operation on 64 or on the low 32 bits, all but that of a byte swap. `off` tells
    /// signed division and a move with sign extension.
    ///
    /// # Kernel
    /// `adjust_scalar_min_max_vals`
    pub(in crate::verify) fn alu(op: u8, is_64: bool, off: i16, a: Self, b: Self) -> Self {
        match op {
            alu::ADD | alu::SUB | alu::MUL | alu::AND | alu::OR | alu::XOR => {
                Self::arithmetic(op, is_64, a, b)
            }
            alu::NEG => Self::arithmetic(alu::SUB, is_64, Self::constant(0), a),
            alu::LSH | alu::RSH | alu::ARSH => Self::shift(op, is_64, a, b),
            alu::DIV | alu::MOD if off == 0 => Self::division(op, is_64, a, b),
            alu::MOV => {
                let moved = if off == 0 { b } else { b.sign_extend(off) };
                if is_64 { moved } else { moved.low() }
            }
            _ => Self::bytes(if is_64 { 8 } else { 4 }),
        }
    }

    fn arithmetic(op: u8, is_64: bool, a: Self, b: Self) -> Self {
        let bits = match op {
            alu::ADD => a.bits.add(b.bits),
            alu::SUB => a.bits.sub(b.bits),
            alu::MUL => a.bits.mul(b.bits),
            alu::AND => a.bits.and(b.bits),
            alu::OR => a.bits.or(b.bits),
            _ => a.bits.xor(b.bits),
        };
        let half = Half::arithmetic(op, a.half, b.half, bits);
        if !is_64 {
            return Self::zero_extended(bits, half);
        }
        let wide = Wide::arithmetic(op, a.wide(), b.wide(), bits);
        Self::of(bits, wide, half).unwrap_or(Self::ANY)
    }

    /// Processors take a shift amount modulo the width.
    fn shift(op: u8, is_64: bool, a: Self, b: Self) -> Self {
        if b.bits.mask & if is_64 { 63 } else { 31 } != 0 {
            return Self::shift_by_any(op, is_64, a);
        }
        if !is_64 {
            let by = b.bits.value as u32 % 32;
            let (bits, half) = match op {
                alu::LSH => (a.bits.lsh(by), a.half.lsh(by)),
                alu::RSH => (a.bits.low().rsh(by), a.half.rsh(by)),
                _ => (a.bits.sign_extended(32).arsh(by), a.half.arsh(by)),
            };
            return Self::zero_extended(bits, half);
        }
        let by = b.bits.value as u32 % 64;
        let (bits, mut wide) = match op {
            alu::LSH => (a.bits.lsh(by), a.wide().lsh(by)),
            alu::RSH => (a.bits.rsh(by), a.wide().rsh(by)),
            _ => (a.bits.arsh(by), a.wide().arsh(by)),
        };
        let half = match op {
            // What an arithmetic shift to the right turns into the sign-extended half.
            alu::LSH if by == 32 => {
                let [smin, smax] = [a.half.smin, a.half.smax].map(|n| i64::from(n) << 32);
                wide.keep_signed(smin, smax);
                Half::ANY
            }
            alu::LSH if by < 32 => a.half.lsh(by),
            _ => Half::ANY,
        };
        Self::of(bits, wide, half).unwrap_or(Self::ANY)
    }

    fn shift_by_any(op: u8, is_64: bool, a: Self) -> Self {
        let (wide, half) = match op {
            alu::RSH => (a.wide().rsh_unknown(), a.half.rsh_unknown()),
            alu::ARSH => (a.wide().arsh_unknown(), a.half.arsh_unknown()),
            _ => (Wide::ANY, Half::ANY),
        };
        if !is_64 {
            return Self::zero_extended(Tnum::ANY, half);
        }
        Self::of(Tnum::ANY, wide, Half::ANY).unwrap_or(Self::ANY)
    }

    fn division(op: u8, is_64: bool, a: Self, b: Self) -> Self {
        let is_div = op == alu::DIV;
        if !is_64 {
            let half = if is_div { a.half.div(b.half) } else { a.half.rem(b.half) };
            return Self::zero_extended(Tnum::ANY, half);
        }
        let (a, b) = (a.wide(), b.wide());
        let wide = if is_div { a.div(b) } else { a.rem(b) };
        Self::of(Tnum::ANY, wide, Half::ANY).unwrap_or(Self::ANY)
    }

    /// The low `bits` bits, sign-extended.
    fn sign_extend(self, bits: i16) -> Self {
        let bits = match bits {
            8 | 16 | 32 => bits as u32,
            _ => return Self::ANY,
        };
        let extended = |n: i32| n << (32 - bits) >> (32 - bits);
        let Half { smin, smax, .. } = self.half;
        let (low, high) = (extended(smin), extended(smax));
        // All that fit stay as they are, and among numbers with the same upper bits and the same new sign the order
        // stays.
        let fit = low == smin && high == smax;
        let same = smin.wrapping_sub(low) == smax.wrapping_sub(high);
        let half = match fit || same && low <= high {
            true => Half::signed(low, high),
            false => Half::signed(extended(1 << (bits - 1)), extended((1 << (bits - 1)) - 1)),
        };
        let wide = Wide::signed(half.smin.into(), half.smax.into());
        Self::of(self.bits.sign_extended(bits), wide, half).unwrap_or(Self::ANY)
    }

    /// The results of a conversion of the byte order: the low bits, swapped or as they are.
    pub(in crate::verify) fn swap(self, insn: Insn) -> Self {
        let is_opposite = insn.is_reg_src() == cfg!(target_endian = "little");
        let swaps = insn.class() == class::ALU64 || is_opposite;
        match insn.imm {
            bits @ (16 | 32 | 64) if swaps => {
                let bits = self.bits.swapped(bits as u32);
                Self::of(bits, Wide::ANY, Half::ANY).unwrap_or(Self::ANY)
            }
            bits @ (16 | 32 | 64) => self.truncated(bits as u32 / 8),
            _ => Self::ANY,
        }
    }
}
