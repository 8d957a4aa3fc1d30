//! Programs run through an engine: control flow here, the rest by topic.

mod arithmetic;
pub(crate) mod hostile;
mod memory;

use std::sync::Arc;

use bpfarray::Map;
use bpfarray::attr::{MapAttr, MapFlags, MapType};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};

use super::{Code, Environment, Executable, run};
use crate::context::Context;
use crate::fault::{Fault, FaultKind, HelperError};
use crate::helper::HelperSet;
use crate::jit;
use crate::prog_type::ProgType;

pub(crate) const R0: Reg = Reg::R0;
pub(crate) const R1: Reg = Reg::R1;
pub(crate) const R2: Reg = Reg::R2;
pub(crate) const R3: Reg = Reg::R3;
pub(crate) const R4: Reg = Reg::R4;
pub(crate) const R6: Reg = Reg::R6;
pub(crate) const R7: Reg = Reg::R7;
pub(crate) const R10: Reg = Reg::R10;

/// What runs programs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Interp,
    /// Machine code that is made at once.
    Quick,
    /// The best machine code.
    Best,
}

/// What runs the programs of this module, which is there once for each form.
pub(crate) fn form() -> Form {
    match module_path!() {
        path if path.contains("quick_tests") => Form::Quick,
        path if path.contains("jit_tests") => Form::Best,
        _ => Form::Interp,
    }
}

/// A program and what it runs with, for tests.
pub(crate) struct Case {
    pub(crate) insns: Vec<Insn>,
    pub(crate) maps: Vec<Map>,
    pub(crate) helpers: HelperSet,
    pub(crate) context: Context,
    pub(crate) fuel: u64,
    pub(crate) form: Form,
}

impl Case {
    pub(crate) fn new(insns: &[Insn]) -> Self {
        Self::with_context(insns, Context::new(ProgType::SYSCALL, &[], Some(&[0; 16])).unwrap())
    }

    pub(crate) fn with_context(insns: &[Insn], context: Context) -> Self {
        let (maps, helpers) = (Vec::new(), HelperSet::linux());
        let form = form();
        Self { insns: insns.to_vec(), maps, helpers, context, fuel: 1_000_000, form }
    }

    pub(crate) fn maps(mut self, maps: &[&Map]) -> Self {
        self.maps = maps.iter().map(|map| (*map).clone()).collect();
        self
    }

    pub(crate) fn run(&mut self) -> Result<u64, Fault> {
        let executable = self.executable();
        self.run_as(executable)
    }

    /// Runs what [`Case::executable`] made.
    pub(crate) fn run_as(&mut self, executable: Executable) -> Result<u64, Fault> {
        run(&Arc::new(executable), &mut self.context).map_err(|fault| *fault)
    }

    pub(crate) fn executable(&self) -> Executable {
        let helpers = Arc::new(self.helpers.clone());
        let environment =
            Environment::new("", &self.maps.iter().map(Map::to_ref).collect::<Vec<_>>(), &helpers)
                .with_fuel(self.fuel);
        let code = Code::new(&self.insns);
        let compile = match self.form {
            Form::Interp => return Executable { code, compiled: None, environment },
            // Registers that no program has, and other processors, are left to the other one.
            Form::Quick if can_be_quick(&self.insns) => jit::compile_quick,
            Form::Quick | Form::Best => jit::compile,
        };
        let compiled = compile(&self.insns, &code, &environment, &|_| false);
        let compiled = Some(Arc::new(compiled.expect("every program can be compiled")));
        Executable { code, compiled, environment }
    }
}

fn can_be_quick(insns: &[Insn]) -> bool {
    let named = |insn: &Insn| insn.dst.index().max(insn.src.index()) <= 11;
    cfg!(target_arch = "x86_64") && insns.iter().all(named)
}

pub(crate) fn run_insns(insns: &[Insn]) -> Result<u64, Fault> {
    Case::new(insns).run()
}

pub(crate) fn fault(insns: &[Insn]) -> String {
    run_insns(insns).unwrap_err().to_string()
}

pub(crate) fn map(map_type: MapType, value_size: u32, max_entries: u32, flags: MapFlags) -> Map {
    let attr = MapAttr {
        map_type,
        key_size: 4,
        value_size,
        max_entries,
        map_flags: flags,
        ..MapAttr::default()
    };
    Map::create(&attr).unwrap()
}

pub(crate) fn call_function(distance: i32) -> Insn {
    Insn::new(class::JMP | jmp::CALL, R0, Reg::new(pseudo::CALL), 0, distance)
}

pub(crate) fn function_addr(dst: Reg, distance: i32) -> [Insn; 2] {
    Insn::ld_imm64(dst, Reg::new(pseudo::FUNC), u64::from(distance as u32))
}

#[test]
fn a_call_keeps_the_callers_registers_and_passes_its_arguments() {
    let result = run_insns(&[
        Insn::mov64_imm(R6, 100),
        Insn::mov64_imm(R1, 5),
        call_function(2),
        Insn::alu64_reg(alu::ADD, R0, R6),
        Insn::exit(),
        Insn::mov64_imm(R6, 7),
        Insn::mov64_reg(R0, R1),
        Insn::alu64_imm(alu::MUL, R0, 3),
        Insn::exit(),
    ]);
    assert_eq!(result, Ok(115));
}

/// No kernel would take such a program, but both engines say the same of it.
#[test]
fn a_callee_that_reads_above_its_frame_finds_its_callers_and_nothing_older() {
    let fill = [(R10, -8), (R10, -512), (R10, -256)];
    let fill = fill.map(|(base, off)| Insn::st_mem(size::DW, base, off, 0x5555));
    let dirty = [&fill[..], &[call_function(1), Insn::exit()], &fill[..], &[Insn::exit()]];
    assert!(run_insns(&dirty.concat()).is_ok());
    for (off, expected) in [(504, 40), (256, 0), (0, 0)] {
        let result = run_insns(&[
            Insn::st_mem(size::DW, R10, -8, 40),
            call_function(3),
            Insn::ldx_mem(size::DW, R1, R10, -8),
            Insn::alu64_reg(alu::ADD, R0, R1),
            Insn::exit(),
            Insn::ldx_mem(size::DW, R0, R10, off),
            Insn::exit(),
        ]);
        assert_eq!(result, Ok(40 + expected), "{off}");
    }
    let [lo, hi] = function_addr(R2, 6);
    let result = run_insns(&[
        Insn::mov64_imm(R1, 2),
        lo,
        hi,
        Insn::mov64_imm(R3, 0),
        Insn::mov64_imm(R4, 0),
        Insn::call(helper_id::LOOP),
        Insn::exit(),
        // Ends the loop if there is something.
        Insn::ldx_mem(size::DW, R0, R10, 0),
        Insn::alu64_imm(alu::AND, R0, 1),
        Insn::exit(),
    ]);
    assert_eq!(result, Ok(2));
}

/// No kernel would take such a program either.
#[test]
fn a_callee_that_is_led_into_its_own_frame_finds_zeroes_there() {
    let fill: Vec<_> =
        (1..=64).map(|slot| Insn::st_mem(size::DW, R10, -8 * slot, 0x5555)).collect();
    // Functions that call others have their frames in memory.
    let caller = [&fill[..], &[call_function(1), Insn::exit()]].concat();
    let fill = [&caller[..], &caller[..], &[Insn::mov64_imm(R0, 0), Insn::exit()]].concat();
    for off in [-520, -1024, -96] {
        assert_eq!(run_insns(&fill), Ok(0));
        let result = run_insns(&[
            Insn::mov64_reg(R1, R10),
            Insn::alu64_imm(alu::ADD, R1, off),
            call_function(1),
            Insn::exit(),
            Insn::ldx_mem(size::DW, R0, R1, 0),
            Insn::exit(),
        ]);
        assert_eq!(result, Ok(0), "{off}");
        // The same by way of a helper, which reads its key there.
        let array = map(MapType::ARRAY, 8, 1, MapFlags::empty());
        let [lo, hi] = Insn::ld_imm64(R1, R0, array.to_ref().addr());
        let mut case = Case::new(&[
            Insn::mov64_reg(R1, R10),
            Insn::alu64_imm(alu::ADD, R1, off),
            call_function(1),
            Insn::exit(),
            Insn::mov64_reg(R2, R1),
            lo,
            hi,
            Insn::call(helper_id::MAP_LOOKUP_ELEM),
            Insn::jmp_imm(jmp::JEQ, R0, 0, 1),
            Insn::mov64_imm(R0, 1),
            Insn::exit(),
        ]);
        assert_eq!(run_insns(&fill), Ok(0));
        case = case.maps(&[&array]);
        assert_eq!(case.run(), Ok(1), "{off}");
    }
}

#[test]
fn a_callee_has_a_stack_of_its_own_and_may_use_its_callers() {
    let result = run_insns(&[
        Insn::st_mem(size::DW, R10, -8, 40),
        Insn::mov64_reg(R1, R10),
        call_function(3),
        Insn::ldx_mem(size::DW, R1, R10, -8),
        Insn::alu64_reg(alu::ADD, R0, R1),
        Insn::exit(),
        Insn::ldx_mem(size::DW, R0, R10, -8),
        Insn::st_mem(size::DW, R10, -8, 9),
        Insn::ldx_mem(size::DW, R2, R1, -8),
        Insn::alu64_imm(alu::ADD, R2, 2),
        Insn::stx_mem(size::DW, R1, R2, -8),
        Insn::exit(),
    ]);
    assert_eq!(result, Ok(42));
}

#[test]
fn eight_frames_are_all_there_are() {
    let chain = |calls: usize| {
        let mut insns = Vec::new();
        for _ in 0..calls {
            insns.extend([call_function(1), Insn::exit()]);
        }
        insns.extend([Insn::mov64_imm(R0, 3), Insn::exit()]);
        run_insns(&insns)
    };
    assert_eq!(chain(7), Ok(3));
    assert_eq!(chain(8), Err(Fault { program: None, insn: 14, kind: FaultKind::CallDepth }));
    let endless = Err(Fault { program: None, insn: 0, kind: FaultKind::CallDepth });
    assert_eq!(run_insns(&[call_function(-1)]), endless);
}

#[test]
fn callbacks_count_as_frames() {
    // bpf_loop whose callback is the program itself.
    let [lo, hi] = function_addr(R2, -2);
    let result = run_insns(&[
        Insn::mov64_imm(R1, 1),
        lo,
        hi,
        Insn::mov64_imm(R3, 0),
        Insn::mov64_imm(R4, 0),
        Insn::call(helper_id::LOOP),
        Insn::exit(),
    ]);
    let mut fault = result.unwrap_err();
    let mut nested = 0;
    while let FaultKind::Helper { error: HelperError::Callback(inner), .. } = fault.kind {
        nested += 1;
        fault = *inner;
    }
    assert_eq!((nested, fault.kind), (8, FaultKind::CallDepth));
}

#[test]
fn an_endless_loop_runs_out_of_fuel() {
    let mut case = Case::new(&[Insn::mov64_imm(R0, 0), Insn::ja(-1)]);
    case.fuel = 1000;
    assert_eq!(case.run(), Err(Fault { program: None, insn: 1, kind: FaultKind::OutOfFuel }));
}

#[test]
fn fuel_is_spent_as_instructions_are() {
    let count = 1000;
    let cost = |insns: &[Insn]| {
        let mut case = Case::new(insns);
        (0..100_000).find(|fuel| {
            case.fuel = *fuel;
            case.run().is_ok()
        })
    };
    let mut insns = vec![
        Insn::mov64_imm(R1, count),
        Insn::alu64_imm(alu::SUB, R1, 1),
        Insn::jmp_imm(jmp::JNE, R1, 0, -2),
        Insn::exit(),
    ];
    // 999 jumps back over 2 instructions, then 4 instructions up to the return.
    assert_eq!(cost(&insns), Some(2002));
    // A callback is charged for each of its calls.
    let [lo, hi] = function_addr(R2, 5);
    insns = vec![
        Insn::mov64_imm(R1, count),
        lo,
        hi,
        Insn::mov64_imm(R3, 0),
        Insn::mov64_imm(R4, 0),
        Insn::call(helper_id::LOOP),
        Insn::exit(),
        Insn::mov64_imm(R0, 0),
        Insn::exit(),
    ];
    assert_eq!(cost(&insns), Some(2000 + 7));
}

#[test]
fn may_goto_leaves_its_loop_after_eight_million_rounds() {
    let mut case = Case::new(&[
        Insn::mov64_imm(R0, 0),
        Insn::alu64_imm(alu::ADD, R0, 1),
        Insn::new(class::JMP | jmp::JCOND, R0, R0, 1, 0),
        Insn::ja(-3),
        Insn::exit(),
    ]);
    case.fuel = u64::MAX;
    assert_eq!(case.run(), Ok((1 << 23) + 1));
}

#[test]
fn long_jumps_count_in_their_immediate() {
    let ja = |distance| Insn::new(class::JMP32 | jmp::JA, R0, R0, 0, distance);
    let mut insns = vec![Insn::mov64_imm(R0, 1), ja(40_000)];
    insns.resize(40_002, Insn::mov64_imm(R0, 2));
    insns.push(Insn::exit());
    assert_eq!(run_insns(&insns), Ok(1));
}

#[test]
fn control_that_leaves_the_program_faults() {
    assert_eq!(fault(&[]), "instruction 0: control left the program");
    assert_eq!(fault(&[Insn::mov64_imm(R0, 0)]), "instruction 1: control left the program");
    assert_eq!(fault(&[Insn::ja(i16::MIN)]), "instruction 1: control left the program");
    let [lo, hi] = Insn::ld_imm64(R0, R0, 1);
    assert_eq!(fault(&[Insn::ja(1), lo, hi]), "instruction 2: unknown opcode 0x00");
}

#[test]
fn an_address_of_a_function_is_no_memory() {
    let [lo, hi] = function_addr(R1, -1);
    let text = fault(&[lo, hi, Insn::ldx_mem(size::B, R0, R1, 0)]);
    assert!(text.contains("1-byte read") && text.contains("touches no memory"), "{text}");
}

#[test]
fn registers_start_as_zero() {
    for reg in (0..=9).filter(|reg| *reg != 1) {
        let insns = [Insn::mov64_reg(R0, Reg::new(reg)), Insn::exit()];
        assert_eq!(run_insns(&insns), Ok(0), "r{reg}");
    }
}
