//! Which bits of a number are known.

use std::fmt;

/// The numbers that have the bits of `value` wherever `mask` has none. `value` has no bit of `mask`.
///
/// # Kernel
/// `struct tnum`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Tnum {
    pub(super) value: u64,
    pub(super) mask: u64,
}

const LOW: u64 = u32::MAX as u64;

impl Tnum {
    pub(super) const ANY: Self = Self { value: 0, mask: u64::MAX };

    pub(super) const fn constant(n: u64) -> Self {
        Self { value: n, mask: 0 }
    }

    /// The bits of `value`, but for those of `mask`.
    fn known(value: u64, mask: u64) -> Self {
        Self { value: value & !mask, mask }
    }

    /// The bits that all numbers from `min` to `max` have in common: those above the first that differs.
    pub(super) fn range(min: u64, max: u64) -> Self {
        let differ = min ^ max;
        Self::known(min, u64::MAX.checked_shr(differ.leading_zeros()).unwrap_or(0))
    }

    pub(super) fn is_constant(self) -> bool {
        self.mask == 0
    }

    /// The greatest number, and all bits that any has.
    pub(super) fn max(self) -> u64 {
        self.value | self.mask
    }

    /// The least number that is not below `n`.
    ///
    /// # Kernel
    /// `tnum_step`
    pub(super) fn at_least(self, n: u64) -> Option<u64> {
        let differ = (n ^ self.value) & !self.mask;
        // The first known bit that differs, and all below it.
        let below = u64::MAX.checked_shr(differ.leading_zeros()).unwrap_or(0);
        if differ == 0 || self.value & (below ^ below >> 1) != 0 {
            return Some(self.value | n & self.mask & !below);
        }
        // A carry out of there goes up through the known bits to the first unknown one that is clear.
        let carried = (n | !self.mask | below).wrapping_add(1) & self.mask & !below;
        let least = self.value | carried;
        (least >= n).then_some(least)
    }

    /// The greatest number that is not above `n`.
    pub(super) fn at_most(self, n: u64) -> Option<u64> {
        let complement = Self::known(!self.value, self.mask);
        complement.at_least(!n).map(|n| !n)
    }

    pub(super) fn contains(self, other: Self) -> bool {
        other.mask & !self.mask == 0 && other.value & !self.mask == self.value
    }

    /// The numbers of both; `None` where a bit is known to differ.
    pub(super) fn meet(self, other: Self) -> Option<Self> {
        let differ = (self.value ^ other.value) & !self.mask & !other.mask;
        let mask = self.mask & other.mask;
        (differ == 0).then(|| Self::known(self.value | other.value, mask))
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self::known(self.value, self.mask | other.mask | (self.value ^ other.value))
    }

    /// The low 32 bits, zero-extended.
    pub(super) fn low(self) -> Self {
        Self { value: self.value & LOW, mask: self.mask & LOW }
    }

    /// The low 32 bits of `low` under the high ones of this.
    pub(super) fn with_low(self, low: Self) -> Self {
        let joined = |high: u64, low: u64| high & !LOW | low & LOW;
        Self { value: joined(self.value, low.value), mask: joined(self.mask, low.mask) }
    }

    /// A bit of a sum is known where no carry that may or may not come in reaches it.
    pub(super) fn add(self, other: Self) -> Self {
        let least = self.value.wrapping_add(other.value);
        let most = least.wrapping_add(self.mask.wrapping_add(other.mask));
        Self::known(least, (least ^ most) | self.mask | other.mask)
    }

    pub(super) fn sub(self, other: Self) -> Self {
        let difference = self.value.wrapping_sub(other.value);
        let (most, least) =
            (difference.wrapping_add(self.mask), difference.wrapping_sub(other.mask));
        Self::known(difference, (least ^ most) | self.mask | other.mask)
    }

    /// Long multiplication. Where a bit of the multiplier is not known, both sums go on.
    pub(super) fn mul(self, other: Self) -> Self {
        if self.is_constant() && other.is_constant() {
            return Self::constant(self.value.wrapping_mul(other.value));
        }
        let (mut sum, mut left, mut addend) = (Self::constant(0), self, other);
        while left.max() != 0 {
            if left.value & 1 != 0 {
                sum = sum.add(addend);
            } else if left.mask & 1 != 0 {
                sum = sum.union(sum.add(addend));
            }
            (left, addend) = (left.rsh(1), addend.lsh(1));
        }
        sum
    }

    pub(super) fn and(self, other: Self) -> Self {
        let value = self.value & other.value;
        Self { value, mask: self.max() & other.max() & !value }
    }

    pub(super) fn or(self, other: Self) -> Self {
        let value = self.value | other.value;
        Self { value, mask: (self.mask | other.mask) & !value }
    }

    pub(super) fn xor(self, other: Self) -> Self {
        Self::known(self.value ^ other.value, self.mask | other.mask)
    }

    /// By less than 64.
    pub(super) fn lsh(self, by: u32) -> Self {
        Self { value: self.value << by, mask: self.mask << by }
    }

    /// By less than 64.
    pub(super) fn rsh(self, by: u32) -> Self {
        Self { value: self.value >> by, mask: self.mask >> by }
    }

    /// By less than 64. A sign that is not known fills in bits that are not.
    pub(super) fn arsh(self, by: u32) -> Self {
        let shifted = |n: u64| (n as i64 >> by) as u64;
        Self { value: shifted(self.value), mask: shifted(self.mask) }
    }

    /// The low `bits` bits, 1 to 64, sign-extended.
    pub(super) fn sign_extended(self, bits: u32) -> Self {
        self.lsh(64 - bits).arsh(64 - bits)
    }

    /// The low `bits` bits, 8 to 64, with their bytes in the opposite order.
    pub(super) fn swapped(self, bits: u32) -> Self {
        let swapped = |n: u64| n.swap_bytes() >> (64 - bits);
        Self { value: swapped(self.value), mask: swapped(self.mask) }
    }
}

/// # Kernel
/// `tnum_strn`
impl fmt::Display for Tnum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:#x}; {:#x})", self.value, self.mask)
    }
}
