//! The form of a program: opcodes, fields, registers, jumps and the bounds of functions.

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode, pseudo, size};
use bpfarray_core::map::array;

use super::{Environment, VerifyError, VerifyErrorKind as Kind, fields};
use crate::core_reloc::POISON_HELPER;

/// The kernel's `BPF_COMPLEXITY_LIMIT_INSNS`.
const MAX_INSNS: usize = 1_000_000;

/// The start of each function, in ascending order; the first is 0.
///
/// # Kernel
/// `check_subprogs`, `resolve_pseudo_ldimm64` and the opcode tests of `do_check`
pub(super) fn check(insns: &[Insn], env: &Environment<'_>) -> Result<Vec<usize>, VerifyError> {
    if insns.is_empty() || insns.len() > MAX_INSNS {
        return Err(VerifyError { insn: 0, kind: Kind::Length(insns.len()) });
    }
    let mut starts = vec![0];
    let mut is_second_half = vec![false; insns.len()];
    let mut at = 0;
    while let Some(&insn) = insns.get(at) {
        let fail = |kind| VerifyError { insn: at, kind };
        check_insn(insn, env).map_err(fail)?;
        if insn.is_ld_imm64() {
            let second = insns.get(at + 1).copied();
            let high = check_second_half(second).map_err(fail)?;
            check_load_kind(insn, high, env).map_err(fail)?;
            is_second_half[at + 1] = true;
        }
        if let Some(target) = function_target(at, insn) {
            starts.push(in_program(target, insns.len()).ok_or(fail(Kind::Jump(target)))?);
        }
        at += len(insn);
    }
    starts.sort_unstable();
    starts.dedup();

    let ends = starts.iter().skip(1).copied().chain([insns.len()]);
    for (&start, end) in starts.iter().zip(ends) {
        check_function(insns, start, end, &is_second_half)?;
    }
    Ok(starts)
}

/// The jumps of one function stay inside it, and so does falling through.
fn check_function(
    insns: &[Insn],
    start: usize,
    end: usize,
    is_second_half: &[bool],
) -> Result<(), VerifyError> {
    if is_second_half[start] {
        return Err(VerifyError { insn: start - 1, kind: Kind::Jump(start as i64) });
    }
    for (at, &insn) in insns.iter().enumerate().take(end).skip(start) {
        if is_second_half[at] {
            continue;
        }
        if let Some(target) = jump_target(at, insn) {
            let inside = usize::try_from(target)
                .is_ok_and(|t| (start..end).contains(&t) && !is_second_half[t]);
            if !inside {
                return Err(VerifyError { insn: at, kind: Kind::Jump(target) });
            }
        }
    }
    let last = insns[end - 1];
    if is_second_half[end - 1] || !(is_exit(last) || is_unconditional_jump(last)) {
        return Err(VerifyError { insn: end - 1, kind: Kind::FallsOff });
    }
    Ok(())
}

/// How many instructions this one takes the place of.
pub(crate) fn len(insn: Insn) -> usize {
    if insn.is_ld_imm64() { 2 } else { 1 }
}

/// The instructions that may come after this one, in the same function.
pub(crate) fn successors(at: usize, insn: Insn) -> impl Iterator<Item = usize> {
    let ends = is_exit(insn) || is_unconditional_jump(insn);
    let next = (!ends).then(|| at + len(insn));
    let target = jump_target(at, insn).and_then(|target| usize::try_from(target).ok());
    next.into_iter().chain(target)
}

fn in_program(target: i64, len: usize) -> Option<usize> {
    usize::try_from(target).ok().filter(|&t| t < len)
}

/// Where a jump goes, conditional or not; `None` for other instructions.
pub(crate) fn jump_target(at: usize, insn: Insn) -> Option<i64> {
    let distance = match (insn.class(), insn.op()) {
        (class::JMP | class::JMP32, jmp::CALL | jmp::EXIT) => return None,
        (class::JMP32, jmp::JA) => insn.imm,
        (class::JMP | class::JMP32, _) => i32::from(insn.off),
        _ => return None,
    };
    Some(at as i64 + 1 + i64::from(distance))
}

/// The function that a call or a callback address refers to; `None` for other instructions.
pub(crate) fn function_target(at: usize, insn: Insn) -> Option<i64> {
    let is_func_address = insn.is_ld_imm64() && insn.src.index() == usize::from(pseudo::FUNC);
    (insn.is_pseudo_call() || is_func_address).then(|| at as i64 + 1 + i64::from(insn.imm))
}

pub(crate) fn is_exit(insn: Insn) -> bool {
    insn.code == class::JMP | jmp::EXIT
}

pub(crate) fn is_unconditional_jump(insn: Insn) -> bool {
    matches!(insn.class(), class::JMP | class::JMP32) && insn.op() == jmp::JA
}

fn check_insn(insn: Insn, env: &Environment<'_>) -> Result<(), Kind> {
    for reg in [insn.dst, insn.src] {
        if reg.index() > Reg::R10.index() {
            return Err(Kind::Register(reg.index()));
        }
    }
    match insn.class() {
        class::ALU | class::ALU64 => check_alu(insn),
        class::JMP | class::JMP32 => check_jump(insn, env),
        class::LDX => check_load(insn),
        class::ST | class::STX => check_store(insn),
        _ => check_ld(insn),
    }
}

fn reserved(insn: Insn, unused_fields_are_zero: bool) -> Result<(), Kind> {
    if unused_fields_are_zero { Ok(()) } else { Err(Kind::ReservedField(insn.code)) }
}

fn writable(reg: Reg) -> Result<(), Kind> {
    if reg == Reg::R10 { Err(Kind::FramePointer) } else { Ok(()) }
}

fn check_alu(insn: Insn) -> Result<(), Kind> {
    let is_64 = insn.class() == class::ALU64;
    let reg_src = insn.is_reg_src();
    let operand_is_plain = if reg_src { insn.imm == 0 } else { insn.src == Reg::R0 };
    match insn.op() {
        alu::END => {
            let width = matches!(insn.imm, 16 | 32 | 64);
            let fields = insn.src == Reg::R0 && insn.off == 0 && !(is_64 && reg_src);
            reserved(insn, width && fields)?;
        }
        alu::NEG => {
            reserved(insn, !reg_src && insn.imm == 0 && insn.src == Reg::R0 && insn.off == 0)?;
        }
        alu::MOV => {
            // The per-CPU move (offset -1) is for inlined code alone: no program may bring it.
            let extension = match insn.off {
                0 => true,
                8 | 16 => reg_src,
                32 => reg_src && is_64,
                _ => false,
            };
            reserved(insn, operand_is_plain && extension)?;
        }
        alu::DIV | alu::MOD => {
            reserved(insn, operand_is_plain && matches!(insn.off, 0 | 1))?;
            if !reg_src && insn.imm == 0 {
                return Err(Kind::DivisionByZero);
            }
        }
        alu::LSH | alu::RSH | alu::ARSH => {
            reserved(insn, operand_is_plain && insn.off == 0)?;
            let bits = if is_64 { 64 } else { 32 };
            if !reg_src && !(0..bits).contains(&insn.imm) {
                return Err(Kind::Shift(insn.imm));
            }
        }
        alu::ADD | alu::SUB | alu::MUL | alu::OR | alu::AND | alu::XOR => {
            reserved(insn, operand_is_plain && insn.off == 0)?;
        }
        _ => return Err(Kind::Opcode(insn.code)),
    }
    writable(insn.dst)
}

fn check_jump(insn: Insn, env: &Environment<'_>) -> Result<(), Kind> {
    let is_64 = insn.class() == class::JMP;
    let (r0, reg_src) = (Reg::R0, insn.is_reg_src());
    match insn.op() {
        jmp::CALL if is_64 && !reg_src => {
            reserved(insn, insn.dst == r0 && insn.off == 0)?;
            let id = insn.imm as u32;
            match insn.src.index() as u8 {
                0 if matches!(id, POISON_HELPER | helper_id::TAIL_CALL) => Ok(()),
                0 if env.helpers.contains(id) => Ok(()),
                0 => Err(Kind::Helper(id)),
                pseudo::CALL => Ok(()),
                pseudo::KFUNC_CALL => Err(Kind::Kfunc),
                _ => Err(Kind::ReservedField(insn.code)),
            }
        }
        jmp::EXIT if is_64 && !reg_src => {
            reserved(insn, insn.dst == r0 && insn.src == r0 && insn.imm == 0)
        }
        jmp::JA if !reg_src => {
            let unused = if is_64 { insn.imm == 0 } else { insn.off == 0 };
            reserved(insn, insn.dst == r0 && insn.src == r0 && unused)
        }
        jmp::JCOND if is_64 && !reg_src => {
            reserved(insn, insn.dst == r0 && insn.src == r0 && insn.imm == 0)
        }
        jmp::CALL | jmp::EXIT | jmp::JA | jmp::JCOND => Err(Kind::Opcode(insn.code)),
        op if op <= jmp::JSLE => {
            reserved(insn, if reg_src { insn.imm == 0 } else { insn.src == r0 })
        }
        _ => Err(Kind::Opcode(insn.code)),
    }
}

fn check_load(insn: Insn) -> Result<(), Kind> {
    match insn.mode() {
        mode::MEM => {}
        mode::MEMSX if insn.size() != size::DW => {}
        _ => return Err(Kind::Opcode(insn.code)),
    }
    reserved(insn, insn.imm == 0)?;
    writable(insn.dst)
}

fn check_store(insn: Insn) -> Result<(), Kind> {
    match (insn.class(), insn.mode()) {
        (class::ST, mode::MEM) => reserved(insn, insn.src == Reg::R0),
        (class::STX, mode::MEM) => reserved(insn, insn.imm == 0),
        (class::STX, mode::ATOMIC) => check_atomic(insn),
        _ => Err(Kind::Opcode(insn.code)),
    }
}

fn check_atomic(insn: Insn) -> Result<(), Kind> {
    let wide = matches!(insn.size(), size::W | size::DW);
    match insn.imm & !atomic::FETCH {
        atomic::ADD | atomic::OR | atomic::AND | atomic::XOR if wide => {}
        _ if wide && matches!(insn.imm, atomic::XCHG | atomic::CMPXCHG) => {}
        _ if matches!(insn.imm, atomic::LOAD_ACQ | atomic::STORE_REL) => {}
        _ => return Err(Kind::ReservedField(insn.code)),
    }
    match insn.imm {
        atomic::LOAD_ACQ => writable(insn.dst),
        atomic::STORE_REL | atomic::CMPXCHG => Ok(()),
        op if op & atomic::FETCH != 0 => writable(insn.src),
        _ => Ok(()),
    }
}

fn check_ld(insn: Insn) -> Result<(), Kind> {
    match insn.mode() {
        mode::IMM if insn.size() == size::DW => {
            reserved(insn, insn.off == 0)?;
            writable(insn.dst)
        }
        mode::ABS | mode::IND if insn.size() != size::DW => {
            let unused = insn.mode() == mode::IND || insn.src == Reg::R0;
            reserved(insn, insn.dst == Reg::R0 && insn.off == 0 && unused)
        }
        _ => Err(Kind::Opcode(insn.code)),
    }
}

/// The immediate of the second half of a 64-bit immediate load.
fn check_second_half(second: Option<Insn>) -> Result<i32, Kind> {
    match second {
        Some(Insn { code: 0, dst: Reg::R0, src: Reg::R0, off: 0, imm }) => Ok(imm),
        _ => Err(Kind::HalfLoad),
    }
}

fn check_load_kind(first: Insn, high: i32, env: &Environment<'_>) -> Result<(), Kind> {
    let map = |index: i32| {
        usize::try_from(index)
            .ok()
            .and_then(|i| env.maps.get(i))
            .ok_or(Kind::MapIndex { index, maps: env.maps.len() })
    };
    match first.src.index() as u8 {
        0 | pseudo::FUNC => Ok(()),
        pseudo::MAP_IDX => {
            fields::check(map(first.imm)?, env.prog_type)?;
            reserved(first, high == 0)
        }
        pseudo::MAP_IDX_VALUE => {
            let map = map(first.imm)?;
            fields::check(map, env.prog_type)?;
            match array::direct_value_addr(map.layout(), high as u32) {
                Ok(_) => Ok(()),
                Err(error) => Err(Kind::DirectValue { map: map.name().to_string(), error }),
            }
        }
        kind => Err(Kind::LoadKind(usize::from(kind))),
    }
}
