//! Which accesses are sure to be allowed, found by following every path through a program.
//!
//! Paths are followed one after the other. One ends where an earlier one came by with a state that covers
//! its own. Where too many different states come by, or the budget is used up, they are joined into
//! one, in which bounds that keep growing are given up, so that an end is always reached.
//!
//! Nothing is refused here. What is not understood becomes an unknown number, which covers any address, and an
//! access through it is left to the check at run time. Such a store may have hit any stack slot.

use std::collections::HashMap;

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo};

use super::memory::moved;
use super::range::Range;
use super::state::{Base, Pointer, Return, State, Value};
use super::structure::{function_target, is_exit, is_unconditional_jump, jump_target};
use super::{Environment, Fact, KnownMap, Safety};

/// How many instructions are looked at before all states that meet are joined.
///
/// # Kernel
/// `BPF_COMPLEXITY_LIMIT_INSNS`
const BUDGET: usize = 1_000_000;
/// How many states are kept apart at a place.
const STATES: usize = 64;
/// How many states are joined at a place before bounds that change are given up.
const JOINS: usize = 3;
/// Functions that run at a time.
///
/// # Kernel
/// `MAX_CALL_FRAMES`
const MAX_FRAMES: usize = 8;

pub(super) struct Explorer<'a> {
    insns: &'a [Insn],
    pub(super) env: &'a Environment<'a>,
    pub(super) facts: &'a [Fact],
    functions: &'a [usize],
    /// Whether the accesses seen so far at an instruction were all sure to be allowed.
    proven: Vec<Option<bool>>,
    /// Where paths meet.
    is_join: Vec<bool>,
    seen: HashMap<(usize, Vec<Return>), Place>,
    pending: Vec<(usize, State)>,
    steps: usize,
    /// Any function may be called with anything.
    any_calls: bool,
}

/// What came by at a place.
#[derive(Default)]
struct Place {
    states: Vec<State>,
    joined: Option<State>,
    joins: usize,
}

/// The safety of each instruction.
pub(super) fn explore(
    insns: &[Insn],
    functions: &[usize],
    facts: &[Fact],
    env: &Environment<'_>,
) -> Vec<Safety> {
    let mut is_join = vec![false; insns.len()];
    let mut at = 0;
    while let Some(&insn) = insns.get(at) {
        let target = jump_target(at, insn).and_then(|target| usize::try_from(target).ok());
        if let Some(join) = target.and_then(|target| is_join.get_mut(target)) {
            *join = true;
        }
        at += len(insn);
    }
    for &function in functions {
        is_join[function] = true;
    }
    let mut explorer = Explorer {
        insns,
        env,
        facts,
        functions,
        proven: vec![None; insns.len()],
        is_join,
        seen: HashMap::new(),
        pending: Vec::new(),
        steps: 0,
        any_calls: false,
    };
    let mut args = [Value::UNKNOWN; 5];
    args[0] = Value::Pointer(Pointer::to(Base::Ctx));
    explorer.pending.push((0, State::entry(args)));
    while let Some((at, state)) = explorer.pending.pop() {
        explorer.follow(at, state);
    }
    let safety = |proven: Option<bool>| match proven {
        Some(true) => Safety::Proven,
        // What no path reaches is not worth a thought.
        Some(false) | None => Safety::Guarded,
    };
    explorer.proven.into_iter().map(safety).collect()
}

fn len(insn: Insn) -> usize {
    if insn.is_ld_imm64() { 2 } else { 1 }
}

/// Takes an id, which is that of an instruction, from all values that still have it from an earlier time.
pub(super) fn fresh(state: &mut State, id: usize) {
    state.forget(|pointer| pointer.id == id);
}

impl Explorer<'_> {
    pub(super) fn note(&mut self, at: usize, allowed: bool) {
        let proven = &mut self.proven[at];
        *proven = Some(allowed && *proven != Some(false));
    }

    /// The state to go on with, unless all that it may lead to is looked at anyway.
    fn arrive(&mut self, at: usize, state: State) -> Option<State> {
        let place = self.seen.entry((at, state.returns())).or_default();
        if place.joined.iter().chain(place.states.iter().rev()).any(|seen| seen.covers(&state)) {
            return None;
        }
        if place.joined.is_none() && place.states.len() < STATES && self.steps < BUDGET {
            place.states.push(state.clone());
            return Some(state);
        }
        match &mut place.joined {
            Some(joined) => {
                place.joins += 1;
                joined.join(&state, place.joins > JOINS);
            }
            None => place.joined = Some(state),
        }
        place.joined.clone()
    }

    /// Follows one path to its end, leaving the others that branch off for later.
    fn follow(&mut self, mut at: usize, mut state: State) {
        loop {
            if self.is_join[at] {
                match self.arrive(at, state) {
                    Some(arrived) => state = arrived,
                    None => return,
                }
            }
            self.steps += 1;
            let insn = self.insns[at];
            let next = at + len(insn);
            match insn.class() {
                class::ALU | class::ALU64 => self.alu(at, insn, &mut state),
                class::LDX | class::ST | class::STX => self.access(at, insn, &mut state),
                class::LD if insn.is_ld_imm64() => {
                    let value = self.load_imm64(at, insn);
                    state.set(insn.dst, value);
                }
                class::LD => {
                    // Where the packet ends before, the function does, too.
                    let mut ended = state.clone();
                    ended.set(Reg::R0, Value::Number(Range::constant(0)));
                    self.leave(ended);
                    state.clobber_caller_saved();
                }
                _ if is_exit(insn) => return self.leave(state),
                _ if insn.is_pseudo_call() => {
                    let Some(target) = function_target(at, insn) else { return };
                    return self.enter(target as usize, None, Return::To(next), state);
                }
                _ if insn.is_helper_call() => self.call(at, insn.imm as u32, &mut state),
                _ if is_unconditional_jump(insn) => {
                    let Some(target) = jump_target(at, insn) else { return };
                    at = target as usize;
                    continue;
                }
                _ => match self.branch(at, insn, &mut state) {
                    Some(next) => {
                        at = next;
                        continue;
                    }
                    None => return,
                },
            }
            at = next;
        }
    }

    /// Calls a function, unless too many are running, which ends the run.
    pub(super) fn enter(
        &mut self,
        target: usize,
        args: Option<[Value; 5]>,
        ret: Return,
        mut state: State,
    ) {
        if state.depth() < MAX_FRAMES {
            let args = args.unwrap_or([1, 2, 3, 4, 5].map(|reg| state.get(Reg::new(reg))));
            state.push(args, ret);
            self.pending.push((target, state));
        }
    }

    /// Returns from a function.
    pub(super) fn leave(&mut self, mut state: State) {
        let result = state.get(Reg::R0);
        match state.pop() {
            None | Some(Return::Out) => {}
            Some(Return::To(next)) => {
                let gone = state.depth();
                state.clobber_caller_saved();
                // The result may point into the frame that is gone.
                let dangling = matches!(
                    result,
                    Value::Pointer(Pointer { base: Base::Stack(frame), .. }) if frame >= gone
                );
                state.set(Reg::R0, if dangling { Value::UNKNOWN } else { result });
                self.pending.push((next, state));
            }
            Some(Return::Helper(site)) => {
                self.call_back(site, &state);
                state.clobber_caller_saved();
                self.pending.push((site + 1, state));
            }
        }
    }

    /// Calls the function that was handed to a helper once more.
    pub(super) fn call_back(&mut self, site: usize, state: &State) {
        let [map, function, third] = [Reg::R1, Reg::R2, Reg::R3].map(|reg| state.get(reg));
        let Value::Pointer(Pointer { base: Base::Function(target), lo: 0, hi: 0, .. }) = function
        else {
            return;
        };
        let mut args = [Value::UNKNOWN; 5];
        if self.insns[site].imm as u32 == helper_id::LOOP {
            args[0] = Value::Number(Range::bytes(4));
            args[1] = third;
        } else {
            (args[0], args[3]) = (map, third);
            args[1] = Value::Pointer(Pointer::to(Base::Key));
            if let Some(map) = self.map_with_values(map) {
                args[2] = Value::Pointer(Pointer::to(Base::Value(map)));
            }
        }
        self.enter(target, Some(args), Return::Helper(site), state.clone());
    }

    /// From now on, somebody may call any function with anything.
    pub(super) fn let_anything_call(&mut self) {
        if !std::mem::replace(&mut self.any_calls, true) {
            for &function in self.functions {
                self.start(function, [Value::UNKNOWN; 5]);
            }
        }
    }

    /// Follows a function that is called when nothing else runs.
    pub(super) fn start(&mut self, function: usize, args: [Value; 5]) {
        self.pending.push((function, State::entry(args)));
    }

    fn load_imm64(&self, at: usize, insn: Insn) -> Value {
        let high = self.insns[at + 1].imm as u32;
        let pointer = match insn.src.index() as u8 {
            pseudo::MAP_IDX => Pointer::to(Base::Map(KnownMap::Listed(insn.imm as u32))),
            pseudo::MAP_IDX_VALUE => {
                let off = i64::from(high);
                let map = KnownMap::Listed(insn.imm as u32);
                Pointer { lo: off, hi: off, ..Pointer::to(Base::Value(map)) }
            }
            pseudo::FUNC => match function_target(at, insn) {
                Some(target) => Pointer::to(Base::Function(target as usize)),
                None => return Value::UNKNOWN,
            },
            0 => {
                let low = u64::from(insn.imm as u32);
                return Value::Number(Range::constant(u64::from(high) << 32 | low));
            }
            _ => return Value::UNKNOWN,
        };
        Value::Pointer(pointer)
    }

    fn alu(&mut self, at: usize, insn: Insn, state: &mut State) {
        let is_64 = insn.class() == class::ALU64;
        let operand = match insn.is_reg_src() && insn.op() != alu::END {
            true => state.get(insn.src),
            false if is_64 => Value::Number(Range::constant(i64::from(insn.imm) as u64)),
            false => Value::Number(Range::constant(u64::from(insn.imm as u32))),
        };
        let old = state.get(insn.dst);
        let id = at + 1;
        let value = match (insn.op(), old, operand) {
            (alu::MOV, _, value) if insn.off == 0 && is_64 => value,
            (alu::END, old, _) => Value::Number(old.number().swap(insn)),
            (alu::ADD, Value::Pointer(pointer), Value::Number(by))
            | (alu::ADD, Value::Number(by), Value::Pointer(pointer))
                if is_64 =>
            {
                moved(pointer, by, id, state)
            }
            (alu::SUB, Value::Pointer(pointer), Value::Number(by)) if is_64 => match by.value() {
                Some(n) => moved(pointer, Range::constant(n.wrapping_neg()), id, state),
                None => Value::UNKNOWN,
            },
            (op, a, b) => Value::Number(Range::alu(op, is_64, insn.off, a.number(), b.number())),
        };
        state.set(insn.dst, value);
    }

    /// Where a conditional jump goes on with `state`; the other way is left for later.
    fn branch(&mut self, at: usize, insn: Insn, state: &mut State) -> Option<usize> {
        let target = jump_target(at, insn)? as usize;
        let mut taken = state.clone();
        let goes = self.decide(insn, true, &mut taken);
        let stays = self.decide(insn, false, state);
        match (goes, stays) {
            (true, true) => {
                self.pending.push((target, taken));
                Some(at + 1)
            }
            (false, true) => Some(at + 1),
            (true, false) => {
                *state = taken;
                Some(target)
            }
            (false, false) => None,
        }
    }

    /// Narrows a state to the runs in which a jump is taken, or not; tells whether there can be any.
    fn decide(&self, insn: Insn, taken: bool, state: &mut State) -> bool {
        if insn.op() == jmp::JCOND {
            return true;
        }
        let is_64 = insn.class() == class::JMP;
        let (left, right) = (
            state.get(insn.dst),
            match insn.is_reg_src() {
                true => state.get(insn.src),
                false if is_64 => Value::Number(Range::constant(i64::from(insn.imm) as u64)),
                false => Value::Number(Range::constant(u64::from(insn.imm as u32))),
            },
        );
        match (left, right) {
            (Value::Number(a), Value::Number(b)) => {
                let Some((a, b)) = Range::compare(insn.op(), is_64, taken, a, b) else {
                    return false;
                };
                // A register compared with itself has told nothing.
                if insn.is_reg_src() && insn.src == insn.dst {
                    return true;
                }
                state.set(insn.dst, Value::Number(a));
                if insn.is_reg_src() {
                    state.set(insn.src, Value::Number(b));
                }
                true
            }
            (Value::Pointer(pointer), Value::Number(zero))
                if is_64
                    && zero == Range::constant(0)
                    && matches!(insn.op(), jmp::JEQ | jmp::JNE) =>
            {
                let is_null = (insn.op() == jmp::JEQ) == taken;
                null_test(insn.dst, pointer, is_null, state)
            }
            (Value::Pointer(a), Value::Pointer(b)) if is_64 => {
                packet_test(insn.op(), taken, a, b, state);
                true
            }
            _ => true,
        }
    }
}

fn null_test(reg: Reg, pointer: Pointer, is_null: bool, state: &mut State) -> bool {
    if !pointer.maybe_null {
        let object = matches!(pointer.base, Base::Value(_) | Base::Ctx | Base::Stack(_));
        return !(is_null && object && pointer.lo == 0 && pointer.hi == 0);
    }
    let tested = |pointer: Pointer| match is_null {
        true => Value::Number(Range::constant(0)),
        false => Value::Pointer(Pointer { maybe_null: false, id: 0, ..pointer }),
    };
    if pointer.id != 0 {
        state.rewrite(|other| match other.id == pointer.id && other.maybe_null {
            true => tested(other),
            false => Value::Pointer(other),
        });
    }
    state.set(reg, tested(pointer));
    true
}

/// What a comparison with the end of the packet tells of the bytes before it.
fn packet_test(op: u8, taken: bool, a: Pointer, b: Pointer, state: &mut State) {
    let mirrored = a.base == Base::PacketEnd;
    let (packet, end) = if mirrored { (b, a) } else { (a, b) };
    if packet.base != Base::Packet || end.base != Base::PacketEnd {
        return;
    }
    // Whether the pointer is at most at the end, and whether it is before it.
    let (within, before) = match (op, taken, mirrored) {
        (jmp::JLE, true, false) | (jmp::JGT, false, false) => (true, false),
        (jmp::JGE, true, true) | (jmp::JLT, false, true) => (true, false),
        (jmp::JLT, true, false) | (jmp::JGE, false, false) => (true, true),
        (jmp::JGT, true, true) | (jmp::JLE, false, true) => (true, true),
        _ => (false, false),
    };
    if !within {
        return;
    }
    let known = packet.lo + i64::from(before);
    state.rewrite(|other| {
        let same = other.base == Base::Packet && other.id == packet.id;
        let range = if same { other.range.max(known) } else { other.range };
        Value::Pointer(Pointer { range, ..other })
    });
}
