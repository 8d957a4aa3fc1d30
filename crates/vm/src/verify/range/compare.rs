//! What a comparison tells about the numbers compared.

use bpfarray_core::insn::jmp;

use super::bounds::{Half, Wide};
use super::{LOW, Range, Tnum};

impl Range {
    /// Both numbers where a comparison of 64 or of the low 32 bits holds, or does not; `None` where that cannot
    /// be.
    ///
    /// # Kernel
    /// `is_branch_taken`, `reg_set_min_max`
    pub(in crate::verify) fn compare(
        op: u8,
        is_64: bool,
        holds: bool,
        a: Self,
        b: Self,
    ) -> Option<(Self, Self)> {
        // In terms of =, !=, < and <=.
        let (op, mirrored) = match (op, holds) {
            (jmp::JSET, holds) => return Self::test_bits(is_64, holds, a, b),
            (jmp::JEQ, true) | (jmp::JNE, false) => (jmp::JEQ, false),
            (jmp::JNE, true) | (jmp::JEQ, false) => (jmp::JNE, false),
            (jmp::JLT, true) | (jmp::JGE, false) => (jmp::JLT, false),
            (jmp::JLE, true) | (jmp::JGT, false) => (jmp::JLE, false),
            (jmp::JGT, true) | (jmp::JLE, false) => (jmp::JLT, true),
            (jmp::JGE, true) | (jmp::JLT, false) => (jmp::JLE, true),
            (jmp::JSLT, true) | (jmp::JSGE, false) => (jmp::JSLT, false),
            (jmp::JSLE, true) | (jmp::JSGT, false) => (jmp::JSLE, false),
            (jmp::JSGT, true) | (jmp::JSLE, false) => (jmp::JSLT, true),
            (jmp::JSGE, true) | (jmp::JSLT, false) => (jmp::JSLE, true),
            _ => return Some((a, b)),
        };
        if mirrored {
            return Self::narrow(op, is_64, b, a).map(|(b, a)| (a, b));
        }
        Self::narrow(op, is_64, a, b)
    }

    fn narrow(op: u8, is_64: bool, a: Self, b: Self) -> Option<(Self, Self)> {
        let (mut wides, mut halves) = ((a.wide(), b.wide()), (a.half, b.half));
        if is_64 {
            wides = Wide::compare(op, wides.0, wides.1)?;
        }
        if !is_64 {
            halves = Half::compare(op, halves.0, halves.1)?;
        }
        let bits = match op {
            jmp::JEQ if is_64 => {
                let both = a.bits.meet(b.bits)?;
                (both, both)
            }
            jmp::JEQ => {
                let both = a.bits.low().meet(b.bits.low())?;
                (a.bits.with_low(both), b.bits.with_low(both))
            }
            _ => (a.bits, b.bits),
        };
        Self::of(bits.0, wides.0, halves.0).zip(Self::of(bits.1, wides.1, halves.1))
    }

    /// Both numbers where they have a bit in common, or have none.
    fn test_bits(is_64: bool, holds: bool, a: Self, b: Self) -> Option<(Self, Self)> {
        let tested = if is_64 { u64::MAX } else { LOW };
        let narrowed = if holds {
            let common = a.bits.max() & b.bits.max() & tested;
            if common == 0 {
                return None;
            }
            // The only bit that both can have, both do have.
            let bit = if common.is_power_of_two() { common } else { 0 };
            [a, b].map(|range| (range, range.bits.or(Tnum::constant(bit))))
        } else {
            if a.bits.value & b.bits.value & tested != 0 {
                return None;
            }
            [(a, b), (b, a)].map(|(range, other)| {
                (range, range.bits.and(Tnum::constant(!(other.bits.value & tested))))
            })
        };
        let [a, b] = narrowed.map(|(range, bits)| Self::of(bits, range.wide(), range.half));
        a.zip(b)
    }
}
