//! Instructions from anybody, on maps of several kinds.
#![no_main]

use bpfarray::Map;
use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray_core::insn::Insn;
use bpfarray_vm::{Context, ProgType, Program};
use libfuzzer_sys::fuzz_target;

fn map(map_type: MapType, value_size: u32) -> Option<Map> {
    let attr = MapAttr { key_size: 4, value_size, max_entries: 5, ..MapAttr::default() };
    let inner = MapAttr { map_type: MapType::ARRAY, value_size: 12, ..attr };
    let inner = Map::create(&inner).ok()?;
    Map::create_with(&MapAttr { map_type, ..attr }, &Creator::default(), Some(&inner)).ok()
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, code)) = data.split_first() else { return };
    let (words, _) = code.as_chunks::<8>();
    let insns: Vec<Insn> = words.iter().map(|word| Insn::decode(*word)).collect();
    let maps: Vec<Map> = [
        map(MapType::ARRAY, 12),
        map(MapType::PERCPU_ARRAY, 12),
        map(MapType::ARRAY_OF_MAPS, 4),
        map(MapType::PROG_ARRAY, 4),
    ]
    .into_iter()
    .flatten()
    .collect();
    let types = [ProgType::XDP, ProgType::SOCKET_FILTER, ProgType::SCHED_CLS, ProgType::SYSCALL];
    let prog_type = types[usize::from(kind) % types.len()];
    let packet = [7; 64];
    let packet = if prog_type == ProgType::SYSCALL { &[][..] } else { &packet };
    let Ok(program) = Program::from_insns(prog_type, &insns, &maps) else { return };
    let Ok(mut context) = Context::new(prog_type, packet, None) else { return };
    let _ = program.with_fuel(10_000).run(&mut context);
});
