//! What holds at each instruction of a function: which accesses need no check, which are to the
//! function's own frame, which jumps are decided, and whether anybody else can reach the frame.
//!
//! A forward analysis to a fixed point that trusts nobody: it starts from an unknown register file and the
//! addresses of maps, and takes every path that the instructions have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bpfarray_core::insn::{Insn, X, alu, atomic, class, mode};

use super::values::{Comparison, Value, arithmetic, compare};
use crate::helper::HelperSet;
use crate::interp::{FRAME_SIZE, Op, OpCode};
use crate::region::{Hit, Regions};

pub(super) const R0: usize = 0;
pub(super) const R6: usize = 6;
pub(super) const R10: usize = 10;

/// How often what is known at an instruction may become less before numbers are given up there.
const PATIENCE: u32 = 4;

/// A function to be compiled, and what the analysis may take for true.
pub(super) struct Subject<'a> {
    pub(super) insns: &'a [Insn],
    pub(super) ops: &'a [Op],
    pub(super) entry: usize,
    pub(super) regions: &'a Regions,
    pub(super) helpers: &'a HelperSet,
    pub(super) shape: &'a Shape,
    /// Where jumps anywhere in the program may go.
    pub(super) joins: &'a BTreeSet<usize>,
    /// Accesses that the verifier has proved.
    pub(super) proven: &'a dyn Fn(usize) -> bool,
}

/// What there is in a program, which all its functions go by.
pub(super) struct Shape {
    /// Whether functions are called back, with addresses that came by ways nobody follows.
    pub(super) has_callbacks: bool,
    /// Whether functions may end in another program.
    pub(super) has_tail_calls: bool,
    /// Whether a function calls the one that runs begin with.
    calls_first: bool,
}

impl Shape {
    pub(super) fn new(ops: &[Op], has_callbacks: bool) -> Self {
        let calls = |op: &Op| op.code == OpCode::CallFunction && op.target == 0;
        let has_tail_calls = ops.iter().any(|op| op.code == OpCode::TailCall);
        Self { has_callbacks, has_tail_calls, calls_first: ops.iter().any(calls) }
    }

    /// Whether runs begin with the function of this entry, and no function calls it: its frame is all zeroes.
    pub(super) fn begins_runs(&self, entry: usize) -> bool {
        entry == 0 && !self.has_callbacks && !self.calls_first
    }
}

impl Subject<'_> {
    /// As [`Shape::begins_runs`], for this function.
    pub(super) fn begins_runs(&self) -> bool {
        self.shape.begins_runs(self.entry)
    }
}

/// How an access is made.
#[derive(Copy, Clone, PartialEq, Debug)]
pub(super) enum Access {
    /// It is none.
    None,
    /// To this place in the function's frame, which is inside.
    Frame(i16),
    /// It needs no check.
    Proven,
    /// It is likely where these numbers say.
    Near(Near),
    /// It is likely in the packet.
    Packet,
    /// It is likely where the last one was.
    Anywhere,
}

/// Where an access likely is.
#[derive(Copy, Clone, PartialEq, Debug)]
pub(super) struct Near {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mask: u64,
    pub(super) room: u64,
}

/// What is known of an instruction that can be reached.
#[derive(Copy, Clone, PartialEq, Debug)]
pub(super) struct Fact {
    pub(super) access: Access,
    /// The number that it computes, or the address of the map through which it calls.
    pub(super) result: Option<u64>,
    /// Which way a conditional jump goes.
    pub(super) decided: Option<bool>,
    /// Where it goes when it jumps, past further jumps that are decided then.
    pub(super) taken: usize,
    /// Where it goes when it doesn't.
    pub(super) next: usize,
}

/// What the frame of a function is.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Escape {
    /// Only this function's loads and stores reach it.
    No,
    /// Helpers do too, while it calls them, from the addresses they get upwards; or functions that it calls, or it itself by way of
    /// its caller's frame, by accesses that are checked when they happen.
    Helpers,
    /// Anything may.
    Yes,
}

/// The result of the analysis.
pub(super) struct Analysis {
    first: usize,
    facts: Vec<Option<Fact>>,
    /// Instructions that paths reach from elsewhere than the instruction before.
    pub(super) leaders: BTreeSet<usize>,
    pub(super) escape: Escape,
    /// Whether only this function's loads and stores reach the frame, each at a place that is known.
    pub(super) private: bool,
    /// The lowest place in the frame, counted from r10, whose address is used.
    pub(super) lowest: i64,
    /// Places and sizes of accesses to the frame; atomic ones have no size that others could share.
    pub(super) slots: BTreeSet<(i16, u8, bool)>,
}

impl Analysis {
    /// What is known of an instruction, if control reaches it.
    pub(super) fn fact(&self, at: usize) -> Option<&Fact> {
        self.facts.get(at.checked_sub(self.first)?)?.as_ref()
    }

    pub(super) fn reached(&self) -> impl Iterator<Item = (usize, &Fact)> {
        self.facts.iter().enumerate().filter_map(|(i, f)| Some((self.first + i, f.as_ref()?)))
    }
}

#[derive(Clone, PartialEq, Debug)]
struct State {
    regs: [Value; 16],
    /// What is in the frame, by place and size. All else there is a number.
    slots: BTreeMap<(i64, u32), Value>,
}

impl State {
    fn entry() -> Self {
        let mut regs = [Value::constant(0); 16];
        regs[1..=5].fill(Value::Number);
        regs[R10] = Value::Frame(0);
        Self { regs, slots: BTreeMap::new() }
    }

    /// Keeps what holds in `other` too; tells whether that is less.
    fn join(&mut self, other: &Self, widen: bool) -> bool {
        let before = self.clone();
        for (mine, theirs) in self.regs.iter_mut().zip(&other.regs) {
            *mine = mine.join(*theirs, widen);
        }
        let places: BTreeSet<_> = self.slots.keys().chain(other.slots.keys()).copied().collect();
        for place in places {
            let of = |state: &Self| state.slots.get(&place).copied().unwrap_or(Value::Number);
            let value = of(self).join(of(other), widen);
            self.set_slot(place, value);
        }
        *self != before
    }

    fn set_slot(&mut self, place: (i64, u32), value: Value) {
        if value == Value::Number {
            self.slots.remove(&place);
        } else {
            self.slots.insert(place, value);
        }
    }
}

/// Analyses a function. Where something else than its own instructions can reach the frame, nothing
/// is known of what is there.
pub(super) fn analyse(subject: &Subject<'_>) -> Analysis {
    let analysis = Walk::new(subject, true).run();
    if analysis.escape == Escape::No { analysis } else { Walk::new(subject, false).run() }
}

struct Walk<'a> {
    subject: &'a Subject<'a>,
    begins_runs: bool,
    /// Whether the frame is out of the reach of others.
    private: bool,
    states: BTreeMap<usize, (State, u32)>,
    pending: VecDeque<usize>,
    facts: BTreeMap<usize, Fact>,
    escape: Escape,
    lowest: i64,
    slots: BTreeSet<(i16, u8, bool)>,
}

impl<'a> Walk<'a> {
    fn new(subject: &'a Subject<'a>, private: bool) -> Self {
        Self {
            subject,
            begins_runs: subject.begins_runs(),
            private,
            states: BTreeMap::new(),
            pending: VecDeque::new(),
            facts: BTreeMap::new(),
            escape: Escape::No,
            lowest: 0,
            slots: BTreeSet::new(),
        }
    }

    fn run(mut self) -> Analysis {
        let joins = self.subject.joins;
        let mut state = State::entry();
        if self.subject.entry == 0 {
            state.regs[1] = Value::Ctx;
        }
        self.flow_to(self.subject.entry, &state);
        while let Some(start) = self.pending.pop_front() {
            self.block(start, joins);
        }
        // Facts that were found on the way held for less than is known now.
        (self.escape, self.lowest) = (Escape::No, 0);
        self.facts.clear();
        self.slots.clear();
        let starts: Vec<_> = self.states.keys().copied().collect();
        for start in starts {
            self.block(start, joins);
        }
        let first = self.facts.keys().next().copied().unwrap_or(0);
        let end = self.facts.keys().next_back().map_or(0, |last| last + 1);
        let mut facts = vec![None; end - first];
        for (at, fact) in self.facts {
            facts[at - first] = Some(fact);
        }
        let leaders = self.states.into_keys().collect();
        let (escape, lowest, slots) = (self.escape, self.lowest, self.slots);
        Analysis { first, facts, leaders, escape, private: self.private, lowest, slots }
    }

    /// Whether an instruction does nothing but give its destination a number.
    fn computes(&self, at: usize, op: Op) -> bool {
        let insn = self.subject.insns.get(at);
        let is_alu = insn.is_some_and(|insn| matches!(insn.class(), class::ALU | class::ALU64));
        op.code == OpCode::LdImm64
            || is_alu && !matches!(op.code, OpCode::MovPercpu | OpCode::Illegal)
    }

    fn flow_to(&mut self, at: usize, state: &State) {
        let changed = match self.states.get_mut(&at) {
            Some((known, visits)) => {
                let changed = known.join(state, *visits > PATIENCE);
                *visits += u32::from(changed);
                changed
            }
            None => {
                self.states.insert(at, (state.clone(), 0));
                true
            }
        };
        if changed && !self.pending.contains(&at) {
            self.pending.push_back(at);
        }
    }

    /// Where control ends up that goes to `at` in this state: past jumps that it decides.
    fn thread(&self, mut at: usize, state: &State) -> usize {
        while let Some(op) = self.subject.ops.get(at)
            && op.is_conditional()
            && let Some(decided) = self.comparison(at, state).and_then(|known| known.decided)
        {
            let to = if decided { op.target as usize } else { at + 1 };
            if to <= at {
                break;
            }
            at = to;
        }
        at
    }

    fn comparison(&self, at: usize, state: &State) -> Option<Comparison> {
        let (insn, op) = (self.subject.insns.get(at)?, self.subject.ops.get(at)?);
        let operand =
            if insn.is_reg_src() { state.regs[op.src().index()].single()? } else { op.imm };
        let wide = insn.class() == class::JMP;
        Some(compare(insn.op(), wide, state.regs[op.dst().index()], operand))
    }

    fn block(&mut self, start: usize, joins: &BTreeSet<usize>) {
        let Some((mut state, _)) = self.states.get(&start).cloned() else { return };
        let mut at = start;
        loop {
            let Some(op) = self.subject.ops.get(at) else { return };
            let mut fact =
                Fact { access: Access::None, result: None, decided: None, taken: 0, next: at + 1 };
            if op.is_jump() {
                let known = op.is_conditional().then(|| self.comparison(at, &state)).flatten();
                fact.decided = match op.code {
                    OpCode::Ja => Some(true),
                    _ => known.and_then(|known| known.decided),
                };
                let mut after = [state.clone(), state.clone()];
                if let Some(known) = known {
                    after[0].regs[op.dst().index()] = known.if_true;
                    after[1].regs[op.dst().index()] = known.if_false;
                }
                fact.taken = self.thread(op.target as usize, &after[0]);
                fact.next = self.thread(at + 1, &after[1]);
                self.facts.insert(at, fact);
                if fact.decided != Some(false) {
                    self.flow_to(fact.taken, &after[0]);
                }
                if fact.decided != Some(true) {
                    self.flow_to(fact.next, &after[1]);
                }
                return;
            }
            fact.access = self.step(at, *op, &mut state);
            if self.computes(at, *op) {
                fact.result = state.regs[op.dst().index()].single();
            } else if op.code == OpCode::TailCall {
                fact.result = state.regs[2].single();
            }
            let stops = matches!(op.code, OpCode::Exit | OpCode::Illegal | OpCode::End);
            let next = at + if op.code == OpCode::LdImm64 { 2 } else { 1 };
            let joined = joins.contains(&next);
            fact.next = if joined && !stops { self.thread(next, &state) } else { next };
            self.facts.insert(at, fact);
            if stops {
                return;
            }
            if joined {
                return self.flow_to(fact.next, &state);
            }
            at = next;
        }
    }

    /// Somebody may get at the frame who was not told where it is: a function that this one calls, as its own frame ends there; or
    /// this function itself by an address made from its caller's. Nobody may write there unnoticed, as such accesses are never proven.
    fn may_be_found(&mut self) {
        self.escape = self.escape.max(Escape::Helpers);
    }

    /// An address in the frame becomes known to others.
    fn escapes(&mut self, value: Value, how: Escape) {
        if value.may_be_frame() {
            let how = if value == Value::Any { Escape::Yes } else { how };
            self.escape = self.escape.max(how);
            if let Value::Frame(off) = value {
                self.lowest = self.lowest.min(off);
            }
        }
    }

    fn step(&mut self, at: usize, op: Op, state: &mut State) -> Access {
        let insn = self.subject.insns.get(at).copied().unwrap_or(Insn::exit());
        let (dst, src) = (op.dst().index(), op.src().index());
        match op.code {
            OpCode::LdImm64 => state.regs[dst] = Value::constant(op.imm),
            OpCode::MovPercpu => {
                state.regs[dst] = match state.regs[src] {
                    Value::Pptr(value) => Value::Percpu { value, off: 0, or_zero: false },
                    value if value.may_be_frame() => Value::Any,
                    _ => Value::Number,
                };
            }
            OpCode::CallHelper => {
                let helper = self.subject.helpers.get(op.imm as u32);
                let args = helper.map_or(0, |helper| helper.args());
                let how = match self.subject.shape.has_callbacks {
                    true => Escape::Yes,
                    false => Escape::Helpers,
                };
                for arg in 1..=args {
                    self.escapes(state.regs[arg], how);
                }
                if self.subject.shape.has_callbacks || args > 0 && !self.begins_runs {
                    self.may_be_found();
                }
                state.regs[R0] = Value::Number;
            }
            OpCode::CallFunction => {
                for arg in 1..=5 {
                    self.escapes(state.regs[arg], Escape::Yes);
                }
                self.may_be_found();
                state.regs[R0] = Value::Number;
                let zero = Value::constant(0);
                for reg in (1..16).filter(|reg| !(R6..=R10).contains(reg)) {
                    state.regs[reg] = zero;
                }
                state.regs[R10] = Value::Frame(0);
            }
            OpCode::TailCall => {
                for arg in 1..=3 {
                    self.escapes(state.regs[arg], Escape::Yes);
                }
            }
            OpCode::Exit => self.escapes(state.regs[R0], Escape::Yes),
            OpCode::Illegal | OpCode::End => {}
            _ => match insn.class() {
                class::ALU | class::ALU64 => {
                    let operand = if insn.code & X != 0 && insn.op() != alu::END {
                        state.regs[src]
                    } else {
                        Value::constant(op.imm)
                    };
                    state.regs[dst] = arithmetic(insn, state.regs[dst], operand);
                }
                _ => return self.memory(at, insn, op, state),
            },
        }
        Access::None
    }

    fn memory(&mut self, at: usize, insn: Insn, op: Op, state: &mut State) -> Access {
        let (dst, src) = (op.dst().index(), op.src().index());
        let size = insn.size_bytes();
        let is_atomic = insn.class() == class::STX && insn.mode() == mode::ATOMIC;
        let is_load = insn.class() == class::LDX || is_atomic && insn.imm == atomic::LOAD_ACQ;
        let base = state.regs[if is_load { src } else { dst }];
        let addr = base.add(i64::from(op.off) as u64);
        let write = !is_load;
        let read = is_load || is_atomic && insn.imm != atomic::STORE_REL;
        let access = self.judge(at, addr, size, read, write);
        if !self.begins_runs && !matches!(access, Access::Frame(_) | Access::Proven) {
            self.may_be_found();
        }
        if !matches!(access, Access::Frame(_)) {
            // It may be an address in the frame, but it is not known where.
            self.escapes(addr, Escape::Yes);
        }
        if insn.class() == class::STX {
            let spills = matches!(access, Access::Frame(_)) && !is_atomic && self.private;
            if !spills && (insn.imm != atomic::LOAD_ACQ || !is_atomic) {
                self.escapes(state.regs[src], Escape::Yes);
            }
        }
        let loaded = self.loaded(insn, base, addr, access, state);
        if let Access::Frame(off) = access {
            let place = (i64::from(off), size);
            self.slots.insert((off, size as u8, is_atomic));
            self.lowest = self.lowest.min(off.into());
            if write {
                self.overwrite(place, state);
                let stored = if insn.class() == class::ST {
                    Value::constant(op.imm)
                } else {
                    state.regs[src]
                };
                if self.private && !is_atomic {
                    let mask = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
                    let stored = if size == 8 { stored } else { stored.and(mask) };
                    state.set_slot(place, stored);
                }
            }
        }
        match (insn.class(), insn.imm) {
            (class::LDX, _) => state.regs[dst] = loaded,
            (class::STX, atomic::LOAD_ACQ) if is_atomic => state.regs[dst] = loaded,
            (class::STX, atomic::CMPXCHG) if is_atomic => state.regs[R0] = loaded,
            (class::STX, imm) if is_atomic && imm & atomic::FETCH != 0 => state.regs[src] = loaded,
            _ => {}
        }
        access
    }

    /// Forgets slots that are written.
    fn overwrite(&mut self, place: (i64, u32), state: &mut State) {
        let (at, size) = (place.0, i64::from(place.1));
        let overlaps = |slot: &(i64, u32)| slot.0 < at + size && at < slot.0 + i64::from(slot.1);
        let old: Vec<_> = state.slots.keys().filter(|slot| overlaps(slot)).copied().collect();
        for slot in old {
            let value = state.slots.remove(&slot);
            // Parts of addresses are not followed.
            if slot != place && value.is_some_and(Value::may_be_frame) {
                self.escapes(Value::Any, Escape::Yes);
            }
        }
    }

    /// What a load gives.
    fn loaded(
        &mut self,
        insn: Insn,
        base: Value,
        addr: Value,
        access: Access,
        state: &State,
    ) -> Value {
        let size = insn.size_bytes();
        let by_size = match size {
            8 => Value::Number,
            _ => Value::below(1 << (8 * size)),
        };
        let plain = insn.class() == class::LDX && insn.mode() == mode::MEM;
        let signed = insn.class() == class::LDX && !plain;
        match access {
            Access::Frame(off) if self.private => {
                let place = (i64::from(off), size);
                let (at, end) = (place.0, place.0 + i64::from(size));
                let others = state.slots.iter().any(|(slot, value)| {
                    let overlaps = slot.0 < end && at < slot.0 + i64::from(slot.1);
                    overlaps && *slot != place && value.may_be_frame()
                });
                match state.slots.get(&place) {
                    Some(value) if plain => *value,
                    Some(value) if value.may_be_frame() => Value::Any,
                    _ if others => Value::Any,
                    _ if signed => Value::Number,
                    _ => by_size,
                }
            }
            // A frame that others reach may hold its own address.
            Access::Frame(_) => {
                if size == 8 {
                    Value::Number
                } else {
                    by_size
                }
            }
            _ if signed => Value::Number,
            _ if !plain => by_size,
            // A guess, which only says where a check looks first.
            _ if size == 8 && base == Value::Ctx => Value::Packet,
            Access::Proven if size == 8 => match addr {
                Value::Range(range) if !range.or_zero => self
                    .subject
                    .regions
                    .percpu_value(range.first, range.last)
                    .filter(|_| range.stride.is_multiple_of(8) || range.first == range.last)
                    .map_or(Value::Number, Value::Pptr),
                _ => Value::Number,
            },
            // A field of the context may be wider there than the load is.
            Access::Anywhere if size == 4 => Value::Number,
            _ => by_size,
        }
    }

    /// How an access is to be made.
    fn judge(&self, at: usize, addr: Value, size: u32, read: bool, write: bool) -> Access {
        let both =
            |allowed: &dyn Fn(bool) -> bool| (!read || allowed(false)) && (!write || allowed(true));
        match addr {
            Value::Frame(off) => {
                let lowest = -(FRAME_SIZE as i64);
                if off >= lowest && off <= -i64::from(size) {
                    return Access::Frame(off as i16);
                }
            }
            Value::Range(range) => {
                let regions = self.subject.regions.ranges();
                let (first, last, stride) = (range.first, range.last, range.stride);
                let size = u64::from(size);
                let allowed = |write| regions.allow(first, last, stride, size, write);
                if !range.or_zero && both(&allowed) {
                    return Access::Proven;
                }
                if !(self.subject.proven)(at)
                    && let Some(near) = regions.hit(first, write).and_then(|hit| near(hit, size))
                {
                    return Access::Near(near);
                }
            }
            Value::Percpu { value, off, or_zero: false }
                if both(&|write| value.allows(off, size, write)) =>
            {
                return Access::Proven;
            }
            _ => {}
        }
        match addr {
            _ if (self.subject.proven)(at) => Access::Proven,
            Value::Packet => Access::Packet,
            _ => Access::Anywhere,
        }
    }
}

fn near(hit: Hit, size: u64) -> Option<Near> {
    let [start, len, mask, room] = hit.numbers();
    (size <= room).then_some(Near { start, len, mask, room: room - size })
}
