//! What is known about a number: its bits, and bounds of it and of its low half.

mod alu;
mod bounds;
mod compare;
#[cfg(test)]
mod recorded;
mod show;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use bpfarray_core::insn::alu as op;

use super::tnum::Tnum;
use bounds::{Half, Wide};

/// A set of 64-bit numbers, all those that keep to what is known. Never empty.
///
/// # Kernel
/// The part of `struct bpf_reg_state` that is about scalars
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) umin: u64,
    pub(super) umax: u64,
    pub(super) smin: i64,
    pub(super) smax: i64,
    /// Bounds of the low 32 bits.
    pub(super) half: Half,
    /// The kernel's `var_off`.
    pub(super) bits: Tnum,
}

const LOW: u64 = u32::MAX as u64;

/// How often bounds of different kinds tighten each other.
const ROUNDS: usize = 3;

impl Range {
    pub(super) const ANY: Self = Self::from_parts(Tnum::ANY, Wide::ANY, Half::ANY);

    pub(super) const fn constant(n: u64) -> Self {
        Self::from_parts(Tnum::constant(n), Wide::constant(n), Half::constant(n as u32))
    }

    pub(super) fn unsigned(umin: u64, umax: u64) -> Self {
        Self::of(Tnum::ANY, Wide { umin, umax, ..Wide::ANY }, Half::ANY).unwrap_or(Self::ANY)
    }

    pub(super) fn signed(smin: i64, smax: i64) -> Self {
        Self::of(Tnum::ANY, Wide::signed(smin, smax), Half::ANY).unwrap_or(Self::ANY)
    }

    /// Any number of so many bytes.
    pub(super) fn bytes(size: u32) -> Self {
        if size >= 8 { Self::ANY } else { Self::unsigned(0, (1 << (8 * size)) - 1) }
    }

    /// Any number that fits so many bytes with its sign.
    pub(super) fn sign_extended(size: u32) -> Self {
        if size >= 8 {
            return Self::ANY;
        }
        let half = 1_i64 << (8 * size - 1);
        Self::signed(-half, half - 1)
    }

    pub(super) fn value(self) -> Option<u64> {
        self.bits.is_constant().then_some(self.bits.value)
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        self.wide().contains(&other.wide())
            && self.half.contains(&other.half)
            && self.bits.contains(other.bits)
    }

    pub(super) fn union(self, other: Self) -> Self {
        let wide = self.wide().union(other.wide());
        Self::from_parts(self.bits.union(other.bits), wide, self.half.union(other.half))
    }

    /// The lowest bytes, zero-extended.
    ///
    /// # Kernel
    /// `coerce_reg_to_size`
    pub(super) fn truncated(self, size: u32) -> Self {
        let mask = match size {
            4 => return self.low(),
            8.. => return self,
            _ => (1_u64 << (8 * size)) - 1,
        };
        // In a block of so many numbers, order stays.
        let wide = match self.umin & !mask == self.umax & !mask {
            true => Wide::unsigned(self.umin & mask, self.umax & mask),
            false => Wide::unsigned(0, mask),
        };
        let bits = self.bits.and(Tnum::constant(mask));
        Self::of(bits, wide, Half::ANY).unwrap_or_else(|| Self::bytes(size))
    }

    /// The low 32 bits, zero-extended.
    pub(super) fn low(self) -> Self {
        if self.umax <= LOW { self } else { Self::zero_extended(self.bits, self.half) }
    }

    /// The low bytes, with their sign.
    pub(super) fn sign_extend_bytes(self, bytes: u32) -> Self {
        Self::alu(op::MOV, true, 8 * bytes as i16, self, self)
    }

    /// Whether all are multiples of a power of two.
    pub(super) fn is_multiple_of(&self, n: i64) -> bool {
        (self.bits.value | self.bits.mask) & (n as u64).wrapping_sub(1) == 0
    }

    /// Its signed bounds, as the kernel tells them of a result.
    pub(super) fn signed_bounds(&self) -> String {
        match (self.smin, self.smax) {
            (i64::MIN, i64::MAX) => "unknown scalar value".to_owned(),
            (i64::MIN, max) => format!("smax={max}"),
            (min, i64::MAX) => format!("smin={min}"),
            (min, max) => format!("smin={min} smax={max}"),
        }
    }

    fn wide(&self) -> Wide {
        Wide { umin: self.umin, umax: self.umax, smin: self.smin, smax: self.smax }
    }

    const fn from_parts(bits: Tnum, wide: Wide, half: Half) -> Self {
        let Wide { umin, umax, smin, smax } = wide;
        Self { umin, umax, smin, smax, half, bits }
    }

    /// Numbers of 32 bits. What stands above them in `bits` does not matter.
    fn zero_extended(bits: Tnum, half: Half) -> Self {
        let wide = Wide::unsigned(half.umin.into(), half.umax.into());
        Self::of(bits.low(), wide, half).unwrap_or_else(|| Self::bytes(4))
    }

    /// The numbers with these bits and these bounds, which tighten each other; `None` if there are none.
    ///
    /// # Kernel
    /// `reg_bounds_sync`
    fn of(bits: Tnum, mut wide: Wide, mut half: Half) -> Option<Self> {
        let bits = keep_bits(bits, &mut wide, &mut half)?;
        for _ in 0..ROUNDS {
            let before = (wide, half);
            narrow_half(&wide, &mut half);
            half.agree();
            wide.agree();
            narrow_wide(&mut wide, &half);
            if (wide, half) == before {
                break;
            }
        }
        let bits = bits.meet(Tnum::range(wide.umin, wide.umax))?;
        let low = bits.low().meet(Tnum::range(half.umin.into(), half.umax.into()))?;
        let bits = keep_bits(bits.with_low(low), &mut wide, &mut half)?;
        let is_empty = wide.is_empty() || half.is_empty();
        (!is_empty).then(|| Self::from_parts(bits, wide, half))
    }
}

/// What known bits tell about bounds, and bounds about bits where they leave one number; `None` where they leave
/// none.
///
/// # Kernel
/// `__update_reg_bounds`
fn keep_bits(bits: Tnum, wide: &mut Wide, half: &mut Half) -> Option<Tnum> {
    let (least, most) = (bits.at_least(wide.umin)?, bits.at_most(wide.umax)?);
    let bits = match least.cmp(&most) {
        Ordering::Less => bits,
        Ordering::Equal => Tnum::constant(least),
        Ordering::Greater => return None,
    };
    wide.keep_bits(bits);
    half.keep_bits(bits);
    Some(bits)
}

/// What bounds of the whole tell about its low half.
///
/// # Kernel
/// `__reg32_deduce_bounds`
fn narrow_half(wide: &Wide, half: &mut Half) {
    for (min, max) in [(wide.umin, wide.umax), (wide.smin as u64, wide.smax as u64)] {
        let (low_min, low_max) = (min as u32, max as u32);
        let (high_min, high_max) = ((min >> 32) as u32, (max >> 32) as u32);
        if high_min == high_max {
            if low_min <= low_max {
                half.keep_unsigned(low_min, low_max);
            }
            if low_min as i32 <= low_max as i32 {
                half.keep_signed(low_min as i32, low_max as i32);
            }
        } else if high_min.wrapping_add(1) == high_max
            && (low_min as i32) < 0
            && low_max as i32 >= 0
        {
            // From the end of one block of 2^32 numbers to the start of the next.
            half.keep_signed(low_min as i32, low_max as i32);
        }
    }
}

/// What bounds of the low half tell about the whole.
///
/// # Kernel
/// `__reg_deduce_mixed_bounds`
fn narrow_wide(wide: &mut Wide, half: &Half) {
    let with_low = |n: u64, low: u32| n & !LOW | u64::from(low);
    // In the block of 2^32 numbers that a bound is in, the half's bound holds.
    wide.keep_unsigned(with_low(wide.umin, half.umin), with_low(wide.umax, half.umax));
    wide.keep_signed(
        with_low(wide.smin as u64, half.umin) as i64,
        with_low(wide.smax as u64, half.umax) as i64,
    );
    // A number that is its sign-extended half is bounded as that is. Linux looks no further than at halves
    // without a sign.
    let is_extended = wide.smin >= i32::MIN.into() && wide.smax <= i32::MAX.into();
    if is_extended && half.smin >= 0 {
        wide.keep_signed(half.smin.into(), half.smax.into());
    }
}
