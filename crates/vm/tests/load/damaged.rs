//! Objects that are not what they should be: a clear error, never a panic, and little memory and time.

use bpfarray_vm::elf::{LoadError, Object};

use super::elf::*;
use super::{all_objects, read};

const EXIT: u64 = 0x95;
/// `r1 = 0 ll`, first and second half.
const LOAD: [u64; 2] = [0x118, 0];
/// `call -1`, as the compiler leaves it to be relocated.
const CALL: u64 = 0xffff_ffff_0000_1085;

fn error(bytes: &[u8]) -> String {
    Object::parse(bytes).unwrap_err().to_string()
}

/// The error of an object with these instructions, relocated at its first one against a symbol that is
/// added third, after the program and `data`, 8 bytes in `.data`.
fn reloc_error(insns: &[u64], add: impl Fn(Elf) -> Elf) -> String {
    let size = insns.len() as u64 * 8;
    let elf = Elf::new()
        .code("socket", insns)
        .section(".data", SHT_PROGBITS, 3, &[1; 8])
        .section("maps", SHT_PROGBITS, 3, &[1; 40])
        .section("elsewhere", SHT_PROGBITS, 0, &[1; 8])
        .relocs(SHT_REL, 1, &[(0, 3)])
        .symbol("main", GLOBAL_FUNC, 1, 0, size)
        .symbol("data", GLOBAL_OBJECT, 2, 0, 8);
    error(&add(elf).build())
}

#[test]
fn other_files_are_told_apart() {
    let good = read("examples/packet_count.bpf.o");
    let patched = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        error(&bytes)
    };
    assert_eq!(error(b""), "not an ELF file");
    assert_eq!(error(b"\x7fELF"), "not an ELF file");
    assert_eq!(error(&read("examples/packet_count.bpf.c")), "not an ELF file");
    assert_eq!(patched(4, 1), "not a BPF object: it is not a 64-bit ELF file");
    assert_eq!(patched(5, 2), "not a BPF object: it is not little-endian");
    assert_eq!(patched(16, 2), "not a BPF object: it is not relocatable");
    let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(error(&this), "not a BPF object: it is for another machine");
    let mut old = good.clone();
    old[18..20].fill(0);
    assert!(Object::parse(&old).is_ok(), "old compilers named no machine");
}

#[test]
fn every_beginning_of_an_object_is_refused() {
    let good = read("testdata/elf/variables.bpf.o");
    for len in 0..good.len() {
        assert!(Object::parse(&good[..len]).is_err(), "{len} bytes of {}", good.len());
    }
    assert!(Object::parse(&good).is_ok());
}

#[test]
fn objects_without_symbols_are_refused() {
    let mut bytes = read("testdata/elf/variables.bpf.o");
    let headers = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    for header in bytes[headers..].chunks_exact_mut(64).filter(|header| header[4] == 2) {
        header[4] = 1;
    }
    assert_eq!(error(&bytes), "symbol table: there is none; was the object stripped?");
}

#[test]
fn map_definitions_are_refused_by_map_and_field() {
    let good = read("testdata/elf/map_defs.bpf.o");
    let renamed = |old: &str, new: &str| {
        assert_eq!(old.len(), new.len());
        // Not in the symbol table, but in the types, whose strings follow each other.
        let at = good.windows(old.len()).position(|bytes| bytes == old.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
        error(&bytes)
    };
    let unknown = renamed("\0numa_node\0", "\0numa_nodf\0");
    assert_eq!(unknown, "map 'everything': unknown field 'numa_nodf'");
    // An enumeration where an array is expected, and a number for a type.
    let wrong = renamed("\0map_extra\0", "\0numa_node\0");
    assert_eq!(wrong, "map 'extra': field 'numa_node': expected PTR, found ENUM64");
    let conflict = renamed("\0numa_node\0", "\0key_size\0\0");
    assert_eq!(
        conflict,
        "map 'everything': field 'key': a size of 4 contradicts the size of 1 given before"
    );
    assert!(renamed("\0type\0", "\0typf\0").contains("unknown field 'typf'"));
    assert_eq!(renamed("\0.maps\0", "\0.mapz\0"), LoadError::MapsWithoutBtf.to_string());
}

#[test]
fn instructions_are_refused_by_section_function_and_index() {
    let main = |insns: &[u64]| [insns, &[EXIT]].concat();
    let load = main(&LOAD);
    let at = "section 'socket', program 'main', instruction 0: ";
    let undefined = |elf: Elf| elf.symbol("foo", GLOBAL_NOTYPE, SHN_UNDEF, 0, 0);
    for (insns, add, expected) in [
        (&load, &undefined as &dyn Fn(Elf) -> Elf, "relocation against unknown symbol 'foo'"),
        (&main(&[CALL]), &undefined, "relocation against unknown symbol 'foo'"),
        (&load, &|elf| elf, "relocation against symbol 3, which does not exist"),
        (
            &load,
            &|elf| elf.symbol("c", GLOBAL_OBJECT, SHN_COMMON, 8, 8),
            "'c' is in no section (is it without an initial value?)",
        ),
        (
            &load,
            &|elf| elf.symbol("e", GLOBAL_OBJECT, 4, 0, 8),
            "'e' is in section 'elsewhere', which holds neither code, data nor maps",
        ),
        (
            &load,
            &|elf| elf.symbol("d", GLOBAL_OBJECT, 2, 1 << 32, 8),
            "byte 4294967296 of section '.data' cannot be addressed",
        ),
        (
            &load,
            &|elf| elf.symbol("f", GLOBAL_NOTYPE, 1, 8, 0),
            "no function begins at byte 8 of section 'socket'",
        ),
        (
            &main(&[CALL]),
            &|elf| elf.symbol("d", GLOBAL_OBJECT, 2, 0, 8),
            "no function begins at byte 0 of section '.data'",
        ),
        (
            &main(&[0xb7]),
            &|elf| elf.symbol("d", GLOBAL_OBJECT, 2, 0, 8),
            "relocation against 'd' of opcode 0xb7, which takes none",
        ),
    ] {
        assert_eq!(reloc_error(insns, add), format!("{at}{expected}"));
    }
    let half = reloc_error(&[LOAD[0]], |elf| elf.symbol("d", GLOBAL_OBJECT, 2, 0, 8));
    assert_eq!(half, format!("{at}64-bit load without its second half"));
}

#[test]
fn loads_that_only_a_relocation_can_fill_in_need_one() {
    for kind in 1..=15_u64 {
        let elf = Elf::new().code("socket", &[LOAD[0] | kind << 12, 0, EXIT]).symbol(
            "main",
            GLOBAL_FUNC,
            1,
            0,
            24,
        );
        let expected = format!(
            "section 'socket', program 'main', instruction 0: 64-bit load of kind {kind} without \
             a relocation"
        );
        assert_eq!(error(&elf.build()), expected);
    }
}

#[test]
fn code_is_made_of_whole_instructions() {
    let section = Elf::new().section("socket", SHT_PROGBITS, 4, &[0; 12]).build();
    assert_eq!(
        error(&section),
        "section 'socket': 12 bytes are not a whole number of instructions"
    );
    for (offset, size) in [(0, 0), (4, 8), (0, 12), (8, 16), (u64::MAX - 7, 16)] {
        let elf = Elf::new().code("socket", &[EXIT; 2]).symbol("f", GLOBAL_FUNC, 1, offset, size);
        assert!(matches!(Object::parse(&elf.build()), Err(LoadError::Function { .. })));
    }
    for offset in [4, 16, u64::MAX] {
        let elf = Elf::new().code("socket", &[EXIT; 2]).relocs(SHT_REL, 1, &[(offset, 0)]);
        let error = error(&elf.build());
        assert!(error.ends_with("which is not the start of an instruction"), "{error}");
    }
    let functions = Elf::new()
        .code(".text", &[EXIT; 3])
        .relocs(SHT_REL, 1, &[(20, 0)])
        .symbol("f", GLOBAL_FUNC, 1, 0, 8)
        .symbol("g", GLOBAL_FUNC, 1, 8, 16);
    assert_eq!(
        error(&functions.build()),
        "section '.text', function 'g', instruction 1: relocation at byte 20, which is not the start \
         of an instruction"
    );
    let rela = Elf::new().code("socket", &[EXIT]).relocs(SHT_RELA, 1, &[(0, 0)]).build();
    assert!(error(&rela).starts_with("relocations of section 'socket': they have addends"));
}

#[test]
fn functions_may_call_each_other_in_circles() {
    // main: call other; other: call main
    let to = |distance: i32| u64::from(distance as u32) << 32 | 0x1085;
    let elf = Elf::new()
        .code("socket", &[to(1), EXIT, to(-3), EXIT])
        .symbol("main", GLOBAL_FUNC, 1, 0, 16)
        .symbol("other", GLOBAL_FUNC, 1, 16, 16);
    let object = Object::parse(&elf.build()).unwrap();
    let code = object.program("main").unwrap().code().unwrap();
    assert_eq!(code.insns.iter().map(|insn| insn.imm).collect::<Vec<_>>(), [1, 0, -3, 0]);
}

#[test]
fn zeroes_cost_nothing() {
    let object = |size| Object::parse(&Elf::new().bss(".bss", size).build());
    let huge = object(u64::from(u32::MAX)).unwrap();
    assert_eq!(huge.maps()[0].attr.value_size, u32::MAX);
    assert_eq!(
        object(1 << 32).unwrap_err().to_string(),
        "map '.bss': 4294967296 bytes are too large for a map value"
    );
}

#[test]
fn a_small_file_cannot_ask_for_many_instructions() {
    let code = vec![EXIT; 10_000];
    let mut elf = Elf::new().code("socket", &code);
    for _ in 0..1000 {
        elf = elf.symbol("again", GLOBAL_FUNC, 1, 0, 80_000);
    }
    assert!(matches!(Object::parse(&elf.build()), Err(LoadError::TooManyInsns(_))));
}

#[test]
fn sections_cannot_share_their_bytes_over_and_over() {
    let mut bytes = Elf::new().section(".data", SHT_PROGBITS, 3, &[7; 4096]).build();
    let headers = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let again = bytes[headers + 64..headers + 128].to_vec();
    bytes.extend_from_slice(&[again.clone(), again].concat());
    let count = u16::from_le_bytes([bytes[60], bytes[61]]) + 2;
    bytes[60..62].copy_from_slice(&count.to_le_bytes());
    assert_eq!(error(&bytes), "section headers: the sections are larger than the file");
}

/// A small generator of numbers that look random (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn mutate(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    const EXTREMES: [u64; 8] =
        [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    let mut bytes = good.to_vec();
    for _ in 0..=rng.below(8) {
        let at = rng.below(bytes.len());
        let left = bytes.len() - at;
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next() as u8,
            2 => bytes.truncate(at.max(1)),
            // A count, a size or an offset that is out of this world.
            3 => {
                let len = [1, 2, 4, 8][rng.below(4)].min(left);
                let extreme = EXTREMES[rng.below(EXTREMES.len())].to_le_bytes();
                bytes[at..at + len].copy_from_slice(&extreme[..len]);
            }
            // Bytes of another place.
            4 => {
                let len = 1 + rng.below(left.min(64));
                let from = rng.below(bytes.len() - len + 1);
                bytes.copy_within(from..from + len, at);
            }
            // Bytes too many or too few.
            _ => {
                let len = rng.below(left.min(64));
                let other = rng.below(good.len() - 64);
                bytes.splice(at..at + len, good[other..other + rng.below(64)].iter().copied());
                bytes.push(0);
            }
        }
    }
    bytes
}

#[test]
fn mutated_objects_never_panic() {
    let good = read("examples/packet_count.bpf.o");
    let mut rng = Rng(0x5eed);
    let mut refused = 0;
    for _ in 0..2000 {
        match Object::parse(&mutate(&good, &mut rng)) {
            Ok(object) => assert!(object.maps().len() < 1000),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(refused > 500, "only {refused} of 2000 mutations were noticed");
}

#[test]
fn mutated_objects_of_every_kind_never_panic() {
    let mut rng = Rng(0xd1ce);
    for path in all_objects() {
        let good = std::fs::read(&path).unwrap();
        for _ in 0..50 {
            let _ = Object::parse(&mutate(&good, &mut rng));
        }
    }
}
