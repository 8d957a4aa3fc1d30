//! What registers and stack slots hold on a path.

use std::rc::Rc;

use bpfarray_core::insn::{Reg, alu};

use super::live::Regs;
use super::range::Range;
use super::relevant::{Needs, slots};
use super::value::{Base, Cover, Pointer, Scalar, Value};

/// Where a function goes on when it is done.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Return {
    /// To where nothing is known of: the end of the program.
    Out,
    /// Likewise, from a function that a helper has others call later.
    Later,
    /// Likewise, from a global function, of which calls are verified by themselves.
    Global,
    /// To the caller, at this instruction.
    To(usize),
    /// To the helper called by this instruction, which may call the function again.
    Helper(usize),
}

/// A value on the stack: its place, counted from the frame's top, and its bytes. Frames share it, of which there are many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) at: i64,
    pub(super) size: i64,
    pub(super) value: Rc<Value>,
}

impl Slot {
    /// The slot of another frame that is at the same place.
    fn same<'a>(&self, stack: &'a [Self]) -> Option<&'a Self> {
        let found = stack.binary_search_by_key(&self.at, |slot| slot.at).ok()?;
        stack.get(found).filter(|slot| slot.size == self.size)
    }

    fn rewrite(&mut self, with: impl Fn(Value) -> Value) {
        let value = with(*self.value);
        if value != *self.value {
            self.value = Rc::new(value);
        }
    }

    fn overlaps(&self, at: i64, size: i64) -> bool {
        self.at < at.saturating_add(size) && at < self.at + self.size
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    /// Where the function starts.
    pub(super) function: usize,
    pub(super) regs: [Value; 11],
    /// Ascending; they do not overlap.
    pub(super) stack: Vec<Slot>,
    pub(super) ret: Return,
}

impl Frame {
    fn values(&self) -> impl Iterator<Item = &Value> {
        self.regs.iter().chain(self.stack.iter().map(|slot| &*slot.value))
    }

    /// Puts a slot where others were, or parts of them.
    fn put(&mut self, slot: Slot) {
        self.stack.retain(|other| !other.overlaps(slot.at, slot.size));
        let place = self.stack.partition_point(|other| other.at < slot.at);
        self.stack.insert(place, slot);
    }
}

/// The spin lock that is held.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Lock {
    /// What it is in.
    pub(super) base: Base,
    /// Which element that is.
    pub(super) id: u32,
}

/// The functions that are running, the outermost first, never none, and what they hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    frames: Vec<Rc<Frame>>,
    pub(super) lock: Option<Lock>,
    /// Objects that were taken out of a map, by the id of their pointers.
    pub(super) owned: Vec<u32>,
    /// How often a helper has called a function, which bounds what is between.
    pub(super) rounds: u32,
}

impl State {
    pub(super) fn entry(function: usize, args: [Value; 5], ret: Return) -> Self {
        let mut state = Self { frames: Vec::new(), lock: None, owned: Vec::new(), rounds: 0 };
        state.push(function, args, ret);
        state
    }

    pub(super) fn push(&mut self, function: usize, args: [Value; 5], ret: Return) {
        let mut regs = [Value::Unreadable; 11];
        regs[1..=5].copy_from_slice(&args);
        regs[10] = Value::to(Base::Stack(self.frames.len()));
        self.frames.push(Rc::new(Frame { function, regs, stack: Vec::new(), ret }));
    }

    /// Ends the innermost function, and with it all pointers into its frame. `None` for the outermost.
    pub(super) fn pop(&mut self) -> Option<Return> {
        let ret = self.frames.last()?.ret;
        if self.frames.len() == 1 {
            return None;
        }
        self.frames.pop();
        let gone = self.frames.len();
        self.forget(|pointer| match pointer.base {
            Base::Stack(frame) => frame >= gone,
            Base::Key => matches!(ret, Return::Helper(_)),
            _ => false,
        });
        Some(ret)
    }

    pub(super) fn depth(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn frames(&self) -> &[Rc<Frame>] {
        &self.frames
    }

    pub(super) fn returns(&self) -> Vec<Return> {
        self.frames.iter().map(|frame| frame.ret).collect()
    }

    /// Where the innermost function goes on.
    pub(super) fn ret(&self) -> Return {
        self.frames.last().map_or(Return::Out, |frame| frame.ret)
    }

    /// Forgets what the innermost function does not read again, and its numbers on which nothing depends.
    pub(super) fn keep(&mut self, live: Regs, needs: Needs) {
        let kept = |reg: usize, value: Value| match value {
            _ if live & 1 << reg == 0 => Value::Unreadable,
            Value::Number(_) if needs.regs & 1 << reg == 0 => Value::UNKNOWN,
            value => value,
        };
        let is_kept = |slot: &Slot| {
            let is_number = matches!(*slot.value, Value::Number(_));
            let needed = if is_number { needs.numbers } else { needs.slots };
            slots(slot.at, slot.size) & needed != 0
        };
        let changes = |frame: &Rc<Frame>| {
            (0..11).any(|reg| kept(reg, frame.regs[reg]) != frame.regs[reg])
                || !frame.stack.iter().all(is_kept)
        };
        if self.frames.last().is_some_and(changes) {
            let Frame { regs, stack, .. } = self.top();
            (0..11).for_each(|reg| regs[reg] = kept(reg, regs[reg]));
            stack.retain(is_kept);
        }
    }

    /// Forgets that numbers are copies of others that are gone.
    pub(super) fn unlink(&mut self) {
        let link = |value: &Value| match value {
            Value::Number(number) if number.id != 0 => Some(number.id),
            _ => None,
        };
        let mut ids: Vec<u32> =
            self.frames.iter().flat_map(|frame| frame.values()).filter_map(link).collect();
        ids.sort_unstable();
        let alone = |id: u32| {
            let first = ids.partition_point(|other| *other < id);
            ids.get(first + 1) != Some(&id)
        };
        if !ids.iter().any(|id| alone(*id)) {
            return;
        }
        for frame in &mut self.frames {
            if !frame.values().filter_map(link).any(alone) {
                continue;
            }
            let Frame { regs, stack, .. } = Rc::make_mut(frame);
            let unlinked = |value: Value| match value {
                Value::Number(number) if alone(number.id) => Value::range(number.range),
                value => value,
            };
            regs.iter_mut().for_each(|value| *value = unlinked(*value));
            stack.iter_mut().for_each(|slot| slot.rewrite(unlinked));
            stack.retain(|slot| *slot.value != Value::UNKNOWN);
        }
    }

    pub(super) fn top(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        Rc::make_mut(&mut self.frames[last])
    }

    pub(super) fn get(&self, reg: Reg) -> Value {
        self.frames.last().map_or(Value::Unreadable, |frame| frame.regs[reg.index()])
    }

    pub(super) fn set(&mut self, reg: Reg, value: Value) {
        self.top().regs[reg.index()] = value;
    }

    pub(super) fn clobber_caller_saved(&mut self) {
        self.top().regs[..=5].fill(Value::Unreadable);
    }

    /// Rewrites every value of every function.
    pub(super) fn rewrite(&mut self, with: impl Fn(Value) -> Value) {
        for frame in &mut self.frames {
            // Most rewrites change little, and frames are shared.
            if frame.values().all(|value| with(*value) == *value) {
                continue;
            }
            let frame = Rc::make_mut(frame);
            frame.regs.iter_mut().for_each(|value| *value = with(*value));
            frame.stack.iter_mut().for_each(|slot| slot.rewrite(&with));
        }
    }

    /// Makes pointers plain numbers of which nothing is known.
    pub(super) fn forget(&mut self, which: impl Fn(&Pointer) -> bool) {
        self.rewrite(|value| match value {
            Value::Pointer(pointer) if which(&pointer) => Value::UNKNOWN,
            value => value,
        });
    }

    /// Tells all copies of a number what is now known of it.
    pub(super) fn learn(&mut self, known: Scalar) {
        if known.id == 0 {
            return;
        }
        self.rewrite(|value| match value {
            Value::Number(copy) if copy.id == known.id => {
                let by = Range::constant(copy.delta.wrapping_sub(known.delta) as u64);
                let range = match by.value() {
                    Some(0) => known.range,
                    _ => Range::alu(alu::ADD, true, 0, known.range, by),
                };
                Value::Number(Scalar { range, ..copy })
            }
            value => value,
        });
    }

    /// After a store that may have been anywhere.
    pub(super) fn forget_stacks(&mut self) {
        for frame in &mut self.frames {
            if !frame.stack.is_empty() {
                Rc::make_mut(frame).stack.clear();
            }
        }
    }

    fn stack(&self, frame: usize) -> &[Slot] {
        self.frames.get(frame).map_or(&[], |frame| &frame.stack)
    }

    /// What was stored in just these bytes.
    pub(super) fn load(&self, frame: usize, at: i64, size: i64) -> Option<Value> {
        let slot = self.stack(frame).iter().find(|slot| slot.at == at)?;
        (slot.size == size).then_some(*slot.value)
    }

    /// What a load of `size` bytes finds: what was stored there, or the start of it, or zeros.
    pub(super) fn fill(&self, frame: usize, at: i64, size: i64) -> Option<Value> {
        let stack = self.stack(frame);
        let first = stack.iter().find(|slot| slot.at == at);
        match first.map(|slot| (slot.size - size, *slot.value)) {
            Some((0, value)) => return Some(value),
            Some((1.., Value::Number(number))) => {
                return Some(Value::range(number.range.truncated(size as u32)));
            }
            _ => {}
        }
        let zeros = stack.iter().filter(|slot| slot.value.is_null());
        let covered = |byte: i64| zeros.clone().any(|slot| slot.overlaps(byte, 1));
        (at..at + size).all(covered).then_some(Value::constant(0))
    }

    /// Whether these bytes are some, but not all, of a pointer's.
    pub(super) fn is_part_of_pointer(&self, frame: usize, at: i64, size: i64) -> bool {
        let part = |slot: &Slot| slot.overlaps(at, size) && (slot.at, slot.size) != (at, size);
        self.stack(frame).iter().any(|slot| slot.value.is_pointer() && part(slot))
    }

    /// Forgets what `size` bytes of a frame overlap.
    pub(super) fn overwrite(&mut self, frame: usize, at: i64, size: i64) {
        if let Some(frame) = self.frames.get_mut(frame)
            && frame.stack.iter().any(|slot| slot.overlaps(at, size))
        {
            Rc::make_mut(frame).stack.retain(|slot| !slot.overlaps(at, size));
        }
    }

    /// Forgets the values in eight bytes of which some are stored to. Zeros that were no register's stay.
    pub(super) fn scrub(&mut self, frame: usize, at: i64, size: i64) {
        let (start, end) = (at.div_euclid(8) * 8, at.saturating_add(size + 7).div_euclid(8) * 8);
        let is_lost = |slot: &Slot| slot.at % 8 == 0 && slot.overlaps(start, end - start);
        if let Some(frame) = self.frames.get_mut(frame)
            && frame.stack.iter().any(is_lost)
        {
            Rc::make_mut(frame).stack.retain(|slot| !is_lost(slot));
        }
    }

    /// Puts a value into a frame. As in the kernel, what is not at the start of eight bytes is known only if it is 0.
    pub(super) fn store(&mut self, frame: usize, slot: Slot) {
        let is_known = slot.at % 8 == 0 || slot.value.is_null();
        if !is_known || *slot.value == Value::UNKNOWN {
            return self.overwrite(frame, slot.at, slot.size);
        }
        if let Some(frame) = self.frames.get_mut(frame) {
            Rc::make_mut(frame).put(slot);
        }
    }

    /// Whether all that `other` may be, this may be, too. Both run the same functions.
    pub(super) fn covers(&self, other: &Self, strict: bool) -> bool {
        let mut cover = Cover::new(strict);
        self.frames.len() == other.frames.len()
            && self.frames.iter().zip(&other.frames).all(|(mine, theirs)| {
                let known = |slot: &Slot| mine.stack.iter().any(|mine| mine.at == slot.at);
                let is_odd = |slot: &&Slot| !matches!(*slot.value, Value::Number(_));
                let odd = theirs.stack.iter().filter(is_odd);
                mine.regs.iter().zip(&theirs.regs).all(|(a, b)| a.covers(b, &mut cover))
                    && (!strict || odd.clone().all(known))
                    && mine.stack.iter().all(|slot| match slot.same(&theirs.stack) {
                        Some(other) => slot.value.covers(&other.value, &mut cover),
                        None => *slot.value == Value::Unreadable,
                    })
            })
            && (!strict || self.holds_the_same(other, &mut cover))
    }

    /// Whether what is held, of what [`State::covers`] has found to be the same, is the same.
    ///
    /// # Kernel
    /// `refsafe`
    fn holds_the_same(&self, other: &Self, cover: &mut Cover) -> bool {
        let mut same = |a: u32, b: u32| (a == 0) == (b == 0) && cover.id(a, b);
        let locks = match (self.lock, other.lock) {
            (Some(mine), Some(theirs)) => mine.base == theirs.base && same(mine.id, theirs.id),
            (mine, theirs) => mine == theirs,
        };
        locks
            && self.owned.len() == other.owned.len()
            && self.owned.iter().zip(&other.owned).all(|(a, b)| same(*a, *b))
    }

    /// Covers `other`, too, from now on; tells whether it did not before. In strict mode, a place where only one of them has an
    /// address is not read any more.
    pub(super) fn join(&mut self, other: &Self, widen: bool, strict: bool) -> bool {
        let before = self.clone();
        for (mine, theirs) in self.frames.iter_mut().zip(&other.frames) {
            if Rc::ptr_eq(mine, theirs) {
                continue;
            }
            let mine = Rc::make_mut(mine);
            for (a, b) in mine.regs.iter_mut().zip(&theirs.regs) {
                *a = a.join(*b, widen);
            }
            let is_odd = |slot: &&Slot| strict && !matches!(*slot.value, Value::Number(_));
            let odd = theirs.stack.iter().filter(is_odd);
            let odd: Vec<Slot> =
                odd.filter(|slot| slot.same(&mine.stack).is_none()).cloned().collect();
            mine.stack.retain_mut(|slot| {
                match slot.same(&theirs.stack) {
                    Some(other) => slot.rewrite(|value| value.join(*other.value, widen)),
                    None if is_odd(&&*slot) => slot.value = Rc::new(Value::Unreadable),
                    None => return false,
                }
                *slot.value != Value::UNKNOWN
            });
            for slot in odd {
                mine.put(Slot { value: Rc::new(Value::Unreadable), ..slot });
            }
        }
        *self != before
    }
}
