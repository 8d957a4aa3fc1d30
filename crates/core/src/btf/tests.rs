extern crate std;

use std::borrow::ToOwned;
use std::format;
use std::string::String;
use std::time::Instant;
use std::vec;
use std::vec::Vec;
use std::{fs, println};

use super::*;
use proptest::prelude::*;

const TYPES: &[u8] = include_bytes!("../../../../testdata/btf/types.btf");
const TYPES_EXT: &[u8] = include_bytes!("../../../../testdata/btf/types.btf.ext");

fn types() -> Btf {
    Btf::parse(TYPES).unwrap()
}

/// BTF bytes of these words as type section and these strings.
fn raw(words: &[u32], strings: &str) -> Vec<u8> {
    Btf { words: words.to_vec(), starts: Vec::new(), strings: strings.into() }.to_bytes()
}

fn parse_words(words: &[u32]) -> Result<Btf, BtfError> {
    Btf::parse(&raw(words, "\0name\0"))
}

const fn info(kind: Kind, vlen: u32) -> u32 {
    (kind as u32) << 24 | vlen
}

const INT: [u32; 4] = [1, info(Kind::Int, 0), 4, 32];

fn expand(btf: &Btf, id: u32) -> String {
    let ty = btf.get(id).unwrap();
    let inner = |id| expand(btf, id);
    match ty.def {
        Def::Void => "void".to_owned(),
        Def::Ptr(to) => match btf.get(to).unwrap().def {
            Def::FuncProto(_) => inner(to),
            _ => format!("{} *", inner(to)),
        },
        Def::Array(array) => format!("{}[{}]", inner(array.element), array.len),
        Def::Volatile(of) => format!("volatile {}", inner(of)),
        Def::Const(of) => format!("const {}", inner(of)),
        Def::Restrict(of) => format!("restrict {}", inner(of)),
        Def::TypeTag(of) => format!("tag({}) {}", ty.name, inner(of)),
        Def::FuncProto(proto) => {
            let params: Vec<String> = proto.params().map(|param| inner(param.ty)).collect();
            format!("{} (*)({})", inner(proto.ret), params.join(", "))
        }
        _ => ty.name.to_owned(),
    }
}

#[test]
fn struct_members_have_their_names_types_and_bits() {
    let btf = types();
    let id = btf.find_by_name("outer", Kind::Struct).unwrap();
    let Def::Struct(outer) = btf.get(id).unwrap().def else { panic!() };
    assert_eq!(outer.size, 144);
    let members: Vec<_> = outer
        .members()
        .map(|member| {
            (member.name, expand(&btf, member.ty), member.bit_offset, member.bitfield_size)
        })
        .collect();
    let expected = [
        ("first", "u32", 0, Some(3)),
        ("second", "u32", 3, Some(13)),
        ("third", "int", 16, Some(16)),
        ("inners", "const volatile inner[2]", 32, None),
        ("", "", 192, None),
        ("color", "color", 256, None),
        ("wide", "wide", 320, None),
        ("wide_signed", "wide_signed", 384, None),
        ("single_precision", "float", 448, None),
        ("double_precision", "double", 512, None),
        ("forward", "elsewhere *", 576, None),
        ("forward_too", "elsewhere_too *", 640, None),
        ("callback", "int (*)(u32, restrict char *, void)", 704, None),
        ("next", "tag(user) outer *", 768, None),
        ("big", "__int128", 896, None),
        ("tagged", "u64", 1024, None),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(name, ty, at, bits)| (name, ty.to_owned(), at, bits)).collect();
    assert_eq!(members, expected);
    assert_eq!(outer.members().next_back(), outer.member(15));
    assert_eq!(outer.member(16), None);
}

#[test]
fn enumerations_keep_their_sign_and_width() {
    let btf = types();
    let values = |name, kind| {
        let id = btf.find_by_name(name, kind).unwrap();
        let Def::Enum(def) = btf.get(id).unwrap().def else { panic!() };
        let values = def.values().map(|value| (value.name.to_owned(), value.value));
        (def.size, def.is_signed, values.collect::<Vec<_>>())
    };
    let pair = |name: &str, value| (name.to_owned(), value);
    assert_eq!(
        values("color", Kind::Enum),
        (4, true, vec![pair("RED", -1), pair("GREEN", 0), pair("BLUE", 7)])
    );
    assert_eq!(
        values("wide", Kind::Enum64),
        (8, false, vec![pair("NOTHING", 0), pair("HUGE", 0xffff_ffff_ffff_fffe)])
    );
    assert_eq!(
        values("wide_signed", Kind::Enum64),
        (8, true, vec![pair("BELOW", -0x1_0000_0000), pair("ABOVE", 1)])
    );
}

#[test]
fn integers_tell_numbers_from_booleans() {
    let btf = types();
    let int = |name| {
        let Def::Int(int) = btf.get(btf.find_by_name(name, Kind::Int).unwrap()).unwrap().def else {
            panic!()
        };
        (int.size, int.bits, int.encoding)
    };
    assert_eq!(int("unsigned int"), (4, 32, IntEncoding::Unsigned));
    assert_eq!(int("int"), (4, 32, IntEncoding::Signed));
    assert_eq!(int("_Bool"), (1, 8, IntEncoding::Bool));
    assert_eq!(int("__int128"), (16, 128, IntEncoding::Signed));
}

#[test]
fn functions_variables_and_tags_are_found_by_name() {
    let btf = types();
    let def = |name, kind| btf.get(btf.find_by_name(name, kind).unwrap()).unwrap().def;
    assert!(matches!(def("entry", Kind::Func), Def::Func { linkage: Linkage::Global, .. }));
    assert!(matches!(def("read_inner", Kind::Func), Def::Func { linkage: Linkage::Static, .. }));
    assert!(matches!(def("limit", Kind::Var), Def::Var { linkage: Linkage::Global, .. }));
    assert!(matches!(def("hidden", Kind::Var), Def::Var { linkage: Linkage::Static, .. }));
    assert!(matches!(def("whole", Kind::DeclTag), Def::DeclTag { component: None, .. }));
    assert!(matches!(def("unit:ns", Kind::DeclTag), Def::DeclTag { component: Some(15), .. }));
    assert!(matches!(def("elsewhere", Kind::Fwd), Def::Fwd { is_union: false }));
    assert!(matches!(def("elsewhere_too", Kind::Fwd), Def::Fwd { is_union: true }));
    assert_eq!(btf.find_by_name("entry", Kind::Var), None);
}

#[test]
fn every_kind_is_in_the_test_object_and_survives_a_round_trip() {
    let btf = types();
    let kinds: Vec<u8> = btf.types().map(|ty| ty.kind() as u8).collect();
    for raw in 1..20 {
        assert!(kinds.contains(&raw), "{} is missing", Kind::from_raw(raw).unwrap());
    }
    assert_eq!(btf.types().count() as u32 + 1, btf.len());
    assert_eq!(btf.to_bytes(), TYPES);
}

#[test]
fn sizes_follow_typedefs_arrays_and_variables() {
    let btf = types();
    let size = |name, kind| btf.size_of(btf.find_by_name(name, kind).unwrap());
    assert_eq!(size("u64", Kind::Typedef), Ok(8));
    assert_eq!(size("table", Kind::Var), Ok(144));
    assert_eq!(size("_license", Kind::Var), Ok(4));
    assert_eq!(size("double", Kind::Float), Ok(8));
    let proto = btf.types().find(|ty| ty.kind() == Kind::FuncProto).unwrap().id;
    assert_eq!(btf.size_of(proto), Err(BtfError::Unsized { id: proto }));
    assert_eq!(btf.size_of(0), Err(BtfError::Unsized { id: 0 }));
    assert_eq!(btf.size_of(btf.len()), Err(BtfError::NoSuchType { id: btf.len() }));
}

#[test]
fn resolving_stops_below_modifiers_and_typedefs() {
    let btf = types();
    let Def::Var { ty, .. } = btf.get(btf.find_by_name("limit", Kind::Var).unwrap()).unwrap().def
    else {
        panic!()
    };
    assert_eq!(expand(&btf, ty), "const volatile u32");
    assert_eq!(btf.resolve(ty).unwrap().name, "unsigned int");
    assert_eq!(btf.resolve(u32::MAX).unwrap_err(), BtfError::NoSuchType { id: u32::MAX });
}

#[test]
fn fixing_a_section_sets_its_size_and_sorts_its_variables() {
    let mut btf = types();
    let id = btf.find_by_name(".data", Kind::Datasec).unwrap();
    let vars = |btf: &Btf| {
        let Def::Datasec(def) = btf.get(id).unwrap().def else { panic!() };
        let name = |var: SecVar| (btf.get(var.var).unwrap().name.to_owned(), var.offset, var.size);
        (def.size, def.vars().map(name).collect::<Vec<_>>())
    };
    let hidden_at = |at| move |name: &str| if name == "hidden" { Some(at) } else { None };
    btf.fix_datasec(id, 160, hidden_at(144)).unwrap();
    let expected = (160, vec![("table".to_owned(), 0, 144), ("hidden".to_owned(), 144, 8)]);
    assert_eq!(vars(&btf), expected);
    assert_eq!(
        btf.fix_datasec(id, 160, hidden_at(153)),
        Err(BtfError::VarOutside { id, index: 1 }),
        "a variable past the end"
    );
    assert_eq!(vars(&btf), expected);
    assert_eq!(vars(&Btf::parse(&btf.to_bytes()).unwrap()), expected);
    let int = btf.find_by_name("int", Kind::Int).unwrap();
    assert_eq!(
        btf.fix_datasec(int, 8, |_| None),
        Err(BtfError::WrongKind { id: int, expected: Kind::Datasec })
    );
}

#[test]
fn sections_that_are_loaded_have_sizes_and_their_variables_one_behind_the_other() {
    let section = |size, vars: &[u32]| {
        let mut b = super::testing::Builder::new();
        // Two variables, with the ids 2 and 3.
        b.ty("a", Kind::Var, 0, 1, &[0]);
        b.ty("b", Kind::Var, 0, 1, &[0]);
        b.ty(".data", Kind::Datasec, vars.len() as u32 / 3, size, vars);
        b.build().check_sections()
    };
    let outside = |index| Err(BtfError::VarOutside { id: 4, index });
    assert_eq!(section(4, &[]), Ok(()));
    let empty = Defect::BadSize(Kind::Datasec, 0);
    assert_eq!(section(0, &[]), Err(BtfError::BadType { id: 4, defect: empty }));
    assert_eq!(section(8, &[2, 0, 4, 3, 4, 4]), Ok(()));
    assert_eq!(section(9, &[2, 0, 5, 3, 5, 4]), Ok(()));
    assert_eq!(section(8, &[2, 4, 4, 3, 0, 4]), outside(1));
    assert_eq!(section(8, &[2, 0, 5, 3, 4, 4]), outside(1));
    assert_eq!(section(8, &[2, 0, 4, 3, 4, 5]), outside(1));
    assert_eq!(section(8, &[2, 0, 0]), outside(0));
    assert_eq!(section(8, &[2, 0, 3]), outside(0));
    assert_eq!(section(8, &[2, 8, 4]), outside(0));
    assert!(types().check_sections().is_err(), "as the compiler left them");
}

#[test]
fn ext_records_are_grouped_by_program_section() {
    let btf = types();
    let ext = BtfExt::parse(TYPES_EXT, &btf).unwrap();
    let funcs: Vec<_> = ext
        .func_info
        .iter()
        .flat_map(|section| section.records.iter().map(|r| (section.section.as_str(), r)))
        .map(|(section, func)| (section, func.insn_off, btf.get(func.type_id).unwrap().name))
        .collect();
    assert_eq!(funcs, [("socket", 0, "entry"), (".text", 0, "read_inner")]);
    let relos: Vec<_> = ext
        .core_relo
        .iter()
        .flat_map(|section| section.records.iter().map(|r| (section.section.as_str(), r)))
        .map(|(section, relo)| {
            let name = btf.get(relo.type_id).unwrap().name;
            (section, relo.insn_off, name, btf.string(relo.access_str_off).unwrap(), relo.kind)
        })
        .collect();
    assert_eq!(
        relos,
        [
            ("socket", 0x58, "wide", "1", 10),
            ("socket", 0x70, "outer", "0:1", 0),
            (".text", 0, "outer", "0:3:1:2", 0),
            (".text", 0x28, "outer", "0:4:0", 0),
        ]
    );
    let line = ext.line_info[0].records[1];
    assert_eq!(btf.string(line.file_name_off), Some("./types.bpf.c"));
    let source = include_str!("../../../../testdata/btf/types.bpf.c");
    let text = source.lines().nth(line.line as usize - 1).unwrap();
    assert_eq!(btf.string(line.line_off), Some(text));
    assert!(text[line.column as usize - 1..].starts_with("+= 1;"));
}

#[test]
fn headers_that_lie_are_refused() {
    let with = |at: usize, value: u8| {
        let mut bytes = TYPES.to_vec();
        bytes[at] = value;
        Btf::parse(&bytes).unwrap_err()
    };
    assert_eq!(Btf::parse(&TYPES[..23]).unwrap_err(), BtfError::ShortHeader { len: 23 });
    assert_eq!(with(0, 0), BtfError::BadMagic { magic: 0xeb00 });
    assert_eq!(with(2, 2), BtfError::BadVersion { version: 2, flags: 0 });
    assert_eq!(with(3, 1), BtfError::BadVersion { version: 1, flags: 1 });
    assert_eq!(with(4, 20), BtfError::BadHeaderLen { hdr_len: 20 });
    assert_eq!(with(4, 200), BtfError::BadHeaderLen { hdr_len: 200 });
    assert!(matches!(with(15, 0xff), BtfError::BadSection { section: "type", .. }));
    assert!(matches!(with(12, TYPES[12] + 1), BtfError::BadSection { section: "type", .. }));
    assert!(matches!(with(23, 0xff), BtfError::BadSection { section: "string", .. }));
    assert_eq!(with(TYPES.len() - 1, b'x'), BtfError::BadStrings);
    assert_eq!(with(TYPES.len() - 2, 0xff), BtfError::BadStrings);
}

#[test]
fn a_longer_header_of_zeros_is_accepted() {
    let mut bytes = TYPES.to_vec();
    bytes[4] = 28;
    bytes.splice(24..24, [0; 4]);
    assert_eq!(Btf::parse(&bytes).unwrap().to_bytes(), TYPES);
}

#[test]
fn types_that_break_a_rule_are_refused_by_name() {
    let typedef_of = |id| [1, info(Kind::Typedef, 0), id];
    let struct_of = |size, ty, at| [1, info(Kind::Struct, 1), size, 1, ty, at];
    let cases: &[(&[u32], Defect)] = &[
        (&[1, info(Kind::Int, 0)], Defect::Truncated),
        (&[1, info(Kind::Int, 0), 4], Defect::Truncated),
        (&[1, info(Kind::Struct, 1), 4, 1, 0], Defect::Truncated),
        (&[1, 20 << 24, 0], Defect::UnknownKind(20)),
        (&[1, 0, 0], Defect::UnknownKind(0)),
        (&[1, info(Kind::Ptr, 1), 0], Defect::UnexpectedLen(Kind::Ptr, 1)),
        (&[1, info(Kind::Ptr, 0) | 1 << 31, 0], Defect::UnexpectedFlag(Kind::Ptr)),
        (&[9, info(Kind::Ptr, 0), 0], Defect::BadString(9)),
        (&typedef_of(2), Defect::BadReference(2)),
        (&typedef_of(1), Defect::TooDeep),
        (&struct_of(8, 1, 0), Defect::TooDeep),
        (&[1, info(Kind::Int, 0), 3, 24], Defect::BadInt { size: 3, encoding: 24 }),
        (&[1, info(Kind::Int, 0), 4, 33], Defect::BadInt { size: 4, encoding: 33 }),
        (&[1, info(Kind::Int, 0), 4, 3 << 24], Defect::BadInt { size: 4, encoding: 3 << 24 }),
        (&[1, info(Kind::Enum, 0), 3], Defect::BadSize(Kind::Enum, 3)),
        (&[1, info(Kind::Float, 0), 3], Defect::BadSize(Kind::Float, 3)),
        (&[1, info(Kind::Var, 0), 0, 3], Defect::BadLinkage(3)),
        (&[1, info(Kind::Func, 0), 0], Defect::WrongReference(0)),
        (&[1, info(Kind::Datasec, 1), 4, 0, 0, 4], Defect::WrongReference(0)),
        (&struct_of(4, 0, 0), Defect::WrongReference(0)),
    ];
    for (words, defect) in cases {
        assert_eq!(parse_words(words).unwrap_err(), BtfError::BadType { id: 1, defect: *defect });
    }
}

#[test]
fn members_must_lie_within_their_struct() {
    let with_member = |size, offset, flag: u32| {
        let members = [1, info(Kind::Struct, 1) | flag << 31, size, 1, 1, offset];
        parse_words(&[&INT[..], &members].concat()).map(|_| ())
    };
    let outside = Err(Defect::MemberOutside(0).of(2));
    assert_eq!(with_member(8, 32, 0), Ok(()));
    assert_eq!(with_member(8, 33, 0), outside);
    assert_eq!(with_member(8, u32::MAX, 0), outside);
    assert_eq!(with_member(8, 7 << 24 | 57, 1), Ok(()));
    assert_eq!(with_member(8, 7 << 24 | 58, 1), outside);
}

#[test]
fn nesting_ends_at_the_limit_in_either_order_of_ids() {
    let limit = u32::from(MAX_DEPTH);
    let typedef = |id| [1, info(Kind::Typedef, 0), id];
    // Each refers to the one before it, the first to an int.
    let up = |levels: u32| {
        let chain = (1..levels).flat_map(typedef);
        parse_words(&INT.into_iter().chain(chain).collect::<Vec<_>>())
    };
    // Each refers to the one after it, the last to an int.
    let down = |levels: u32| {
        let chain = (2..=levels).flat_map(typedef);
        parse_words(&chain.chain(INT).collect::<Vec<_>>())
    };
    assert_eq!(up(limit).unwrap().size_of(limit), Ok(4));
    assert_eq!(down(limit).unwrap().size_of(1), Ok(4));
    assert!(matches!(up(limit + 1), Err(BtfError::BadType { defect: Defect::TooDeep, .. })));
    assert!(matches!(down(limit + 1), Err(BtfError::BadType { defect: Defect::TooDeep, .. })));
}

#[test]
fn an_array_past_four_gigabytes_has_no_size() {
    let array = [0, info(Kind::Array, 0), 0, 1, 1, 0x4000_0000];
    let btf = parse_words(&[&INT[..], &array].concat()).unwrap();
    assert_eq!(btf.size_of(2), Err(Defect::TooBig.of(2)));
}

#[test]
fn the_running_kernels_types_parse() {
    let Ok(bytes) = fs::read("/sys/kernel/btf/vmlinux") else {
        println!("SKIPPED: the running kernel has no readable /sys/kernel/btf/vmlinux");
        return;
    };
    let start = Instant::now();
    let btf = Btf::parse(&bytes).unwrap();
    println!("{} types in {:?}", btf.len(), start.elapsed());
    assert_eq!(btf.to_bytes(), bytes);
    let attr = btf.find_by_name("bpf_attr", Kind::Union).unwrap();
    assert!(btf.size_of(attr).unwrap() >= 144);
    let start = Instant::now();
    for (name, kind) in
        [("bpf_attr", Kind::Union), ("bpf_iter_task", Kind::Func), ("none", Kind::Func)]
    {
        assert_eq!(Btf::find_in(&bytes, name, kind), Ok(btf.find_by_name(name, kind)));
    }
    println!("3 names found without parsing in {:?}", start.elapsed());
    let ids = btf.find_by_name("bpf_func_id", Kind::Enum).unwrap();
    let Def::Enum(ids) = btf.get(ids).unwrap().def else { panic!() };
    for value in ids.values().filter(|value| value.name.starts_with("BPF_FUNC_")) {
        // A later kernel may have more helpers than the table.
        if let Some(name) = crate::helper_id::name(value.value as u32) {
            assert_eq!(name.strip_prefix("bpf_"), value.name.strip_prefix("BPF_FUNC_"));
        }
    }
}

/// Asks everything there is to ask; none of it may fail after a successful parse.
fn exercise(btf: &Btf) {
    for ty in btf.types() {
        let resolved = btf.resolve(ty.id).unwrap();
        let _ = btf.size_of(resolved.id);
        match ty.def {
            Def::Struct(def) | Def::Union(def) => {
                for member in def.members() {
                    assert!(member.bit_offset <= def.size.saturating_mul(8));
                    btf.resolve(member.ty).unwrap();
                }
            }
            Def::Enum(def) => assert_eq!(def.values().count(), def.len()),
            Def::FuncProto(proto) => proto.params().for_each(|param| {
                btf.get(param.ty).unwrap();
            }),
            Def::Datasec(def) => def.vars().for_each(|var| {
                btf.get(var.var).unwrap();
            }),
            _ => {}
        }
    }
    assert_eq!(btf.types().count() as u32 + 1, btf.len());
}

fn mutated(original: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((0..original.len(), any::<u8>()), 1..8);
    (edits, 0..=original.len()).prop_map(move |(edits, keep)| {
        let mut bytes = original.to_vec();
        edits.into_iter().for_each(|(at, value)| bytes[at] = value);
        // Most cases keep their full length, or all would end at the string section.
        if keep % 4 == 0 {
            bytes.truncate(keep);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_types_parse_or_are_refused(bytes in mutated(TYPES)) {
        if let Ok(btf) = Btf::parse(&bytes) {
            exercise(&btf);
            let _ = BtfExt::parse(TYPES_EXT, &btf);
        }
    }

    #[test]
    fn mutated_ext_records_parse_or_are_refused(bytes in mutated(TYPES_EXT)) {
        let _ = BtfExt::parse(&bytes, &types());
    }

    #[test]
    fn arbitrary_records_parse_or_are_refused(
        words in prop::collection::vec(
            prop_oneof![0..8_u32, (0..21_u32, 0..3_u32).prop_map(|(kind, vlen)| kind << 24 | vlen), any::<u32>()],
            0..64,
        )
    ) {
        if let Ok(btf) = parse_words(&words) {
            exercise(&btf);
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(Btf::parse(&bytes).is_err());
        prop_assert!(BtfExt::parse(&bytes, &types()).is_err());
    }
}
