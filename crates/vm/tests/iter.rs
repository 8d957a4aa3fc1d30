//! Programs that are called for the elements of a map. What reads give is what Linux 6.18 gave for the same
//! programs and maps on two CPUs, read with the same buffers.

#![allow(clippy::unwrap_used)]

use std::io::{self, Read};

use bpfarray::attr::{Creator, MapAttr, MapFlags, MapType};
use bpfarray::{Errno, HandleMode, Map, possible_cpus};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, jmp, size};
use bpfarray_vm::prog_type::AttachType;
use bpfarray_vm::{
    Context, Engine, IterError, LoadOptions, Loaded, MapElemIter, Object, ProgType, Program,
    ProgramError, ProgramSource,
};

fn load() -> Loaded {
    let object = include_bytes!("../../../testdata/progs/map_elem_iter.bpf.o");
    Object::parse(object).unwrap().load(&LoadOptions::default()).unwrap()
}

fn program(name: &str) -> Program {
    load().program(name).unwrap()
}

fn array(max_entries: u32, map_flags: MapFlags) -> Map {
    let attr =
        MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 8, ..MapAttr::default() };
    Map::create(&MapAttr { max_entries, map_flags, ..attr }).unwrap()
}

/// What reads with buffers of these lengths give.
fn reads(iter: &mut MapElemIter, lens: &[usize]) -> Vec<String> {
    let read = |&len: &usize| {
        let mut buf = vec![0; len];
        let read = iter.read(&mut buf).unwrap();
        String::from_utf8(buf[..read].to_vec()).unwrap()
    };
    lens.iter().map(read).collect()
}

fn errno(result: io::Result<usize>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_read_ends_with_the_element_that_fills_it() {
    let map = array(5, MapFlags::empty());
    map.update_elem(1, &7_u64.to_ne_bytes(), 0).unwrap();
    let mut iter = MapElemIter::new(&program("count"), &map).unwrap();
    let text = [
        "num 0",
        " key 0 val",
        " 0\n",
        "num 1 key 1 val 7\nnum 2 key 2 ",
        "val 0\n",
        "num 3 key 3 val 0\nnum 4 key 4 val 0\nend 4\n",
        "",
    ];
    assert_eq!(reads(&mut iter, &[5, 10, 25, 30, 40, 1000, 1000]), text);
}

#[test]
fn values_of_an_array_are_the_maps_own() {
    let map = array(2, MapFlags::empty());
    map.freeze().unwrap();
    io::copy(&mut MapElemIter::new(&program("count"), &map).unwrap(), &mut io::sink()).unwrap();
    let mut value = [0; 8];
    map.lookup_elem(1, &mut value, 0).unwrap();
    assert_eq!(u64::from_ne_bytes(value), 1);
}

#[test]
fn a_map_that_programs_only_read_is_not_written() {
    let map = array(2, MapFlags::RDONLY_PROG);
    let mut text = String::new();
    MapElemIter::new(&program("show"), &map).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "0: 0\n1: 0\n2 elements\n");
    let mut iter = MapElemIter::new(&program("count"), &map).unwrap();
    let fault = iter.read(&mut [0; 100]).unwrap_err();
    assert!(fault.to_string().contains("only read"), "{fault}");
}

#[test]
fn values_of_all_cpus_are_a_copy() {
    let attr = MapAttr {
        map_type: MapType::PERCPU_ARRAY,
        key_size: 4,
        value_size: 6,
        max_entries: 2,
        ..MapAttr::default()
    };
    let map = Map::create(&attr).unwrap();
    let value: Vec<u8> = (0..map.user_size()).map(|byte| byte as u8 + 1).collect();
    map.update_elem(1, &value, 0).unwrap();
    let write_only = map.with_mode(HandleMode::WriteOnly);
    let mut bytes = Vec::new();
    MapElemIter::new(&program("raw"), &write_only).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!((&bytes[..8], &bytes[8..]), (&[0; 8][..], &value[..8]));
    assert_eq!(value.len(), 8 * possible_cpus() as usize);

    let mut iter = MapElemIter::new(&program("count"), &map).unwrap();
    io::copy(&mut iter, &mut io::sink()).unwrap();
    let mut found = vec![0; value.len()];
    map.lookup_elem(1, &mut found, 0).unwrap();
    assert_eq!(found, value);
}

#[test]
fn an_element_that_is_refused_is_tried_again() {
    let map = array(5, MapFlags::empty());
    let mut iter = MapElemIter::new(&program("give_up"), &map).unwrap();
    assert_eq!(reads(&mut iter, &[100]), ["0\n1\n"]);
    assert_eq!(errno(iter.read(&mut [0; 100])), Errno::EAGAIN.raw());
    assert_eq!(errno(iter.read(&mut [0; 100])), Errno::EAGAIN.raw());
}

#[test]
fn no_more_text_waits_than_the_kernel_lets() {
    let map = array(4000, MapFlags::empty());
    let mut iter = MapElemIter::new(&program("count"), &map).unwrap();
    let lens: Vec<usize> = reads(&mut iter, &[50_000; 5]).iter().map(String::len).collect();
    assert_eq!(lens, [32748, 32760, 28281, 0, 0]);
}

#[test]
fn only_iterators_are_called_for_elements_and_only_of_values() {
    let loaded = load();
    let insns = [Insn::exit()];
    let other = Program::from_insns(ProgType::TRACING, &insns, &[]).unwrap();
    let map = loaded.map("numbers").unwrap();
    let error = MapElemIter::new(&other, map).unwrap_err();
    assert_eq!(error, IterError::Program(String::new()));
    let show = loaded.program("show").unwrap();
    let attr = MapAttr {
        map_type: MapType::PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 2,
        ..MapAttr::default()
    };
    let programs = Map::create(&attr).unwrap();
    assert_eq!(MapElemIter::new(&show, &programs).unwrap_err().errno(), Errno::EINVAL);
    let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, ..attr };
    let outer = Map::create_with(&outer, &Creator::default(), Some(map)).unwrap();
    let error = MapElemIter::new(&show, &outer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "maps of type array_of_maps have no elements that programs can be called for"
    );
}

#[test]
fn a_map_that_is_for_one_program_has_no_iterators() {
    let attr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        excl_prog_hash: Some(program("show").hash()),
        ..MapAttr::default()
    };
    let map = Map::create(&attr).unwrap();
    let error = MapElemIter::new(&program("show"), &map).unwrap_err();
    assert_eq!((error.errno(), error), (Errno::EPERM, IterError::Exclusive));
}

#[test]
fn an_iterator_is_a_user_of_the_map() {
    let map = array(1, MapFlags::empty());
    let reference = map.to_ref();
    let iter = MapElemIter::new(&program("show"), &map).unwrap();
    drop(map);
    assert!(!reference.is_without_handles());
    drop(iter);
    assert!(reference.is_without_handles());
}

/// A program in strict mode that is handed `field` of the context, and does this to what is there.
fn strict(field: i16, access: &[Insn], engine: Engine) -> Result<Program, ProgramError> {
    let mut insns = vec![Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, field)];
    insns.push(Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, access.len() as i16));
    insns.extend_from_slice(access);
    insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    let source = ProgramSource {
        expected_attach_type: AttachType::TRACE_ITER,
        ..ProgramSource::new(ProgType::TRACING)
    };
    let options = LoadOptions { strict: true, engine, ..LoadOptions::default() };
    source.build(&insns, Vec::new(), &options)
}

const META: i16 = 0;
const MAP: i16 = 8;
const KEY: i16 = 16;
const VALUE: i16 = 24;

const fn fetch(size: u8, off: i16) -> Insn {
    Insn::ldx_mem(size, Reg::R3, Reg::R2, off)
}

#[test]
fn what_reaches_past_keys_and_values_is_no_iterator_in_strict_mode() {
    let map = array(2, MapFlags::empty());
    let of_cpus = MapAttr {
        map_type: MapType::PERCPU_ARRAY,
        key_size: 4,
        value_size: 6,
        max_entries: 2,
        ..MapAttr::default()
    };
    let of_cpus = Map::create(&of_cpus).unwrap();
    let all = 8 * possible_cpus() as i16;
    let store = |off| Insn::stx_mem(size::W, Reg::R2, Reg::R1, off);
    for engine in [Engine::Interp, Engine::Jit] {
        let attach = |field, access: &[Insn], map: &Map| {
            let program = strict(field, access, engine).unwrap();
            let mut iter = MapElemIter::new(&program, map).map_err(|error| error.errno())?;
            io::copy(&mut iter, &mut io::sink()).unwrap();
            Ok(())
        };
        assert_eq!(attach(KEY, &[fetch(size::W, 0)], &map), Ok(()));
        assert_eq!(attach(KEY, &[fetch(size::B, 4)], &map), Err(Errno::EACCES));
        assert_eq!(attach(VALUE, &[fetch(size::W, 4)], &map), Ok(()));
        assert_eq!(attach(VALUE, &[fetch(size::W, 5)], &map), Err(Errno::EACCES));
        assert_eq!(attach(VALUE, &[store(5)], &map), Err(Errno::EACCES));
        let far = Insn::alu64_imm(alu::ADD, Reg::R2, 1 << 28);
        assert_eq!(attach(VALUE, &[far, fetch(size::W, 0)], &map), Err(Errno::EACCES));
        assert_eq!(attach(VALUE, &[fetch(size::W, all - 4)], &of_cpus), Ok(()));
        assert_eq!(attach(VALUE, &[fetch(size::B, all)], &of_cpus), Err(Errno::EACCES));
    }
}

#[test]
fn strict_mode_says_of_iterators_what_linux_says() {
    let refused = |field, access: &[Insn]| {
        let error = strict(field, access, Engine::Interp).unwrap_err();
        let ProgramError::Verify { error, .. } = &error else { panic!("{error}") };
        format!("{} {}", error.errno().raw(), error.kind)
    };
    let buffer = "13 R2 invalid rdonly buffer access: off=-1, size=4";
    assert_eq!(refused(KEY, &[fetch(size::W, -1)]), buffer);
    let buffer = "13 R2 invalid rdwr buffer access: off=-8, size=4";
    assert_eq!(refused(VALUE, &[fetch(size::W, -8)]), buffer);
    let store = Insn::st_mem(size::W, Reg::R2, 0, 1);
    assert_eq!(refused(KEY, &[store]), "13 R2 cannot write into rdonly_buf");
    assert_eq!(refused(META, &[store]), "13 only read is supported");
    let variable = [
        Insn::call(helper_id::GET_PRANDOM_U32),
        Insn::alu64_imm(alu::AND, Reg::R0, 3),
        Insn::ldx_mem(size::DW, Reg::R2, Reg::new(6), VALUE),
        Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, 2),
        Insn::alu64_reg(alu::ADD, Reg::R2, Reg::R0),
        fetch(size::B, 0),
    ];
    let kept = [&[Insn::mov64_reg(Reg::new(6), Reg::R1)][..], &variable].concat();
    let found = refused(VALUE, &kept);
    assert!(found.starts_with("13 R2 invalid variable buffer offset: off=0, var_off="), "{found}");
    let beyond = "13 access beyond struct bpf_iter_meta at off 24 size 8";
    assert_eq!(refused(META, &[fetch(size::DW, 24)]), beyond);
    assert!(refused(META, &[fetch(size::W, 0)]).starts_with("13 "));
    for field in [META, META + 8, META + 16] {
        assert!(strict(META, &[fetch(size::DW, field)], Engine::Interp).is_ok());
    }
    assert!(refused(32, &[]).starts_with("13 "), "there is no fifth argument");
    let atomic = Insn::atomic(size::DW, atomic::ADD, Reg::R2, Reg::R1, 4);
    assert_eq!(refused(VALUE, &[atomic]), "13 misaligned access off 0+0+4 size 8");
    let half = [Insn::ldx_mem(size::W, Reg::R2, Reg::R1, KEY)];
    assert!(refused(KEY, &half).starts_with("13 "), "fields are read whole");
    // The kernel has a structure there.
    assert_eq!(refused(MAP, &[fetch(size::W, 0)]), "13 R2 invalid mem access 'ptr_'");
}

#[test]
fn what_is_always_there_is_not_tested_for_in_strict_mode() {
    let wild = Insn::ldx_mem(size::DW, Reg::R0, Reg::R1, 1);
    for (field, is_always_there) in [(META, true), (MAP, true), (KEY, false), (VALUE, false)] {
        let insns = [
            Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, field),
            Insn::jmp_imm(jmp::JNE, Reg::R2, 0, 1),
            wild,
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
        ];
        let source = ProgramSource {
            expected_attach_type: AttachType::TRACE_ITER,
            ..ProgramSource::new(ProgType::TRACING)
        };
        let options = LoadOptions { strict: true, ..LoadOptions::default() };
        let program = source.build(&insns, Vec::new(), &options);
        assert_eq!(program.is_ok(), is_always_there, "field at {field}");
    }
}

#[test]
fn the_context_of_another_program_is_not_believed() {
    let mut insns = vec![
        Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, META),
        Insn::ldx_mem(size::DW, Reg::R3, Reg::R2, 8),
    ];
    insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    let source = ProgramSource {
        expected_attach_type: AttachType::TRACE_ITER,
        ..ProgramSource::new(ProgType::TRACING)
    };
    let options = LoadOptions { strict: true, ..LoadOptions::default() };
    let program = source.build(&insns, Vec::new(), &options).unwrap();
    let numbers = 0xdead_0000_0000_u64.to_ne_bytes();
    let mut context = Context::new(ProgType::TRACING, &[], Some(&numbers)).unwrap();
    assert!(program.run(&mut context).is_err(), "an address that a caller made up");
}
