//! Where paths come together: what may be forgotten there, and what may not.

use std::collections::HashMap;

use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};
use bpfarray_core::{Errno, helper_id};

use super::global::{Global, GlobalArg};
use super::strict_tests::{
    after_lookup, assert_accepted, assert_refused, map_address, maps, with_value,
};
use super::{Environment, Refusal, VerifyErrorKind, verify};
use crate::helper::HelperSet;
use crate::prog_type::{AttachType, ProgType};

const R0: Reg = Reg::R0;
const R1: Reg = Reg::R1;
const R2: Reg = Reg::R2;
const R3: Reg = Reg::R3;
const R6: Reg = Reg::new(6);
const R7: Reg = Reg::new(7);
const R8: Reg = Reg::new(8);
const R10: Reg = Reg::R10;
const RANDOM: Insn = Insn::call(helper_id::GET_PRANDOM_U32);
const EXIT: Insn = Insn::exit();

fn call(distance: i32) -> Insn {
    Insn::new(class::JMP | jmp::CALL, R0, Reg::new(pseudo::CALL), 0, distance)
}

/// Branches at a number that shifts, each over `some`.
fn diamonds(count: usize, mut some: impl FnMut(i32) -> Vec<Insn>) -> Vec<Insn> {
    let mut insns = vec![Insn::call(helper_id::GET_PRANDOM_U32), Insn::mov64_imm(R6, 0)];
    for n in 0..count as i32 {
        let some = some(n);
        insns.push(Insn::alu64_imm(alu::RSH, R0, 1));
        insns.push(Insn::jmp_imm(jmp::JSET, R0, 1, some.len() as i16));
        insns.extend(some);
    }
    insns.extend([Insn::mov64_imm(R0, 0), EXIT]);
    insns
}

#[test]
fn what_is_spilled_and_not_needed_again_keeps_no_paths_apart() {
    let spill = |n: i32| {
        let slot = Insn::stx_mem(size::DW, R10, R6, -8 * (1 + (n % 60) as i16));
        vec![Insn::alu64_imm(alu::ADD, R6, 1 << (n % 20)), slot]
    };
    assert_accepted(&diamonds(500, spill));
}

#[test]
fn a_number_that_moves_an_address_matters_also_where_nobody_uses_that() {
    let insns = [
        Insn::call(helper_id::GET_PRANDOM_U32),
        Insn::mov64_reg(R3, R0),
        Insn::alu64_imm(alu::AND, R3, 31),
        Insn::mov64_reg(R2, R10),
        Insn::ja(0),
        Insn::alu64_reg(alu::ADD, R2, R3),
        Insn::mov64_imm(R0, 2),
        EXIT,
    ];
    assert_accepted(&insns);
}

#[test]
fn an_address_that_is_there_on_one_way_only_is_not_read_by_a_callback() {
    let [lo, hi] = Insn::ld_imm64(R2, Reg::new(pseudo::FUNC), 7);
    let [map_lo, map_hi] = map_address(R6, 0);
    let insns = [
        Insn::call(helper_id::GET_PRANDOM_U32),
        map_lo,
        map_hi,
        Insn::stx_mem(size::DW, R10, R0, -8),
        Insn::jmp_imm(jmp::JGT, R0, 1, 1),
        Insn::ja(1),
        Insn::stx_mem(size::DW, R10, R6, -8),
        Insn::mov64_imm(R1, 3),
        lo,
        hi,
        Insn::mov64_reg(R3, R10),
        Insn::alu64_imm(alu::ADD, R3, -8),
        Insn::mov64_imm(Reg::new(4), 0),
        Insn::call(helper_id::LOOP),
        Insn::mov64_imm(R0, 0),
        EXIT,
        Insn::ldx_mem(size::DW, R3, R2, 0),
        Insn::alu64_imm(alu::AND, R3, 1),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ];
    // The kernel looks at each way: "R3 pointer arithmetic on map_ptr prohibited".
    assert_refused(Errno::EACCES, "R3 !read_ok", &insns);
    let mut without = insns.to_vec();
    without[6] = Insn::ja(0);
    assert_accepted(&without);
}

#[test]
fn what_a_function_stores_in_its_callers_frame_is_remembered() {
    // The function adds one to what its argument leads to, behind a place where paths meet.
    assert_accepted(&[
        Insn::st_mem(size::DW, R10, -8, 0),
        Insn::mov64_reg(R1, R10),
        Insn::alu64_imm(alu::ADD, R1, -8),
        call(4),
        Insn::ldx_mem(size::DW, R2, R10, -8),
        Insn::jmp_imm(jmp::JLT, R2, 10, -5),
        Insn::mov64_imm(R0, 0),
        EXIT,
        Insn::ldx_mem(size::DW, R2, R1, 0),
        Insn::alu64_imm(alu::ADD, R2, 1),
        Insn::jmp_imm(jmp::JEQ, R1, 0, 0),
        Insn::stx_mem(size::DW, R1, R2, 0),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ]);
}

/// A callback puts the address of an element into its caller's frame, or does not, and only after that tells its caller, which
/// then multiplies what is there.
fn told_by_callback(meets: bool) -> Vec<Insn> {
    let meet = if meets { &[RANDOM, Insn::jmp_imm(jmp::JEQ, R0, 0, 0)][..] } else { &[] };
    let [lo, hi] = Insn::ld_imm64(R2, Reg::new(pseudo::FUNC), 11 + meet.len() as i32 as u64);
    let (place, address, is_done, is_told) = (-16, -8, -32, -40);
    let before = [
        Insn::stx_mem(size::DW, R10, R0, address),
        Insn::st_mem(size::DW, R10, place, 0),
        Insn::st_mem(size::DW, R10, is_done, 0),
        Insn::st_mem(size::DW, R10, is_told, 0),
        Insn::mov64_imm(R1, 8),
        lo,
        hi,
        Insn::mov64_reg(R3, R10),
        Insn::alu64_imm(alu::ADD, R3, place.into()),
        Insn::mov64_imm(Reg::new(4), 0),
        Insn::call(helper_id::LOOP),
    ];
    let after = [
        Insn::ldx_mem(size::DW, R3, R10, is_told),
        Insn::jmp_imm(jmp::JNE, R3, 1, 2),
        Insn::ldx_mem(size::DW, R2, R10, place),
        Insn::alu64_imm(alu::MUL, R2, 2),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ];
    let callback = [
        Insn::mov64_reg(R6, R2),
        Insn::ldx_mem(size::DW, R3, R6, is_done - place),
        Insn::jmp_imm(jmp::JEQ, R3, 1, 9),
        Insn::mov64_imm(R3, 1),
        Insn::stx_mem(size::DW, R6, R3, is_done - place),
        Insn::st_mem(size::DW, R6, is_told - place, 0),
        RANDOM,
        Insn::jmp_imm(jmp::JEQ, R0, 0, 2),
        Insn::ldx_mem(size::DW, R1, R6, address - place),
        Insn::stx_mem(size::DW, R6, R1, 0),
        Insn::mov64_imm(R0, 0),
        EXIT,
        Insn::mov64_imm(R3, 1),
        Insn::stx_mem(size::DW, R6, R3, is_told - place),
        Insn::mov64_imm(R0, 0),
        EXIT,
    ];
    let found = [Insn::jmp_imm(jmp::JNE, R0, 0, 1), EXIT];
    after_lookup(0, &[&found, &before[..], meet, &after, &callback].concat())
}

#[test]
fn what_cannot_be_read_stays_so_where_paths_meet() {
    for meets in [false, true] {
        // The kernel, which does not join: "R2 pointer arithmetic with *= operator prohibited".
        assert_refused(Errno::EACCES, "R2 !read_ok", &told_by_callback(meets));
    }
}

/// Addresses into one object that are written in two ways are still the same.
#[test]
fn the_verifier_ends_where_addresses_go_back_and_forth() {
    let insns = with_value(
        0,
        &[
            Insn::mov64_imm(R7, 0),
            Insn::mov64_reg(R6, R0),
            Insn::mov64_reg(R8, R0),
            Insn::ldx_mem(size::B, R1, R6, 0),
            Insn::alu64_imm(alu::ADD, R7, 1),
            Insn::mov64_reg(R0, R7),
            Insn::alu64_imm(alu::AND, R0, 1),
            Insn::mov64_reg(R6, R8),
            Insn::jmp_imm(jmp::JEQ, R0, 0, -6),
            Insn::alu64_imm(alu::ADD, R6, 4),
            Insn::jmp_imm(jmp::JLT, R7, 1000, -8),
            Insn::mov64_imm(R0, 0),
            EXIT,
        ],
    );
    let (maps, helpers) = (maps(), HelperSet::linux());
    let env = Environment::new(ProgType::XDP, &maps, &helpers);
    assert!(verify(insns, &env).is_ok());
}

#[test]
fn a_global_function_may_write_all_that_its_argument_leads_to() {
    let reads = |there: Insn| {
        let value = [
            Insn::mov64_reg(R6, R0),
            there,
            Insn::mov64_reg(R1, R10),
            Insn::alu64_imm(alu::ADD, R1, -8),
            call(4),
            Insn::ldx_mem(size::DW, R2, R10, -8),
            Insn::alu64_reg(alu::ADD, R6, R2),
            Insn::ldx_mem(size::B, R1, R6, 0),
            Insn::ja(0),
        ];
        with_value(0, &value)
    };
    let mut insns = reads(Insn::st_mem(size::DW, R10, -8, 4));
    let at = insns.iter().position(|insn| insn.is_pseudo_call()).unwrap();
    let target = insns.len();
    insns[at] = call((target - at - 1) as i32);
    insns.extend([Insn::mov64_imm(R0, 0), EXIT]);
    let judge = |globals: HashMap<usize, Global>| {
        let (maps, helpers) = (maps(), HelperSet::linux());
        let env = Environment::new(ProgType::XDP, &maps, &helpers);
        verify(insns.clone(), &Environment { strict: true, globals, ..env })
    };
    assert!(judge(HashMap::new()).is_ok(), "a function that is looked into");
    let global = Global { name: "set".into(), args: vec![GlobalArg::Memory(8)], returns: true };
    let Err(Refusal { error, .. }) = judge([(target, global)].into()) else { panic!("accepted") };
    let words =
        "math between map_value pointer and register with unbounded min value is not allowed";
    assert_eq!(error.kind.to_string(), words);
    assert!(matches!(error.kind, VerifyErrorKind::Rule(_)));
}

#[test]
fn what_a_program_returns_matters_where_somebody_judges_it() {
    let insns = [
        RANDOM,
        Insn::mov64_reg(R6, R0),
        Insn::alu64_imm(alu::AND, R6, 1),
        Insn::jmp_imm(jmp::JEQ, R0, 5, 0),
        Insn::mov64_reg(R0, R6),
        EXIT,
    ];
    let (maps, helpers) = (maps(), HelperSet::linux());
    let env = Environment::new(ProgType::CGROUP_SKB, &maps, &helpers);
    let attach_type = AttachType::CGROUP_INET_INGRESS;
    let env = Environment { strict: true, attach_type, ..env };
    assert!(verify(insns.to_vec(), &env).is_ok());
}
