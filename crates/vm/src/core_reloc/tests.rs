use std::collections::HashMap;
use std::fs;

use bpfarray_core::btf::{BtfExt, Def, Member};
use bpfarray_core::disasm::Disasm;
use bpfarray_core::insn::{Reg, alu, class, mode, size};
use object::{Object, ObjectSection};
use proptest::prelude::*;

use super::*;

const RELOCS: &[u8] = include_bytes!("../../../../testdata/core_reloc/relocs.bpf.o");
const TARGET: &[u8] = include_bytes!("../../../../testdata/core_reloc/target.bpf.o");
const TARGET_BTF: &[u8] = include_bytes!("../../../../testdata/core_reloc/target.btf");
const LIBBPF: &str = include_str!("../../../../testdata/core_reloc/libbpf.txt");

struct Compiled {
    btf: Btf,
    relos: HashMap<String, Vec<CoreRelo>>,
    sections: Vec<(String, Vec<Insn>)>,
}

fn decode(bytes: &[u8]) -> Vec<Insn> {
    bytes.chunks(INSN_SIZE).map(|insn| Insn::decode(insn.try_into().unwrap())).collect()
}

fn compiled(elf: &[u8]) -> Compiled {
    let file = object::File::parse(elf).unwrap();
    let data = |name: &str| file.section_by_name(name).unwrap().data().unwrap();
    let btf = Btf::parse(data(".BTF")).unwrap();
    let ext = BtfExt::parse(data(".BTF.ext"), &btf).unwrap();
    let sections = file.sections().filter_map(|section| {
        let name = section.name().unwrap();
        name.starts_with("socket/").then(|| (name.to_owned(), decode(section.data().unwrap())))
    });
    let relos = ext.core_relo.into_iter().map(|section| (section.section, section.records));
    Compiled { relos: relos.collect(), sections: sections.collect(), btf }
}

impl Compiled {
    /// The instructions of each section after relocation.
    fn relocated(&self, target: Option<&Btf>) -> HashMap<&str, Result<Vec<Insn>, CoreRelocError>> {
        let mut core = CoreReloc::new(&self.btf, target);
        let sections = self.sections.iter().map(|(name, insns)| {
            let mut insns = insns.clone();
            let relos = self.relos.get(name).map_or(&[][..], Vec::as_slice);
            (name.as_str(), core.apply(&mut insns, relos).map(|()| insns))
        });
        sections.collect()
    }
}

fn text(insns: &[Insn]) -> String {
    Disasm::new(insns).map(|line| format!("{line}\n")).collect()
}

fn one(relocated: &HashMap<&str, Result<Vec<Insn>, CoreRelocError>>, case: &str) -> String {
    let insns = relocated[format!("socket/{case}").as_str()].as_ref().unwrap();
    Disasm::new(insns).next().unwrap().to_string()
}

#[test]
fn every_section_becomes_what_libbpf_makes_of_it() {
    let local = compiled(RELOCS);
    let target = Btf::parse(TARGET_BTF).unwrap();
    let relocated = local.relocated(Some(&target));
    let mut count = 0;
    for line in LIBBPF.lines().filter(|line| !line.starts_with('#')) {
        let (section, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(text(relocated[section].as_ref().unwrap()), text(&decode(&bytes)), "{section}");
        count += 1;
    }
    // libbpf refuses the one that is missing, see below.
    assert_eq!(count + 1, local.sections.len());
}

#[test]
fn relocated_loads_equal_those_compiled_with_the_targets_types() {
    let local = compiled(RELOCS);
    let there = compiled(TARGET);
    let relocated = local.relocated(Some(&there.btf));
    // Where signedness differs the compiler has more to say than a relocation can.
    let differs = ["socket/load_signed_widened", "socket/load_number_for_pointer"];
    let mut count = 0;
    for (section, insns) in &there.sections {
        if section.contains("/load_") && !differs.contains(&section.as_str()) {
            assert_eq!(
                text(relocated[section.as_str()].as_ref().unwrap()),
                text(insns),
                "{section}"
            );
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} sections compared");
}

#[test]
fn without_a_target_nothing_changes() {
    let local = compiled(RELOCS);
    let relocated = local.relocated(None);
    for (section, insns) in &local.sections {
        assert_eq!(text(relocated[section.as_str()].as_ref().unwrap()), text(insns), "{section}");
    }
}

#[test]
fn an_unsigned_enumerator_is_not_sign_extended() {
    // libbpf takes the object's own 0x80000000 for 0xffffffff80000000, and refuses it.
    let local = compiled(RELOCS);
    let target = Btf::parse(TARGET_BTF).unwrap();
    assert_eq!(one(&local.relocated(Some(&target)), "enum_value_unsigned"), "(18) r0 = 0xfffffff0");
}

#[test]
fn what_the_target_lacks_is_poisoned_only_where_it_is_used() {
    let local = compiled(RELOCS);
    let target = Btf::parse(TARGET_BTF).unwrap();
    let relocated = local.relocated(Some(&target));
    let poison = format!("(85) call unknown#{POISON_HELPER}");
    for case in ["load_removed", "load_number_for_pointer", "load_signed_widened"] {
        assert_eq!(one(&relocated, case), poison, "{case}");
    }
    let wide = relocated["socket/enum_value_removed"].as_ref().unwrap();
    assert!(text(wide).starts_with(&format!("{poison}\n{poison}\n")));
    assert_eq!(one(&relocated, "exists_removed"), "(b7) r0 = 0");
    assert_eq!(one(&relocated, "type_exists_missing"), "(b7) r0 = 0");
}

/// One relocation of `insn` about the first member of `struct thing`.
fn relocate(insns: &mut [Insn], edit: impl FnOnce(&mut CoreRelo)) -> Result<(), CoreRelocDefect> {
    let local = compiled(RELOCS);
    let mut relo = local.relos["socket/load_moved"][0];
    edit(&mut relo);
    let result = CoreReloc::new(&local.btf, None).apply(insns, &[relo]);
    result.map_err(|error| error.defect)
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let load = Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 0);
    let types = compiled(RELOCS).btf;
    let thing = types.find_by_name("thing", Kind::Struct).unwrap();
    let bad_path = Err(CoreRelocDefect::BadPath(thing));
    assert_eq!(relocate(&mut [load], |_| {}), Ok(()));
    assert_eq!(relocate(&mut [load], |relo| relo.insn_off = 8), Err(CoreRelocDefect::NoSuchInsn));
    assert_eq!(
        relocate(&mut [load, load], |relo| relo.insn_off = 4),
        Err(CoreRelocDefect::NoSuchInsn)
    );
    assert_eq!(relocate(&mut [load], |relo| relo.kind = 13), Err(CoreRelocDefect::UnknownKind(13)));
    // The string at 0 is empty, the one at 1 a name.
    assert_eq!(relocate(&mut [load], |relo| relo.access_str_off = 0), bad_path);
    assert_eq!(relocate(&mut [load], |relo| relo.access_str_off = 1), bad_path);
    // The path `0:0` is none that a question about a type as a whole has.
    assert_eq!(relocate(&mut [load], |relo| relo.kind = 8), bad_path);
    assert_eq!(relocate(&mut [load], |relo| relo.kind = 11), bad_path);
}

#[test]
fn instructions_that_do_not_hold_the_compiled_value_are_refused() {
    let refused = |insn, expected| assert_eq!(relocate(&mut [insn], |_| {}), Err(expected));
    refused(
        Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 4),
        CoreRelocDefect::Mismatch { expected: 0, found: 4 },
    );
    refused(Insn::mov64_imm(Reg::R0, 1), CoreRelocDefect::Mismatch { expected: 0, found: 1 });
    refused(Insn::mov64_reg(Reg::R0, Reg::R1), CoreRelocDefect::BadInsn(0xbf));
    refused(Insn::exit(), CoreRelocDefect::BadInsn(0x95));
    refused(
        Insn::new(class::LD | mode::IMM | size::DW, Reg::R0, Reg::R0, 0, 0),
        CoreRelocDefect::BadInsn(0x18),
    );
    let [first, second] = Insn::ld_imm64(Reg::R0, Reg::R1, 0);
    assert_eq!(
        relocate(&mut [first, second], |_| {}),
        Err(CoreRelocDefect::BadInsn(0x18)),
        "a map reference"
    );
    let mut immediate = [Insn::alu64_imm(alu::ADD, Reg::R0, 0)];
    assert_eq!(relocate(&mut immediate, |_| {}), Ok(()));
}

#[test]
fn flavours_end_at_three_underscores_between_other_characters() {
    for (name, expected) in [
        ("task_struct", "task_struct"),
        ("task_struct___old", "task_struct"),
        ("a___b___c", "a___b"),
        ("a____b", "a____b"),
        ("___b", "___b"),
        ("a___", "a___"),
        ("é___ü", "é"),
    ] {
        assert_eq!(essence(name), expected);
    }
}

#[test]
fn the_running_kernels_types_are_a_target() {
    let Ok(bytes) = fs::read("/sys/kernel/btf/vmlinux") else {
        println!("SKIPPED: the running kernel has no readable /sys/kernel/btf/vmlinux");
        return;
    };
    let vmlinux = Btf::parse(&bytes).unwrap();
    let object = include_bytes!("../../../../testdata/core_reloc/vmlinux.bpf.o");
    let local = compiled(object);
    let relocated = local.relocated(Some(&vmlinux));
    let find = |name: &str, field: &str| -> Member<'_> {
        let id = vmlinux.find_by_name(name, Kind::Struct).unwrap();
        let Def::Struct(def) = vmlinux.get(id).unwrap().def else { panic!() };
        def.members().find(|member| member.name == field).unwrap()
    };
    let offset = |name, field| find(name, field).bit_offset / 8;
    assert_eq!(one(&relocated, "pid"), format!("(b7) r0 = {}", offset("task_struct", "pid")));
    assert_eq!(one(&relocated, "comm"), format!("(b7) r0 = {}", offset("task_struct", "comm")));
    assert_eq!(
        one(&relocated, "nested"),
        format!("(b7) r0 = {}", offset("task_struct", "se") + offset("sched_entity", "vruntime"))
    );
    let array = vmlinux.find_by_name("bpf_array", Kind::Struct).unwrap();
    assert_eq!(
        one(&relocated, "array_size"),
        format!("(b7) r0 = {}", vmlinux.size_of(array).unwrap())
    );
    assert_eq!(one(&relocated, "array_id"), format!("(18) r0 = {array:#x}"));
    assert_eq!(one(&relocated, "percpu_array"), "(18) r0 = 0x6");
    assert_eq!(one(&relocated, "no_such_field"), "(b7) r0 = 0");
}

#[test]
fn types_whose_comparison_multiplies_are_refused() {
    // Each of 24 structs has two members of the next one's type: 2^24 paths, each longer than a step.
    let strings = "\0s\0x\0y\0";
    let (name, x, y) = (1, 3, 5);
    let mut words = Vec::new();
    for next in 2..26 {
        words.extend([name, (Kind::Struct as u32) << 24 | 2, 0, x, next, 0, y, next, 0]);
    }
    words.extend([name, (Kind::Struct as u32) << 24, 0]);
    let type_len = words.len() as u32 * 4;
    let header = [0x0001_eb9f, 24, 0, type_len, type_len, strings.len() as u32];
    let mut bytes: Vec<u8> =
        header.iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(strings.as_bytes());
    let btf = Btf::parse(&bytes).unwrap();
    let spec = Spec::parse(&btf, 1, "0", RelocKind::TypeMatches).unwrap();
    let mut matcher = Matcher::new(&btf, &btf);
    matcher.steps >>= 8;
    let found = matcher.find(&spec, RelocKind::TypeMatches, 1);
    assert_eq!(found.unwrap_err(), CoreRelocDefect::TooComplex);
}

/// The bytes of a section of `relocs.bpf.o`.
fn section(name: &str) -> Vec<u8> {
    object::File::parse(RELOCS).unwrap().section_by_name(name).unwrap().data().unwrap().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_types_and_records_are_carried_out_or_refused(
        type_edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ext_edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let damaged = |name, edits: &[(prop::sample::Index, u8)]| {
            let mut bytes = section(name);
            let len = bytes.len();
            edits.iter().for_each(|(at, byte)| bytes[at.index(len)] = *byte);
            bytes
        };
        let (types, ext) = (damaged(".BTF", &type_edits), damaged(".BTF.ext", &ext_edits));
        let target = Btf::parse(TARGET_BTF).unwrap();
        let Ok(btf) = Btf::parse(&types) else { return Ok(()) };
        let Ok(ext) = BtfExt::parse(&ext, &btf) else { return Ok(()) };
        let original = compiled(RELOCS);
        for target in [None, Some(&target)] {
            let mut core = CoreReloc::new(&btf, target);
            for (name, insns) in &original.sections {
                let parts = ext.core_relo.iter().filter(|part| part.section == *name);
                for part in parts {
                    let _ = core.apply(&mut insns.clone(), &part.records);
                }
            }
        }
    }
}
