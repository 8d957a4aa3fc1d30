//! Programs that are called for the elements of a map. What reads give is what Linux 6.18 gave for the same
//! programs and maps on two CPUs, read with the same buffers.

#![allow(clippy::unwrap_used)]

use std::io::{self, Read};

use bpfarray::attr::{Creator, MapAttr, MapFlags, MapType};
use bpfarray::{Errno, HandleMode, Map, possible_cpus};
use bpfarray_vm::{IterError, LoadOptions, Loaded, MapElemIter, Object, Program};

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
    let insns = [bpfarray_core::insn::Insn::exit()];
    let other = Program::from_insns(bpfarray_vm::ProgType::TRACING, &insns, &[]).unwrap();
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
fn an_iterator_is_a_user_of_the_map() {
    let map = array(1, MapFlags::empty());
    let reference = map.to_ref();
    let iter = MapElemIter::new(&program("show"), &map).unwrap();
    drop(map);
    assert!(!reference.is_without_handles());
    drop(iter);
    assert!(reference.is_without_handles());
}
