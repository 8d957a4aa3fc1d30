//! Writing an answer into an instruction.

use bpfarray_core::insn::{Insn, Reg, class, size};

use super::value::{Answer, Resize};
use super::{CoreRelocDefect, POISON_HELPER};

/// Changes the first of `insns`, and the second where both are one 64-bit immediate load.
///
/// # Kernel
/// `bpf_core_patch_insn` in libbpf
pub(super) fn patch(insns: &mut [Insn], answer: &Answer) -> Result<(), CoreRelocDefect> {
    let (insn, second) = match insns {
        [insn, rest @ ..] => (insn, rest.first_mut()),
        [] => return Err(CoreRelocDefect::NoSuchInsn),
    };
    let second = second.filter(|_| insn.is_ld_imm64());
    let bad_insn = CoreRelocDefect::BadInsn(insn.code);
    let Some(new) = answer.new else {
        if let Some(second) = second {
            *second = poison();
        }
        *insn = poison();
        return Ok(());
    };
    let expect = |found: i64| match answer.old == found as u64 || !answer.validate {
        true => Ok(()),
        false => Err(CoreRelocDefect::Mismatch { expected: answer.old, found: found as u64 }),
    };
    let too_big = CoreRelocDefect::TooBig(new);
    match (insn.class(), second) {
        (class::ALU | class::ALU64, _) if !insn.is_reg_src() => {
            expect(i64::from(insn.imm))?;
            insn.imm = i32::try_from(new as i64).map_err(|_| too_big)?;
        }
        (class::LDX | class::ST | class::STX, _) => {
            expect(i64::from(insn.off))?;
            let off = i16::try_from(new).map_err(|_| too_big)?;
            match answer.resize {
                Resize::Keep => insn.off = off,
                Resize::Refuse => *insn = poison(),
                Resize::Change(old, new) => {
                    if insn.size_bytes() != old {
                        return Err(CoreRelocDefect::BadAccessSize(old));
                    }
                    *insn =
                        Insn { code: insn.mode() | size_bits(new)? | insn.class(), off, ..*insn };
                }
            }
        }
        (class::LD, Some(second)) => {
            let rest = Insn { imm: 0, ..*second };
            if insn.src != Reg::R0 || insn.off != 0 || rest != Insn::new(0, Reg::R0, Reg::R0, 0, 0)
            {
                return Err(bad_insn);
            }
            expect(i64::from(second.imm) << 32 | i64::from(insn.imm as u32))?;
            [*insn, *second] = Insn::ld_imm64(insn.dst, Reg::R0, new);
        }
        _ => return Err(bad_insn),
    }
    Ok(())
}

const fn poison() -> Insn {
    Insn::call(POISON_HELPER)
}

const fn size_bits(bytes: u32) -> Result<u8, CoreRelocDefect> {
    match bytes {
        1 => Ok(size::B),
        2 => Ok(size::H),
        4 => Ok(size::W),
        8 => Ok(size::DW),
        _ => Err(CoreRelocDefect::BadAccessSize(bytes)),
    }
}
