//! Sequences that take the place of single instructions.

use bpfarray_core::insn::{Insn, Reg, X, alu, class, jmp, mode, size};
use bpfarray_core::{Errno, helper_id};

use crate::interp::{FRAME_SIZE, MAX_LOOPS};

/// Where in an inlined loop the function is called.
pub(super) const LOOP_CALL: usize = 12;

/// `bpf_loop` with flags 0, which saves registers below the `stack` bytes that its function uses; `None` if there is no
/// room for them.
///
/// # Kernel
/// `inline_bpf_loop`
pub(super) fn bpf_loop(stack: i16) -> Option<[Insn; 19]> {
    if usize::try_from(stack).ok()? + 24 > FRAME_SIZE {
        return None;
    }
    let (most, count, context) = (Reg::R6, Reg::R7, Reg::R8);
    let saved = [(most, -stack - 24), (count, -stack - 16), (context, -stack - 8)];
    let [save_most, save_count, save_context] =
        saved.map(|(reg, at)| Insn::stx_mem(size::DW, Reg::R10, reg, at));
    let [load_most, load_count, load_context] =
        saved.map(|(reg, at)| Insn::ldx_mem(size::DW, reg, Reg::R10, at));
    Some([
        Insn::jmp_imm(jmp::JLE, Reg::R1, MAX_LOOPS as i32, 2),
        // It looks at 64 bits where the helper takes 32, and leaves 32 bits of the error.
        Insn::alu32_imm(alu::MOV, Reg::R0, -Errno::E2BIG.raw()),
        Insn::ja(16),
        save_most,
        save_count,
        save_context,
        Insn::mov64_reg(most, Reg::R1),
        Insn::alu32_imm(alu::MOV, count, 0),
        Insn::mov64_reg(context, Reg::R3),
        Insn::new(class::JMP | jmp::JGE | X, count, most, 5, 0),
        Insn::mov64_reg(Reg::R1, count),
        Insn::mov64_reg(Reg::R2, context),
        Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::R1, 0, 0),
        Insn::alu64_imm(alu::ADD, count, 1),
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, -6),
        Insn::mov64_reg(Reg::R0, count),
        load_most,
        load_count,
        load_context,
    ])
}

/// A load of packet bytes as classic BPF has it, which leaves the function with 0 where there are none.
///
/// # Kernel
/// `bpf_gen_ld_abs`
pub(super) fn load_packet(insn: Insn) -> Option<Vec<Insn>> {
    if insn.class() != class::LD || !matches!(insn.mode(), mode::ABS | mode::IND) {
        return None;
    }
    let load = match insn.size() {
        size::B => helper_id::SKB_LOAD_HELPER_8_NO_CACHE,
        size::H => helper_id::SKB_LOAD_HELPER_16_NO_CACHE,
        _ => helper_id::SKB_LOAD_HELPER_32_NO_CACHE,
    };
    let mut code = Vec::with_capacity(7);
    if insn.mode() == mode::IND {
        code.push(Insn::mov64_reg(Reg::R2, insn.src));
        code.extend((insn.imm != 0).then_some(Insn::alu64_imm(alu::ADD, Reg::R2, insn.imm)));
    } else {
        code.push(Insn::mov64_imm(Reg::R2, insn.imm));
    }
    code.extend([
        Insn::mov64_reg(Reg::R1, Reg::R6),
        Insn::call(load),
        Insn::jmp_imm(jmp::JSGE, Reg::R0, 0, 2),
        Insn::alu32_reg(alu::XOR, Reg::R0, Reg::R0),
        Insn::exit(),
    ]);
    Some(code)
}

/// A register that no program can name.
const AX: Reg = Reg::new(11);

/// A division or remainder by a register, which may be 0 or, with signs, -1; or by a constant of -1.
///
/// # Kernel
/// `do_misc_fixups`
pub(super) fn divide(insn: Insn) -> Option<Vec<Insn>> {
    let is_division = matches!(insn.op(), alu::DIV | alu::MOD);
    if !matches!(insn.class(), class::ALU | class::ALU64) || !is_division {
        return None;
    }
    match (insn.is_reg_src(), insn.off) {
        (true, 0) => Some(divide_unsigned(insn)),
        (true, _) => Some(divide_signed(insn)),
        (false, 1) if insn.imm == -1 => Some(vec![match insn.op() {
            alu::DIV => Insn::new(insn.class() | alu::NEG, insn.dst, Reg::R0, 0, 0),
            _ => Insn::alu32_imm(alu::MOV, insn.dst, 0),
        }]),
        _ => None,
    }
}

fn is_64(insn: Insn) -> bool {
    insn.class() == class::ALU64
}

/// A jump that compares a register in the width of an operation.
fn test(op: u8, insn: Insn, reg: Reg, imm: i32, off: i16) -> Insn {
    let class = if is_64(insn) { class::JMP } else { class::JMP32 };
    Insn::new(class | op, reg, Reg::R0, off, imm)
}

fn divide_unsigned(insn: Insn) -> Vec<Insn> {
    let Insn { dst, src, .. } = insn;
    match insn.op() {
        alu::DIV => vec![
            test(jmp::JNE, insn, src, 0, 2),
            Insn::alu32_reg(alu::XOR, dst, dst),
            Insn::ja(1),
            insn,
        ],
        _ if is_64(insn) => vec![test(jmp::JEQ, insn, src, 0, 1), insn],
        _ => vec![
            test(jmp::JEQ, insn, src, 0, 2),
            insn,
            Insn::ja(1),
            Insn::alu32_reg(alu::MOV, dst, dst),
        ],
    }
}

fn divide_signed(insn: Insn) -> Vec<Insn> {
    let Insn { dst, src, .. } = insn;
    let class = insn.class();
    let mut code = vec![Insn::mov64_reg(AX, src), Insn::new(class | alu::ADD, AX, Reg::R0, 0, 1)];
    match insn.op() {
        alu::DIV => code.extend([
            test(jmp::JGT, insn, AX, 1, 4),
            test(jmp::JEQ, insn, AX, 0, 1),
            Insn::new(class | alu::MOV, dst, Reg::R0, 0, 0),
            Insn::new(class | alu::NEG, dst, Reg::R0, 0, 0),
            Insn::ja(1),
            insn,
        ]),
        _ => {
            code.extend([
                test(jmp::JGT, insn, AX, 1, 3),
                test(jmp::JEQ, insn, AX, 1, if is_64(insn) { 3 } else { 4 }),
                Insn::alu32_imm(alu::MOV, dst, 0),
                Insn::ja(1),
                insn,
            ]);
            if !is_64(insn) {
                code.extend([Insn::ja(1), Insn::alu32_reg(alu::MOV, dst, dst)]);
            }
        }
    }
    code
}
