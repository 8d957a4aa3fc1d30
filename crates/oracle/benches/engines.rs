//! Loops over 1,000 elements in each engine, in the live kernel, and in Rust.
//!
//! `cargo bench -p oracle --bench engines` prints one table; `-- --quick` a rough one.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bpfarray_vm::elf::Object;
use bpfarray_vm::{Engine, LoadOptions};
use oracle::Kernel;
use oracle::measure::{Rounds, line};
use oracle::race::{self, Race};

type Error = Box<dyn std::error::Error>;

/// Elements in one run of a program.
const ELEMENTS: u64 = 1000;

/// What one run of a program does, in Rust. The values are atomics, as others may access them at any time.
struct Rust {
    values: Vec<AtomicU64>,
    seed: u64,
}

impl Rust {
    fn over(&self, each: impl Fn(&AtomicU64, u64)) {
        let seed = black_box(self.seed);
        for i in 0..ELEMENTS {
            let key = i ^ seed;
            if let Some(value) = black_box(&self.values[..]).get(key as usize) {
                each(value, i);
            }
        }
    }
}

/// A program, what it does for each element, the same in Rust, and how much slower it may be at most.
type Loop = (&'static str, &'static str, fn(&Rust), f64);

fn add(value: &AtomicU64, n: u64) {
    value.store(value.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

const LOOPS: [Loop; 6] = [
    (
        "lookup_and_read",
        "look up and read",
        |rust| {
            let seed = black_box(rust.seed);
            let mut sum = 0_u64;
            for i in 0..ELEMENTS {
                if let Some(value) = rust.values.get((i ^ seed) as usize) {
                    sum = sum.wrapping_add(value.load(Ordering::Relaxed));
                }
            }
            black_box(sum);
        },
        1.5,
    ),
    ("read_modify_write", "read, modify, write", |rust| rust.over(add), 1.5),
    (
        "atomic_add",
        "add atomically",
        |rust| {
            rust.over(|value, n| {
                value.fetch_add(n, Ordering::SeqCst);
            });
        },
        1.5,
    ),
    ("percpu_add", "add to the CPU's value", |rust| rust.over(add), 1.5),
    (
        "update_elem",
        "update with the helper",
        |rust| rust.over(|value, n| value.store(n, Ordering::Relaxed)),
        f64::INFINITY,
    ),
    (
        "constant_key",
        "count with a constant key",
        |rust| {
            for _ in 0..ELEMENTS {
                add(black_box(&rust.values[0]), 1);
            }
        },
        1.5,
    ),
];

fn main() -> Result<(), Error> {
    let rounds = Rounds::from_args();
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    let kernel = kernel.ok();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/engines.bpf.o");
    let object = Object::parse(&std::fs::read(path)?)?;
    let packet = [0; 64];
    let rust = Rust { values: (0..ELEMENTS).map(AtomicU64::new).collect(), seed: 0 };
    println!("for each element, in {} on this machine:", Engine::default());
    for (program, what, in_rust, at_most) in LOOPS {
        let mut jit = Race::new(Engine::default(), kernel, &object, program, &packet)?;
        let mut interp = Race::new(Engine::Interp, None, &object, program, &packet)?;
        if (jit.run(1)?, interp.run(1)?) != (2, 2) {
            return Err(format!("{program} does not return 2").into());
        }
        let [jit_ns, interp_ns, rust_ns] =
            rounds.compare([&mut |n| drop(jit.run(n)), &mut |n| drop(interp.run(n)), &mut |n| {
                (0..n).for_each(|_| in_rust(&rust))
            }]);
        let mut kernel_ns = f64::NAN;
        for _ in 0..rounds.count() {
            let times = rounds.time().as_nanos() as u32 / 4000;
            let Some((_, ns)) = jit.run_in_kernel(times)? else { break };
            kernel_ns = kernel_ns.min(ns.into());
        }
        let each = |ns: f64| ns / ELEMENTS as f64;
        let verdict = |ok: bool| if ok { "met" } else { "MISSED" };
        line(
            what,
            each(jit_ns),
            "the time in Rust",
            jit_ns / rust_ns,
            &match at_most {
                f64::INFINITY => String::new(),
                _ => format!("(at most {at_most}: {})", verdict(jit_ns <= at_most * rust_ns)),
            },
        );
        let faster = kernel_ns / jit_ns;
        let target = format!("(above 1: {})", verdict(faster > 1.0));
        line("  in the kernel's JIT", each(kernel_ns), "our time", faster, &target);
        line("  in the interpreter", each(interp_ns), "our time", interp_ns / jit_ns, "");
        line("  in Rust", each(rust_ns), "our time", rust_ns / jit_ns, "");
    }
    let mut nothing = Race::new(Engine::default(), None, &object, "nothing", &packet)?;
    let mut slow = Race::new(Engine::Interp, None, &object, "nothing", &packet)?;
    let [jit_ns, interp_ns] =
        rounds.compare([&mut |n| drop(nothing.run(n)), &mut |n| drop(slow.run(n))]);
    println!("for each run:");
    line(
        "enter and leave a program",
        jit_ns,
        "the time in the interpreter",
        jit_ns / interp_ns,
        "(at most 15 ns)",
    );
    // The kernel's verifier goes around the loop as often as the program would.
    let other = |name: &str| -> Result<Object, Error> {
        let path = format!("../../testdata/progs/{name}.bpf.o");
        Ok(Object::parse(&std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)?)
    };
    for (object, program, label) in [
        (&object, "nothing", "load 2 instructions"),
        (&other("legacy_maps")?, "count", "load a counter of 15 instructions"),
        (&other("network")?, "balance", "load a balancer of 129 instructions"),
        (&object, "read_modify_write", "load 22 instructions with a loop of 1,000"),
    ] {
        load_time(object, (program, label), kernel, &rounds)?;
    }
    Ok(())
}

/// How long it takes until a program is ready to run, and until it has its machine code, which its first run makes.
fn load_time(
    object: &Object,
    (name, label): (&str, &str),
    kernel: Option<Kernel>,
    rounds: &Rounds,
) -> Result<(), Error> {
    let [mut ready, mut compiled, mut theirs] = [f64::INFINITY; 3];
    for _ in 0..rounds.count() * 4 {
        let loaded = object.clone().load(&LoadOptions::default())?;
        let start = Instant::now();
        let program = loaded.program(name)?;
        ready = ready.min(start.elapsed().as_nanos() as f64);
        program.engine();
        compiled = compiled.min(start.elapsed().as_nanos() as f64);
        if let Some(kernel) = kernel {
            theirs = theirs.min(race::load_time(kernel, object, name)?.as_nanos() as f64);
        }
    }
    let than = "the time in the kernel";
    line(label, ready, than, ready / theirs, "(at most 1)");
    line("  and its machine code", compiled, than, compiled / theirs, "(at most 1)");
    Ok(())
}
