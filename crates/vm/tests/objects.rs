//! Programs and maps in the slots of maps.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray::{Errno, Map, Object};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};
use bpfarray_vm::{Context, Engine, LoadOptions, ProgType, Program, ProgramError};

const ATTR: MapAttr = MapAttr {
    map_type: MapType::PROG_ARRAY,
    key_size: 4,
    value_size: 4,
    max_entries: 4,
    map_flags: bpfarray::attr::MapFlags::empty(),
    numa_node: 0,
    map_name: [0; 16],
    map_ifindex: 0,
    btf_key_type_id: 0,
    btf_value_type_id: 0,
    btf_vmlinux_value_type_id: 0,
    map_extra: 0,
    excl_prog_hash: None,
};

fn load(insns: &[Insn], maps: &[Map]) -> Program {
    Program::from_insns(ProgType::SYSCALL, insns, maps).unwrap()
}

fn run(program: &Program) -> u32 {
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    program.run(&mut context).unwrap().retval()
}

fn put(map: &Map, index: u32, program: &Program) {
    map.update_object(index, &Object::Program(Arc::new(program.clone())), 0).unwrap();
}

/// Jumps through map 0 to the program in slot `index`; r1 must be the context.
fn tail_call(index: i32) -> Vec<Insn> {
    let mut insns = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 0).to_vec();
    insns.extend([Insn::mov64_imm(Reg::R3, index), Insn::call(helper_id::TAIL_CALL)]);
    insns
}

fn returning(value: i32) -> Vec<Insn> {
    vec![Insn::mov64_imm(Reg::R0, value), Insn::exit()]
}

#[test]
fn a_tail_call_does_not_return_and_a_missed_one_goes_on() {
    let jumps = Map::create(&ATTR).unwrap();
    let caller = load(&[tail_call(1), returning(7)].concat(), std::slice::from_ref(&jumps));
    assert_eq!(run(&caller), 7);
    put(&jumps, 1, &load(&returning(42), &[]));
    assert_eq!(run(&caller), 42);
    jumps.delete_elem(1).unwrap();
    assert_eq!(run(&caller), 7);
    let outside = load(&[tail_call(4), returning(8)].concat(), std::slice::from_ref(&jumps));
    assert_eq!(run(&outside), 8);
}

#[test]
fn a_program_that_calls_itself_runs_34_times() {
    let jumps = Map::create(&ATTR).unwrap();
    let counter = MapAttr { map_type: MapType::ARRAY, max_entries: 1, ..ATTR };
    let counter = Map::create(&counter).unwrap();
    let value = Insn::ld_imm64(Reg::R4, Reg::new(pseudo::MAP_IDX_VALUE), 1);
    let count = [Insn::mov64_imm(Reg::R5, 1), Insn::atomic(size::W, 0, Reg::R4, Reg::R5, 0)];
    let insns = [value.to_vec(), count.to_vec(), tail_call(0), returning(0)].concat();
    let program = load(&insns, &[jumps.clone(), counter.clone()]);
    put(&jumps, 0, &program);
    run(&program);
    let mut runs = [0; 4];
    counter.lookup_elem(0, &mut runs, 0).unwrap();
    assert_eq!(u32::from_ne_bytes(runs), 34);
}

#[test]
fn a_tail_call_from_a_function_returns_to_the_functions_caller() {
    let jumps = Map::create(&ATTR).unwrap();
    put(&jumps, 2, &load(&returning(40), &[]));
    let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 4);
    let main = [
        Insn::mov64_imm(Reg::R6, 2),
        call,
        Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R6),
        Insn::ja(0),
        Insn::ja(0),
        Insn::exit(),
    ];
    let insns = [main.to_vec(), tail_call(2), returning(1)].concat();
    assert_eq!(run(&load(&insns, &[jumps])), 42);
}

#[test]
fn a_map_of_programs_takes_only_programs_like_its_first() {
    let jumps = Map::create(&ATTR).unwrap();
    let caller = [tail_call(0), returning(0)].concat();
    let maps = std::slice::from_ref(&jumps);
    let _owner = load(&caller, maps);
    let xdp = Program::from_insns(ProgType::XDP, &returning(0), &[]).unwrap();
    let error = jumps.update_object(0, &Object::Program(Arc::new(xdp)), 0).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let other = Program::from_insns(ProgType::XDP, &caller, maps).unwrap_err();
    assert!(matches!(other, ProgramError::Owner { .. }), "{other}");
}

#[test]
fn programs_leave_the_slots_with_the_last_handle() {
    let jumps = Map::create(&ATTR).unwrap();
    put(&jumps, 0, &load(&returning(42), &[]));
    let caller = [tail_call(0), returning(7)].concat();
    let caller = load(&caller, std::slice::from_ref(&jumps));
    assert_eq!(run(&caller), 42);
    drop(jumps);
    assert_eq!(run(&caller), 7);
}

#[test]
fn a_fault_behind_a_tail_call_names_the_other_program() {
    let jumps = Map::create(&ATTR).unwrap();
    let null = [Insn::mov64_imm(Reg::R2, 0), Insn::ldx_mem(size::DW, Reg::R0, Reg::R2, 0)];
    put(&jumps, 0, &load(&[null.to_vec(), returning(0)].concat(), &[]));
    let insns = [tail_call(0), returning(0)].concat();
    let caller = load(&insns, std::slice::from_ref(&jumps));
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    let fault = caller.run(&mut context).unwrap_err();
    assert_eq!((fault.program.is_some(), fault.insn), (true, 1));
}

#[test]
fn programs_count_in_whatever_map_is_in_the_slot() {
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        let attr = MapAttr { map_type, value_size: 8, max_entries: 3, ..ATTR };
        let inner = [(); 2].map(|()| Map::create(&attr).unwrap());
        let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, max_entries: 2, ..ATTR };
        let outer = Map::create_with(&outer, &Creator::default(), Some(&inner[0])).unwrap();
        let lookup = Insn::call(helper_id::MAP_LOOKUP_ELEM);
        let mut insns = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0).to_vec();
        insns.extend([
            Insn::st_mem(size::W, Reg::R10, -4, 1),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, -4),
            lookup,
            Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 9),
            Insn::mov64_reg(Reg::R1, Reg::R0),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, -4),
            lookup,
            Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 4),
            Insn::ldx_mem(size::DW, Reg::R1, Reg::R0, 0),
            Insn::alu64_imm(alu::ADD, Reg::R1, 1),
            Insn::stx_mem(size::DW, Reg::R0, Reg::R1, 0),
            Insn::mov64_imm(Reg::R0, 1),
            Insn::exit(),
        ]);
        let program = load(&insns, std::slice::from_ref(&outer));
        assert_eq!(run(&program), 0, "the slot is empty");
        for (map, times) in inner.iter().zip([1, 2]) {
            outer.update_object(1, &Object::Map(map.to_ref()), 0).unwrap();
            (0..times).for_each(|_| assert_eq!(run(&program), 1));
        }
        for (map, times) in inner.iter().zip([1, 2]) {
            let mut values = vec![0; map.user_size() as usize];
            map.lookup_elem(1, &mut values, 0).unwrap();
            assert_eq!(values.iter().map(|byte| u64::from(*byte)).sum::<u64>(), times);
        }
    }
}

#[test]
fn an_inner_map_that_was_never_in_a_slot_is_out_of_reach() {
    let attr = MapAttr { map_type: MapType::ARRAY, value_size: 8, max_entries: 3, ..ATTR };
    let (inner, other) = (Map::create(&attr).unwrap(), Map::create(&attr).unwrap());
    let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, max_entries: 2, ..ATTR };
    let outer = Map::create_with(&outer, &Creator::default(), Some(&inner)).unwrap();
    outer.update_object(0, &Object::Map(inner.to_ref()), 0).unwrap();
    let peek = |map: &Map| {
        let mut insns = Insn::ld_imm64(Reg::R1, Reg::R0, map.addr() + 4096).to_vec();
        insns.extend([Insn::ldx_mem(size::DW, Reg::R0, Reg::R1, 0), Insn::exit()]);
        let program = load(&insns, std::slice::from_ref(&outer));
        let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
        program.run(&mut context).is_ok()
    };
    assert_eq!((peek(&inner), peek(&other)), (true, false));
}

#[test]
fn a_program_is_not_run_with_the_context_of_another_type() {
    let program = load(&returning(1), &[]);
    let mut context = Context::new(ProgType::XDP, &[0; 64], None).unwrap();
    let fault = program.run(&mut context).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "instruction 0: a program of type syscall was given the context of another type"
    );
}

/// As in the kernel, per-CPU maps of any length fit a template, by whose length lookups are inlined.
#[test]
fn a_lookup_past_the_end_of_a_shorter_inner_map_ends_the_run() {
    const PERCPU: MapAttr = MapAttr { map_type: MapType::PERCPU_ARRAY, value_size: 8, ..ATTR };
    let template = Map::create(&MapAttr { max_entries: 5000, ..PERCPU }).unwrap();
    let short = Map::create(&PERCPU).unwrap();
    let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, max_entries: 1, ..ATTR };
    let outer = Map::create_with(&outer, &Creator::default(), Some(&template)).unwrap();
    outer.update_object(0, &Object::Map(short.to_ref()), 0).unwrap();
    let look_up = |key| {
        vec![
            Insn::st_mem(size::W, Reg::R10, -4, key),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, -4),
            Insn::call(helper_id::MAP_LOOKUP_ELEM),
        ]
    };
    let is_null = |distance| vec![Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, distance)];
    for engine in [Engine::Interp, Engine::Jit].into_iter().filter(|engine| engine.is_available()) {
        let options = LoadOptions { engine, ..LoadOptions::default() };
        let run = |key| {
            let insns = [
                Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0).to_vec(),
                look_up(0),
                is_null(7),
                vec![Insn::mov64_reg(Reg::R1, Reg::R0)],
                look_up(key),
                is_null(1),
                vec![Insn::ldx_mem(size::DW, Reg::R0, Reg::R0, 0)],
                vec![Insn::exit()],
            ]
            .concat();
            let maps = std::slice::from_ref(&outer);
            let program = Program::with_options(ProgType::SYSCALL, &insns, maps, &options);
            let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
            program.unwrap().run(&mut context).map(|outcome| outcome.r0)
        };
        assert_eq!(run(3), Ok(0));
        assert_eq!(run(5000), Ok(0), "past the template's end there is nothing");
        for key in [4, 600, 4999] {
            let fault = run(key).unwrap_err().to_string();
            assert!(fault.contains("8-byte read"), "{engine}: {fault}");
        }
    }
}

#[test]
fn an_exclusive_map_is_for_the_program_with_its_hash() {
    let array = MapAttr { map_type: MapType::ARRAY, ..ATTR };
    let value = |returned| {
        let load = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
        [load.to_vec(), returning(returned)].concat()
    };
    let hash = load(&value(1), &[Map::create(&array).unwrap()]).hash();
    let exclusive = Map::create(&MapAttr { excl_prog_hash: Some(hash), ..array }).unwrap();
    let try_load = |insns: &[Insn]| {
        Program::from_insns(ProgType::SYSCALL, insns, std::slice::from_ref(&exclusive))
    };
    assert_eq!(run(&try_load(&value(1)).unwrap()), 1);
    let error = try_load(&value(2)).unwrap_err();
    assert!(matches!(error, ProgramError::Exclusive { .. }), "{error}");
    assert_eq!(error.errno(), Errno::EACCES);
    assert!(try_load(&returning(2)).is_ok(), "it does not refer to the map");
}
