//! What is known about a number: bounds of it as an unsigned and as a signed one.

use bpfarray_core::insn::{alu, jmp};

/// Bounds of a 64-bit number, both ends included. Never empty.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) umin: u64,
    pub(super) umax: u64,
    pub(super) smin: i64,
    pub(super) smax: i64,
}

const LOW: u64 = u32::MAX as u64;

impl Range {
    pub(super) const ANY: Self = Self { umin: 0, umax: u64::MAX, smin: i64::MIN, smax: i64::MAX };

    pub(super) const fn constant(n: u64) -> Self {
        Self { umin: n, umax: n, smin: n as i64, smax: n as i64 }
    }

    pub(super) fn unsigned(umin: u64, umax: u64) -> Self {
        Self { umin, umax, ..Self::ANY }.synced().unwrap_or(Self::ANY)
    }

    pub(super) fn signed(smin: i64, smax: i64) -> Self {
        Self { smin, smax, ..Self::ANY }.synced().unwrap_or(Self::ANY)
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
        (self.umin == self.umax).then_some(self.umin)
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        self.umin <= other.umin
            && self.umax >= other.umax
            && self.smin <= other.smin
            && self.smax >= other.smax
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            umin: self.umin.min(other.umin),
            umax: self.umax.max(other.umax),
            smin: self.smin.min(other.smin),
            smax: self.smax.max(other.smax),
        }
    }

    /// Lets each pair of bounds tighten the other; `None` if no number is left.
    fn synced(mut self) -> Option<Self> {
        for _ in 0..2 {
            if self.umin > self.umax || self.smin > self.smax {
                return None;
            }
            // The unsigned bounds are on one side of the sign change, so their order is the signed one.
            if (self.umin as i64) <= self.umax as i64 {
                self.smin = self.smin.max(self.umin as i64);
                self.smax = self.smax.min(self.umax as i64);
            }
            if (self.smin < 0) == (self.smax < 0) {
                self.umin = self.umin.max(self.smin as u64);
                self.umax = self.umax.min(self.smax as u64);
            }
        }
        (self.umin <= self.umax && self.smin <= self.smax).then_some(self)
    }

    /// The low 32 bits, zero-extended.
    pub(super) fn low(self) -> Self {
        if self.umax <= LOW { self } else { Self::unsigned(0, LOW) }
    }

    /// The result of an operation on 64 or on the low 32 bits. `off` tells signed division.
    pub(super) fn alu(op: u8, is_64: bool, off: i16, a: Self, b: Self) -> Self {
        if is_64 {
            return Self::alu64(op, 63, off, a, b);
        }
        let a = a.low();
        if op == alu::ARSH && a.smax > i64::from(i32::MAX) {
            return Self::unsigned(0, LOW);
        }
        Self::alu64(op, 31, off, a, b.low()).low()
    }

    fn alu64(op: u8, shift_mask: u64, off: i16, a: Self, b: Self) -> Self {
        let shift = b.value().map(|n| (n & shift_mask) as u32);
        let (unsigned, signed) = match op {
            alu::ADD => (
                a.umin.checked_add(b.umin).zip(a.umax.checked_add(b.umax)),
                a.smin.checked_add(b.smin).zip(a.smax.checked_add(b.smax)),
            ),
            alu::SUB => (
                a.umin.checked_sub(b.umax).zip(a.umax.checked_sub(b.umin)),
                a.smin.checked_sub(b.smax).zip(a.smax.checked_sub(b.smin)),
            ),
            alu::MUL => (a.umin.checked_mul(b.umin).zip(a.umax.checked_mul(b.umax)), None),
            alu::AND => match (a.value(), b.value()) {
                (Some(a), Some(b)) => (Some((a & b, a & b)), None),
                _ => (Some((0, a.umax.min(b.umax))), None),
            },
            alu::OR => (Some((a.umin.max(b.umin), ones(a.umax | b.umax))), None),
            alu::XOR => (Some((0, ones(a.umax | b.umax))), None),
            alu::LSH => match shift {
                Some(n) if a.umax.leading_zeros() >= n => (Some((a.umin << n, a.umax << n)), None),
                _ => (None, None),
            },
            alu::RSH => match shift {
                Some(n) => (Some((a.umin >> n, a.umax >> n)), None),
                None => (Some((0, a.umax)), None),
            },
            alu::ARSH => (None, shift.map(|n| (a.smin >> n, a.smax >> n))),
            alu::DIV if off == 0 => match b.value() {
                Some(n) if n != 0 => (Some((a.umin / n, a.umax / n)), None),
                _ => (Some((0, a.umax)), None),
            },
            alu::MOD if off == 0 => match b.value() {
                Some(n) if n != 0 => (Some((0, a.umax.min(n - 1))), None),
                _ => (Some((0, a.umax)), None),
            },
            _ => (None, None),
        };
        let (umin, umax) = unsigned.unwrap_or((0, u64::MAX));
        let (smin, smax) = signed.unwrap_or((i64::MIN, i64::MAX));
        Self { umin, umax, smin, smax }.synced().unwrap_or(Self::ANY)
    }

    /// Both numbers where a comparison holds, or does not; `None` where that cannot be.
    pub(super) fn compare(
        op: u8,
        is_64: bool,
        holds: bool,
        a: Self,
        b: Self,
    ) -> Option<(Self, Self)> {
        let signed = matches!(op, jmp::JSGT | jmp::JSGE | jmp::JSLT | jmp::JSLE);
        // Where all bits are in the low half, and no sign among them, its comparison is that of the whole.
        let limit = if signed { LOW >> 1 } else { LOW };
        if !is_64 && (a.umax > limit || b.umax > limit) {
            return Some((a, b));
        }
        let op = match (op, holds) {
            (op, true) => op,
            (jmp::JEQ, false) => jmp::JNE,
            (jmp::JNE, false) => jmp::JEQ,
            (jmp::JGT, false) => jmp::JLE,
            (jmp::JGE, false) => jmp::JLT,
            (jmp::JLT, false) => jmp::JGE,
            (jmp::JLE, false) => jmp::JGT,
            (jmp::JSGT, false) => jmp::JSLE,
            (jmp::JSGE, false) => jmp::JSLT,
            (jmp::JSLT, false) => jmp::JSGE,
            (jmp::JSLE, false) => jmp::JSGT,
            // What a bit that is not set means for bounds is nothing.
            _ => return Some((a, b)),
        };
        let (mut a, mut b) = (a, b);
        match op {
            jmp::JEQ => {
                let both = Self {
                    umin: a.umin.max(b.umin),
                    umax: a.umax.min(b.umax),
                    smin: a.smin.max(b.smin),
                    smax: a.smax.min(b.smax),
                };
                (a, b) = (both, both);
            }
            jmp::JNE => {
                if let Some(n) = b.value() {
                    a = a.without(n)?;
                } else if let Some(n) = a.value() {
                    b = b.without(n)?;
                }
            }
            jmp::JLT => {
                a.umax = a.umax.min(b.umax.checked_sub(1)?);
                b.umin = b.umin.max(a.umin.checked_add(1)?);
            }
            jmp::JLE => {
                a.umax = a.umax.min(b.umax);
                b.umin = b.umin.max(a.umin);
            }
            jmp::JSLT => {
                a.smax = a.smax.min(b.smax.checked_sub(1)?);
                b.smin = b.smin.max(a.smin.checked_add(1)?);
            }
            jmp::JSLE => {
                a.smax = a.smax.min(b.smax);
                b.smin = b.smin.max(a.smin);
            }
            jmp::JGT | jmp::JGE | jmp::JSGT | jmp::JSGE => {
                let mirrored = match op {
                    jmp::JGT => jmp::JLT,
                    jmp::JGE => jmp::JLE,
                    jmp::JSGT => jmp::JSLT,
                    _ => jmp::JSLE,
                };
                return Self::compare(mirrored, true, true, b, a).map(|(b, a)| (a, b));
            }
            _ => {}
        }
        a.synced().zip(b.synced())
    }

    fn without(mut self, n: u64) -> Option<Self> {
        if self.value() == Some(n) {
            return None;
        }
        if self.umin == n {
            self.umin += 1;
        }
        if self.umax == n {
            self.umax -= 1;
        }
        if self.smin == n as i64 {
            self.smin = self.smin.checked_add(1)?;
        }
        if self.smax == n as i64 {
            self.smax = self.smax.checked_sub(1)?;
        }
        Some(self)
    }
}

/// The least number of only ones that has all bits of `n` below its own.
fn ones(n: u64) -> u64 {
    u64::MAX.checked_shr(n.leading_zeros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(n: u64, below: u64, above: u64, signed: bool) -> Range {
        if signed {
            let n = n as i64;
            Range::signed(n.saturating_sub_unsigned(below), n.saturating_add_unsigned(above))
        } else {
            Range::unsigned(n.saturating_sub(below), n.saturating_add(above))
        }
    }

    fn holds(range: &Range, n: u64) -> bool {
        range.contains(&Range::constant(n))
    }

    fn run(op: u8, is_64: bool, a: u64, b: u64) -> u64 {
        let (x, y) = (a as u32, b as u32);
        let low = match op {
            alu::ADD => x.wrapping_add(y),
            alu::SUB => x.wrapping_sub(y),
            alu::MUL => x.wrapping_mul(y),
            alu::AND => x & y,
            alu::OR => x | y,
            alu::XOR => x ^ y,
            alu::LSH => x.wrapping_shl(y),
            alu::RSH => x.wrapping_shr(y),
            alu::ARSH => (x as i32).wrapping_shr(y) as u32,
            alu::DIV => x.checked_div(y).unwrap_or(0),
            _ => x.checked_rem(y).unwrap_or(x),
        };
        if !is_64 {
            return low.into();
        }
        match op {
            alu::ADD => a.wrapping_add(b),
            alu::SUB => a.wrapping_sub(b),
            alu::MUL => a.wrapping_mul(b),
            alu::AND => a & b,
            alu::OR => a | b,
            alu::XOR => a ^ b,
            alu::LSH => a.wrapping_shl(b as u32),
            alu::RSH => a.wrapping_shr(b as u32),
            alu::ARSH => (a as i64).wrapping_shr(b as u32) as u64,
            alu::DIV => a.checked_div(b).unwrap_or(0),
            _ => a.checked_rem(b).unwrap_or(a),
        }
    }

    fn compares(op: u8, is_64: bool, a: u64, b: u64) -> bool {
        let (a, b, x, y) = if is_64 {
            (a, b, a as i64, b as i64)
        } else {
            (a & LOW, b & LOW, i64::from(a as i32), i64::from(b as i32))
        };
        match op {
            jmp::JEQ => a == b,
            jmp::JNE => a != b,
            jmp::JGT => a > b,
            jmp::JGE => a >= b,
            jmp::JLT => a < b,
            jmp::JLE => a <= b,
            jmp::JSGT => x > y,
            jmp::JSGE => x >= y,
            jmp::JSLT => x < y,
            jmp::JSLE => x <= y,
            _ => a & b != 0,
        }
    }

    fn number() -> impl proptest::strategy::Strategy<Value = u64> {
        use proptest::prelude::*;
        prop_oneof![
            any::<u64>(),
            0..40_u64,
            any::<u32>().prop_map(u64::from),
            (0..40_u64).prop_map(|n| n.wrapping_neg()),
            (0..40_u64).prop_map(|n| (1_u64 << 63).wrapping_add(n).wrapping_sub(20)),
            (0..40_u64).prop_map(|n| (1_u64 << 32) + n - 20),
            (0..40_u64).prop_map(|n| (1_u64 << 31) + n - 20),
        ]
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_result_is_in_the_range_of_results(
            a in number(), b in number(), w in proptest::array::uniform4(number()),
            signs: (bool, bool), is_64: bool, exact: bool,
        ) {
            let left = around(a, w[0], w[1], signs.0);
            let right = if exact { Range::constant(b) } else { around(b, w[2], w[3], signs.1) };
            proptest::prop_assert!(holds(&left, a) && holds(&right, b));
            for op in [
                alu::ADD, alu::SUB, alu::MUL, alu::AND, alu::OR, alu::XOR, alu::LSH, alu::RSH, alu::ARSH,
                alu::DIV, alu::MOD,
            ] {
                let result = Range::alu(op, is_64, 0, left, right);
                let concrete = run(op, is_64, a, b);
                proptest::prop_assert!(holds(&result, concrete), "{op:#x} {result:?} {concrete:#x}");
            }
        }

        #[test]
        fn a_branch_keeps_the_numbers_that_take_it(
            a in number(), b in number(), w in proptest::array::uniform4(number()),
            signs: (bool, bool), is_64: bool, exact: bool,
        ) {
            let left = around(a, w[0], w[1], signs.0);
            let right = if exact { Range::constant(b) } else { around(b, w[2], w[3], signs.1) };
            for op in [
                jmp::JEQ, jmp::JNE, jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE, jmp::JSGT, jmp::JSGE,
                jmp::JSLT, jmp::JSLE, jmp::JSET,
            ] {
                let taken = compares(op, is_64, a, b);
                let kept = Range::compare(op, is_64, taken, left, right);
                let kept = kept.is_some_and(|(l, r)| holds(&l, a) && holds(&r, b));
                proptest::prop_assert!(kept, "{op:#x} {left:?} {right:?}");
            }
        }
    }
}
