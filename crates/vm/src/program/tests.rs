//! When machine code is made, and what it is made of.

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray_core::insn::{Reg, alu, class, jmp, mode, size};

use super::*;

fn program(maps: &[Map]) -> Program {
    let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
    let insns = [lo, hi, Insn::mov64_imm(Reg::R0, 7), Insn::exit()];
    Program::from_insns(ProgType::SYSCALL, &insns, maps).unwrap()
}

fn map(map_type: MapType) -> Map {
    let attr =
        MapAttr { map_type, key_size: 4, value_size: 4, max_entries: 1, ..MapAttr::default() };
    Map::create_with(&attr, &Creator::default(), None).unwrap()
}

#[test]
fn code_is_made_for_the_first_run_and_kept_by_all_handles() {
    let program = program(&[map(MapType::ARRAY)]);
    let renamed = program.clone().with_id(99);
    assert!(program.0.first.get().is_none());
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    assert_eq!(program.run(&mut context).unwrap().retval(), 7);
    let made = program.0.first.get().map(Arc::as_ptr).unwrap();
    assert_eq!(program.clone().run(&mut context).unwrap().retval(), 7);
    assert_eq!(program.0.first.get().map(Arc::as_ptr), Some(made));
    assert_eq!(renamed.run(&mut context).unwrap().retval(), 7);
}

#[test]
fn code_is_made_at_once_for_tail_calls() {
    let map = map(MapType::PROG_ARRAY);
    let program = program(std::slice::from_ref(&map));
    assert!(program.0.first.get().is_some());
    assert_eq!(map.owner().map(|owner| owner.jited), Some(program.engine() == Engine::Jit));
    let target =
        Program::from_insns(ProgType::SYSCALL, &[Insn::mov64_imm(Reg::R0, 0), Insn::exit()], &[])
            .unwrap();
    map.update_object(0, &bpfarray::Object::Program(Arc::new(target.clone())), 0).unwrap();
    assert!(target.0.first.get().is_some());
}

/// Counts down from a number, and does nothing else.
fn loop_of(rounds: i32) -> Program {
    let insns = [
        Insn::mov64_imm(Reg::R0, rounds),
        Insn::alu64_imm(alu::SUB, Reg::R0, 1),
        Insn::jmp_imm(jmp::JNE, Reg::R0, 0, -2),
        Insn::exit(),
    ];
    Program::from_insns(ProgType::SYSCALL, &insns, &[]).unwrap()
}

/// How many runs it takes until a program has its best code.
#[cfg(all(feature = "jit", target_arch = "x86_64"))]
fn runs_until_best(program: &Program) -> u32 {
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    for runs in 0..1_000_000 {
        if program.0.best.get().is_some() {
            return runs;
        }
        program.run(&mut context).unwrap();
    }
    panic!("it never gets better");
}

#[cfg(all(feature = "jit", target_arch = "x86_64"))]
#[test]
fn code_gets_better_after_as_many_instructions_as_are_worth_it() {
    let plain = program(&[map(MapType::ARRAY)]);
    let (first, handle) = (plain.jited().unwrap().to_vec(), plain.clone());
    let runs = runs_until_best(&plain);
    assert!((3000..6000).contains(&runs), "{runs}");
    assert!(handle.0.best.get().is_some(), "a handle to the same program");
    assert_eq!(plain.jited(), Some(&first[..]), "what it had first is still there");
    assert_ne!(plain.optimise(), Some(&first[..]));
    let runs = runs_until_best(&loop_of(10_000));
    assert!(runs < 5, "{runs} runs of a long loop");
}

#[cfg(all(feature = "jit", target_arch = "x86_64"))]
#[test]
fn code_of_tail_called_programs_gets_better_too() {
    let map = map(MapType::PROG_ARRAY);
    let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 0);
    let insns = [
        lo,
        hi,
        Insn::mov64_imm(Reg::R3, 0),
        Insn::call(bpfarray_core::helper_id::TAIL_CALL),
        Insn::mov64_imm(Reg::R0, 1),
        Insn::exit(),
    ];
    let caller =
        Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(&map)).unwrap();
    let target = loop_of(1000);
    map.update_object(0, &bpfarray::Object::Program(Arc::new(target.clone())), 0).unwrap();
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    // The slot has a handle of its own to the same program.
    for _ in 0..100 {
        assert_eq!(caller.run(&mut context).unwrap().r0, 0);
    }
    assert!(target.0.best.get().is_some());
    assert!(caller.0.best.get().is_none());
    // Best code goes to first code, and back.
    caller.optimise().unwrap();
    assert_eq!(caller.run(&mut context).unwrap().r0, 0);
    let fresh = loop_of(3);
    map.update_object(0, &bpfarray::Object::Program(Arc::new(fresh.clone())), 0).unwrap();
    assert_eq!(caller.run(&mut context).unwrap().r0, 0);
    assert!(fresh.0.first.get().is_some() && fresh.0.best.get().is_none());
}

#[cfg(all(feature = "jit", target_arch = "x86_64"))]
#[test]
fn one_of_two_threads_makes_better_code_and_both_go_on() {
    let program = loop_of(2_000);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
                while program.0.best.get().is_none() {
                    assert_eq!(program.run(&mut context).unwrap().r0, 0);
                }
                assert_eq!(program.run(&mut context).unwrap().r0, 0);
            });
        }
    });
    // What has other fuel shares it.
    let other = program.clone().with_fuel(1_000_000);
    let code = |program: &Program| program.optimise().map(<[u8]>::as_ptr);
    assert_eq!(code(&program), code(&other));
}

#[test]
fn whatever_code_there_is_a_program_can_be_given_other_fuel() {
    let program = loop_of(100);
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    for best in [false, true] {
        if best {
            program.optimise();
        }
        let bounded = program.clone().with_fuel(50);
        let fault = bounded.run(&mut context).unwrap_err();
        assert_eq!(fault.kind, FaultKind::OutOfFuel);
        assert_eq!(program.run(&mut context).unwrap().r0, 0);
        assert_eq!(bounded.with_fuel(1000).run(&mut context).unwrap().r0, 0);
    }
}

#[test]
fn packet_loads_end_the_program_where_there_is_no_packet_byte() {
    let mut packet = vec![0; 60];
    packet[40..44].copy_from_slice(&[1, 2, 3, 4]);
    let mut context = Context::new(ProgType::SCHED_CLS, &packet, None).unwrap();
    let mut load = |mode, size, imm| {
        let index = if mode == mode::IND { Reg::R7 } else { Reg::R0 };
        let insns = [
            Insn::mov64_reg(Reg::R6, Reg::R1),
            Insn::mov64_imm(Reg::R7, 10),
            Insn::new(class::LD | mode | size, Reg::R0, index, 0, imm),
            Insn::alu64_imm(alu::ADD, Reg::R0, 1),
            Insn::exit(),
        ];
        let results = [Engine::Interp, Engine::default()].map(|engine| {
            let options = LoadOptions { engine, ..LoadOptions::default() };
            let made = Program::with_options(ProgType::SCHED_CLS, &insns, &[], &options);
            made.unwrap().run(&mut context).unwrap().retval()
        });
        assert_eq!(results[0], results[1]);
        results[0]
    };
    assert_eq!(load(mode::ABS, size::W, 40), 0x0102_0305);
    assert_eq!(load(mode::IND, size::H, 31), 0x0204);
    assert_eq!(load(mode::ABS, size::B, 59), 1);
    assert_eq!(load(mode::ABS, size::B, 60), 0);
    assert_eq!(load(mode::IND, size::B, -11), 0);
}
