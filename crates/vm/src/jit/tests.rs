//! Machine code against the interpreter: the same result or the same fault, and the same memory behind it.

use bpfarray::Map;
use bpfarray::attr::{MapFlags, MapType};
use bpfarray_core::disasm::Disasm;
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, alu, jmp, size};

use crate::context::Context;
use crate::fault::Fault;
use crate::interp::Executable;
use crate::interp::tests::hostile::{Rng, program};
use crate::interp::tests::{Case, Form, R0, R1, R2, R6, R7, map};
use crate::prog_type::ProgType;

const PROGRAMS: u64 = 6_000;

/// Helpers whose results are not the same twice.
const UNSTEADY: [u32; 7] = [
    helper_id::KTIME_GET_NS,
    helper_id::KTIME_GET_BOOT_NS,
    helper_id::KTIME_GET_COARSE_NS,
    helper_id::KTIME_GET_TAI_NS,
    helper_id::JIFFIES64,
    helper_id::GET_PRANDOM_U32,
    helper_id::GET_SMP_PROCESSOR_ID,
];

/// What a run gives, and what it leaves behind.
#[derive(PartialEq, Debug)]
struct Trace {
    result: Result<u64, Fault>,
    packet: Vec<u8>,
    ctx: Vec<u8>,
    values: Vec<Vec<u8>>,
}

fn values(map: &Map) -> Vec<u8> {
    let mut all = Vec::new();
    for index in 0..map.max_entries() {
        let mut value = vec![0; map.user_size() as usize];
        map.lookup_elem(index, &mut value, 0).unwrap();
        all.extend(value);
    }
    all
}

/// Runs a case in a form, on maps and a context that are as in the beginning.
fn trace(case: &mut Case, form: Form, packet: &[u8], ctx_in: Option<&[u8]>) -> Trace {
    case.form = form;
    let executable = case.executable();
    trace_as(case, executable, packet, ctx_in)
}

/// As [`trace`], with what was made of the case before.
fn trace_as(
    case: &mut Case,
    executable: Executable,
    packet: &[u8],
    ctx_in: Option<&[u8]>,
) -> Trace {
    for map in &case.maps {
        for index in 0..map.max_entries() {
            let value: Vec<u8> = (0..map.user_size()).map(|at| (at % 251) as u8).collect();
            map.update_elem(index, &value, 0).unwrap();
        }
    }
    case.context.reset(packet, ctx_in).unwrap();
    let result = case.run_as(executable);
    Trace {
        result,
        packet: case.context.packet(),
        ctx: case.context.ctx_out(),
        values: case.maps.iter().map(values).collect(),
    }
}

#[test]
fn random_programs_do_the_same_in_every_form() {
    let seed = std::env::var("BPFARRAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let array = map(MapType::ARRAY, 12, 5, MapFlags::empty());
    let wide = map(MapType::ARRAY, 64, 8, MapFlags::empty());
    let percpu = map(MapType::PERCPU_ARRAY, 8, 3, MapFlags::empty());
    let maps = [&array, &wide, &percpu];
    let mut finished = 0;
    for prog_type in
        [ProgType::XDP, ProgType::SCHED_CLS, ProgType::SOCKET_FILTER, ProgType::SYSCALL]
    {
        let has_packet = prog_type != ProgType::SYSCALL;
        let packet = if has_packet { &[7; 90][..] } else { &[] };
        let ctx_in = (!has_packet).then_some(&[0; 64][..]);
        let context = Context::new(prog_type, packet, ctx_in).unwrap();
        let mut case = Case::with_context(&[], context).maps(&maps);
        case.helpers.set_trace(|_| {});
        for helper in UNSTEADY {
            case.helpers.register(helper, "steady", move |_, _| Ok(u64::from(helper) << 30));
        }
        case.fuel = 1000;
        for round in 0..PROGRAMS / 4 {
            let mut rng = Rng(seed.unwrap_or(round * 4 + u64::from(prog_type.0)));
            case.insns = program(&mut rng, &maps);
            let interp = trace(&mut case, Form::Interp, packet, ctx_in);
            let quick = trace(&mut case, Form::Quick, packet, ctx_in);
            let best = trace(&mut case, Form::Best, packet, ctx_in);
            let listing = || {
                let lines = Disasm::new(&case.insns).map(|line| format!("{}: {line}", line.index));
                lines.collect::<Vec<_>>().join("\n")
            };
            assert_eq!(interp, quick, "{prog_type} {round}, made at once:\n{}", listing());
            assert_eq!(interp, best, "{prog_type} {round}:\n{}", listing());
            finished += u64::from(best.result.is_ok());
        }
    }
    assert!(finished > PROGRAMS / 20, "{finished} finished");
}

/// Loops go around some number of times: once plainly, with two ways back, with a way out in the middle, and in another loop that
/// goes on from the middle of the inner one.
fn loops(value: u64, rounds: i32) -> [Vec<Insn>; 4] {
    let [lo, hi] = Insn::ld_imm64(R1, R0, value);
    let count = [
        lo,
        hi,
        Insn::ldx_mem(size::DW, R2, R1, 0),
        Insn::alu64_imm(alu::ADD, R2, 1),
        Insn::stx_mem(size::DW, R1, R2, 0),
    ];
    let begin = [Insn::mov64_imm(R6, 0), Insn::mov64_imm(R7, rounds)];
    let end = [Insn::mov64_reg(R0, R6), Insn::exit()];
    let plain = [
        Insn::alu64_imm(alu::ADD, R6, 1),
        Insn::alu64_imm(alu::SUB, R7, 1),
        Insn::jmp_imm(jmp::JNE, R7, 0, -8),
    ];
    let odd = [
        Insn::alu64_imm(alu::SUB, R7, 1),
        Insn::jmp_imm(jmp::JEQ, R7, 0, 4),
        Insn::alu64_imm(alu::ADD, R6, 3),
        Insn::jmp_imm(jmp::JSET, R6, 1, -9),
        Insn::alu64_imm(alu::ADD, R6, 2),
        Insn::ja(-11),
    ];
    let middle = [
        Insn::alu64_imm(alu::ADD, R6, 1),
        Insn::jmp_imm(jmp::JSET, R6, 4, 4),
        Insn::ja(1),
        Insn::ja(-9),
        Insn::alu64_imm(alu::SUB, R7, 1),
        Insn::jmp_imm(jmp::JNE, R7, 0, -3),
    ];
    // From behind `count`, which is the outer loop's.
    let inner = [
        Insn::alu64_imm(alu::ADD, R6, 1),
        Insn::alu64_imm(alu::SUB, R7, 1),
        Insn::jmp_imm(jmp::JEQ, R7, 0, 2),
        Insn::jmp_imm(jmp::JSET, R6, 4, -9),
        Insn::ja(-5),
    ];
    [&plain[..], &odd, &middle, &inner].map(|rest| [&begin[..], &count, rest, &end].concat())
}

#[test]
fn loops_end_at_the_same_instruction_whatever_fuel_there_is() {
    let array = map(MapType::ARRAY, 8, 1, MapFlags::empty());
    let maps = [&array];
    let value = array.addr() + u64::from(bpfarray::VALUE_OFFSET);
    let context = Context::new(ProgType::SYSCALL, &[], Some(&[0; 16])).unwrap();
    let mut case = Case::with_context(&[], context).maps(&maps);
    let mut finished = 0;
    for rounds in [1, 2, 3, 4, 5, 9, 40] {
        for insns in loops(value, rounds) {
            case.insns = insns;
            let made = [Form::Interp, Form::Quick, Form::Best].map(|form| {
                case.form = form;
                case.executable()
            });
            for fuel in 0..450 {
                let [interp, quick, best] = made.each_ref().map(|made| {
                    let environment = made.environment.clone().with_fuel(fuel);
                    let executable = Executable { environment, ..made.clone() };
                    trace_as(&mut case, executable, &[], Some(&[0; 16]))
                });
                assert_eq!(interp, quick, "{rounds} rounds, {fuel} of fuel, made at once");
                assert_eq!(interp, best, "{rounds} rounds, {fuel} of fuel");
                finished += u64::from(best.result.is_ok());
            }
        }
    }
    assert!((4000..12000).contains(&finished), "{finished}");
}

#[test]
fn what_others_write_in_the_middle_of_a_loop_is_seen() {
    let array = map(MapType::ARRAY, 8, 1, MapFlags::empty());
    let value = array.addr() + u64::from(bpfarray::VALUE_OFFSET);
    let [lo, hi] = Insn::ld_imm64(R1, R0, value);
    // Until two loads in a row differ.
    let mut case = Case::new(&[
        lo,
        hi,
        Insn::ldx_mem(size::DW, R0, R1, 0),
        Insn::ldx_mem(size::DW, R2, R1, 0),
        Insn::new(jmp::JEQ | 0x0d, R0, R2, -3, 0),
        Insn::mov64_imm(R0, 1),
        Insn::exit(),
    ]);
    case.form = Form::Best;
    case.fuel = 3_000_000_000;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                array.update_elem(0, &number.to_ne_bytes(), 0).unwrap();
            }
        });
        let result = case.maps(&[&array]).run();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(result, Ok(1));
    });
}
