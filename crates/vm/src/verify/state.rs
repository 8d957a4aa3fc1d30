//! What registers and stack slots may hold on a path.

use std::rc::Rc;

use bpfarray_core::insn::Reg;

use super::KnownMap;
use super::range::Range;

/// What a pointer points into.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Base {
    /// The top of the frame with this number; the outermost is 0.
    Stack(usize),
    Ctx,
    Packet,
    PacketEnd,
    /// A map itself; for an inner one perhaps 0.
    Map(KnownMap),
    /// An element of a map. Inner maps that a program has found stay until it ends.
    Value(KnownMap),
    /// The key that a callback for each element gets.
    Key,
    Function(usize),
}

/// The address of something.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Pointer {
    pub(super) base: Base,
    /// Least and largest distance from the base.
    pub(super) lo: i64,
    pub(super) hi: i64,
    /// Values that may be 0 with the same id, unless it is 0, are all 0 or none of them is. Packet pointers
    /// with the same id have the same unknown part in their distance from the packet's start.
    pub(super) id: usize,
    pub(super) maybe_null: bool,
    /// So many bytes behind the packet's start, plus that unknown part, are in the packet.
    pub(super) range: i64,
    /// Largest that unknown part can be.
    pub(super) most: i64,
}

impl Pointer {
    pub(super) const fn to(base: Base) -> Self {
        Self { base, lo: 0, hi: 0, id: 0, maybe_null: false, range: 0, most: 0 }
    }
}

/// What is known of eight bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// With [`Range::ANY`], anything at all: also an address.
    Number(Range),
    Pointer(Pointer),
}

impl Value {
    pub(super) const UNKNOWN: Self = Self::Number(Range::ANY);

    pub(super) fn number(self) -> Range {
        match self {
            Self::Number(range) => range,
            Self::Pointer(_) => Range::ANY,
        }
    }

    /// Whether all that `other` may be, this may be, too.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(a), _) if *a == Range::ANY => true,
            (Self::Number(a), Self::Number(b)) => a.contains(b),
            (Self::Pointer(a), Self::Pointer(b)) => {
                let null = match (a.maybe_null, b.maybe_null) {
                    (true, true) => a.id == 0 || a.id == b.id,
                    (true, false) => a.id == 0,
                    (false, null) => !null && a.id == b.id,
                };
                a.base == b.base
                    && a.lo <= b.lo
                    && a.hi >= b.hi
                    && null
                    && a.range <= b.range
                    && a.most >= b.most
            }
            _ => false,
        }
    }

    /// What covers both; when widening, nothing that changed keeps a bound.
    fn join(self, other: Self, widen: bool) -> Self {
        if self.covers(&other) {
            return self;
        }
        match (self, other) {
            (Self::Number(a), Self::Number(b)) if !widen => Self::Number(a.union(b)),
            (Self::Pointer(a), Self::Pointer(b)) if !widen && a.base == b.base => {
                let is_packet = a.base == Base::Packet;
                if is_packet && (a.id != b.id || a.lo != b.lo) {
                    return Self::UNKNOWN;
                }
                Self::Pointer(Pointer {
                    base: a.base,
                    lo: a.lo.min(b.lo),
                    hi: a.hi.max(b.hi),
                    id: if a.id == b.id && a.maybe_null == b.maybe_null { a.id } else { 0 },
                    maybe_null: a.maybe_null || b.maybe_null,
                    range: a.range.min(b.range),
                    most: a.most.max(b.most),
                })
            }
            _ => Self::UNKNOWN,
        }
    }
}

/// Where a function goes on when it is done.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Return {
    /// To where nothing is known of: the end of the program, or a helper that called the function later.
    Out,
    /// To the caller, at this instruction.
    To(usize),
    /// To the helper called by this instruction, which may call the function again.
    Helper(usize),
}

/// A value on the stack: its place, counted from the frame's top, and its bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) at: i64,
    pub(super) size: i64,
    pub(super) value: Value,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) regs: [Value; 11],
    /// Ascending; they do not overlap.
    stack: Vec<Slot>,
    pub(super) ret: Return,
}

/// The functions that are running, the outermost first. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State(Vec<Rc<Frame>>);

impl State {
    pub(super) fn entry(args: [Value; 5]) -> Self {
        let mut state = Self(Vec::new());
        state.push(args, Return::Out);
        state
    }

    pub(super) fn push(&mut self, args: [Value; 5], ret: Return) {
        let mut regs = [Value::UNKNOWN; 11];
        regs[1..=5].copy_from_slice(&args);
        regs[10] = Value::Pointer(Pointer::to(Base::Stack(self.0.len())));
        self.0.push(Rc::new(Frame { regs, stack: Vec::new(), ret }));
    }

    /// Ends the innermost function, and with it all pointers into its frame. `None` for the outermost.
    pub(super) fn pop(&mut self) -> Option<Return> {
        let ret = self.0.last()?.ret;
        if self.0.len() == 1 {
            return None;
        }
        self.0.pop();
        let gone = self.0.len();
        self.forget(|pointer| match pointer.base {
            Base::Stack(frame) => frame >= gone,
            Base::Key => matches!(ret, Return::Helper(_)),
            _ => false,
        });
        Some(ret)
    }

    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    pub(super) fn returns(&self) -> Vec<Return> {
        self.0.iter().map(|frame| frame.ret).collect()
    }

    pub(super) fn top(&mut self) -> &mut Frame {
        let last = self.0.len() - 1;
        Rc::make_mut(&mut self.0[last])
    }

    pub(super) fn get(&self, reg: Reg) -> Value {
        self.0.last().map_or(Value::UNKNOWN, |frame| frame.regs[reg.index()])
    }

    pub(super) fn set(&mut self, reg: Reg, value: Value) {
        self.top().regs[reg.index()] = value;
    }

    pub(super) fn clobber_caller_saved(&mut self) {
        self.top().regs[..=5].fill(Value::UNKNOWN);
    }

    /// Rewrites every pointer of every function.
    pub(super) fn rewrite(&mut self, with: impl Fn(Pointer) -> Value) {
        let apply = |value: &mut Value| {
            if let Value::Pointer(pointer) = *value {
                *value = with(pointer);
            }
        };
        for frame in &mut self.0 {
            let frame = Rc::make_mut(frame);
            frame.regs.iter_mut().for_each(apply);
            frame.stack.iter_mut().for_each(|slot| apply(&mut slot.value));
        }
    }

    /// Makes pointers plain unknown numbers.
    pub(super) fn forget(&mut self, which: impl Fn(&Pointer) -> bool) {
        self.rewrite(|pointer| match which(&pointer) {
            true => Value::UNKNOWN,
            false => Value::Pointer(pointer),
        });
    }

    /// After a store that may have been anywhere.
    pub(super) fn forget_stacks(&mut self) {
        for frame in &mut self.0 {
            if !frame.stack.is_empty() {
                Rc::make_mut(frame).stack.clear();
            }
        }
    }

    pub(super) fn load(&self, frame: usize, at: i64, size: i64) -> Option<Value> {
        let stack = &self.0.get(frame)?.stack;
        let slot = stack.iter().find(|slot| slot.at == at)?;
        (slot.size == size).then_some(slot.value)
    }

    /// Forgets what `size` bytes of a frame overlap.
    pub(super) fn overwrite(&mut self, frame: usize, at: i64, size: i64) {
        if let Some(frame) = self.0.get_mut(frame) {
            let end = at.saturating_add(size);
            Rc::make_mut(frame).stack.retain(|slot| slot.at + slot.size <= at || slot.at >= end);
        }
    }

    pub(super) fn store(&mut self, frame: usize, slot: Slot) {
        self.overwrite(frame, slot.at, slot.size);
        if slot.value != Value::UNKNOWN
            && let Some(frame) = self.0.get_mut(frame)
        {
            let stack = &mut Rc::make_mut(frame).stack;
            let place = stack.partition_point(|other| other.at < slot.at);
            stack.insert(place, slot);
        }
    }

    /// Whether all that `other` may be, this may be, too. Both run the same functions.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(mine, theirs)| {
                Rc::ptr_eq(mine, theirs)
                    || mine.regs.iter().zip(&theirs.regs).all(|(a, b)| a.covers(b))
                        && mine.stack.iter().all(|slot| {
                            let same =
                                |other: &&Slot| other.at == slot.at && other.size == slot.size;
                            let other = theirs.stack.iter().find(same);
                            other.is_some_and(|other| slot.value.covers(&other.value))
                        })
            })
    }

    /// Covers `other`, too, from now on.
    pub(super) fn join(&mut self, other: &Self, widen: bool) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            if Rc::ptr_eq(mine, theirs) {
                continue;
            }
            let mine = Rc::make_mut(mine);
            for (a, b) in mine.regs.iter_mut().zip(&theirs.regs) {
                *a = a.join(*b, widen);
            }
            mine.stack.retain_mut(|slot| {
                let same = |other: &&Slot| other.at == slot.at && other.size == slot.size;
                let Some(other) = theirs.stack.iter().find(same) else { return false };
                slot.value = slot.value.join(other.value, widen);
                slot.value != Value::UNKNOWN
            });
        }
    }
}
