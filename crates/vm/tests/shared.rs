//! Programs in two processes, on the same per-CPU values of a map file.

#![allow(clippy::unwrap_used, reason = "tests, and what they share, fail by panicking")]

use std::process::Command;
use std::sync::Barrier;

use bpfarray::attr::{MapAttr, MapType};
use bpfarray::{HandleMode, Lane, Map, PercpuArray, possible_cpus};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, jmp, pseudo, size};
use bpfarray_vm::{Context, ProgType, Program};

const PATH: &str = "BPFARRAY_TEST_PATH";
const RUNS: u64 = 100_000;

/// Adds one to the first value of its CPU, without an atomic instruction.
fn counter(map: &Map) -> Program {
    let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
    let insns = [
        Insn::st_mem(size::W, Reg::R10, -4, 0),
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -4),
        lo,
        hi,
        Insn::call(helper_id::MAP_LOOKUP_ELEM),
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 3),
        Insn::ldx_mem(size::DW, Reg::R3, Reg::R0, 0),
        Insn::alu64_imm(alu::ADD, Reg::R3, 1),
        Insn::stx_mem(size::DW, Reg::R0, Reg::R3, 0),
        Insn::mov64_imm(Reg::R0, 0),
        Insn::exit(),
    ];
    Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(map)).unwrap()
}

/// Runs the program in lane 0, whatever the CPU: the other lanes are taken by other threads.
fn count(map: &Map) {
    let program = counter(map);
    let entered = Barrier::new(possible_cpus() as usize);
    let done = Barrier::new(possible_cpus() as usize);
    std::thread::scope(|scope| {
        for _ in 0..possible_cpus() {
            scope.spawn(|| {
                let lane = Lane::enter();
                entered.wait();
                if lane.cpu() == 0 {
                    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
                    for _ in 0..RUNS {
                        program.run(&mut context).unwrap();
                    }
                }
                done.wait();
            });
        }
    });
}

#[test]
#[ignore = "started by the other test, in a process of its own"]
fn child() {
    let path = std::env::var(PATH).unwrap();
    count(&Map::open_file(path, HandleMode::ReadWrite).unwrap());
}

#[test]
fn programs_in_two_processes_lose_no_update_of_a_cpus_value() {
    let path = std::env::temp_dir().join(format!("bpfarray-vm-{}.map", std::process::id()));
    let sizes = MapAttr { key_size: 4, value_size: 8, max_entries: 1, ..MapAttr::default() };
    let attr = MapAttr { map_type: MapType::PERCPU_ARRAY, ..sizes };
    let map = Map::create_file(&path, &attr).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child"])
        .env(PATH, &path)
        .spawn()
        .unwrap();
    count(&map);
    let status = child.wait().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(status.success());
    let counts = PercpuArray::<u64>::from_map(map).unwrap();
    assert_eq!(counts.get(0, 0), Some(2 * RUNS));
}
