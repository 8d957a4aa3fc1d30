//! When machine code is made.

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray_core::insn::Reg;

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
    assert!(program.0.executable.get().is_none());
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    assert_eq!(program.run(&mut context).unwrap().retval(), 7);
    let made = program.0.executable.get().map(Arc::as_ptr).unwrap();
    assert_eq!(program.clone().run(&mut context).unwrap().retval(), 7);
    assert_eq!(program.0.executable.get().map(Arc::as_ptr), Some(made));
    assert_eq!(renamed.run(&mut context).unwrap().retval(), 7);
}

#[test]
fn code_is_made_at_once_for_tail_calls() {
    let map = map(MapType::PROG_ARRAY);
    let program = program(std::slice::from_ref(&map));
    assert!(program.0.executable.get().is_some());
    assert_eq!(map.owner().map(|owner| owner.jited), Some(program.engine() == Engine::Jit));
    let target =
        Program::from_insns(ProgType::SYSCALL, &[Insn::mov64_imm(Reg::R0, 0), Insn::exit()], &[])
            .unwrap();
    map.update_object(0, &bpfarray::Object::Program(Arc::new(target.clone())), 0).unwrap();
    assert!(target.0.executable.get().is_some());
}
