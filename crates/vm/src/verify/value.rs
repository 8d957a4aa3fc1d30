//! What a register or a stack slot may hold.

use super::KnownMap;
use super::range::Range;

/// What a pointer points into.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Base {
    /// The top of the frame with this number; the outermost is 0.
    Stack(usize),
    Ctx,
    Packet,
    /// What is before the packet.
    PacketMeta,
    PacketEnd,
    /// A map itself.
    Map(KnownMap),
    /// An element of a map. Inner maps that a program has found stay until it ends.
    Value(KnownMap),
    /// The key that a callback for each element gets.
    Key,
    Function(usize),
    /// A key or value that an element iterator hands to its program; its length is known when it is attached.
    Buffer {
        writable: bool,
    },
    /// What an element iterator tells its program about itself.
    Meta,
    /// So many bytes that somebody handed to a global function.
    Memory(u32),
    /// Something of the host's that programs only hand on.
    Object,
}

/// The address of something: `off` bytes and an unknown part from its base.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Pointer {
    pub(super) base: Base,
    pub(super) off: i64,
    pub(super) var: Range,
    /// Pointers that may be 0 with the same id, unless it is 0, are all 0 or none of them is. Packet pointers
    /// with the same id have the same unknown part. Elements with the same id are the same element.
    pub(super) id: u32,
    pub(super) maybe_null: bool,
    /// So many bytes behind the packet's start, plus the unknown part, are in the packet.
    pub(super) range: i64,
}

const ZERO: Range = Range::constant(0);

impl Pointer {
    pub(super) const fn to(base: Base) -> Self {
        Self { base, off: 0, var: ZERO, id: 0, maybe_null: false, range: 0 }
    }

    /// The least and the largest distance from the base. No pointer is so far from it that sums overflow.
    pub(super) fn span(&self) -> (i64, i64) {
        (self.off.saturating_add(self.var.smin), self.off.saturating_add(self.var.smax))
    }

    /// The distance from the base, where it is known.
    pub(super) fn place(&self) -> Option<i64> {
        self.var.value().map(|var| self.off.wrapping_add(var as i64))
    }

    fn joined(self, other: Self) -> Option<Self> {
        let packet = matches!(self.base, Base::Packet | Base::PacketMeta);
        if self.base != other.base || packet && (self.id != other.id || self.off != other.off) {
            return None;
        }
        let (off, var) = if self.off == other.off {
            (self.off, self.var.union(other.var))
        } else {
            let ((a, b), (c, d)) = (self.span(), other.span());
            (0, Range::signed(a.min(c), b.max(d)))
        };
        let id =
            if self.id == other.id && self.maybe_null == other.maybe_null { self.id } else { 0 };
        let maybe_null = self.maybe_null || other.maybe_null;
        Some(Self { base: self.base, off, var, id, maybe_null, range: self.range.min(other.range) })
    }
}

/// A number, which may be a copy of another one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Scalar {
    pub(super) range: Range,
    /// Numbers with the same id, unless it is 0, differ by no more than their `delta`s do.
    pub(super) id: u32,
    pub(super) delta: i64,
}

/// What is known of eight bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// Nothing, and the kernel does not let a program read it.
    Unreadable,
    /// With [`Range::ANY`], anything at all: also an address.
    Number(Scalar),
    Pointer(Pointer),
}

/// Which of the ids in two states are found to stand for the same.
pub(super) struct Cover {
    /// Whether a number cannot stand for a pointer.
    pub(super) strict: bool,
    ids: Vec<(u32, u32)>,
    unique: u32,
}

impl Cover {
    pub(super) const fn new(strict: bool) -> Self {
        Self { strict, ids: Vec::new(), unique: u32::MAX }
    }

    /// Whether what has the id `old` in the one state can have `new` in the other: what is the same there is so here.
    pub(super) fn id(&mut self, old: u32, new: u32) -> bool {
        if old == 0 {
            return true;
        }
        let new = match new {
            0 => {
                self.unique -= 1;
                self.unique
            }
            new => new,
        };
        match self.ids.iter().find(|(known, _)| *known == old) {
            Some((_, known)) => *known == new,
            None => {
                self.ids.push((old, new));
                true
            }
        }
    }
}

impl Value {
    pub(super) const UNKNOWN: Self = Self::range(Range::ANY);

    pub(super) const fn range(range: Range) -> Self {
        Self::Number(Scalar { range, id: 0, delta: 0 })
    }

    pub(super) const fn constant(n: u64) -> Self {
        Self::range(Range::constant(n))
    }

    pub(super) const fn to(base: Base) -> Self {
        Self::Pointer(Pointer::to(base))
    }

    pub(super) fn number(self) -> Range {
        match self {
            Self::Number(scalar) => scalar.range,
            Self::Unreadable | Self::Pointer(_) => Range::ANY,
        }
    }

    pub(super) fn is_pointer(self) -> bool {
        matches!(self, Self::Pointer(_))
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self, Self::Number(Scalar { range, .. }) if range.value() == Some(0))
    }

    /// Whether all that `other` may be, this may be, too.
    pub(super) fn covers(&self, other: &Self, cover: &mut Cover) -> bool {
        match (self, other) {
            (Self::Unreadable, _) => true,
            // Frames share their slots.
            (Self::Number(a), _) if std::ptr::eq(self, other) && a.id == 0 => true,
            (Self::Number(a), Self::Number(b)) => {
                a.range.contains(&b.range)
                    && (a.id == 0 || a.delta == b.delta && cover.id(a.id, b.id))
            }
            (Self::Number(a), _) => !cover.strict && a.range == Range::ANY && a.id == 0,
            (Self::Pointer(a), Self::Pointer(b)) => {
                a.base == b.base
                    && a.off == b.off
                    && a.var.contains(&b.var)
                    && (a.maybe_null || !b.maybe_null)
                    && a.range <= b.range
                    && cover.id(a.id, b.id)
            }
            _ => false,
        }
    }

    /// What covers both; when widening, nothing that changed keeps a bound.
    pub(super) fn join(self, other: Self, widen: bool) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Number(_), Self::Number(_)) if widen => Self::UNKNOWN,
            (Self::Number(a), Self::Number(b)) => {
                let linked = a.id == b.id && a.delta == b.delta;
                let (id, delta) = if linked { (a.id, a.delta) } else { (0, 0) };
                Self::Number(Scalar { range: a.range.union(b.range), id, delta })
            }
            (Self::Pointer(a), Self::Pointer(b)) => match a.joined(b) {
                Some(joined) if !widen || joined == a => Self::Pointer(joined),
                _ => Self::Unreadable,
            },
            _ => Self::Unreadable,
        }
    }
}
