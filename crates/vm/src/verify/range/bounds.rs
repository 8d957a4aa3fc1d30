//! Bounds of a number of one width.

use bpfarray_core::insn::{alu, jmp};

use crate::verify::tnum::Tnum;

/// Bounds of a number as an unsigned and as a signed one, all included.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(in crate::verify) struct Bounds<U, S> {
    pub(in crate::verify) umin: U,
    pub(in crate::verify) umax: U,
    pub(in crate::verify) smin: S,
    pub(in crate::verify) smax: S,
}

/// Bounds of 64 bits.
pub(super) type Wide = Bounds<u64, i64>;
/// Bounds of the low 32 bits.
pub(super) type Half = Bounds<u32, i32>;

macro_rules! bounds {
    ($u:ident, $s:ident) => {
        impl Bounds<$u, $s> {
            pub(super) const ANY: Self =
                Self { umin: 0, umax: $u::MAX, smin: $s::MIN, smax: $s::MAX };

            pub(super) const fn constant(n: $u) -> Self {
                Self { umin: n, umax: n, smin: n as $s, smax: n as $s }
            }

            /// Numbers between these, which are ordered as signed ones, too, where they have one sign.
            pub(super) fn unsigned(umin: $u, umax: $u) -> Self {
                let (smin, smax) = match (umin as $s, umax as $s) {
                    (smin, smax) if smin <= smax => (smin, smax),
                    _ => ($s::MIN, $s::MAX),
                };
                Self { umin, umax, smin, smax }
            }

            pub(super) const fn signed(smin: $s, smax: $s) -> Self {
                Self { smin, smax, ..Self::ANY }
            }

            pub(super) fn is_empty(&self) -> bool {
                self.umin > self.umax || self.smin > self.smax
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

            pub(super) fn meet(mut self, other: Self) -> Self {
                self.keep_unsigned(other.umin, other.umax);
                self.keep_signed(other.smin, other.smax);
                self
            }

            pub(super) fn keep_unsigned(&mut self, min: $u, max: $u) {
                self.umin = self.umin.max(min);
                self.umax = self.umax.min(max);
            }

            pub(super) fn keep_signed(&mut self, min: $s, max: $s) {
                self.smin = self.smin.max(min);
                self.smax = self.smax.min(max);
            }

            /// Least and greatest number are those with none and with all of the unknown bits set; as signed
            /// ones, those with the sign set and clear.
            ///
            /// # Kernel
            /// `__update_reg_bounds`
            pub(super) fn keep_bits(&mut self, bits: Tnum) {
                let (value, mask) = (bits.value as $u, bits.mask as $u);
                let sign = mask & $s::MIN as $u;
                self.keep_unsigned(value, value | mask);
                self.keep_signed((value | sign) as $s, (value | mask & !sign) as $s);
            }

            /// Lets each pair tighten the other.
            ///
            /// # Kernel
            /// `__reg32_deduce_bounds`, `__reg64_deduce_bounds`
            pub(super) fn agree(&mut self) {
                // On one side of the sign change, both orders are one.
                if self.umin as $s <= self.umax as $s {
                    self.keep_signed(self.umin as $s, self.umax as $s);
                }
                let (low, high) = (self.smin as $u, self.smax as $u);
                if low <= high {
                    self.keep_unsigned(low, high);
                } else if self.umax < low {
                    // As unsigned numbers, the signed pair leaves those up to `high` and those from `low` on, and
                    // the unsigned pair reaches only the former.
                    self.keep_signed(self.umin as $s, $s::MAX);
                    self.keep_unsigned(0, high);
                } else if high < self.umin {
                    self.keep_signed($s::MIN, self.umax as $s);
                    self.keep_unsigned(low, $u::MAX);
                }
            }

            /// The results of an operation that needs no more than these of its operands. `bits` are
            /// those of the result.
            ///
            /// # Kernel
            /// `scalar_min_max_add` and the like
            pub(super) fn arithmetic(op: u8, a: Self, b: Self, bits: Tnum) -> Self {
                match op {
                    alu::ADD => {
                        // Where both sums wrap around, so do all between them.
                        let (low, high) =
                            (a.umin.overflowing_add(b.umin), a.umax.overflowing_add(b.umax));
                        Self::both(
                            (low.1 == high.1).then_some((low.0, high.0)),
                            a.smin.checked_add(b.smin).zip(a.smax.checked_add(b.smax)),
                        )
                    }
                    alu::SUB => {
                        let (low, high) =
                            (a.umin.overflowing_sub(b.umax), a.umax.overflowing_sub(b.umin));
                        Self::both(
                            (low.1 == high.1).then_some((low.0, high.0)),
                            a.smin.checked_sub(b.smax).zip(a.smax.checked_sub(b.smin)),
                        )
                    }
                    alu::MUL => Self::product(a, b),
                    alu::AND => Self::unsigned(bits.value as $u, a.umax.min(b.umax)),
                    alu::OR => Self::unsigned(a.umin.max(b.umin), bits.max() as $u),
                    alu::XOR => Self::unsigned(bits.value as $u, bits.max() as $u),
                    _ => Self::ANY,
                }
            }

            fn both(unsigned: Option<($u, $u)>, signed: Option<($s, $s)>) -> Self {
                let (umin, umax) = unsigned.unwrap_or((0, $u::MAX));
                let (smin, smax) = signed.unwrap_or(($s::MIN, $s::MAX));
                Self { umin, umax, smin, smax }
            }

            fn product(a: Self, b: Self) -> Self {
                let unsigned = a.umin.checked_mul(b.umin).zip(a.umax.checked_mul(b.umax));
                let corners = [
                    a.smin.checked_mul(b.smin),
                    a.smin.checked_mul(b.smax),
                    a.smax.checked_mul(b.smin),
                    a.smax.checked_mul(b.smax),
                ];
                let signed = match corners {
                    [Some(p), Some(q), Some(r), Some(s)] => {
                        Some((p.min(q).min(r).min(s), p.max(q).max(r).max(s)))
                    }
                    _ => None,
                };
                Self::both(unsigned, signed)
            }

            /// By less than the width. No bounds are left where a bit may be lost.
            pub(super) fn lsh(self, by: u32) -> Self {
                if self.umax.leading_zeros() < by {
                    return Self::ANY;
                }
                Self::unsigned(self.umin << by, self.umax << by)
            }

            /// By less than the width.
            pub(super) fn rsh(self, by: u32) -> Self {
                Self::unsigned(self.umin >> by, self.umax >> by)
            }

            /// By less than the width.
            pub(super) fn arsh(self, by: u32) -> Self {
                Self::signed(self.smin >> by, self.smax >> by)
            }

            /// By anything.
            pub(super) fn rsh_unknown(self) -> Self {
                Self { umax: self.umax, ..Self::ANY }
            }

            /// By anything, which moves a number towards 0 or -1.
            pub(super) fn arsh_unknown(self) -> Self {
                Self::signed(self.smin.min(0), self.smax.max(-1))
            }

            /// Division by zero gives 0.
            pub(super) fn div(self, by: Self) -> Self {
                let umin = self.umin.checked_div(by.umax).filter(|_| by.umin != 0);
                let umax = self.umax.checked_div(by.umin.max(1));
                Self { umin: umin.unwrap_or(0), umax: umax.unwrap_or(self.umax), ..Self::ANY }
            }

            /// The remainder of a division by zero is the number.
            pub(super) fn rem(self, by: Self) -> Self {
                if self.umax < by.umin {
                    return self;
                }
                let most = by.umax.checked_sub(1).filter(|_| by.umin != 0);
                Self { umax: self.umax.min(most.unwrap_or($u::MAX)), ..Self::ANY }
            }

            /// Both where a comparison holds; `None` where it cannot.
            ///
            /// # Kernel
            /// `regs_refine_cond_op`
            pub(super) fn compare(op: u8, mut a: Self, mut b: Self) -> Option<(Self, Self)> {
                match op {
                    jmp::JEQ => {
                        let both = a.meet(b);
                        return (!both.is_empty()).then_some((both, both));
                    }
                    jmp::JNE if b.umin == b.umax => a.remove(b.umin),
                    jmp::JNE if a.umin == a.umax => b.remove(a.umin),
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
                    _ => {}
                }
                (!a.is_empty() && !b.is_empty()).then_some((a, b))
            }

            /// Takes out a number that is at an end.
            fn remove(&mut self, n: $u) {
                if self.umin == n {
                    self.umin = self.umin.saturating_add(1);
                }
                if self.umax == n {
                    self.umax = self.umax.saturating_sub(1);
                }
                if self.smin == n as $s {
                    self.smin = self.smin.saturating_add(1);
                }
                if self.smax == n as $s {
                    self.smax = self.smax.saturating_sub(1);
                }
            }
        }
    };
}

bounds!(u64, i64);
bounds!(u32, i32);
