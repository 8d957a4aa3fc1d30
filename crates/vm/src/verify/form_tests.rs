//! Programs of a wrong form, and what is learned of right ones.

use bpfarray::Map;
use bpfarray_core::attr::{MapAttr, MapType};
use bpfarray_core::insn::{Reg, alu, class, jmp, mode, pseudo, size};

use super::*;

const LOOKUP: Insn = Insn::call(helper_id::MAP_LOOKUP_ELEM);

fn map(map_type: MapType) -> MapRef {
    let attr =
        MapAttr { map_type, key_size: 4, value_size: 8, max_entries: 5, ..MapAttr::default() };
    Map::create(&attr).unwrap().to_ref()
}

/// Verifies an XDP program with maps ARRAY, PERCPU_ARRAY, ARRAY.
fn check(insns: &[Insn]) -> Result<Verified, VerifyError> {
    let maps = [map(MapType::ARRAY), map(MapType::PERCPU_ARRAY), map(MapType::ARRAY)];
    let helpers = HelperSet::linux();
    let env = Environment::new(ProgType::XDP, &maps, &helpers);
    verify(insns.to_vec(), &env).map_err(|refusal| refusal.error)
}

fn refusal(insns: &[Insn]) -> (usize, VerifyErrorKind) {
    let Err(error) = check(insns) else { panic!("accepted") };
    (error.insn, error.kind)
}

fn map_address(dst: Reg, index: u64) -> [Insn; 2] {
    Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), index)
}

#[test]
fn a_lookup_in_a_known_map_is_recognised_even_after_a_spill() {
    let [lo, hi] = map_address(Reg::R1, 1);
    let verified = check(&[
        lo,
        hi,
        Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
        Insn::mov64_imm(Reg::R1, 0),
        Insn::mov64_reg(Reg::R3, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R3, -16),
        Insn::ldx_mem(size::DW, Reg::R1, Reg::R3, 8),
        LOOKUP,
        Insn::exit(),
    ]);
    assert_eq!(verified.unwrap().facts[7], Fact::Lookup(KnownMap::Listed(1)));
}

#[test]
fn a_partly_overwritten_spill_is_forgotten() {
    let [lo, hi] = map_address(Reg::R1, 1);
    let verified = check(&[
        lo,
        hi,
        Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
        Insn::st_mem(size::B, Reg::R10, -1, 0),
        Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, -8),
        LOOKUP,
        Insn::exit(),
    ]);
    assert_eq!(verified.unwrap().facts[5], Fact::None);
}

#[test]
fn a_lookup_that_two_paths_reach_with_different_maps_stays_a_call() {
    let [lo0, hi0] = map_address(Reg::R1, 0);
    let [lo2, hi2] = map_address(Reg::R1, 2);
    let two_paths = |other: [Insn; 2]| {
        check(&[
            lo0,
            hi0,
            Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, 2),
            other[0],
            other[1],
            LOOKUP,
            Insn::exit(),
        ])
    };
    assert_eq!(two_paths([lo2, hi2]).unwrap().facts[5], Fact::None);
    assert_eq!(two_paths([lo0, hi0]).unwrap().facts[5], Fact::Lookup(KnownMap::Listed(0)));
}

#[test]
fn a_callback_gets_the_map_that_is_iterated() {
    let [lo, hi] = map_address(Reg::R1, 2);
    let [func, zero] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 4);
    let verified = check(&[
        lo,
        hi,
        func,
        zero,
        Insn::call(helper_id::FOR_EACH_MAP_ELEM),
        Insn::mov64_imm(Reg::R0, 0),
        Insn::exit(),
        LOOKUP,
        Insn::mov64_imm(Reg::R0, 0),
        Insn::exit(),
    ]);
    assert_eq!(verified.unwrap().facts[7], Fact::Lookup(KnownMap::Listed(2)));
}

#[test]
fn jumps_stay_in_their_function_and_out_of_immediates() {
    let [lo, hi] = Insn::ld_imm64(Reg::R0, Reg::R0, 7);
    assert_eq!(refusal(&[Insn::ja(1), Insn::exit()]), (0, VerifyErrorKind::Jump(2)));
    assert_eq!(refusal(&[Insn::ja(1), lo, hi, Insn::exit()]), (0, VerifyErrorKind::Jump(2)));
    assert_eq!(refusal(&[Insn::ja(-2), Insn::exit()]), (0, VerifyErrorKind::Jump(-1)));
    let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(1), 0, 1);
    let into_callee = [call, Insn::ja(0), Insn::mov64_imm(Reg::R0, 0), Insn::exit()];
    assert_eq!(refusal(&into_callee), (1, VerifyErrorKind::Jump(2)));
}

#[test]
fn a_program_ends_in_exit_or_a_jump() {
    assert_eq!(refusal(&[]), (0, VerifyErrorKind::Length(0)));
    let no_exit = [Insn::mov64_imm(Reg::R0, 0)];
    assert_eq!(refusal(&no_exit), (0, VerifyErrorKind::FallsOff));
    let [lo, _] = Insn::ld_imm64(Reg::R0, Reg::R0, 7);
    assert_eq!(refusal(&[lo]), (0, VerifyErrorKind::HalfLoad));
}

#[test]
fn the_per_cpu_move_is_no_instruction_of_programs() {
    let insns = [Insn::mov64_percpu_reg(Reg::R0, Reg::R0), Insn::exit()];
    assert_eq!(refusal(&insns), (0, VerifyErrorKind::ReservedField(0xbf)));
}

#[test]
fn missing_helpers_and_kfuncs_are_refused_by_name() {
    let error = check(&[Insn::call(4), Insn::exit()]).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "instruction 0: call of helper bpf_probe_read#4, which is not available here"
    );
    let kfunc = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(2), 0, 77);
    assert_eq!(refusal(&[kfunc, Insn::exit()]), (0, VerifyErrorKind::Kfunc));
}

#[test]
fn a_helper_for_per_cpu_maps_takes_no_array() {
    let [lo, hi] = map_address(Reg::R1, 0);
    let call = Insn::call(helper_id::MAP_LOOKUP_PERCPU_ELEM);
    let (insn, kind) = refusal(&[lo, hi, call, Insn::exit()]);
    assert_eq!(insn, 2);
    assert!(matches!(kind, VerifyErrorKind::MapKind { helper: 195, .. }), "{kind:?}");
    let [lo, hi] = map_address(Reg::R1, 1);
    assert!(check(&[lo, hi, call, Insn::exit()]).is_ok());
}

#[test]
fn helpers_on_events_take_only_maps_of_events_and_those_no_other_helper() {
    let helpers = [
        (helper_id::PERF_EVENT_READ, Reg::R1),
        (helper_id::PERF_EVENT_OUTPUT, Reg::R2),
        (helper_id::PERF_EVENT_READ_VALUE, Reg::R1),
    ];
    let types = [MapType::ARRAY, MapType::PROG_ARRAY, MapType::PERF_EVENT_ARRAY];
    let maps = types.map(|map_type| {
        let sizes = MapAttr { key_size: 4, value_size: 4, max_entries: 5, ..MapAttr::default() };
        Map::create(&MapAttr { map_type, ..sizes }).unwrap().to_ref()
    });
    let set = HelperSet::linux();
    let env = Environment::new(ProgType::XDP, &maps, &set);
    let judge = |helper, reg, index| {
        let [lo, hi] = map_address(reg, index);
        verify(vec![lo, hi, Insn::call(helper), Insn::exit()], &env)
            .map(drop)
            .map_err(|refusal| refusal.error)
    };
    for (helper, reg) in helpers {
        assert!(judge(helper, reg, 2).is_ok(), "{helper}");
        for index in [0, 1] {
            let error = judge(helper, reg, index).unwrap_err();
            assert!(matches!(error.kind, VerifyErrorKind::MapKind { .. }), "{error}");
            assert_eq!(error.errno(), Errno::EINVAL);
        }
    }
    let lookup = judge(helper_id::MAP_LOOKUP_ELEM, Reg::R1, 2).unwrap_err();
    assert_eq!(lookup.errno(), Errno::EINVAL);
}

#[test]
fn a_spill_that_a_helper_overwrites_is_forgotten() {
    let [lo, hi] = map_address(Reg::R1, 1);
    let read_value = |len| {
        check(&[
            lo,
            hi,
            Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
            Insn::mov64_reg(Reg::R3, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R3, -32),
            Insn::mov64_imm(Reg::R4, len),
            Insn::mov64_imm(Reg::R1, 0),
            Insn::call(helper_id::PERF_EVENT_READ_VALUE),
            Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, -8),
            LOOKUP,
            Insn::exit(),
        ])
    };
    assert_eq!(read_value(25).unwrap().facts[9], Fact::None);
    assert_eq!(read_value(24).unwrap().facts[9], Fact::Lookup(KnownMap::Listed(1)));
}

#[test]
fn a_field_that_the_context_lacks_is_refused() {
    let load = Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 64);
    let kind = VerifyErrorKind::CtxAccess { offset: 64, size: 4 };
    assert_eq!(refusal(&[load, Insn::exit()]), (0, kind));
    let data_end = Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 4);
    assert!(check(&[data_end, Insn::exit()]).is_ok());
    let extended = Insn::new(class::LDX | mode::MEMSX | size::W, Reg::R0, Reg::R1, 4, 0);
    let kind = VerifyErrorKind::CtxAccess { offset: 4, size: 4 };
    assert_eq!(refusal(&[extended, Insn::exit()]), (0, kind));
}

#[test]
fn a_direct_value_needs_a_map_of_one_element() {
    let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), 0);
    let error = check(&[lo, hi, Insn::exit()]).map(drop).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOTSUPP);
    let [lo, hi] = map_address(Reg::R1, 9);
    let none = VerifyErrorKind::MapIndex { index: 9, maps: 3 };
    assert_eq!(refusal(&[lo, hi, Insn::exit()]), (0, none));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(proptest::array::uniform8(proptest::num::u8::ANY), 1..40)
    ) {
        let insns: Vec<Insn> = bytes.into_iter().map(Insn::decode).collect();
        let _ = check(&insns);
    }
}
