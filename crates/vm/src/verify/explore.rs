//! What a program can do, found by following every path through it.
//!
//! Paths are followed one after the other. One ends where an earlier one came by with a state that covers
//! its own. In the default mode, where too many different states come by, or the budget is used up, they are joined into
//! one, in which bounds that keep growing are given up, so that an end is always reached; what is not understood
//! becomes an unknown number, which covers any address, and an access through it is left to the check at run time. Such a
//! store may have hit any stack slot. In strict mode both is refused, with the rule that the kernel goes by.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use bpfarray_core::insn::{Insn, Reg, alu, class};

use super::live::{self, Regs};
use super::log::Log;
use super::relevant::{self, Needs};
use super::rule::Rule;
use super::state::{Return, State};
use super::structure::{function_target, is_exit, is_unconditional_jump, jump_target, len};
use super::value::{Base, Value};
use super::{Environment, Fact, IterAccess, Safety, VerifyError, VerifyErrorKind as Kind};

/// How many instructions are looked at before all states that meet are joined, or the program is too large.
///
/// # Kernel
/// `BPF_COMPLEXITY_LIMIT_INSNS`
pub(super) const BUDGET: usize = 1_000_000;
/// How many states are kept apart at a place before they are joined.
const STATES: usize = 20;
/// How many are remembered there in strict mode, where none are joined.
const STRICT_STATES: usize = 64;
/// How many are kept apart at all places together, which bounds memory.
const ALL_STATES: usize = 1 << 15;
/// How many states are joined at a place before bounds that change are given up.
const JOINS: usize = 3;
/// Functions that run at a time.
///
/// # Kernel
/// `MAX_CALL_FRAMES`
const MAX_FRAMES: usize = 8;

pub(super) struct Explorer<'a> {
    pub(super) insns: &'a [Insn],
    pub(super) env: &'a Environment<'a>,
    pub(super) functions: &'a [usize],
    /// What was found at each instruction; `None` where no path came by.
    pub(super) facts: Vec<Option<Fact>>,
    /// Whether the accesses seen so far at an instruction were all sure to be allowed.
    proven: Vec<Option<bool>>,
    /// Bytes of stack that each function needs, by its start.
    pub(super) stack: HashMap<usize, i64>,
    /// Whether a store may have hit any byte of the stack.
    pub(super) stacks_hit: Cell<bool>,
    /// How far an iterator's program reaches into keys and values.
    pub(super) buffers: Buffers,
    live: Vec<Regs>,
    needs: Vec<Needs>,
    /// Where paths meet.
    is_join: Vec<bool>,
    seen: HashMap<(usize, Vec<Return>), Place>,
    nodes: Vec<Node>,
    pending: Vec<Path>,
    /// The last state that the path which is followed left behind.
    node: Option<usize>,
    steps: usize,
    last_id: u32,
    /// Any function may be called with anything.
    any_calls: bool,
    /// The global functions that were called so far.
    pub(super) called: HashSet<usize>,
    pub(super) log: Option<Log<'a>>,
}

/// Bytes from the beginning on.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) key: Cell<i64>,
    pub(super) value: Cell<i64>,
}

/// What came by at a place.
#[derive(Default)]
struct Place {
    states: Vec<(State, usize)>,
    joined: Option<State>,
    joins: usize,
}

/// A state that was left behind, from which paths may still be followed.
struct Node {
    before: Option<usize>,
    paths: usize,
}

struct Path {
    at: usize,
    state: State,
    node: Option<usize>,
    /// The jump that leads there, and how much of the log is the way to it.
    from: Option<usize>,
    log_len: usize,
}

/// What was found out.
pub(super) struct Explored {
    pub(super) facts: Vec<Fact>,
    pub(super) safety: Vec<Safety>,
    /// Whether a path led to the instruction.
    pub(super) reached: Vec<bool>,
    pub(super) stack: Option<HashMap<usize, i64>>,
    pub(super) iter_access: IterAccess,
}

type Step<T = ()> = Result<T, Kind>;

impl<'a> Explorer<'a> {
    pub(super) fn new(insns: &'a [Insn], functions: &'a [usize], env: &'a Environment<'a>) -> Self {
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
        Self {
            insns,
            env,
            functions,
            facts: vec![None; insns.len()],
            proven: vec![None; insns.len()],
            stack: HashMap::new(),
            stacks_hit: Cell::new(false),
            buffers: Buffers::default(),
            live: live::registers(insns),
            needs: relevant::needs(insns, env),
            is_join,
            seen: HashMap::new(),
            nodes: Vec::new(),
            pending: Vec::new(),
            node: None,
            steps: 0,
            last_id: 0,
            any_calls: false,
            called: HashSet::new(),
            log: None,
        }
    }

    /// Follows all paths.
    pub(super) fn explore(&mut self) -> Result<(), VerifyError> {
        let mut args = [Value::Unreadable; 5];
        args[0] = Value::to(Base::Ctx);
        self.push(0, State::entry(0, args, Return::Out), None);
        while let Some(path) = self.pending.pop() {
            self.node = path.node;
            if let Some(log) = &mut self.log {
                log.go_back(path.log_len);
                log.arrive(path.from, path.at, &path.state);
            }
            let mut at = path.at;
            self.follow(&mut at, path.state).map_err(|kind| VerifyError { insn: at, kind })?;
            self.end_path();
        }
        Ok(())
    }

    pub(super) fn statistics(&self) -> String {
        let most = self.seen.values().map(|place| place.states.len()).max().unwrap_or(0);
        let all: usize = self.seen.values().map(|place| place.states.len()).sum();
        format!(
            "processed {} insns (limit {BUDGET}) max_states_per_insn {most} total_states {all} peak_states {all} \
             mark_read 0",
            self.steps
        )
    }

    pub(super) fn finish(self) -> Explored {
        let reached = self.facts.iter().map(Option::is_some).collect();
        let facts: Vec<Fact> =
            self.facts.into_iter().map(|fact| fact.unwrap_or(Fact::None)).collect();
        // What no path reaches is not worth a thought.
        let safety = |proven: Option<bool>| match proven {
            Some(true) => Safety::Proven,
            Some(false) | None => Safety::Guarded,
        };
        let stack = (!self.stacks_hit.get()).then_some(self.stack);
        let bytes = |reached: &Cell<i64>| u32::try_from(reached.get()).unwrap_or(u32::MAX);
        let Buffers { key, value } = &self.buffers;
        let iter_access = IterAccess { key: bytes(key), value: bytes(value) };
        let safety = self.proven.into_iter().map(safety).collect();
        Explored { safety, facts, reached, stack, iter_access }
    }

    /// Goes on although a rule is broken, or not.
    pub(super) fn forbid(&self, rule: impl FnOnce() -> Rule) -> Step {
        if self.env.strict { Err(Kind::Rule(rule())) } else { Ok(()) }
    }

    pub(super) fn note(&mut self, at: usize, allowed: bool) {
        let proven = &mut self.proven[at];
        *proven = Some(allowed && *proven != Some(false));
    }

    /// Notes what an instruction turned out to be on this path; tells whether it was so on all paths.
    pub(super) fn found(&mut self, at: usize, fact: Fact) -> bool {
        let known = self.facts[at].get_or_insert(fact);
        let same = *known == fact;
        if !same {
            *known = Fact::None;
            self.note(at, false);
        }
        same
    }

    pub(super) fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// The value of a register that is read.
    pub(super) fn read(&self, state: &State, reg: Reg) -> Step<Value> {
        let value = state.get(reg);
        if value == Value::Unreadable {
            self.forbid(|| Rule::Unreadable(reg.index()))?;
        }
        Ok(value)
    }

    pub(super) fn push(&mut self, at: usize, state: State, from: Option<usize>) {
        if let Some(node) = self.node {
            self.nodes[node].paths += 1;
        }
        let log_len = self.log.as_ref().map_or(0, Log::len);
        self.pending.push(Path { at, state, node: self.node, from, log_len });
    }

    fn end_path(&mut self) {
        let mut ended = self.node.take();
        while let Some(node) = ended {
            let node = &mut self.nodes[node];
            node.paths -= 1;
            ended = if node.paths == 0 { node.before } else { None };
        }
    }

    /// The state to go on with, unless all that it may lead to is looked at anyway.
    fn arrive(&mut self, start: usize, mut state: State) -> Step<Option<State>> {
        state.keep(self.live[start], self.needs[start]);
        state.unlink();
        let strict = self.env.strict;
        // A helper calls a function nobody knows how often.
        let is_callback =
            matches!(state.ret(), Return::Helper(_)) && self.functions.contains(&start);
        let place = self.seen.entry((start, state.returns())).or_default();
        if place.joined.as_ref().is_some_and(|joined| joined.covers(&state, strict)) {
            return Ok(None);
        }
        for at in (0..place.states.len()).rev() {
            let (seen, node) = &place.states[at];
            if !seen.covers(&state, strict) {
                continue;
            }
            let is_behind = strict && self.nodes[*node].paths > 0 && seen.rounds == state.rounds;
            if !is_behind {
                // Those that were of no use for long are forgotten first.
                place.states[at..].rotate_left(1);
                return Ok(None);
            }
            if state.covers(seen, strict) {
                return Err(Kind::Rule(Rule::InfiniteLoop(start)));
            }
        }
        let is_apart = match strict {
            true => !is_callback,
            false => {
                let is_little = self.steps < BUDGET && self.nodes.len() < ALL_STATES;
                is_little && place.states.len() < STATES && place.joined.is_none()
            }
        };
        if is_apart {
            if place.states.len() == STRICT_STATES {
                place.states.remove(0);
            }
            let node = self.nodes.len();
            place.states.push((state.clone(), node));
            self.nodes.push(Node { before: self.node.replace(node), paths: 1 });
            return Ok(Some(state));
        }
        match &mut place.joined {
            Some(joined) => {
                place.joins += 1;
                // The joined state was followed already. If this one adds nothing to it, it was included, which `covers` does not see
                // where the same addresses are other sums of an offset and a range.
                let is_new = joined.join(&state, place.joins > JOINS, strict);
                let holds_other = strict
                    && (joined.owned.len() != state.owned.len()
                        || joined.lock.is_some() != state.lock.is_some());
                if !is_new && !holds_other {
                    return Ok(None);
                }
            }
            None => place.joined = Some(state.clone()),
        }
        let mut joined = place.joined.clone();
        joined.iter_mut().for_each(|joined| joined.rounds = state.rounds);
        Ok(joined)
    }

    /// Follows one path to its end, leaving the others that branch off for later.
    fn follow(&mut self, at: &mut usize, mut state: State) -> Step {
        loop {
            if self.is_join[*at] {
                match self.arrive(*at, state)? {
                    Some(arrived) => state = arrived,
                    None => {
                        if let Some(log) = &mut self.log {
                            log.safe(*at);
                        }
                        return Ok(());
                    }
                }
            }
            self.steps += 1;
            if self.env.strict && self.steps > BUDGET {
                return Err(Kind::Rule(Rule::TooLarge(self.steps)));
            }
            let before = self.log.as_mut().map(|log| {
                log.insn(*at);
                state.clone()
            });
            let next = self.step(*at, &mut state)?;
            if let (Some(log), Some(before)) = (&mut self.log, before) {
                let (read, written) = live::effect(self.insns[*at]);
                log.effect(read | written, &before, next.map(|_| &state));
            }
            match next {
                Some(next) => *at = next,
                None => return Ok(()),
            }
        }
    }

    /// Executes an instruction; tells where the path goes on, if it does.
    fn step(&mut self, at: usize, state: &mut State) -> Step<Option<usize>> {
        let insn = self.insns[at];
        let next = at + len(insn);
        if self.facts[at].is_none() && !is_access(insn) && !insn.is_helper_call() {
            self.facts[at] = Some(Fact::None);
        }
        match insn.class() {
            class::ALU | class::ALU64 => {
                if let Some(zero) = forked(insn, state) {
                    let mut other = state.clone();
                    other.set(insn.dst, Value::constant(zero));
                    self.alu(insn, &mut other)?;
                    self.push(next, other, Some(at));
                    state.set(insn.dst, Value::constant(u64::MAX));
                }
                self.alu(insn, state)?;
            }
            class::LDX | class::ST | class::STX => self.access(at, insn, state)?,
            class::LD if insn.is_ld_imm64() => {
                let value = self.load_imm64(at, insn);
                state.set(insn.dst, value);
            }
            class::LD => self.load_packet(at, insn, state)?,
            _ if is_exit(insn) => {
                self.leave(at, state.clone())?;
                return Ok(None);
            }
            _ if insn.is_pseudo_call() => {
                if let Some(target) = function_target(at, insn) {
                    if self.call_global(target as usize, state)? {
                        return Ok(Some(next));
                    }
                    let args = [1, 2, 3, 4, 5].map(|reg| state.get(Reg::new(reg)));
                    self.enter(target as usize, args, Return::To(next), state.clone())?;
                }
                return Ok(None);
            }
            _ if insn.is_helper_call() => self.call(at, insn.imm as u32, state)?,
            _ if is_unconditional_jump(insn) => {
                return Ok(jump_target(at, insn).map(|target| target as usize));
            }
            _ => return self.branch(at, insn, state),
        }
        Ok(Some(next))
    }

    /// Calls a function, unless too many are running, which ends the run.
    pub(super) fn enter(
        &mut self,
        target: usize,
        args: [Value; 5],
        ret: Return,
        mut state: State,
    ) -> Step {
        if state.depth() >= MAX_FRAMES {
            return self.forbid(|| Rule::CallDepth(MAX_FRAMES + 1));
        }
        let caller = self.log.as_ref().map(|_| state.clone());
        state.push(target, args, ret);
        if let (Some(log), Some(caller)) = (&mut self.log, caller) {
            log.call(&caller, &state);
        }
        self.push(target, state, None);
        Ok(())
    }

    /// Returns from a function.
    pub(super) fn leave(&mut self, at: usize, mut state: State) -> Step {
        let result = state.get(Reg::R0);
        self.check_leave(&state, result)?;
        let callee = self.log.as_ref().map(|_| state.clone());
        let Some(ret) = state.pop() else { return Ok(()) };
        // The result may point into the frame that is gone.
        let gone = state.depth();
        let dangling = matches!(
            result,
            Value::Pointer(pointer) if matches!(pointer.base, Base::Stack(frame) if frame >= gone)
        );
        let (next, result) = match ret {
            Return::Out | Return::Later | Return::Global => return Ok(()),
            Return::To(next) => (next, if dangling { Value::Unreadable } else { result }),
            Return::Helper(site) => {
                self.call_back(site, &state)?;
                (site + 1, Value::UNKNOWN)
            }
        };
        state.clobber_caller_saved();
        state.set(Reg::R0, result);
        if let (Some(log), Some(callee)) = (&mut self.log, callee) {
            log.ret(next, &callee, &state);
        }
        self.push(next, state, Some(at));
        Ok(())
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
        self.push(function, State::entry(function, args, Return::Later), None);
    }
}

/// A mask that is all ones or all zeros is looked at as either, not as both.
///
/// # Kernel
/// `maybe_fork_scalars`
fn forked(insn: Insn, state: &State) -> Option<u64> {
    let masks = insn.class() == class::ALU64
        && !insn.is_reg_src()
        && matches!(insn.op(), alu::AND | alu::OR);
    let range = state.get(insn.dst).number();
    (masks && (range.smin, range.smax) == (-1, 0)).then_some(0)
}

/// Whether an instruction is one whose fact depends on what it accesses.
fn is_access(insn: Insn) -> bool {
    matches!(insn.class(), class::LDX | class::ST | class::STX)
}
