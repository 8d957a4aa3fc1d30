//! The loops of the benchmark of engines in a rival, rbpf, next to ours, to the live kernel and to Rust.
//!
//! rbpf has no maps: a program that calls a lookup calls a function of the host, which checks the key and gives the address
//! of an element, as fast as that can be. **Invariant:** programs here touch nothing but their context, their stack and
//! elements, which the benchmark's source shows; rbpf's JIT would not check. `cargo run --release` prints one table; `-- --quick` a rough one.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, pseudo};
use bpfarray_vm::Engine;
use bpfarray_vm::elf::Object;
use oracle::Kernel;
use oracle::loops::{ELEMENTS, LOOPS, Rust};
use oracle::measure::{Rounds, line};
use oracle::race::Race;

type Error = Box<dyn std::error::Error>;

static VALUES: [AtomicU64; ELEMENTS as usize] = [const { AtomicU64::new(0) }; ELEMENTS as usize];

/// Helper 1 for rbpf: the address of an element, or 0.
fn lookup(_map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: the programs below pass the address of a key on their stack.
    let key = unsafe { *(key as *const u32) };
    VALUES.get(key as usize).map_or(0, |element| element.as_ptr() as u64)
}

/// Helper 2 for rbpf: replaces an element.
fn update(_map: u64, key: u64, value: u64, _flags: u64, _: u64) -> u64 {
    // SAFETY: the programs below pass addresses of a key and a value on their stack.
    let (key, value) = unsafe { (*(key as *const u32), *(value as *const u64)) };
    match VALUES.get(key as usize) {
        Some(element) => {
            element.store(value, Ordering::Relaxed);
            0
        }
        None => -7_i64 as u64,
    }
}

/// The program as rbpf takes it: maps are numbers.
fn bytes(insns: &[Insn]) -> Vec<u8> {
    let plain = |insn: &Insn| match insn.src.index() as u8 {
        pseudo::MAP_IDX if insn.is_ld_imm64() => Insn { src: Reg::R0, ..*insn },
        _ => *insn,
    };
    insns.iter().flat_map(|insn| plain(insn).encode()).collect()
}

/// A program in rbpf's JIT.
struct Rival<'a> {
    vm: rbpf::EbpfVmRaw<'a>,
    /// `struct xdp_md`, whose packet pointers these programs don't use.
    context: [u8; 24],
}

impl<'a> Rival<'a> {
    fn new(program: &'a [u8]) -> Result<Self, std::io::Error> {
        let mut vm = rbpf::EbpfVmRaw::new(Some(program))?;
        vm.register_helper(helper_id::MAP_LOOKUP_ELEM, lookup)?;
        vm.register_helper(helper_id::MAP_UPDATE_ELEM, update)?;
        vm.jit_compile()?;
        Ok(Self { vm, context: [0; 24] })
    }

    fn run(&mut self, times: u64) {
        for _ in 0..times {
            // SAFETY: the programs access their context, their stack and elements, and nothing else.
            let done = unsafe { self.vm.execute_program_jit(&mut self.context) };
            assert_eq!(std::hint::black_box(done).ok(), Some(XDP_PASS));
        }
    }
}

/// What every program returns.
const XDP_PASS: u64 = 2;

fn main() -> Result<(), Error> {
    let rounds = Rounds::from_args();
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/oracle/benches/engines.bpf.o");
    let object = Object::parse(&std::fs::read(path)?)?;
    let packet = [0; 64];
    let rust = Rust::default();
    // Those whose map it can be told to be something else.
    let known = ["lookup_and_read", "read_modify_write", "atomic_add", "update_elem"];
    for each in LOOPS.iter().filter(|each| known.contains(&each.program)) {
        let race = |engine, kernel| Race::new(engine, kernel, &object, each.program, &packet);
        let mut jit = race(Engine::default(), kernel.as_ref().ok().copied())?;
        let mut interp = race(Engine::Interp, None)?;
        let spec = object.program(each.program).ok_or("no such program")?;
        let program = bytes(&spec.code()?.insns);
        let mut rival = Rival::new(&program);
        let [ours, slow, theirs, in_rust] = rounds.compare([
            &mut |n| drop(jit.run(n)),
            &mut |n| drop(interp.run(n)),
            &mut |n| {
                if let Ok(rival) = &mut rival {
                    rival.run(n);
                }
            },
            &mut |n| (0..n).for_each(|_| (each.in_rust)(&rust)),
        ]);
        let one = |ns: f64| ns / ELEMENTS as f64;
        line(&format!("{}, an element", each.what), one(ours), "", 1.0, "");
        match &rival {
            Ok(_) => line("", one(theirs), "slower: rbpf's JIT", theirs / ours, ""),
            Err(why) => println!("{:<44} rbpf: {why}", ""),
        }
        if let Some((_, ns)) = jit.run_in_kernel(10_000)? {
            let ns = f64::from(ns);
            line("", one(ns), "slower: the kernel's JIT", ns / ours, "");
        }
        line("", one(slow), "slower: our interpreter", slow / ours, "");
        line("", one(in_rust), "of our time: Rust", in_rust / ours, "");
    }
    Ok(())
}
