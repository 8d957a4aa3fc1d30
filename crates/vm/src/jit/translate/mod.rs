//! From BPF instructions to Cranelift's.
//!
//! A BPF register is a variable, and so is a place of a frame that only loads and stores of one kind reach.
//! The frontend makes SSA of them.

mod alu;
mod call;
mod frame;
mod jump;
mod memory;
mod unroll;

use std::collections::BTreeMap;

use bpfarray_core::insn::class;
use cranelift_codegen::ir::{Block, Function, InstBuilder, MemFlagsData, SigRef, Value, types};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};

use self::frame::Frame;
use super::analysis::{Access, Analysis, Fact, R0, R10, Subject, analyse};
use super::loops::{self, Loop};
use super::trampoline::{self, Reason};
use super::{Accesses, Literals, isa};
use crate::interp::{MAX_LOOPS, Op, OpCode, Stack, place};

/// Memory that is there and that others may write at the same time.
const SHARED: MemFlagsData = MemFlagsData::new().with_notrap();
/// A field of the machine.
const FIELD: MemFlagsData = MemFlagsData::trusted();
/// A field of the machine that never changes.
const FIXED: MemFlagsData = MemFlagsData::trusted().with_readonly().with_can_move();

/// Translates a function. Says how its accesses are made, and has the numbers that the code loads from where they are.
pub(super) fn function(
    subject: &Subject<'_>,
    function: &mut Function,
    context: &mut FunctionBuilderContext,
) -> (Accesses, Literals) {
    let analysis = analyse(subject);
    let mut accesses = Accesses::default();
    for (_, fact) in analysis.reached() {
        match fact.access {
            Access::None => {}
            Access::Frame(_) | Access::Proven => accesses.proven += 1,
            Access::Near(_) | Access::Packet | Access::Anywhere => accesses.guarded += 1,
        }
    }
    function.signature = isa::tail_signature();
    let mut builder = FunctionBuilder::new(function, context);
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let params = builder.block_params(entry).to_vec();
    let regs = [(); 16].map(|()| builder.declare_var(types::I64));
    let zero = builder.ins().iconst(types::I64, 0);
    for (at, var) in regs.iter().enumerate() {
        let value = if (1..=5).contains(&at) { params[at] } else { zero };
        builder.def_var(*var, value);
    }
    let (fuel, loops) = (builder.declare_var(types::I64), builder.declare_var(types::I64));
    let mut translation = Translation {
        subject,
        unrolled: loops::find(subject, &analysis),
        blocks: BTreeMap::new(),
        gates: BTreeMap::new(),
        copy: None,
        leader: 0,
        literals: Literals::default(),
        loaded: Vec::new(),
        fail: builder.create_block(),
        machine: params[0],
        regs,
        fuel,
        loops,
        frame: Frame::new(&analysis, &mut builder),
        trampolines: BTreeMap::new(),
        analysis: &analysis,
        builder,
    };
    translation.run();
    let Translation { mut builder, literals, .. } = translation;
    builder.seal_all_blocks();
    if let Some(isa) = isa::host() {
        builder.finalize(isa.frontend_config());
    }
    (accesses, literals)
}

struct Translation<'a, 'f> {
    subject: &'a Subject<'a>,
    analysis: &'a Analysis,
    builder: FunctionBuilder<'f>,
    /// Loops by their first instruction.
    unrolled: BTreeMap<usize, Loop>,
    /// Blocks by the copy of a loop that they belong to, counted from 1, and their first instruction. Copy 0 is the function itself.
    blocks: BTreeMap<(usize, usize), Block>,
    /// Where loops that are unrolled are entered, by their first instruction.
    gates: BTreeMap<usize, Block>,
    /// The copy that is being translated, and the first instruction of its loop; `None` in the function itself.
    copy: Option<(usize, usize)>,
    /// First instruction of the block that is being translated.
    leader: usize,
    /// Numbers of unrolled loops, in order, and what they were loaded into.
    literals: Literals,
    loaded: Vec<Value>,
    /// Returns after the machine was stopped.
    fail: Block,
    machine: Value,
    regs: [Variable; 16],
    /// What is left; in the machine while other code runs.
    fuel: Variable,
    /// How often `may_goto` stays in its loop.
    loops: Variable,
    frame: Frame,
    /// Signatures of functions in Rust, by the numbers of parameters and results.
    trampolines: BTreeMap<(usize, usize), SigRef>,
}

/// What follows an instruction.
#[derive(PartialEq)]
enum Then {
    /// The next one.
    Next,
    /// Whatever it has led to itself.
    Done,
}

impl Translation<'_, '_> {
    fn run(&mut self) {
        self.load_fuel();
        let loops = self.builder.ins().iconst(types::I64, i64::from(MAX_LOOPS));
        self.builder.def_var(self.loops, loops);
        self.enter_frame();
        self.load_literals();
        self.make_blocks();
        self.go_to(self.subject.entry);
        self.write_gates();
        let blocks: Vec<_> = self.blocks.iter().map(|(at, block)| (*at, *block)).collect();
        for ((copy, at), block) in blocks {
            self.begin(copy, at);
            self.builder.switch_to_block(block);
            self.block(at);
        }
        self.builder.switch_to_block(self.fail);
        let zero = self.builder.ins().iconst(types::I64, 0);
        let stopped = self.builder.ins().iconst(types::I64, 1);
        self.builder.ins().return_(&[zero, stopped]);
        self.builder.set_cold_block(self.fail);
    }

    /// Jumps to the block of an instruction.
    fn go_to(&mut self, at: usize) {
        match self.destination(at) {
            Some(block) => {
                self.builder.ins().jump(block, &[]);
            }
            // The analysis has found a block wherever control goes.
            None => {
                self.fault(at, Reason::PastEnd, 0);
            }
        }
    }

    fn block(&mut self, start: usize) {
        let mut at = start;
        loop {
            let (Some(op), Some(fact)) =
                (self.subject.ops.get(at).copied(), self.analysis.fact(at).copied())
            else {
                self.fault(at, Reason::PastEnd, 0);
                return;
            };
            if op.is_jump() {
                return self.jump(at, op, &fact);
            }
            if self.insn(at, op, &fact) == Then::Done {
                return;
            }
            if self.analysis.leaders.contains(&fact.next) {
                return self.leave(at, 0, fact.next);
            }
            at = fact.next;
        }
    }

    fn insn(&mut self, at: usize, op: Op, fact: &Fact) -> Then {
        if let Some(number) = fact.result.filter(|_| op.code != OpCode::TailCall) {
            let number = self.result(number);
            self.set(op.dst().index(), number);
            return Then::Next;
        }
        match op.code {
            OpCode::MovPercpu => {
                let base = self.field(place::PERCPU_BASE, FIXED);
                let offset = self.get(op.src().index());
                let addr = self.builder.ins().iadd(base, offset);
                self.set(op.dst().index(), addr);
            }
            OpCode::CallHelper => return self.call_helper(at, op.imm as u32),
            OpCode::CallFunction => self.call_function(at, op.target as usize),
            OpCode::TailCall => self.tail_call(at, fact.result),
            OpCode::Exit => {
                self.exit(at);
                return Then::Done;
            }
            OpCode::Illegal => return self.fault(at, Reason::Illegal, op.imm),
            OpCode::End => return self.fault(at, Reason::PastEnd, 0),
            _ => match self.subject.insns.get(at) {
                Some(insn) if matches!(insn.class(), class::ALU | class::ALU64) => {
                    self.alu(*insn, op);
                }
                Some(insn) => self.memory(at, *insn, op, fact.access),
                None => return self.fault(at, Reason::PastEnd, 0),
            },
        }
        Then::Next
    }

    fn get(&mut self, reg: usize) -> Value {
        self.builder.use_var(self.regs[reg])
    }

    fn set(&mut self, reg: usize, value: Value) {
        self.builder.def_var(self.regs[reg], value);
    }

    fn int(&mut self, number: u64) -> Value {
        self.builder.ins().iconst(types::I64, number as i64)
    }

    /// Loads a field of the machine.
    fn field(&mut self, offset: usize, flags: MemFlagsData) -> Value {
        self.builder.ins().load(types::I64, flags, self.machine, offset as i32)
    }

    fn set_field(&mut self, offset: usize, value: Value) {
        self.builder.ins().store(FIELD, value, self.machine, offset as i32);
    }

    /// Loads a number of the run's stack.
    fn stack_field(&mut self, offset: usize, flags: MemFlagsData) -> Value {
        let stack = self.field(place::STACK, FIXED);
        self.builder.ins().load(types::I64, flags, stack, offset as i32)
    }

    fn set_stack_field(&mut self, offset: usize, value: Value) {
        let stack = self.field(place::STACK, FIXED);
        self.builder.ins().store(FIELD, value, stack, offset as i32);
    }

    fn load_fuel(&mut self) {
        let fuel = self.field(place::FUEL, FIELD);
        self.builder.def_var(self.fuel, fuel);
    }

    fn store_fuel(&mut self) {
        let fuel = self.builder.use_var(self.fuel);
        self.set_field(place::FUEL, fuel);
    }

    /// Takes `amount` from the fuel, as instruction `at` does.
    fn burn(&mut self, at: usize, amount: u64) {
        let fuel = self.builder.use_var(self.fuel);
        let amount = self.int(amount);
        let less = ule(&mut self.builder, amount, fuel);
        let (enough, empty) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(less, enough, &[], empty, &[]);
        self.builder.switch_to_block(empty);
        self.builder.set_cold_block(empty);
        self.fault(at, Reason::OutOfFuel, 0);
        self.builder.switch_to_block(enough);
        let left = self.builder.ins().isub(fuel, amount);
        self.builder.def_var(self.fuel, left);
    }

    /// Calls a function in Rust, at an address that is a constant of this process.
    fn call_rust(&mut self, function: usize, args: &[Value], results: usize) -> Vec<Value> {
        let convention = isa::host().map_or(CallConv::SystemV, |isa| isa.default_call_conv());
        let builder = &mut self.builder;
        let signature = self.trampolines.entry((args.len(), results)).or_insert_with(|| {
            builder.import_signature(isa::signature(convention, args.len(), results))
        });
        let callee = builder.ins().iconst(isa::POINTER, function as i64);
        let call = builder.ins().call_indirect(*signature, callee, args);
        builder.inst_results(call).to_vec()
    }

    /// Stops the machine and returns.
    fn fault(&mut self, at: usize, reason: Reason, detail: u64) -> Then {
        let (at, reason) = (self.int(at as u64), self.int(reason as u64 | detail << 8));
        self.call_rust(trampoline::fault as *const () as usize, &[self.machine, at, reason], 0);
        self.builder.ins().jump(self.fail, &[]);
        Then::Done
    }

    /// Goes on in a new block if the machine was not stopped.
    fn unless_stopped(&mut self, status: Value) {
        let go_on = self.builder.create_block();
        self.builder.ins().brif(status, self.fail, &[], go_on, &[]);
        self.builder.switch_to_block(go_on);
    }

    fn exit(&mut self, at: usize) {
        self.burn(at, at.saturating_sub(self.subject.entry) as u64 + 1);
        self.store_fuel();
        let (r0, status) = (self.get(R0), self.int(0));
        self.builder.ins().return_(&[r0, status]);
    }

    /// The function's r10, whatever the register of that number holds.
    fn frame_top(&mut self) -> Value {
        let (base, low) =
            (self.stack_field(Stack::BASE, FIXED), self.stack_field(Stack::LOW, FIELD));
        let bottom = self.builder.ins().iadd(base, low);
        self.builder.ins().iadd_imm_u(bottom, crate::interp::FRAME_SIZE as i64)
    }
}

fn ule(builder: &mut FunctionBuilder<'_>, a: Value, b: Value) -> Value {
    use cranelift_codegen::ir::condcodes::IntCC;
    builder.ins().icmp(IntCC::UnsignedLessThanOrEqual, a, b)
}
