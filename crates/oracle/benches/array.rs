//! Arrays, lanes and the interpreter, side by side with the live kernel and with plain Rust.
//!
//! `cargo bench -p oracle --bench array` prints one table; `-- --quick` a rough one. Each figure is the
//! best of several rounds, taken in turns, so that all sides see the same machine.

#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot run has nothing better to do than stop"
)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use bpfarray::attr::{MapAttr, MapType};
use bpfarray::{Array, Lane, PercpuArray};
use bpfarray_core::insn::{Insn, Reg, alu, jmp};
use bpfarray_vm::{Context, Engine, LoadOptions, Object, ProgType, Program};
use oracle::measure::{Rounds, line};
use oracle::{Kernel, Map, MapCreate, Prog, ProgLoad, TestRun};

const ENTRIES: u32 = 1 << 20;

/// Indexes that neither side can guess, in a table small enough to stay in the cache.
fn indexes() -> Vec<u32> {
    let mut x = 0x9e37_79b9_u32;
    (0..1024)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x % 1000
        })
        .collect()
}

fn typed_get(rounds: &Rounds, kernel: Option<&Map>) {
    let array = Array::<u64>::new(1000).expect("array");
    let slice: Vec<AtomicU64> = (0..1000).map(AtomicU64::new).collect();
    // Pages that nobody wrote are all one page of zeroes, which caches treat in their own way.
    (0..1000).try_for_each(|i| array.set(i, u64::from(i))).expect("set");
    let indexes = indexes();
    let mut ours = |n: u64| {
        let array = black_box(&array);
        let mut sum = 0;
        for _ in 0..n.div_ceil(1024) {
            for &i in &indexes {
                sum += array.get(i).unwrap_or_default();
            }
        }
        black_box(sum);
    };
    let mut atomics = |n: u64| {
        let slice = black_box(&slice);
        let mut sum = 0;
        for _ in 0..n.div_ceil(1024) {
            for &i in &indexes {
                sum += slice.get(i as usize).map_or(0, |v| v.load(Ordering::Relaxed));
            }
        }
        black_box(sum);
    };
    let [get, index] = rounds.compare([&mut ours, &mut atomics]);
    line("Array<u64>::get", get, "of slice.get() of atomics", get / index, "(at most 1.1)");
    if let Some(map) = kernel {
        let mut syscall = |n: u64| {
            for i in 0..n {
                black_box(map.lookup(&((i % 1000) as u32).to_ne_bytes(), 0)).expect("lookup");
            }
        };
        let [get, lookup] = rounds.compare([&mut ours, &mut syscall]);
        line("", lookup, "slower: the kernel's bpf(2) lookup", lookup / get, "(at least 50)");
    }
}

fn add(rounds: &Rounds) {
    let array = Array::<u64>::new(1000).expect("array");
    let percpu = PercpuArray::<u64>::new(1000).expect("array");
    let sizes = MapAttr { key_size: 4, value_size: 8, max_entries: 1000, ..MapAttr::default() };
    let in_file = MapAttr { map_type: MapType::PERCPU_ARRAY, ..sizes };
    let in_file = bpfarray::Map::create_shared(&in_file).expect("shared map");
    let in_file = PercpuArray::<u64>::from_map(in_file).expect("array");
    let atomic = AtomicU64::new(0);
    let [shared, local, file, plain] = rounds.compare([
        &mut |n| (0..n).for_each(|_| array.fetch_add(black_box(7), 1).map(drop).expect("add")),
        &mut |n| (0..n).for_each(|_| percpu.add(black_box(7), 1).expect("add")),
        &mut |n| (0..n).for_each(|_| in_file.add(black_box(7), 1).expect("add")),
        &mut |n| {
            for _ in 0..n {
                black_box(&atomic).fetch_add(1, Ordering::Relaxed);
            }
        },
    ]);
    line("Array<u64>::fetch_add", shared, "of AtomicU64::fetch_add", shared / plain, "");
    line(
        "PercpuArray<u64>::add, with its lane",
        local,
        "of AtomicU64::fetch_add",
        local / plain,
        "",
    );
    line(
        "    in a map that processes share",
        file,
        "of PercpuArray<u64>::add",
        file / local,
        "(under 20 ns more)",
    );
}

fn create(rounds: &Rounds, kernel: bool) {
    let mut ours = |n: u64| {
        (0..n).for_each(|_| drop(black_box(Array::<u64>::new(ENTRIES).expect("array"))));
    };
    if !kernel {
        let [create] = rounds.compare([&mut ours]);
        line("create and drop 1 M entries", create, "(no live kernel to compare with)", 1.0, "");
        return;
    }
    let attr = MapCreate::array(2, 8, ENTRIES);
    let mut theirs = |n: u64| {
        (0..n).for_each(|_| drop(black_box(Map::create(&attr).expect("create"))));
    };
    let [create, syscall] = rounds.compare([&mut ours, &mut theirs]);
    line("create and drop 1 M entries", create, "", 1.0, "");
    line("", syscall, "slower: the kernel", syscall / create, "(at least 100)");
}

fn untouched_memory() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4
    };
    let before = resident();
    let maps: Vec<_> = (0..64).map(|_| Array::<u64>::new(ENTRIES).expect("array")).collect();
    let grown = resident().saturating_sub(before) as f64 / maps.len() as f64;
    println!(
        "{:<44} {:>9.1} KiB   of 8192 KiB of values",
        "resident memory of an untouched 1 M array", grown
    );
}

fn lane(rounds: &Rounds) {
    let [lane] = rounds.compare([&mut |n| (0..n).for_each(|_| drop(black_box(Lane::enter())))]);
    line("enter and leave a lane", lane, "", 1.0, "(under 20 ns)");
}

/// r0 = a loop of 8 instructions a turn, `turns` turns.
fn arithmetic(turns: i32) -> Vec<Insn> {
    let (r0, r1, r2) = (Reg::R0, Reg::R1, Reg::R2);
    vec![
        Insn::mov64_imm(r0, 1),
        Insn::mov64_imm(r1, turns),
        Insn::mov64_reg(r2, r0),
        Insn::alu64_imm(alu::LSH, r2, 3),
        Insn::alu64_reg(alu::XOR, r0, r2),
        Insn::alu64_imm(alu::ADD, r0, 77),
        Insn::alu64_reg(alu::MUL, r0, r2),
        Insn::alu64_imm(alu::RSH, r0, 1),
        Insn::alu64_imm(alu::SUB, r1, 1),
        Insn::jmp_imm(jmp::JNE, r1, 0, -8),
        Insn::exit(),
    ]
}

fn interpreter(rounds: &Rounds, kernel: bool) {
    const TURNS: i32 = 10_000;
    let insns = arithmetic(TURNS);
    let executed = f64::from(TURNS) * 8.0;
    let options = LoadOptions { engine: Engine::Interp, ..LoadOptions::default() };
    let program = Program::with_options(ProgType::SYSCALL, &insns, &[], &options);
    let program = program.expect("program");
    let mut context = Context::new(ProgType::SYSCALL, &[], None).expect("context");
    let mut ours = |n: u64| {
        for _ in 0..n {
            black_box(program.run(&mut context)).expect("run");
        }
    };
    let [run] = rounds.compare([&mut ours]);
    let rate = executed * 1e3 / run;
    println!(
        "{:<44} {rate:>8.0} M/s                 (at least 100)",
        "interpreter, instructions of a loop"
    );
    if kernel {
        let load = ProgLoad::new(ProgType::SOCKET_FILTER.0, &insns, &[]);
        let program = Prog::load(&load).expect("load");
        let test_run = TestRun { data_in: &[0; 14], repeat: 100, ..TestRun::default() };
        let jit = (0..rounds.count())
            .map(|_| f64::from(program.test_run(&test_run).expect("run").duration_ns))
            .fold(f64::INFINITY, f64::min);
        println!("{:<44} {:>8.0} M/s", "    the kernel's JIT", executed * 1e3 / jit);
    }
}

fn example(rounds: &Rounds) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/packet_count.bpf.o");
    let object = Object::parse(&std::fs::read(path).expect("object")).expect("parse");
    let loaded = object.load(&LoadOptions::default()).expect("load");
    let program = loaded.program("count_packets").expect("program");
    let mut packet = [0_u8; 64];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[23] = 17;
    let mut context = Context::new(ProgType::XDP, &packet, None).expect("context");
    let [each] = rounds.compare([&mut |n| {
        for _ in 0..n {
            context.reset(&packet, None).expect("packet");
            black_box(program.run(&mut context)).expect("run");
        }
    }]);
    line("examples/packet_count on a 64-byte packet", each, "", 1.0, "");
}

fn main() {
    let rounds = Rounds::from_args();
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    let live = kernel.is_ok();
    let map = live.then(|| Map::create(&MapCreate::array(2, 8, 1000)).expect("create"));
    typed_get(&rounds, map.as_ref());
    add(&rounds);
    create(&rounds, live);
    untouched_memory();
    lane(&rounds);
    interpreter(&rounds, live);
    example(&rounds);
}
