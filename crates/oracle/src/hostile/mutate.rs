//! Changes to a few instructions of a program.

use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};

use crate::rng::Rng;

/// Changes one instruction, or two neighbours. The length stays, so that jumps lead where they led.
pub(super) fn mutate(rng: &mut Rng, insns: &mut [Insn], maps: usize) {
    if insns.len() < 2 {
        return;
    }
    let kind = rng.below(16);
    // Some kinds want an instruction that they can do something with; a few tries find one.
    let mut at = 0;
    for _ in 0..20 {
        at = rng.below(insns.len() as u32) as usize;
        if wants(kind, insns[at]) {
            break;
        }
    }
    // The second half of a 64-bit immediate is no instruction.
    if at > 0 && insns[at - 1].is_ld_imm64() {
        at -= 1;
    }
    let is_pair = insns[at].is_ld_imm64();
    let last = insns.len() - 1;
    let insn = &mut insns[at];
    match kind {
        0 | 1 => insn.off = insn.off.wrapping_add(rng.pick(&[-8, -4, -2, -1, 1, 2, 4, 8, 64, 512])),
        2 => {
            let by = rng.pick(&[-16, -8, -4, -1, 1, 4, 8, 64]);
            insn.imm = insn.imm.wrapping_add(by);
        }
        3 => {
            let edges = [0, 1, -1, 2, 5, 15, 63, 64, 255, 4096, 0xffff, i32::MAX, i32::MIN];
            insn.imm = rng.pick(&edges);
        }
        4 => insn.dst = Reg::new(rng.below(11) as u8),
        5 => insn.src = Reg::new(rng.below(11) as u8),
        // A test or something else that is not there.
        6..9 => drop_insn(insns, at, is_pair),
        9 if at < last && !is_pair => insns[at + 1] = insns[at],
        10 if at < last && !is_pair => insns.swap(at, at + 1),
        11 => {
            // Another width, or another operation.
            insn.code = match insn.class() {
                class::LDX | class::ST | class::STX => {
                    insn.code & !size::DW | rng.pick(&[size::B, size::H, size::W, size::DW])
                }
                class::ALU | class::ALU64 => {
                    let ops = [alu::ADD, alu::SUB, alu::AND, alu::OR, alu::MUL, alu::RSH, alu::MOV];
                    insn.code & 0x0f | rng.pick(&ops)
                }
                class::JMP | class::JMP32 if !is_call(*insn) => {
                    let ops = [jmp::JEQ, jmp::JNE, jmp::JGT, jmp::JGE, jmp::JLT, jmp::JSLE];
                    insn.code & 0x0f | rng.pick(&ops)
                }
                _ => insn.code,
            };
        }
        12 => {
            // Its half of the bits, its operand from elsewhere.
            insn.code ^= match insn.class() {
                class::ALU | class::ALU64 => class::ALU ^ class::ALU64,
                class::JMP | class::JMP32 => class::JMP ^ class::JMP32,
                class::ST | class::STX => class::ST ^ class::STX,
                _ => 0,
            };
        }
        13 if is_pair => {
            // Another map, or its value for its address.
            match rng.below(3) {
                0 => {
                    let kinds = [pseudo::MAP_IDX, pseudo::MAP_IDX_VALUE, 0];
                    insn.src = Reg::new(rng.pick(&kinds));
                }
                _ => insn.imm = rng.below(maps.max(1) as u32) as i32,
            }
        }
        14 if insn.is_helper_call() => insn.imm = rng.pick(&[1, 2, 3, 5, 8, 12, 28, 93, 94, 181]),
        15 => {
            let other = insns[rng.below(insns.len() as u32) as usize];
            insns[at] = other;
        }
        _ => insn.off = insn.off.wrapping_add(1),
    }
}

fn is_call(insn: Insn) -> bool {
    insn.class() == class::JMP && matches!(insn.op(), jmp::CALL | jmp::EXIT)
}

fn is_branch(insn: Insn) -> bool {
    matches!(insn.class(), class::JMP | class::JMP32) && !is_call(insn)
}

/// Whether an instruction is one that this kind of change is made for.
fn wants(kind: u32, insn: Insn) -> bool {
    let is_memory = matches!(insn.class(), class::LDX | class::ST | class::STX);
    match kind {
        0 | 1 => is_memory || is_branch(insn),
        2 | 3 => !is_memory && !is_call(insn),
        6 => is_branch(insn),
        11 | 12 => !is_call(insn),
        13 => insn.is_ld_imm64(),
        14 => insn.is_helper_call(),
        _ => true,
    }
}

/// Puts instructions that do nothing in the place of one.
pub(super) fn drop_insn(insns: &mut [Insn], at: usize, is_pair: bool) {
    let end = if is_pair { at + 2 } else { at + 1 };
    if let Some(dropped) = insns.get_mut(at..end) {
        dropped.fill(Insn::ja(0));
    }
}
