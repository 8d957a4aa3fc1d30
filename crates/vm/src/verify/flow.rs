//! What registers and stack slots hold at each instruction, as far as translation needs to know:
//! maps, the context, functions, the frame, constants.
//!
//! A forward analysis to a fixed point, function by function. Calls carry arguments to the
//! callee's entry; frames are not mixed, so a pointer to a caller's frame is just unknown.

use std::collections::{BTreeMap, VecDeque};

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, mode, pseudo, size};
use bpfarray_core::map::Kind as MapKind;

use super::structure::{function_target, is_exit, is_unconditional_jump, jump_target};
use super::{Environment, Fact, KnownMap, VerifyError, VerifyErrorKind as Kind};
use crate::context::{CtxAccess, convert_ctx_access};

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Value {
    Unknown,
    Const(u64),
    /// The address of a map; for an inner one, perhaps 0.
    Map(KnownMap),
    /// The program's context.
    Ctx,
    /// The entry of a function, by instruction.
    Function(usize),
    /// This frame's r10 plus so many bytes.
    Frame(i64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    regs: [Value; 11],
    /// Known 8-byte slots, by their offset from r10.
    stack: BTreeMap<i64, Value>,
}

impl State {
    fn entry(args: [Value; 5]) -> Self {
        let mut regs = [Value::Unknown; 11];
        regs[1..=5].copy_from_slice(&args);
        regs[Reg::R10.index()] = Value::Frame(0);
        Self { regs, stack: BTreeMap::new() }
    }

    fn get(&self, reg: Reg) -> Value {
        self.regs[reg.index()]
    }

    fn set(&mut self, reg: Reg, value: Value) {
        self.regs[reg.index()] = value;
    }

    /// Keeps what `other` agrees with; tells whether anything was given up.
    fn join(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (mine, theirs) in self.regs.iter_mut().zip(&other.regs) {
            if *mine != *theirs && *mine != Value::Unknown {
                *mine = Value::Unknown;
                changed = true;
            }
        }
        let before = self.stack.len();
        self.stack.retain(|at, value| other.stack.get(at) == Some(value));
        changed | (self.stack.len() != before)
    }

    /// Forgets slots that `len` bytes at `at` overlap.
    fn overwrite(&mut self, at: i64, len: i64) {
        self.stack.retain(|&slot, _| slot + 8 <= at || slot >= at.saturating_add(len));
    }

    fn clobber_caller_saved(&mut self) {
        self.regs[0..=5].fill(Value::Unknown);
    }
}

struct Analysis<'a> {
    insns: &'a [Insn],
    env: &'a Environment<'a>,
    facts: Vec<Fact>,
    /// States on entry to instructions that are jumped to.
    states: BTreeMap<usize, State>,
    pending: VecDeque<usize>,
}

/// What is known about each reachable instruction.
pub(super) fn analyse(
    insns: &[Insn],
    functions: &[usize],
    env: &Environment<'_>,
) -> Result<Vec<Fact>, VerifyError> {
    let mut analysis = Analysis {
        insns,
        env,
        facts: vec![Fact::None; insns.len()],
        states: BTreeMap::new(),
        pending: VecDeque::new(),
    };
    let joins: Vec<usize> = joins(insns, functions);
    let mut args = [Value::Unknown; 5];
    args[0] = Value::Ctx;
    analysis.flow_to(0, &State::entry(args));
    while let Some(start) = analysis.pending.pop_front() {
        analysis.run_block(start, &joins).map_err(|(insn, kind)| VerifyError { insn, kind })?;
    }
    Ok(analysis.facts)
}

/// Instructions where paths may meet, in ascending order.
fn joins(insns: &[Insn], functions: &[usize]) -> Vec<usize> {
    let mut joins = functions.to_vec();
    let mut at = 0;
    while let Some(&insn) = insns.get(at) {
        joins.extend(jump_target(at, insn).and_then(|target| usize::try_from(target).ok()));
        at += len(insn);
    }
    joins.sort_unstable();
    joins.dedup();
    joins
}

fn len(insn: Insn) -> usize {
    if insn.is_ld_imm64() { 2 } else { 1 }
}

impl Analysis<'_> {
    fn flow_to(&mut self, at: usize, state: &State) {
        let changed = match self.states.get_mut(&at) {
            Some(known) => known.join(state),
            None => {
                self.states.insert(at, state.clone());
                true
            }
        };
        if changed && !self.pending.contains(&at) {
            self.pending.push_back(at);
        }
    }

    fn run_block(&mut self, start: usize, joins: &[usize]) -> Result<(), (usize, Kind)> {
        let Some(mut state) = self.states.get(&start).cloned() else { return Ok(()) };
        let mut at = start;
        loop {
            let insn = self.insns[at];
            self.facts[at] = self.step(at, insn, &mut state).map_err(|kind| (at, kind))?;
            if let Some(target) = jump_target(at, insn).and_then(|t| usize::try_from(t).ok()) {
                self.flow_to(target, &state);
            }
            if is_exit(insn) || is_unconditional_jump(insn) {
                return Ok(());
            }
            at += len(insn);
            if joins.binary_search(&at).is_ok() {
                self.flow_to(at, &state);
                return Ok(());
            }
        }
    }

    fn step(&mut self, at: usize, insn: Insn, state: &mut State) -> Result<Fact, Kind> {
        match insn.class() {
            class::ALU64 => state.set(insn.dst, alu64(insn, state)),
            class::ALU => {
                let constant = insn.op() == alu::MOV && !insn.is_reg_src();
                let low = Value::Const(u64::from(insn.imm as u32));
                state.set(insn.dst, if constant { low } else { Value::Unknown });
            }
            class::LDX => return self.load(insn, state),
            class::ST | class::STX => return self.store(insn, state),
            class::LD if insn.is_ld_imm64() => state.set(insn.dst, self.load_imm64(at, insn)),
            class::LD => state.clobber_caller_saved(),
            _ if insn.is_helper_call() => return self.call_helper(insn, state),
            _ if insn.is_pseudo_call() => {
                if let Some(target) = function_target(at, insn) {
                    let args = [1, 2, 3, 4, 5].map(|i| outside_frame(state.regs[i]));
                    self.flow_to(target as usize, &State::entry(args));
                }
                state.clobber_caller_saved();
            }
            _ => {}
        }
        Ok(Fact::None)
    }

    fn load_imm64(&self, at: usize, insn: Insn) -> Value {
        match insn.src.index() as u8 {
            pseudo::MAP_IDX => Value::Map(KnownMap::Listed(insn.imm as u32)),
            pseudo::FUNC => match function_target(at, insn) {
                Some(target) => Value::Function(target as usize),
                None => Value::Unknown,
            },
            0 => {
                let high = u64::from(self.insns[at + 1].imm as u32);
                Value::Const(high << 32 | u64::from(insn.imm as u32))
            }
            _ => Value::Unknown,
        }
    }

    fn load(&self, insn: Insn, state: &mut State) -> Result<Fact, Kind> {
        let fact = self.ctx_access(insn, state.get(insn.src), false)?;
        let value = match state.get(insn.src) {
            Value::Frame(base) if insn.size() == size::DW && insn.mode() == mode::MEM => {
                let slot = base + i64::from(insn.off);
                state.stack.get(&slot).copied().unwrap_or(Value::Unknown)
            }
            _ => Value::Unknown,
        };
        state.set(insn.dst, value);
        Ok(fact)
    }

    fn store(&self, insn: Insn, state: &mut State) -> Result<Fact, Kind> {
        let fact = self.ctx_access(insn, state.get(insn.dst), true)?;
        if let Value::Frame(base) = state.get(insn.dst) {
            let at = base + i64::from(insn.off);
            state.overwrite(at, i64::from(insn.size_bytes()));
            let spills = insn.class() == class::STX
                && insn.mode() == mode::MEM
                && insn.size() == size::DW
                && at % 8 == 0;
            if spills && state.get(insn.src) != Value::Unknown {
                state.stack.insert(at, state.get(insn.src));
            }
        }
        if insn.mode() == mode::ATOMIC {
            match insn.imm {
                atomic::LOAD_ACQ => state.set(insn.dst, Value::Unknown),
                atomic::CMPXCHG => state.set(Reg::R0, Value::Unknown),
                op if op & atomic::FETCH != 0 => state.set(insn.src, Value::Unknown),
                _ => {}
            }
        }
        Ok(fact)
    }

    fn ctx_access(&self, insn: Insn, base: Value, write: bool) -> Result<Fact, Kind> {
        if base != Value::Ctx {
            return Ok(Fact::None);
        }
        let (offset, size) = (insn.off, insn.size_bytes());
        // A sign-extending load has no wider form, so it cannot load a pointer.
        let possible = |access: &CtxAccess| match insn.mode() {
            mode::MEM => true,
            mode::MEMSX => access.native_size == size as usize,
            _ => false,
        };
        usize::try_from(offset)
            .ok()
            .and_then(|offset| convert_ctx_access(self.env.prog_type, offset, size as usize, write))
            .filter(possible)
            .map(Fact::Ctx)
            .ok_or(Kind::CtxAccess { offset, size })
    }

    fn call_helper(&mut self, insn: Insn, state: &mut State) -> Result<Fact, Kind> {
        let helper = insn.imm as u32;
        let known = |reg| match state.get(reg) {
            Value::Map(map) => map.layout(self.env.maps).map(|layout| (map, layout.kind())),
            _ => None,
        };
        let map = known(match helper {
            helper_id::TAIL_CALL | helper_id::PERF_EVENT_OUTPUT => Reg::R2,
            _ => Reg::R1,
        });
        if let Some((map, kind)) = map
            && !takes_map(helper, kind)
        {
            return Err(Kind::MapKind { helper, map: map.name(self.env.maps), kind });
        }
        self.call_callbacks(helper, state);
        let plain_loop = helper == helper_id::LOOP
            && matches!(state.get(Reg::R2), Value::Function(_))
            && state.get(Reg::R4) == Value::Const(0);
        if let Some((buffer, len)) = written_buffer(helper)
            && let Value::Frame(at) = state.get(buffer)
        {
            let len = match state.get(len) {
                Value::Const(len) => i64::try_from(len).unwrap_or(i64::MAX),
                _ => i64::MAX,
            };
            state.overwrite(at, len);
        }
        state.clobber_caller_saved();
        Ok(match (helper, map) {
            (helper_id::MAP_LOOKUP_ELEM, Some((map, kind))) => {
                if let (KnownMap::Listed(outer), MapKind::ArrayOfMaps) = (map, kind) {
                    state.set(Reg::R0, Value::Map(KnownMap::Inner(outer)));
                }
                Fact::Lookup(map)
            }
            (helper_id::TAIL_CALL, Some((KnownMap::Listed(map), _))) => Fact::TailCall { map },
            _ if plain_loop => Fact::Loop,
            _ => Fact::None,
        })
    }

    /// Functions handed to a helper run with arguments of the helper's making.
    fn call_callbacks(&mut self, helper: u32, state: &State) {
        let [map, context] = [Reg::R1, Reg::R3].map(|reg| outside_frame(state.get(reg)));
        let args = match helper {
            helper_id::FOR_EACH_MAP_ELEM => {
                [map, Value::Unknown, Value::Unknown, context, Value::Unknown]
            }
            helper_id::LOOP => {
                [Value::Unknown, context, Value::Unknown, Value::Unknown, Value::Unknown]
            }
            _ => [Value::Unknown; 5],
        };
        for reg in 1..=5 {
            if let Value::Function(target) = state.regs[reg] {
                self.flow_to(target, &State::entry(args));
            }
        }
    }
}

fn outside_frame(value: Value) -> Value {
    match value {
        Value::Frame(_) => Value::Unknown,
        other => other,
    }
}

fn alu64(insn: Insn, state: &State) -> Value {
    let operand = if insn.is_reg_src() && insn.op() != alu::END {
        state.get(insn.src)
    } else {
        Value::Const(i64::from(insn.imm) as u64)
    };
    match (insn.op(), state.get(insn.dst), operand) {
        (alu::MOV, _, value) if insn.off == 0 => value,
        (alu::ADD, Value::Frame(base), Value::Const(n)) => {
            Value::Frame(base.wrapping_add(n as i64))
        }
        (alu::SUB, Value::Frame(base), Value::Const(n)) => {
            Value::Frame(base.wrapping_sub(n as i64))
        }
        (alu::ADD, Value::Const(a), Value::Const(b)) => Value::Const(a.wrapping_add(b)),
        _ => Value::Unknown,
    }
}

/// Whether a helper that takes maps takes those of this kind; helpers of hosts take any.
///
/// # Kernel
/// `check_map_func_compatibility`
fn takes_map(helper: u32, kind: MapKind) -> bool {
    match helper {
        helper_id::MAP_LOOKUP_ELEM => {
            matches!(kind, MapKind::Array | MapKind::PercpuArray | MapKind::ArrayOfMaps)
        }
        helper_id::MAP_UPDATE_ELEM | helper_id::MAP_DELETE_ELEM | helper_id::FOR_EACH_MAP_ELEM => {
            matches!(kind, MapKind::Array | MapKind::PercpuArray)
        }
        helper_id::MAP_LOOKUP_PERCPU_ELEM => kind == MapKind::PercpuArray,
        helper_id::TAIL_CALL => kind == MapKind::ProgArray,
        helper_id::PERF_EVENT_READ
        | helper_id::PERF_EVENT_OUTPUT
        | helper_id::PERF_EVENT_READ_VALUE => kind == MapKind::PerfEventArray,
        helper_id::CURRENT_TASK_UNDER_CGROUP => kind == MapKind::CgroupArray,
        _ => true,
    }
}

/// The arguments that hold address and length of a buffer the helper fills.
fn written_buffer(helper: u32) -> Option<(Reg, Reg)> {
    match helper {
        helper_id::GET_CURRENT_COMM => Some((Reg::R1, Reg::R2)),
        helper_id::SKB_LOAD_BYTES
        | helper_id::SKB_LOAD_BYTES_RELATIVE
        | helper_id::PERF_EVENT_READ_VALUE
        | helper_id::XDP_LOAD_BYTES => Some((Reg::R3, Reg::R4)),
        _ => None,
    }
}
