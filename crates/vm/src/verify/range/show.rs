//! Numbers as the kernel's verifier writes them into its log.

use std::fmt::{self, Display, Formatter};

use super::{Range, Tnum};

/// A number, written as the verifier writes the one of a bound.
enum Bound {
    Signed(i64),
    Unsigned(u64),
}

impl Bound {
    /// The number of which the log tells whether it is that of another bound: negative ones are equal only to
    /// negative ones.
    fn same(&self, other: &Self) -> bool {
        let negative = |bound: &Self| matches!(bound, Self::Signed(n) if *n < 0);
        self.bits() == other.bits() && negative(self) == negative(other)
    }

    fn bits(&self) -> u64 {
        match self {
            Self::Signed(n) => *n as u64,
            Self::Unsigned(n) => *n,
        }
    }
}

/// # Kernel
/// `verbose_snum`, `verbose_unum`
impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Signed(n) if i16::try_from(n).is_ok() => write!(f, "{n}"),
            Self::Unsigned(n) if u16::try_from(n).is_ok() => write!(f, "{n}"),
            _ => write!(f, "{:#x}", self.bits()),
        }
    }
}

impl Range {
    /// What is known of a number that is not a constant, as it stands in the parentheses of a scalar or of
    /// a pointer; nothing if nothing is.
    ///
    /// # Kernel
    /// `print_scalar_ranges`
    pub(in crate::verify) fn details(&self) -> impl Display {
        Details(*self)
    }
}

struct Details(Range);

impl Display for Details {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Range { umin, umax, smin, smax, half, bits } = self.0;
        // In hexadecimal, a half stands as it is; in decimal, its sign does.
        let low = |n: i32| match i16::try_from(n) {
            Ok(n) => Bound::Signed(n.into()),
            Err(_) => Bound::Signed(i64::from(n as u32)),
        };
        let mut bounds = [
            ("smin", Bound::Signed(smin), smin != i64::MIN),
            ("smax", Bound::Signed(smax), smax != i64::MAX),
            ("umin", Bound::Unsigned(umin), umin != 0),
            ("umax", Bound::Unsigned(umax), umax != u64::MAX),
            ("smin32", low(half.smin), half.smin != i32::MIN),
            ("smax32", low(half.smax), half.smax != i32::MAX),
            ("umin32", Bound::Unsigned(half.umin.into()), half.umin != 0),
            ("umax32", Bound::Unsigned(half.umax.into()), half.umax != u32::MAX),
        ];
        let mut separator = "";
        for at in 0..bounds.len() {
            let (before, rest) = bounds.split_at_mut(at + 1);
            let Some((name, bound, true)) = before.last() else { continue };
            write!(f, "{separator}{name}=")?;
            separator = ",";
            // The bounds on the same side are every other one.
            for (name, other, is_shown) in rest.iter_mut().skip(1).step_by(2) {
                if *is_shown && bound.same(other) {
                    write!(f, "{name}=")?;
                    *is_shown = false;
                }
            }
            write!(f, "{bound}")?;
        }
        if bits != Tnum::ANY {
            write!(f, "{separator}var_off={bits}")?;
        }
        Ok(())
    }
}

/// As what a register holds.
///
/// # Kernel
/// `print_reg_state`
impl Display for Range {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.value() {
            Some(n) => Bound::Signed(n as i64).fmt(f),
            None => write!(f, "scalar({})", self.details()),
        }
    }
}
