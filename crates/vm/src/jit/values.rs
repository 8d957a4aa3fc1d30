//! What is known about a number in a register or on the stack.

use bpfarray_core::insn::{Insn, alu, class, jmp};

use crate::region::PercpuValue;

/// What is known about a number.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// Nothing. It may be an address in this function's frame.
    Any,
    /// It was not made from the address of this function's frame.
    Number,
    /// This function's r10 and so many bytes.
    Frame(i64),
    /// One of these numbers.
    Range(Range),
    /// What a PERCPU_ARRAY's table of pointers holds.
    Pptr(PercpuValue),
    /// The running CPU's value of an element and so many bytes, or perhaps 0.
    Percpu { value: PercpuValue, off: i64, or_zero: bool },
    /// The context that the program was called with.
    Ctx,
    /// Something near the packet, likely.
    Packet,
}

/// The numbers from `first` to `last` in steps of `stride`, and perhaps 0.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
    /// At least 1.
    pub(super) stride: u64,
    pub(super) or_zero: bool,
}

impl Range {
    pub(super) const fn new(first: u64, last: u64) -> Self {
        Self { first, last, stride: 1, or_zero: false }
    }

    /// The number, if there is only one.
    pub(super) fn single(self) -> Option<u64> {
        (self.first == self.last && !self.or_zero).then_some(self.first)
    }

    fn map(self, f: impl Fn(u64) -> Option<u64>, stride: Option<u64>) -> Option<Self> {
        let (first, last) = (f(self.first)?, f(self.last)?);
        (!self.or_zero).then_some(Self { first, last, stride: stride?.max(1), or_zero: false })
    }

    fn join(self, other: Self) -> Self {
        if self.single() == Some(0) && other.first > 0 {
            return Self { or_zero: true, ..other };
        }
        if other.single() == Some(0) && self.first > 0 {
            return Self { or_zero: true, ..self };
        }
        let apart = self.first.abs_diff(other.first);
        // A single number has no stride of its own.
        let stride = |range: Self| if range.first == range.last { 0 } else { range.stride };
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            stride: gcd(gcd(stride(self), stride(other)), apart).max(1),
            or_zero: self.or_zero || other.or_zero,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Where both numbers may be.
impl Value {
    pub(super) const fn constant(number: u64) -> Self {
        Self::Range(Range::new(number, number))
    }

    pub(super) fn single(self) -> Option<u64> {
        match self {
            Self::Range(range) => range.single(),
            _ => None,
        }
    }

    pub(super) const fn below(limit: u64) -> Self {
        Self::Range(Range::new(0, limit - 1))
    }

    /// Whether it may lead into this function's frame.
    pub(super) const fn may_be_frame(self) -> bool {
        matches!(self, Self::Any | Self::Frame(_))
    }

    /// What holds for either. `widen` gives up numbers that differ.
    pub(super) fn join(self, other: Self, widen: bool) -> Self {
        if self == other {
            return self;
        }
        let zero = Self::constant(0);
        match (self, other) {
            (a, b) if a.may_be_frame() || b.may_be_frame() => Self::Any,
            (Self::Range(a), Self::Range(b)) if !widen => Self::Range(a.join(b)),
            (Self::Percpu { value, off, .. }, b) if b == zero => {
                Self::Percpu { value, off, or_zero: true }
            }
            (a, Self::Percpu { value, off, .. }) if a == zero => {
                Self::Percpu { value, off, or_zero: true }
            }
            (
                Self::Percpu { value: a, off: at, .. },
                Self::Percpu { value: b, off: other_at, .. },
            ) if a == b && at == other_at => Self::Percpu { value: a, off: at, or_zero: true },
            _ => Self::Number,
        }
    }

    /// The number plus a constant.
    pub(super) fn add(self, n: u64) -> Self {
        match self {
            Self::Frame(off) => Self::Frame(off.wrapping_add(n as i64)),
            Self::Percpu { value, off, or_zero: false } => {
                Self::Percpu { value, off: off.wrapping_add(n as i64), or_zero: false }
            }
            Self::Range(range) => match range.single() {
                Some(number) => Self::constant(number.wrapping_add(n)),
                None => {
                    let add = |number: u64| number.checked_add_signed(n as i64);
                    let add_unsigned = |number: u64| number.checked_add(n);
                    range
                        .map(add, Some(range.stride))
                        .or_else(|| range.map(add_unsigned, Some(range.stride)))
                        .map_or(Self::Number, Self::Range)
                }
            },
            Self::Packet => Self::Packet,
            Self::Any => Self::Any,
            _ => Self::Number,
        }
    }

    /// The sum of two numbers.
    pub(super) fn sum(self, other: Self) -> Self {
        if let Some(n) = other.single() {
            return self.add(n);
        }
        if let Some(n) = self.single() {
            return other.add(n);
        }
        match (self, other) {
            (a, b) if a.may_be_frame() || b.may_be_frame() => Self::Any,
            (Self::Range(a), Self::Range(b)) if !a.or_zero && !b.or_zero => {
                let first = a.first.checked_add(b.first);
                let last = a.last.checked_add(b.last);
                let stride = gcd(a.stride, b.stride);
                first.zip(last).map_or(Self::Number, |(first, last)| {
                    Self::Range(Range { first, last, stride, or_zero: false })
                })
            }
            (Self::Packet, _) | (_, Self::Packet) => Self::Packet,
            _ => Self::Number,
        }
    }

    fn over(self, f: impl Fn(Range) -> Option<Range>) -> Self {
        match self {
            Self::Range(range) => f(range).map_or(Self::Number, Self::Range),
            value if value.may_be_frame() => Self::Any,
            _ => Self::Number,
        }
    }

    pub(super) fn mul(self, n: u64) -> Self {
        self.over(|range| range.map(|number| number.checked_mul(n), range.stride.checked_mul(n)))
    }

    pub(super) fn shl(self, n: u64) -> Self {
        self.mul(1 << (n & 63))
    }

    pub(super) fn shr(self, n: u64) -> Self {
        self.over(|range| range.map(|number| Some(number >> (n & 63)), Some(1)))
    }

    /// The number's bits that are in a mask.
    pub(super) fn and(self, mask: u64) -> Self {
        match self {
            Self::Range(range) => match range.single() {
                Some(number) => Self::constant(number & mask),
                None => Self::Range(Range::new(0, range.last.min(mask))),
            },
            value if value.may_be_frame() => Self::Any,
            // Also what is unknown has no other bits.
            _ => Self::Range(Range::new(0, mask)),
        }
    }

    /// The low half.
    pub(super) fn low(self) -> Self {
        match self {
            Self::Range(range) if range.last <= u32::MAX.into() => self,
            _ => self.and(u32::MAX.into()),
        }
    }
}

/// What an arithmetic instruction gives.
pub(super) fn arithmetic(insn: Insn, dst: Value, src: Value) -> Value {
    let wide = insn.class() == class::ALU64;
    if insn.op() == alu::END {
        // Of either class, and of as many bits as the immediate says.
        return if dst.may_be_frame() { Value::Any } else { Value::Number };
    }
    if !wide {
        let (dst, src) = (dst.low(), src.low());
        if dst.may_be_frame() || src.may_be_frame() {
            return if insn.op() == alu::MOV && !src.may_be_frame() { src } else { Value::Any };
        }
        let result = match (insn.op(), src.single()) {
            (alu::MOV, _) if insn.off == 0 => src,
            (alu::AND, Some(n)) => dst.and(n),
            (alu::ADD, Some(n)) if n < 1 << 31 => dst.add(n),
            (alu::MUL, Some(n)) => dst.mul(n),
            (alu::LSH, Some(n)) => dst.shl(n & 31),
            (alu::RSH, Some(n)) => dst.shr(n & 31),
            _ => Value::Number,
        };
        return match result {
            Value::Range(range) if range.last <= u32::MAX.into() => result,
            _ => Value::below(1 << 32),
        };
    }
    match (insn.op(), src.single()) {
        (alu::MOV, _) if insn.off == 0 => src,
        (alu::MOV, _) if src.may_be_frame() => Value::Any,
        (alu::MOV, _) => Value::Number,
        (alu::ADD, _) => dst.sum(src),
        (alu::SUB, Some(n)) => dst.add(n.wrapping_neg()),
        (alu::AND, Some(n)) if n <= i64::MAX as u64 => dst.and(n),
        (alu::MUL, Some(n)) => dst.mul(n),
        (alu::LSH, Some(n)) => dst.shl(n),
        (alu::RSH, Some(n)) => dst.shr(n),
        (alu::NEG, _) if dst.may_be_frame() => Value::Any,
        (alu::NEG, _) => Value::Number,
        _ if dst.may_be_frame() || src.may_be_frame() => Value::Any,
        _ => Value::Number,
    }
}

/// Whether a comparison is decided; and what is known of the left side after either outcome.
#[derive(Copy, Clone, Debug)]
pub(super) struct Comparison {
    pub(super) decided: Option<bool>,
    pub(super) if_true: Value,
    pub(super) if_false: Value,
}

/// Compares a value with a constant. `wide` is a comparison of all 64 bits.
pub(super) fn compare(op: u8, wide: bool, value: Value, n: u64) -> Comparison {
    let unknown = Comparison { decided: None, if_true: value, if_false: value };
    if let Value::Percpu { value, off, .. } = value
        && n == 0
        && wide
        && matches!(op, jmp::JEQ | jmp::JNE)
    {
        return with_zero(op, Value::Percpu { value, off, or_zero: false }, unknown);
    }
    let Value::Range(range) = value else { return unknown };
    if range.or_zero {
        let is_test = n == 0 && wide && matches!(op, jmp::JEQ | jmp::JNE);
        let nonzero = Value::Range(Range { or_zero: false, ..range });
        return if is_test && range.first > 0 { with_zero(op, nonzero, unknown) } else { unknown };
    }
    let n = if wide { n } else { n & u64::from(u32::MAX) };
    let top = if wide { i64::MAX as u64 } else { i32::MAX as u64 };
    let limit = if wide { u64::MAX } else { u32::MAX.into() };
    if range.last > limit {
        return unknown;
    }
    let unsigned = match op {
        // Among numbers without a sign, signed comparisons are unsigned ones.
        jmp::JSGT | jmp::JSGE | jmp::JSLT | jmp::JSLE if range.last > top || n > top => {
            return unknown;
        }
        jmp::JSGT => jmp::JGT,
        jmp::JSGE => jmp::JGE,
        jmp::JSLT => jmp::JLT,
        jmp::JSLE => jmp::JLE,
        op => op,
    };
    let Range { first, last, .. } = range;
    let within = |low: u64, high: u64| match range.stride {
        1 if low <= high => Value::Range(Range::new(low, high)),
        _ => value,
    };
    let at_least = |low: u64| within(first.max(low), last);
    let at_most = |high: u64| within(first, last.min(high));
    let above = n.checked_add(1).map_or(value, at_least);
    let below = n.checked_sub(1).map_or(value, at_most);
    let outside = first > n || last < n;
    let (decided, if_true, if_false) = match unsigned {
        jmp::JEQ => (decide(first == n && last == n, outside), within(n, n), value),
        jmp::JNE => (decide(outside, first == n && last == n), value, within(n, n)),
        jmp::JGT => (decide(first > n, last <= n), above, at_most(n)),
        jmp::JGE => (decide(first >= n, last < n), at_least(n), below),
        jmp::JLT => (decide(last < n, first >= n), below, at_least(n)),
        jmp::JLE => (decide(last <= n, first > n), at_most(n), above),
        _ => return unknown,
    };
    Comparison { decided, if_true, if_false }
}

fn decide(yes: bool, no: bool) -> Option<bool> {
    if yes { Some(true) } else { no.then_some(false) }
}

/// A test of a number that is 0 or what `nonzero` says.
fn with_zero(op: u8, nonzero: Value, before: Comparison) -> Comparison {
    let decided = (before.if_true == nonzero).then_some(op == jmp::JNE);
    let zero = Value::constant(0);
    let (if_true, if_false) = if op == jmp::JEQ { (zero, nonzero) } else { (nonzero, zero) };
    Comparison { decided, if_true, if_false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGES: [u64; 9] =
        [0, 1, 2, 5, 0x7fff_ffff, 0x8000_0000, u32::MAX as u64, i64::MAX as u64, u64::MAX];

    fn holds(value: Value, number: u64) -> bool {
        match value {
            Value::Range(range) => {
                range.or_zero && number == 0
                    || (range.first..=range.last).contains(&number)
                        && (number - range.first).is_multiple_of(range.stride)
            }
            _ => true,
        }
    }

    fn truth(op: u8, wide: bool, a: u64, b: u64) -> bool {
        let (a, b) = if wide { (a, b) } else { (a as u32 as u64, b as u32 as u64) };
        let signed = |n: u64| if wide { n as i64 } else { i64::from(n as i32) };
        match op {
            jmp::JEQ => a == b,
            jmp::JNE => a != b,
            jmp::JGT => a > b,
            jmp::JGE => a >= b,
            jmp::JLT => a < b,
            jmp::JLE => a <= b,
            jmp::JSGT => signed(a) > signed(b),
            jmp::JSGE => signed(a) >= signed(b),
            jmp::JSLT => signed(a) < signed(b),
            _ => signed(a) <= signed(b),
        }
    }

    #[test]
    fn a_comparison_keeps_every_number_for_which_it_has_that_outcome() {
        let ops = [0x10, 0x20, 0x30, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0];
        for first in EDGES {
            for last in EDGES.into_iter().filter(|last| *last >= first) {
                for or_zero in [false, true] {
                    let value = Value::Range(Range { or_zero, ..Range::new(first, last) });
                    for (op, wide, n) in ops.into_iter().flat_map(|op| {
                        EDGES.into_iter().flat_map(move |n| [(op, true, n), (op, false, n)])
                    }) {
                        let result = compare(op, wide, value, n);
                        for number in EDGES.into_iter().filter(|number| holds(value, *number)) {
                            let truth = truth(op, wide, number, n);
                            assert!(result.decided.is_none_or(|decided| decided == truth));
                            let kept = if truth { result.if_true } else { result.if_false };
                            assert!(holds(kept, number), "{op:#x} {value:?} {n:#x} {number:#x}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn arithmetic_on_ranges_covers_arithmetic_on_their_numbers() {
        for first in EDGES {
            for last in EDGES.into_iter().filter(|last| *last >= first) {
                let value = Value::Range(Range::new(first, last));
                for n in EDGES {
                    for number in [first, last] {
                        assert!(holds(value.add(n), number.wrapping_add(n)));
                        assert!(holds(value.mul(n), number.wrapping_mul(n)));
                        assert!(holds(value.shl(n), number << (n & 63)));
                        assert!(holds(value.shr(n), number >> (n & 63)));
                        assert!(holds(value.and(n), number & n));
                        assert!(holds(value.low(), number & 0xffff_ffff));
                        assert!(holds(value.join(Value::constant(n), false), number));
                        assert!(holds(value.join(Value::constant(n), false), n));
                        let sum = value.sum(Value::Range(Range::new(0, n)));
                        assert!(holds(sum, number) && holds(sum, number.wrapping_add(n)));
                    }
                }
            }
        }
    }
}
