//! What objects of a compiler turn into.

use bpfarray_core::attr::{MapAttr, MapFlags, MapType};
use bpfarray_core::btf::{Btf, Def, Kind};
use bpfarray_core::insn::{Insn, Reg, pseudo};
use bpfarray_vm::elf::{LoadError, MapOrigin, MapSpec, Object, ParseOptions, ProgramCode, Slot};
use bpfarray_vm::prog_type::{AttachType, ProgType};

use super::{all_objects, load, read};

fn map<'a>(object: &'a Object, name: &str) -> &'a MapSpec {
    object.map(name).unwrap()
}

fn code<'a>(object: &'a Object, program: &str) -> &'a ProgramCode {
    object.program(program).unwrap().code().unwrap()
}

/// (kind, first immediate, second immediate) of each 64-bit load that refers to something.
fn loads(code: &ProgramCode) -> Vec<(u8, i32, i32)> {
    let pairs = code.insns.windows(2);
    let loads = pairs.filter(|pair| pair[0].is_ld_imm64() && pair[0].src != Reg::R0);
    loads.map(|pair| (pair[0].src.index() as u8, pair[0].imm, pair[1].imm)).collect()
}

/// The functions that are called or whose address is taken, in the order of the instructions.
fn referred(code: &ProgramCode) -> Vec<&str> {
    let refers = |insn: &Insn| {
        insn.is_pseudo_call() || insn.is_ld_imm64() && insn.src == Reg::new(pseudo::FUNC)
    };
    let sites = code.insns.iter().enumerate().filter(|(_, insn)| refers(insn));
    sites
        .map(|(at, insn)| {
            let target = usize::try_from(at as i64 + 1 + i64::from(insn.imm)).unwrap();
            let function = code.function(target).unwrap();
            assert_eq!(function.insn, target, "a call into the middle of {}", function.name);
            &*function.name
        })
        .collect()
}

fn functions(code: &ProgramCode) -> Vec<&str> {
    code.functions.iter().map(|function| &*function.name).collect()
}

#[test]
fn fields_of_a_map_definition_become_its_attributes() {
    let object = load("testdata/elf/map_defs.bpf.o");
    let btf = object.btf().unwrap();
    let spec = map(&object, "everything");
    let expected = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 16,
        max_entries: 3,
        map_flags: MapFlags::MMAPABLE | MapFlags::NUMA_NODE,
        numa_node: 1,
        map_name: *b"everything\0\0\0\0\0\0",
        btf_key_type_id: btf.find_by_name("__u32", Kind::Typedef).unwrap(),
        btf_value_type_id: btf.find_by_name("pair", Kind::Struct).unwrap(),
        ..MapAttr::default()
    };
    assert_eq!(spec.attr, expected);
    assert!(spec.pin_by_name && !spec.is_frozen() && spec.origin == MapOrigin::Btf);

    let sizes = map(&object, "sizes").attr;
    assert_eq!((sizes.map_type, sizes.key_size, sizes.value_size), (MapType::PERCPU_ARRAY, 4, 24));
    assert_eq!((sizes.btf_key_type_id, sizes.btf_value_type_id), (0, 0));

    let extra = map(&object, "extra").attr;
    assert_eq!((extra.map_type, extra.map_extra), (MapType::BLOOM_FILTER, 0x1_0000_0005));
}

#[test]
fn static_maps_are_found_by_their_offset() {
    let object = load("testdata/elf/map_defs.bpf.o");
    let index = |name| object.maps().iter().position(|map| map.name == name).unwrap() as i32;
    let expected =
        ["hidden_away", "everything", "jumps"].map(|name| (pseudo::MAP_IDX, index(name), 0));
    assert_eq!(loads(code(&object, "use")), expected);
}

#[test]
fn maps_of_maps_and_programs_know_their_initial_slots() {
    let object = load("testdata/elf/map_defs.bpf.o");
    let index = |name| object.maps().iter().position(|map| map.name == name).unwrap();
    let outer = map(&object, "outer");
    assert_eq!(outer.slots, [(1, Slot::Map(index("inner_b"))), (3, Slot::Map(index("inner_a")))]);
    let inner = outer.inner.unwrap();
    let name = *b"outer.inner\0\0\0\0\0";
    assert_eq!(inner, MapAttr { map_name: name, ..map(&object, "inner_a").attr });
    assert_eq!(outer.attr.value_size, 4);

    let program = |name: &str| Slot::Program(name.to_owned());
    let jumps = map(&object, "jumps");
    assert_eq!(jumps.slots, [(0, program("target_two")), (2, program("target_one"))]);
    assert_eq!(jumps.inner, None);
}

#[test]
fn programs_are_followed_by_the_functions_they_reach() {
    let object = load("testdata/elf/functions.bpf.o");
    let first = code(&object, "first");
    assert_eq!(functions(first), ["first", "shared", "leaf", "local_helper"]);
    assert_eq!(referred(first), ["shared", "local_helper", "leaf"]);
    let second = code(&object, "second");
    assert_eq!(functions(second), ["second", "replaceable", "shared", "leaf", "not_exported"]);
    assert_eq!(referred(second), ["replaceable", "not_exported", "shared", "leaf", "leaf"]);
    let callback = code(&object, "callback");
    assert_eq!(functions(callback), ["callback", "count", "leaf"]);
    assert_eq!(referred(callback), ["count", "leaf"]);
    let unknown = code(&object, "unknown_type");
    assert_eq!(functions(unknown), ["unknown_type", "first", "shared", "leaf", "local_helper"]);
}

#[test]
fn functions_keep_their_types_and_source_lines() {
    let object = load("testdata/elf/functions.bpf.o");
    let btf = object.btf().unwrap();
    for program in object.programs() {
        let code = program.code().unwrap();
        for function in &code.functions {
            let ty = btf.get(function.type_id).unwrap();
            assert_eq!((ty.kind(), ty.name), (Kind::Func, &*function.name));
        }
        assert!(code.lines.is_sorted_by(|a, b| a.insn < b.insn));
        assert!(code.lines.last().unwrap().insn < code.insns.len());
    }
    let code = code(&object, "first");
    let leaf = code.functions.iter().find(|function| &*function.name == "leaf").unwrap();
    let texts: Vec<&str> = (leaf.insn..)
        .map_while(|insn| code.line(insn).filter(|_| code.function(insn) == Some(leaf)))
        .map(|line| btf.string(line.line_off).unwrap().trim())
        .collect();
    assert!(texts.contains(&"return x + 1;"), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("&calls")), "{texts:?}");
    let file = btf.string(code.lines[0].file_name_off).unwrap();
    assert!(file.ends_with("functions.bpf.c"), "{file}");
}

#[test]
fn only_running_a_program_of_unknown_type_is_an_error() {
    let object = load("testdata/elf/functions.bpf.o");
    let program = object.program("unknown_type").unwrap();
    assert!(program.code().is_ok());
    assert_eq!(
        program.prog_type().unwrap_err().to_string(),
        "section 'socket/no_such_type', program 'unknown_type': the section's name tells no type of \
         program"
    );
    let callback = object.program("callback").unwrap();
    assert_eq!((callback.section.as_str(), callback.autoload), ("tc", false));
    assert_eq!(callback.prog_type(), Ok(ProgType::SCHED_CLS));
    assert_eq!(object.license(), "GPL");
}

#[test]
fn programs_that_need_a_kernel_are_refused_by_the_name_of_what_they_need() {
    let object = load("testdata/elf/externs.bpf.o");
    let error = |name| object.program(name).unwrap().code().unwrap_err().to_string();
    for (program, expected) in [
        ("kconfig", "'LINUX_KERNEL_VERSION' is a kernel configuration value"),
        ("weak_kconfig", "'CONFIG_BPF_SYSCALL' is a kernel configuration value"),
        ("ksym", "'bpf_prog_active' is a kernel variable"),
        ("weak_ksym", "'init_task' is a kernel variable"),
        ("kfunc", "'bpf_rcu_read_lock' is a kernel function"),
    ] {
        let error = error(program);
        let place = format!("section 'socket', program '{program}', instruction ");
        assert!(error.starts_with(&place), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(code(&object, "nothing_special").insns.len(), 2);
}

#[test]
fn types_say_where_variables_are() {
    let object = load("testdata/elf/variables.bpf.o");
    let btf = object.btf().unwrap();
    let data = map(&object, ".data");
    let Def::Datasec(datasec) = btf.get(data.attr.btf_value_type_id).unwrap().def else {
        panic!("{data:?}")
    };
    assert_eq!(datasec.size, data.attr.value_size);
    let value = |name| {
        let var = datasec.vars().find(|var| btf.get(var.var).unwrap().name == name).unwrap();
        data.initial[var.offset as usize..][..var.size as usize].to_vec()
    };
    assert_eq!(value("exported"), 1_u32.to_le_bytes());
    assert_eq!(value("own"), 2_u32.to_le_bytes());
    assert_eq!(value("table"), [10_u64, 11, 12, 13].map(u64::to_le_bytes).concat());
    assert!(Btf::parse(&btf.to_bytes()).is_ok());
}

#[test]
fn sections_with_visible_variables_can_be_mapped() {
    let object = load("testdata/elf/variables.bpf.o");
    let flags = |name| map(&object, name).attr.map_flags;
    assert_eq!(flags(".data"), MapFlags::MMAPABLE);
    assert_eq!(flags(".rodata"), MapFlags::MMAPABLE | MapFlags::RDONLY_PROG);
    assert_eq!(flags(".data.concealed"), MapFlags::empty());
    assert_eq!(flags(".bss.local"), MapFlags::empty());
    assert!(map(&object, ".rodata").is_frozen() && !map(&object, ".data").is_frozen());
    let bss = map(&object, ".bss.local");
    assert_eq!((bss.attr.value_size, bss.initial.len()), (4, 0));
}

#[test]
fn addresses_of_variables_are_offsets_in_their_section() {
    let object = load("testdata/elf/variables.bpf.o");
    let index = |name| object.maps().iter().position(|map| map.name == name).unwrap() as i32;
    let loads = loads(code(&object, "sum"));
    let data = &map(&object, ".data").initial;
    // The program addresses `table[2]`, then `exported` and `own`, from which clang goes on.
    let values = loads
        .iter()
        .filter(|load| load.1 == index(".data"))
        .map(|&(_, _, offset)| data[offset as usize]);
    assert_eq!(values.collect::<Vec<_>>(), [12, 1, 2]);
    assert!(loads.iter().all(|load| load.0 == pseudo::MAP_IDX_VALUE));
    assert!(loads.contains(&(pseudo::MAP_IDX_VALUE, index(".rodata"), 0)));
}

#[test]
fn legacy_maps_are_read() {
    let object = load("testdata/progs/legacy_maps.bpf.o");
    let counters = map(&object, "counters");
    assert_eq!((counters.origin, counters.section.as_str()), (MapOrigin::Legacy, "maps"));
    assert_eq!((counters.attr.value_size, counters.attr.max_entries), (8, 4));
    let percpu = map(&object, "percpu_counters").attr;
    assert_eq!((percpu.map_type, percpu.value_size), (MapType::PERCPU_ARRAY, 16));
    assert_eq!(loads(code(&object, "count"))[0].0, pseudo::MAP_IDX);
}

#[test]
fn section_names_tell_the_type() {
    let object = load("examples/packet_count.bpf.o");
    let program = &object.programs()[0];
    assert_eq!(program.prog_type(), Ok(ProgType::XDP));
    assert_eq!(program.expected_attach_type(), Some(AttachType::XDP));
    assert!(program.autoload);
}

#[test]
fn relocations_to_other_types_change_only_what_depends_on_them() {
    let bytes = read("testdata/core_reloc/relocs.bpf.o");
    let target = Btf::parse(&read("testdata/core_reloc/target.btf")).unwrap();
    let own = Object::parse(&bytes).unwrap();
    let options = ParseOptions { target_btf: Some(&target) };
    let fitted = Object::parse_with(&bytes, &options).unwrap();
    let insns = |object: &Object| {
        let codes = object.programs().iter().map(|program| program.code().unwrap().insns.clone());
        codes.collect::<Vec<_>>().concat()
    };
    let (own, fitted) = (insns(&own), insns(&fitted));
    assert_eq!(own.len(), fitted.len());
    assert_ne!(own, fitted);
}

#[test]
fn references_of_every_object_lead_somewhere() {
    let objects = all_objects();
    assert!(objects.len() > 30, "{objects:?}");
    for path in objects {
        let object = match Object::parse(&std::fs::read(&path).unwrap()) {
            Ok(object) => object,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        for program in object.programs() {
            let code = match program.code() {
                Err(LoadError::Insn { .. }) if path.ends_with("testdata/elf/externs.bpf.o") => {
                    continue;
                }
                code => code.unwrap(),
            };
            referred(code);
            for (kind, map, offset) in loads(code) {
                match kind {
                    pseudo::MAP_IDX => {
                        assert_eq!((offset, object.maps().get(map as usize).is_some()), (0, true))
                    }
                    pseudo::MAP_IDX_VALUE => {
                        let map = &object.maps()[map as usize];
                        assert!(map.is_data() && (offset as u32) < map.attr.value_size);
                    }
                    pseudo::FUNC => {}
                    kind => {
                        panic!("{}: {} has a load of kind {kind}", path.display(), program.name)
                    }
                }
            }
        }
    }
}
