//! Loops over 1,000 elements in each engine, in the live kernel, and in Rust; and what it takes to enter and to load a program.
//!
//! `cargo bench -p oracle --bench engines` prints one table; `-- --quick` a rough one.

use std::path::Path;
use std::time::{Duration, Instant};

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, jmp, size};
use bpfarray_vm::elf::Object;
use bpfarray_vm::{Engine, LoadOptions, ProgType, Program};
use oracle::Kernel;
use oracle::loops::{ELEMENTS, LOOPS, Loop, Rust};
use oracle::measure::{Rounds, line};
use oracle::programs::Assembled;
use oracle::race::{self, Race};

type Error = Box<dyn std::error::Error>;

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
    let rust = Rust::default();
    println!("for each element, in {} on this machine:", Engine::default());
    for Loop { program, what, in_rust, at_most } in LOOPS {
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
        &format!("(at most 15 ns: {})", if jit_ns <= 15.0 { "met" } else { "MISSED" }),
    );
    // The kernel's verifier goes around the loop as often as the program would.
    let other = |name: &str| -> Result<Object, Error> {
        let path = format!("../../testdata/progs/{name}.bpf.o");
        Ok(Object::parse(&std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)?)
    };
    for (object, name, label) in [
        (&object, "nothing", "load 2 instructions"),
        (&other("legacy_maps")?, "count", "load a counter of 15 instructions"),
        (&other("network")?, "balance", "load a balancer of 129 instructions"),
        (&object, "read_modify_write", "load 22 instructions with a loop of 1,000"),
    ] {
        let load = || -> Result<_, Error> {
            let loaded = object.clone().load(&LoadOptions::default())?;
            let start = Instant::now();
            Ok((loaded.program(name)?, start))
        };
        load_time(
            label,
            f64::INFINITY,
            rounds.count() * 4,
            &load,
            &|kernel| race::load_time(kernel, object, name),
            kernel,
        )?;
    }
    for (len, branches, label) in [
        (4_096, true, "load 4,096 instructions with branches"),
        (100_000, true, "load 100,000 instructions with branches"),
        (100_000, false, "load 100,000 instructions without"),
    ] {
        let program = Assembled { packet: packet.to_vec(), ..long_program(len, branches) };
        let load = || -> Result<_, Error> {
            let start = Instant::now();
            let options = LoadOptions::default();
            Ok((Program::with_options(program.prog_type, &program.insns, &[], &options)?, start))
        };
        load_time(label, 1e9, 3, &load, &|kernel| race::load_time_of(kernel, &program), kernel)?;
    }
    Ok(())
}

/// A program of so many instructions that shifts a number, adds and stores, and branches by each bit or not at all.
fn long_program(len: usize, branches: bool) -> Assembled {
    let mut insns = vec![Insn::call(helper_id::GET_PRANDOM_U32), Insn::mov64_imm(Reg::R6, 0)];
    while insns.len() < len - 3 {
        let n = insns.len() as i32;
        insns.push(Insn::alu64_imm(alu::RSH, Reg::R0, 1));
        if branches {
            insns.push(Insn::jmp_imm(jmp::JSET, Reg::R0, 1, 1));
        }
        insns.push(Insn::alu64_imm(alu::ADD, Reg::R6, n));
        insns.push(Insn::stx_mem(size::DW, Reg::R10, Reg::R6, -8 * (1 + (n % 60) as i16)));
    }
    insns.extend([Insn::mov64_imm(Reg::R0, 2), Insn::exit()]);
    let (prog_type, maps) = (ProgType::XDP, Vec::new());
    Assembled { prog_type, insns, maps, inner: None, packet: Vec::new() }
}

/// How long it takes until a program is ready to run, machine code included; and how long its best code takes then.
fn load_time(
    label: &str,
    at_most: f64,
    rounds: u32,
    load: &dyn Fn() -> Result<(Program, Instant), Error>,
    load_in_kernel: &dyn Fn(Kernel) -> Result<Duration, String>,
    kernel: Option<Kernel>,
) -> Result<(), Error> {
    let [mut ready, mut best, mut theirs] = [f64::INFINITY; 3];
    for _ in 0..rounds {
        let (program, start) = load()?;
        program.engine();
        ready = ready.min(start.elapsed().as_nanos() as f64);
        let start = Instant::now();
        program.optimise();
        best = best.min(start.elapsed().as_nanos() as f64);
        if let Some(kernel) = kernel {
            theirs = theirs.min(load_in_kernel(kernel)?.as_nanos() as f64);
        }
    }
    let verdict = |ok: bool| if ok { "met" } else { "MISSED" };
    let target = match at_most {
        f64::INFINITY => format!("(at most 1: {})", verdict(ready <= theirs)),
        _ => format!("(under 1 s: {})", verdict(ready < at_most)),
    };
    let than = "the time in the kernel";
    line(label, ready, than, ready / theirs, &target);
    line("  its best code, later", best, than, best / theirs, "");
    Ok(())
}
