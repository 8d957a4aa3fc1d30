//! Programs that break one rule each, and what Linux 6.18 says to them.

use bpfarray::{Map, MapRef};
use bpfarray_core::attr::{MapAttr, MapFlags, MapType};
use bpfarray_core::insn::{Insn, Reg, X, alu, atomic, class, jmp, mode, pseudo, size};
use bpfarray_core::{Errno, helper_id};

use super::{Environment, LogLevel, Refusal, Verified, verify};
use crate::helper::HelperSet;
use crate::prog_type::{AttachType, ProgType};

const R0: Reg = Reg::R0;
const R1: Reg = Reg::R1;
const R2: Reg = Reg::R2;
const R3: Reg = Reg::R3;
const R6: Reg = Reg::new(6);
const R10: Reg = Reg::R10;
const LOOKUP: Insn = Insn::call(helper_id::MAP_LOOKUP_ELEM);
const EXIT: Insn = Insn::exit();

pub(super) fn map(map_flags: MapFlags) -> Map {
    let attr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 5,
        map_flags,
        ..MapAttr::default()
    };
    Map::create(&attr).unwrap()
}

/// ARRAYs of five values of 8 bytes: a plain one, a read-only, a write-only; and a frozen read-only one.
pub(super) fn maps() -> Vec<MapRef> {
    let flags =
        [MapFlags::empty(), MapFlags::RDONLY_PROG, MapFlags::WRONLY_PROG, MapFlags::RDONLY_PROG];
    let maps = flags.map(map);
    maps[3].freeze().unwrap();
    maps.iter().map(Map::to_ref).collect()
}

pub(super) fn judge(
    prog_type: ProgType,
    insns: &[Insn],
    log: LogLevel,
) -> Result<Verified, Refusal> {
    let (maps, helpers) = (maps(), HelperSet::linux());
    let env = Environment { strict: true, log, ..Environment::new(prog_type, &maps, &helpers) };
    verify(insns.to_vec(), &env)
}

/// The errno and the last words but the statistics.
pub(super) fn refusal(insns: &[Insn]) -> (Errno, String) {
    let Err(refusal) = judge(ProgType::XDP, insns, LogLevel::None) else { panic!("accepted") };
    (refusal.error.errno(), refusal.error.kind.to_string())
}

pub(super) fn assert_refused(errno: Errno, words: &str, insns: &[Insn]) {
    assert_eq!(refusal(insns), (errno, words.to_owned()));
}

pub(super) fn assert_accepted(insns: &[Insn]) {
    if let Err(refusal) = judge(ProgType::XDP, insns, LogLevel::None) {
        panic!("{}\n{}", refusal.error, refusal.log);
    }
}

pub(super) fn map_address(dst: Reg, index: u64) -> [Insn; 2] {
    Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), index)
}

/// The code before a lookup of a key that is not known, the lookup, and then `rest`.
pub(super) fn after_lookup(map: u64, rest: &[Insn]) -> Vec<Insn> {
    let [lo, hi] = map_address(R1, map);
    let mut insns = vec![
        Insn::call(helper_id::GET_PRANDOM_U32),
        Insn::stx_mem(size::W, R10, R0, -8),
        lo,
        hi,
        Insn::mov64_reg(R2, R10),
        Insn::alu64_imm(alu::ADD, R2, -8),
        LOOKUP,
    ];
    insns.extend_from_slice(rest);
    insns
}

/// The same, with the result tested; `rest` is jumped over where there is no element.
pub(super) fn with_value(map: u64, rest: &[Insn]) -> Vec<Insn> {
    let mut all = vec![Insn::jmp_imm(jmp::JEQ, R0, 0, rest.len() as i16)];
    all.extend_from_slice(rest);
    all.extend([Insn::mov64_imm(R0, 0), EXIT]);
    after_lookup(map, &all)
}

#[test]
fn registers_without_a_value_are_not_read() {
    assert_refused(Errno::EACCES, "R3 !read_ok", &[Insn::mov64_reg(R0, R3), EXIT]);
    assert_refused(Errno::EACCES, "R0 !read_ok", &[EXIT]);
    let after_call = [Insn::call(helper_id::GET_PRANDOM_U32), Insn::mov64_reg(R0, R1), EXIT];
    assert_refused(Errno::EACCES, "R1 !read_ok", &after_call);
}

#[test]
fn frames_are_left_alone_beyond_their_ends() {
    let store = |off| [Insn::stx_mem(size::DW, R10, R1, off), Insn::mov64_imm(R0, 0), EXIT];
    assert_accepted(&store(-512));
    assert_refused(Errno::EACCES, "invalid write to stack R10 off=-520 size=8", &store(-520));
    assert_refused(Errno::EACCES, "invalid write to stack R10 off=0 size=8", &store(0));
    assert_refused(Errno::EACCES, "misaligned stack access off 0+0+-12 size 8", &store(-12));
}

#[test]
fn elements_are_tested_before_they_are_used() {
    let load = Insn::ldx_mem(size::W, R0, R0, 0);
    let words = "R0 invalid mem access 'map_value_or_null'";
    assert_refused(Errno::EACCES, words, &after_lookup(0, &[load, EXIT]));
    let add = Insn::alu64_imm(alu::ADD, R0, 4);
    let words = "R0 pointer arithmetic on map_value_or_null prohibited, null-check it first";
    assert_refused(Errno::EACCES, words, &after_lookup(0, &[add, EXIT]));
    assert_accepted(&with_value(0, &[load]));
}

#[test]
fn elements_end_where_their_bytes_end() {
    let at = |off| with_value(0, &[Insn::ldx_mem(size::W, R1, R0, off)]);
    assert_accepted(&at(4));
    let (errno, words) = refusal(&at(8));
    assert_eq!(errno, Errno::EACCES);
    assert!(
        words.starts_with("invalid access to map value, value_size=8 off=8 size=4\nR0 "),
        "{words}"
    );
    assert!(words.ends_with("outside of the allowed memory range"), "{words}");
    let by_number = |mask| {
        with_value(
            0,
            &[
                Insn::ldx_mem(size::W, R1, R0, 0),
                Insn::alu64_imm(alu::AND, R1, mask),
                Insn::alu64_reg(alu::ADD, R0, R1),
                Insn::ldx_mem(size::B, R1, R0, 0),
            ],
        )
    };
    assert_accepted(&by_number(7));
    let (_, words) = refusal(&by_number(15));
    assert!(words.contains("value_size=8 off=15 size=1"), "{words}");
    let (_, words) = refusal(&by_number(-1));
    assert!(words.contains("R0 unbounded memory access"), "{words}");
}

#[test]
fn flags_of_maps_are_kept_to() {
    let load = with_value(2, &[Insn::ldx_mem(size::W, R1, R0, 0)]);
    assert_refused(Errno::EACCES, "read from map forbidden, value_size=8 off=0 size=4", &load);
    let store = with_value(1, &[Insn::st_mem(size::W, R0, 0, 1)]);
    assert_refused(Errno::EACCES, "write into map forbidden, value_size=8 off=0 size=4", &store);
    assert_accepted(&with_value(1, &[Insn::ldx_mem(size::W, R1, R0, 0)]));
    assert_accepted(&with_value(2, &[Insn::st_mem(size::W, R0, 0, 1)]));
}

#[test]
fn a_frozen_map_of_several_elements_cannot_be_read_at_a_known_place() {
    let known = with_value(3, &[Insn::ldx_mem(size::W, R1, R0, 0)]);
    assert_eq!(refusal(&known).0, Errno::ENOTSUPP);
}

#[test]
fn packets_are_compared_with_their_end() {
    let read = |size: i32, off| {
        [
            Insn::ldx_mem(size::W, R2, R1, 0),
            Insn::ldx_mem(size::W, R3, R1, 4),
            Insn::mov64_imm(R0, 0),
            Insn::mov64_reg(R6, R2),
            Insn::alu64_imm(alu::ADD, R6, size),
            Insn::new(class::JMP | jmp::JGT | 8, R6, R3, 1, 0),
            Insn::ldx_mem(size::B, R0, R2, off),
            EXIT,
        ]
    };
    assert_accepted(&read(14, 13));
    let words = "invalid access to packet, off=14 size=1, R2(id=0,off=0,r=14)\nR2 offset is outside of the packet";
    assert_refused(Errno::EACCES, words, &read(14, 14));
}

#[test]
fn addresses_are_only_moved() {
    let on_context = |insn| [insn, Insn::mov64_imm(R0, 0), EXIT];
    let refused = |words, insn| assert_refused(Errno::EACCES, words, &on_context(insn));
    refused("R1 pointer arithmetic with *= operator prohibited", Insn::alu64_imm(alu::MUL, R1, 2));
    refused("R1 bitwise operator &= on pointer prohibited", Insn::alu64_imm(alu::AND, R1, -8));
    refused("R1 32-bit pointer arithmetic prohibited", Insn::alu32_imm(alu::ADD, R1, 1));
    refused("R1 pointer += pointer prohibited", Insn::alu64_reg(alu::ADD, R1, R10));
    let moved = [Insn::alu64_imm(alu::ADD, R1, 4), Insn::ldx_mem(size::W, R0, R1, 0), EXIT];
    assert_refused(Errno::EACCES, "dereference of modified ctx ptr R1 off=4 disallowed", &moved);
    let difference = [Insn::alu64_reg(alu::SUB, R1, R10), Insn::mov64_imm(R0, 0), EXIT];
    assert_accepted(&difference);
}

#[test]
fn every_instruction_is_on_some_path() {
    let insns = [Insn::mov64_imm(R0, 0), EXIT, Insn::mov64_imm(R0, 1), EXIT];
    assert_refused(Errno::EINVAL, "unreachable insn 2", &insns);
}

#[test]
fn loops_come_to_an_end() {
    let count = |end| {
        let mut insns = vec![Insn::mov64_imm(R0, 0), Insn::alu64_imm(alu::ADD, R0, 1)];
        insns.extend([Insn::mov64_reg(R1, R0); 40]);
        insns.extend([Insn::jmp_imm(jmp::JNE, R0, end, -42), EXIT]);
        insns
    };
    assert_accepted(&count(1000));
    let (errno, words) = refusal(&count(2_000_000));
    assert_eq!(errno, Errno::E2BIG);
    assert!(words.starts_with("BPF program is too large. Processed 1000001 insn"), "{words}");
    let same = [Insn::call(helper_id::GET_PRANDOM_U32), Insn::jmp_imm(jmp::JEQ, R0, 0, -2), EXIT];
    assert_refused(Errno::EINVAL, "infinite loop detected at insn 0", &same);
}

#[test]
fn a_number_known_only_not_to_be_negative_goes_too_far() {
    let far = with_value(
        0,
        &[
            Insn::ldx_mem(size::DW, R1, R0, 0),
            Insn::jmp_imm(jmp::JSLT, R1, 0, 2),
            Insn::alu64_reg(alu::ADD, R0, R1),
            Insn::st_mem(size::B, R0, 0, 1),
        ],
    );
    let words = "R0 unbounded memory access, make sure to bounds check any such access";
    assert_refused(Errno::EACCES, words, &far);
}

#[test]
fn calls_fit_the_stack() {
    let call =
        |distance| Insn::new(class::JMP | jmp::CALL, R0, Reg::new(pseudo::CALL), 0, distance);
    let store = |off| Insn::st_mem(size::DW, R10, off, 0);
    let with_frames =
        |first, second| [store(first), call(1), EXIT, store(second), Insn::mov64_imm(R0, 0), EXIT];
    assert_accepted(&with_frames(-256, -256));
    let words = "combined stack size of 2 calls is 528. Too large";
    assert_refused(Errno::EACCES, words, &with_frames(-256, -264));
}

#[test]
fn large_frames_are_apart_where_functions_have_stacks_of_their_own() {
    let store = |off| Insn::st_mem(size::DW, R10, off, 0);
    let end = [Insn::mov64_imm(R0, 0), EXIT];
    let call = Insn::new(class::JMP | jmp::CALL, R0, Reg::new(pseudo::CALL), 0, 2);
    let calls = [&[store(-64), call][..], &end, &[store(-512)], &end].concat();
    assert_refused(Errno::EACCES, "combined stack size of 2 calls is 576. Too large", &calls);
    assert!(judge(ProgType::RAW_TRACEPOINT, &calls, LogLevel::None).is_ok());
    let shallow = [&[store(-56), call][..], &end, &[store(-512)], &end].concat();
    assert!(judge(ProgType::RAW_TRACEPOINT, &shallow, LogLevel::None).is_ok());
}

#[test]
fn the_kernel_gives_up_on_quotients_and_shifts_by_what_it_does_not_know() {
    let half = |code, src, imm| Insn::new(class::ALU | code, R2, src, 0, imm);
    let by_itself = half(alu::RSH | X, R2, 0);
    for insn in [half(alu::DIV, R0, 3), half(alu::MOD, R0, 3), by_itself] {
        let moves = [
            Insn::mov64_imm(R2, 9),
            Insn::call(helper_id::GET_PRANDOM_U32),
            Insn::mov64_reg(R2, R0),
            insn,
            Insn::new(class::JMP32 | jmp::JGT, R2, R0, 2, 7),
            Insn::mov64_reg(R3, R10),
            Insn::alu64_reg(alu::ADD, R3, R2),
            Insn::mov64_imm(R0, 0),
            EXIT,
        ];
        let words = "math between fp pointer and register with unbounded min value is not allowed";
        assert_refused(Errno::EINVAL, words, &moves);
    }
}

#[test]
fn what_is_subtracted_from_an_address_leaves_no_upper_bound() {
    let rest = [
        Insn::mov64_reg(R6, R0),
        Insn::call(helper_id::GET_PRANDOM_U32),
        Insn::jmp_imm(jmp::JGT, R0, 4, 2),
        Insn::alu64_reg(alu::SUB, R6, R0),
        Insn::ldx_mem(size::W, R1, R6, 4),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ];
    let words = "R6 unbounded memory access, make sure to bounds check any such access";
    assert_refused(Errno::EACCES, words, &with_value(0, &rest));
}

#[test]
fn what_is_called_no_times_is_not_looked_at() {
    let function = |at: i32| Insn::ld_imm64(R2, Reg::new(pseudo::FUNC), u64::from(at as u32));
    let looped = |times| {
        let [lo, hi] = function(6);
        let call = Insn::call(helper_id::LOOP);
        let (r3, r4) = (Insn::mov64_reg(R3, R10), Insn::mov64_imm(Reg::new(4), 0));
        let wrong = [Insn::ldx_mem(size::DW, R0, R1, 0), EXIT];
        let before =
            [Insn::mov64_imm(R1, times), lo, hi, r3, r4, call, Insn::mov64_imm(R0, 0), EXIT];
        [&before[..], &wrong].concat()
    };
    assert_accepted(&looped(0));
    assert_refused(Errno::EACCES, "R1 invalid mem access 'scalar'", &looped(1));
}

#[test]
fn arguments_are_what_a_helper_takes() {
    let [lo, hi] = map_address(R1, 0);
    let number = [lo, hi, Insn::mov64_imm(R2, 0), LOOKUP, Insn::mov64_imm(R0, 0), EXIT];
    let (errno, words) = refusal(&number);
    assert_eq!(errno, Errno::EACCES);
    assert!(words.starts_with("R2 type=scalar expected=fp, "), "{words}");
    let no_map = [Insn::mov64_reg(R2, R10), LOOKUP, Insn::mov64_imm(R0, 0), EXIT];
    assert_refused(Errno::EACCES, "R1 type=ctx expected=map_ptr", &no_map);
    let past_the_end = [lo, hi, Insn::mov64_reg(R2, R10), LOOKUP, Insn::mov64_imm(R0, 0), EXIT];
    assert_refused(Errno::EACCES, "invalid read from stack R2 off=0 size=4", &past_the_end);
    let comm = |len| {
        [
            Insn::mov64_reg(R1, R10),
            Insn::alu64_imm(alu::ADD, R1, -16),
            len,
            Insn::call(helper_id::GET_CURRENT_COMM),
            EXIT,
        ]
    };
    assert_accepted(&comm(Insn::mov64_imm(R2, 16)));
    assert_refused(Errno::EACCES, "R2 !read_ok", &comm(Insn::mov64_imm(R0, 16)));
    let words = "R2 min value is negative, either use unsigned or 'var &= const'";
    assert_refused(Errno::EACCES, words, &comm(Insn::mov64_imm(R2, -1)));
    let words = "invalid write to stack R1 off=-16 size=24";
    assert_refused(Errno::EACCES, words, &comm(Insn::mov64_imm(R2, 24)));
    let words = "R2 invalid zero-sized read: u64=[0,0]";
    assert_refused(Errno::EACCES, words, &comm(Insn::mov64_imm(R2, 0)));
}

#[test]
fn helpers_are_for_some_types_of_programs() {
    let insns = [Insn::mov64_imm(R2, 0), Insn::call(helper_id::XDP_ADJUST_HEAD), EXIT];
    assert_accepted(&insns);
    let Err(refusal) = judge(ProgType::SOCKET_FILTER, &insns, LogLevel::None) else { panic!() };
    assert_eq!(refusal.error.errno(), Errno::EINVAL);
    let words = "program of this type cannot use helper bpf_xdp_adjust_head#44";
    assert_eq!(refusal.error.kind.to_string(), words);
}

#[test]
fn packets_are_looked_for_anew_after_they_may_have_moved() {
    let insns = [
        Insn::mov64_reg(R6, R1),
        Insn::ldx_mem(size::W, Reg::new(7), R6, 0),
        Insn::mov64_imm(R2, 0),
        Insn::call(helper_id::XDP_ADJUST_HEAD),
        Insn::ldx_mem(size::B, R0, Reg::new(7), 0),
        EXIT,
    ];
    assert_refused(Errno::EACCES, "R7 invalid mem access 'scalar'", &insns);
}

#[test]
fn a_spilled_pointer_comes_back_whole_or_not_at_all() {
    let fill =
        |size| [Insn::stx_mem(size::DW, R10, R1, -8), Insn::ldx_mem(size, R0, R10, -8), EXIT];
    assert_accepted(&fill(size::DW));
    assert_refused(Errno::EACCES, "invalid size of register fill", &fill(size::W));
    let overwritten = [
        Insn::stx_mem(size::DW, R10, R1, -8),
        Insn::st_mem(size::B, R10, -1, 0),
        Insn::ldx_mem(size::DW, R1, R10, -8),
        Insn::ldx_mem(size::W, R0, R1, 0),
        EXIT,
    ];
    assert_refused(Errno::EACCES, "R1 invalid mem access 'scalar'", &overwritten);
}

#[test]
fn contexts_and_packets_take_no_atomic_operations() {
    let code = class::STX | mode::ATOMIC | size::W;
    let insns = [
        Insn::mov64_imm(R2, 1),
        Insn::new(code, R1, R2, 0, atomic::ADD),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ];
    assert_refused(Errno::EACCES, "BPF_ATOMIC stores into R1 ctx is not allowed", &insns);
}

#[test]
fn the_log_tells_the_way_and_what_was_known_on_it() {
    let insns = after_lookup(0, &[Insn::ldx_mem(size::W, R0, R0, 0), EXIT]);
    let Err(refusal) = judge(ProgType::XDP, &insns, LogLevel::None) else { panic!("accepted") };
    let lines: Vec<_> = refusal.log.lines().collect();
    assert_eq!(lines[0], "0: R1=ctx() R10=fp0");
    assert_eq!(lines[1], "0: (85) call bpf_get_prandom_u32#7    ; R0=scalar()");
    let lookup = lines[lines.len() - 4];
    assert!(
        lookup.starts_with("6: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=")
            && lookup.ends_with(",ks=4,vs=8)"),
        "{lookup}"
    );
    assert_eq!(lines[lines.len() - 2], "R0 invalid mem access 'map_value_or_null'");
    let last = lines[lines.len() - 1];
    assert!(last.starts_with("processed 7 insns (limit 1000000) "), "{last}");
}

#[test]
fn the_log_of_an_accepted_program_has_all_paths_if_asked_for() {
    let insns = with_value(0, &[Insn::ldx_mem(size::W, R1, R0, 0)]);
    let log = |level| judge(ProgType::XDP, &insns, level).map(|verified| verified.log).unwrap();
    assert_eq!(log(LogLevel::None), "");
    let all = log(LogLevel::All);
    assert!(
        all.contains("; R0=map_value(ks=4,vs=8) R1=scalar(smin=0,smax=umax=0xffffffff,"),
        "{all}"
    );
    assert!(all.contains("\nfrom 7 to 9: safe\n") || all.contains("\n9: safe\n"), "{all}");
}

#[test]
fn programs_for_control_groups_return_what_these_can_do() {
    let with = |prog_type, attach_type, value| {
        let (maps, helpers) = (maps(), HelperSet::linux());
        let env = Environment::new(prog_type, &maps, &helpers);
        let env = Environment { strict: true, attach_type, ..env };
        verify(vec![Insn::mov64_imm(R0, value), EXIT], &env).is_ok()
    };
    use {AttachType as A, ProgType as P};
    let taken = |prog_type, attach_type| {
        (-1..5).filter(|&value| with(prog_type, attach_type, value)).collect::<Vec<_>>()
    };
    assert_eq!(taken(P::CGROUP_SKB, A::CGROUP_INET_INGRESS), [0, 1]);
    assert_eq!(taken(P::CGROUP_SKB, A::CGROUP_INET_EGRESS), [0, 1, 2, 3]);
    assert_eq!(taken(P::CGROUP_SOCK_ADDR, A::CGROUP_INET4_BIND), [0, 1, 2, 3]);
    assert_eq!(taken(P::CGROUP_SOCK_ADDR, A::CGROUP_INET4_CONNECT), [0, 1]);
    assert_eq!(taken(P::CGROUP_SOCK_ADDR, A::CGROUP_UDP4_RECVMSG), [1]);
    assert_eq!(taken(P::SK_LOOKUP, A::SK_LOOKUP), [0, 1]);
    assert_eq!(taken(P::XDP, A(0)), [-1, 0, 1, 2, 3, 4]);
}
