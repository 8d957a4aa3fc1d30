//! Programs of several processes on the maps that are in the slots of one map file.

#![allow(clippy::unwrap_used)]

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};

use bpfarray::attr::{MapAttr, MapType};
use bpfarray::{Directory, HandleMode, Kind, Map, Object};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, jmp, pseudo, size};
use bpfarray_vm::{Context, ProgType, Program};

/// A directory in which each map is a file that is named after its id.
struct Files {
    path: PathBuf,
    this: Weak<Self>,
}

impl Files {
    fn new(path: &Path) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { path: path.to_owned(), this: this.clone() })
    }

    fn directory(&self) -> Arc<dyn Directory> {
        self.this.upgrade().unwrap()
    }

    fn create(&self, id: u32, attr: &MapAttr, inner: Option<&Map>) -> Map {
        let path = self.path.join(id.to_string());
        let inner = inner.map(|inner| inner.to_ref());
        Map::create_in(&self.directory(), path, id, attr, &[], inner.as_ref()).unwrap()
    }

    fn open(&self, id: u64) -> Option<Map> {
        let path = self.path.join(id.to_string());
        Map::open_in(&self.directory(), path, HandleMode::ReadWrite).ok()
    }
}

impl Directory for Files {
    fn object(&self, _: Kind, id: u64) -> Option<Object> {
        self.open(id).map(|map| Object::Map(map.to_ref()))
    }

    fn opened(&self, _: BorrowedFd<'_>) {}

    fn closing(&self, _: BorrowedFd<'_>) {}
}

/// Adds 1 to element 1 of the map in slot 1, and says whether there was one. Between reading and writing, without an
/// atomic instruction, is most of the time it takes.
fn counter(outer: &Map) -> Program {
    let lookup = Insn::call(helper_id::MAP_LOOKUP_ELEM);
    let mut insns = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0).to_vec();
    insns.extend([
        Insn::st_mem(size::W, Reg::R10, -4, 1),
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -4),
        lookup,
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 12),
        Insn::mov64_reg(Reg::R1, Reg::R0),
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -4),
        lookup,
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 7),
        Insn::ldx_mem(size::DW, Reg::R1, Reg::R0, 0),
        Insn::mov64_imm(Reg::R3, 1000),
        Insn::alu64_imm(alu::SUB, Reg::R3, 1),
        Insn::jmp_imm(jmp::JNE, Reg::R3, 0, -2),
        Insn::alu64_imm(alu::ADD, Reg::R1, 1),
        Insn::stx_mem(size::DW, Reg::R0, Reg::R1, 0),
        Insn::mov64_imm(Reg::R0, 1),
        Insn::exit(),
    ]);
    Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(outer)).unwrap()
}

fn run(program: &Program) -> u32 {
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    program.run(&mut context).unwrap().retval()
}

const ROUNDS: u64 = 50_000;
const PLACE: &str = "BPFARRAY_TEST_PLACE";

/// The other process: counts, and in the end takes the map out of its slot. Does nothing when it runs as a test.
#[test]
fn another_process() {
    let Some(path) = std::env::var_os(PLACE) else { return };
    let files = Files::new(Path::new(&path));
    let outer = files.open(2).unwrap();
    let program = counter(&outer);
    (0..ROUNDS).for_each(|_| assert_eq!(run(&program), 1));
    outer.delete_elem(1).unwrap();
    assert_eq!(run(&program), 0);
}

/// Keeps this thread, and processes it starts, on one CPU, where they interrupt each other.
fn stay_on_one_cpu() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let mut only = rustix::thread::CpuSet::new();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    only.set(cpu);
    rustix::thread::sched_setaffinity(None, &only).unwrap();
}

#[test]
fn programs_of_two_processes_lose_no_count_in_a_per_cpu_map_that_one_put_into_a_slot() {
    let path = std::env::temp_dir().join(format!("bpfarray-shared-slots-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    stay_on_one_cpu();
    let files = Files::new(&path);
    let attr = MapAttr { key_size: 4, value_size: 8, max_entries: 3, ..MapAttr::default() };
    let inner = files.create(1, &MapAttr { map_type: MapType::PERCPU_ARRAY, ..attr }, None);
    let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, value_size: 4, ..attr };
    let outer = files.create(2, &outer, Some(&inner));
    let program = counter(&outer);
    assert_eq!(run(&program), 0, "the slot is empty");
    outer.update_object(1, &Object::Map(inner.to_ref()), 0).unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process", "--nocapture"])
        .env(PLACE, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Until the other one has emptied the slot, or given up.
    let mut counted = 0;
    while run(&program) == 1 {
        counted += 1;
        if counted % 1024 == 0 && other.try_wait().unwrap().is_some() {
            break;
        }
    }
    assert!(other.wait().unwrap().success());
    let mut values = vec![0; inner.user_size() as usize];
    inner.lookup_elem(1, &mut values, 0).unwrap();
    let sum: u64 = values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).sum();
    assert!(counted > 0);
    assert_eq!(sum, counted + ROUNDS);
    std::fs::remove_dir_all(path).unwrap();
}
