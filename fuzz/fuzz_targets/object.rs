//! Objects from anybody: parsed, loaded, and each program run for a little while.
#![no_main]

use bpfarray_vm::{Context, LoadOptions, Object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(object) = Object::parse(data) else { return };
    // What takes memory from the start.
    let size = |map: &bpfarray_vm::elf::MapSpec| {
        u64::from(map.attr.max_entries) * u64::from(map.attr.value_size)
    };
    if object.maps().iter().map(size).sum::<u64>() > 1 << 24 {
        return;
    }
    let names: Vec<String> = object.programs().iter().map(|spec| spec.name.clone()).collect();
    let Ok(loaded) = object.load(&LoadOptions::default()) else { return };
    for name in names {
        let Ok(program) = loaded.program(&name) else { continue };
        let contexts = [&[1; 64][..], &[]].map(|packet| Context::new(program.prog_type(), packet, None));
        for mut context in contexts.into_iter().flatten() {
            let _ = program.clone().with_fuel(10_000).run(&mut context);
        }
    }
});
