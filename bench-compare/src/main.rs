//! The loops of the benchmark of engines in a rival, rbpf, next to ours and to the live kernel.
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
use oracle::measure::{Rounds, line};
use oracle::race::Race;

type Error = Box<dyn std::error::Error>;

const ENTRIES: usize = 1000;
static ELEMENTS: [AtomicU64; ENTRIES] = [const { AtomicU64::new(0) }; ENTRIES];

/// Helper 1 for rbpf: the address of an element, or 0.
fn lookup(_map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: the programs below pass the address of a key on their stack.
    let key = unsafe { *(key as *const u32) };
    ELEMENTS.get(key as usize).map_or(0, |element| element.as_ptr() as u64)
}

/// Helper 2 for rbpf: replaces an element.
fn update(_map: u64, key: u64, value: u64, _flags: u64, _: u64) -> u64 {
    // SAFETY: the programs below pass addresses of a key and a value on their stack.
    let (key, value) = unsafe { (*(key as *const u32), *(value as *const u64)) };
    match ELEMENTS.get(key as usize) {
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
    for name in ["lookup_and_read", "read_modify_write", "atomic_add", "update_elem"] {
        let mut race =
            Race::new(Engine::default(), kernel.as_ref().ok().copied(), &object, name, &packet)?;
        let spec = object.program(name).ok_or("no such program")?;
        let program = bytes(&spec.code()?.insns);
        let mut rival = Rival::new(&program);
        let each = ENTRIES as f64;
        let [ours, theirs] = rounds.compare([&mut |n| drop(race.run(n)), &mut |n| {
            if let Ok(rival) = &mut rival {
                rival.run(n);
            }
        }]);
        line(&format!("{name}, an element"), ours / each, "", 1.0, "");
        match &rival {
            Ok(_) => line("", theirs / each, "slower: rbpf's JIT", theirs / ours, ""),
            Err(why) => println!("{:<44} rbpf: {why}", ""),
        }
        if let Some((_, ns)) = race.run_in_kernel(10_000)? {
            let ns = f64::from(ns);
            line("", ns / each, "slower: the kernel's JIT", ns / ours, "");
        }
    }
    Ok(())
}
