//! The JIT against the interpreter: the same result or the same fault, and the same memory behind it.

use bpfarray::Map;
use bpfarray::attr::{MapFlags, MapType};
use bpfarray_core::disasm::Disasm;
use bpfarray_core::helper_id;

use crate::context::Context;
use crate::engine::Engine;
use crate::fault::Fault;
use crate::interp::tests::hostile::{Rng, program};
use crate::interp::tests::{Case, map};
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

/// Runs a case in an engine, on maps and a context that are as in the beginning.
fn trace(case: &mut Case, engine: Engine, packet: &[u8], ctx_in: Option<&[u8]>) -> Trace {
    for map in &case.maps {
        for index in 0..map.max_entries() {
            let value: Vec<u8> = (0..map.user_size()).map(|at| (at % 251) as u8).collect();
            map.update_elem(index, &value, 0).unwrap();
        }
    }
    case.context.reset(packet, ctx_in).unwrap();
    case.engine = engine;
    let result = case.run();
    Trace {
        result,
        packet: case.context.packet(),
        ctx: case.context.ctx_out(),
        values: case.maps.iter().map(values).collect(),
    }
}

#[test]
fn random_programs_do_the_same_in_both_engines() {
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
            let interp = trace(&mut case, Engine::Interp, packet, ctx_in);
            let jit = trace(&mut case, Engine::Jit, packet, ctx_in);
            let listing = || {
                let lines = Disasm::new(&case.insns).map(|line| format!("{}: {line}", line.index));
                lines.collect::<Vec<_>>().join("\n")
            };
            assert_eq!(interp, jit, "{prog_type} {round}:\n{}", listing());
            finished += u64::from(jit.result.is_ok());
        }
    }
    assert!(finished > PROGRAMS / 20, "{finished} finished");
}
