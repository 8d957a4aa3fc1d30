//! Instructions in the form the main loop wants them: one operation per opcode variant, immediates
//! extended, jump targets absolute.

use std::collections::BTreeSet;

use bpfarray_core::helper_id;
use bpfarray_core::insn::{ADDR_PERCPU, Insn, X, alu, atomic, class, jmp, mode, pseudo, size};

/// What the main loop executes. `K` takes the immediate as its second operand, `X` a register.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[rustfmt::skip]
pub(crate) enum OpCode {
    Add64K, Add64X, Add32K, Add32X, Sub64K, Sub64X, Sub32K, Sub32X,
    Mul64K, Mul64X, Mul32K, Mul32X, Div64K, Div64X, Div32K, Div32X,
    Sdiv64K, Sdiv64X, Sdiv32K, Sdiv32X, Mod64K, Mod64X, Mod32K, Mod32X,
    Smod64K, Smod64X, Smod32K, Smod32X, Or64K, Or64X, Or32K, Or32X,
    And64K, And64X, And32K, And32X, Xor64K, Xor64X, Xor32K, Xor32X,
    Lsh64K, Lsh64X, Lsh32K, Lsh32X, Rsh64K, Rsh64X, Rsh32K, Rsh32X,
    Arsh64K, Arsh64X, Arsh32K, Arsh32X, Mov64K, Mov64X, Mov32K, Mov32X,
    Movsx8To64, Movsx16To64, Movsx32To64, Movsx8To32, Movsx16To32, MovPercpu,
    Neg64, Neg32, Le16, Le32, Le64, Be16, Be32, Be64, Swap16, Swap32, Swap64,
    Jeq64K, Jeq64X, Jeq32K, Jeq32X, Jne64K, Jne64X, Jne32K, Jne32X,
    Jset64K, Jset64X, Jset32K, Jset32X, Jgt64K, Jgt64X, Jgt32K, Jgt32X,
    Jge64K, Jge64X, Jge32K, Jge32X, Jlt64K, Jlt64X, Jlt32K, Jlt32X,
    Jle64K, Jle64X, Jle32K, Jle32X, Jsgt64K, Jsgt64X, Jsgt32K, Jsgt32X,
    Jsge64K, Jsge64X, Jsge32K, Jsge32X, Jslt64K, Jslt64X, Jslt32K, Jslt32X,
    Jsle64K, Jsle64X, Jsle32K, Jsle32X, Ja, MayGoto,
    Ldx8, Ldx16, Ldx32, Ldx64, Ldxsx8, Ldxsx16, Ldxsx32,
    St8, St16, St32, St64, Stx8, Stx16, Stx32, Stx64,
    Atomic8, Atomic16, Atomic32, Atomic64,
    CallHelper, CallFunction, TailCall, Exit, LdImm64,
    /// No such instruction; the immediate is its opcode.
    Illegal,
    /// Behind the last instruction.
    End,
}

/// A register number below 16, which indexes a register file of 16 without a check.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u8);

impl Slot {
    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        (self.0 & 0xf) as usize
    }
}

/// One operation.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Op {
    /// Immediate, sign-extended; for calls the helper's id.
    pub(crate) imm: u64,
    /// Offset of a memory access, sign-extended.
    pub(crate) off: i16,
    pub(crate) code: OpCode,
    /// Destination register in the low, source register in the high half.
    regs: u8,
    /// Index of the instruction that a jump or call goes to.
    pub(crate) target: u32,
}

impl Op {
    #[inline(always)]
    pub(crate) const fn dst(&self) -> Slot {
        Slot(self.regs & 0xf)
    }

    #[inline(always)]
    pub(crate) const fn src(&self) -> Slot {
        Slot(self.regs >> 4)
    }

    /// Whether it may go elsewhere than to the next instruction.
    pub(crate) const fn is_jump(&self) -> bool {
        let code = self.code as u8;
        code >= OpCode::Jeq64K as u8 && code <= OpCode::MayGoto as u8
    }

    /// Whether that depends on registers.
    pub(crate) const fn is_conditional(&self) -> bool {
        let code = self.code as u8;
        code >= OpCode::Jeq64K as u8 && code < OpCode::Ja as u8
    }
}

/// A program in the interpreter's form. Operation `i` is instruction `i`.
///
/// Any instructions will do: one that does not exist, or a jump out of the program, becomes an
/// operation that ends the run with a fault.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    ops: Vec<Op>,
    /// Instructions whose address the program takes: what may be called back.
    entries: BTreeSet<usize>,
}

/// Where the addresses of functions are: in the half of the address space that user memory never
/// reaches, so that no load or store can use one.
const FUNCTION_BASE: u64 = 0xffff_bf00_0000_0000;

impl Code {
    /// Decodes instructions whose maps and values have been replaced by addresses.
    pub(crate) fn new(insns: &[Insn]) -> Self {
        let mut ops = Vec::with_capacity(insns.len() + 1);
        let mut entries = BTreeSet::new();
        while let Some(&insn) = insns.get(ops.len()) {
            let at = ops.len();
            match insns.get(at + 1) {
                Some(&second) if insn.is_ld_imm64() => {
                    let (imm, entry) = wide_imm(at, insn, second, insns.len());
                    entries.extend(entry);
                    ops.push(Op { imm, ..op(OpCode::LdImm64, insn, 0) });
                    ops.push(op(OpCode::Illegal, second, 0));
                }
                _ => ops.push(decode(at, insn, insns.len())),
            }
        }
        ops.push(op(OpCode::End, Insn::exit(), 0));
        Self { ops, entries }
    }

    /// The operations, and one more that ends the run.
    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// First instructions of functions that may be called back.
    pub(crate) fn entries(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().copied()
    }

    /// The first instruction of the function that has this address, if it is one the program took.
    pub(crate) fn function(&self, addr: u64) -> Option<usize> {
        let at = usize::try_from(addr.checked_sub(FUNCTION_BASE)?).ok()?;
        self.entries.contains(&at).then_some(at)
    }
}

/// The value of a 64-bit immediate load, and the function whose address that is.
fn wide_imm(at: usize, insn: Insn, second: Insn, len: usize) -> (u64, Option<usize>) {
    if insn.src.index() as u8 == pseudo::FUNC {
        let target = relative(at, insn.imm, len);
        return (FUNCTION_BASE + target as u64, Some(target).filter(|target| *target < len));
    }
    (u64::from(insn.imm as u32) | u64::from(second.imm as u32) << 32, None)
}

/// The instruction `distance` after the next one; the end if there is no such.
fn relative(at: usize, distance: i32, len: usize) -> usize {
    let target = at as i64 + 1 + i64::from(distance);
    usize::try_from(target).map_or(len, |target| target.min(len))
}

fn op(code: OpCode, insn: Insn, target: usize) -> Op {
    Op {
        imm: if code == OpCode::Illegal { u64::from(insn.code) } else { insn.imm as i64 as u64 },
        off: insn.off,
        code,
        regs: insn.dst.index() as u8 | (insn.src.index() as u8) << 4,
        // A program is far shorter than 2^32 instructions; a longer one is cut off at the end.
        target: u32::try_from(target).unwrap_or(u32::MAX),
    }
}

fn decode(at: usize, insn: Insn, len: usize) -> Op {
    let distance = match insn.class() {
        class::JMP32 if insn.op() == jmp::JA => insn.imm,
        class::JMP if insn.op() == jmp::CALL => insn.imm,
        _ => i32::from(insn.off),
    };
    let code = match insn.class() {
        class::ALU | class::ALU64 => decode_alu(insn),
        class::JMP | class::JMP32 => decode_jump(insn),
        // Packet loads are translated into calls before.
        class::LD => None,
        _ => decode_memory(insn),
    };
    op(code.unwrap_or(OpCode::Illegal), insn, relative(at, distance, len))
}

/// Picks the variant for the width and the kind of second operand.
macro_rules! variant {
    ($insn:expr, $wide:path: $k64:ident $x64:ident $k32:ident $x32:ident) => {
        match ($insn.class() == $wide, $insn.code & X != 0) {
            (true, false) => OpCode::$k64,
            (true, true) => OpCode::$x64,
            (false, false) => OpCode::$k32,
            (false, true) => OpCode::$x32,
        }
    };
}

fn decode_alu(insn: Insn) -> Option<OpCode> {
    let is_64 = insn.class() == class::ALU64;
    Some(match (insn.op(), insn.off) {
        (alu::ADD, 0) => variant!(insn, class::ALU64: Add64K Add64X Add32K Add32X),
        (alu::SUB, 0) => variant!(insn, class::ALU64: Sub64K Sub64X Sub32K Sub32X),
        (alu::MUL, 0) => variant!(insn, class::ALU64: Mul64K Mul64X Mul32K Mul32X),
        (alu::DIV, 0) => variant!(insn, class::ALU64: Div64K Div64X Div32K Div32X),
        (alu::DIV, 1) => variant!(insn, class::ALU64: Sdiv64K Sdiv64X Sdiv32K Sdiv32X),
        (alu::MOD, 0) => variant!(insn, class::ALU64: Mod64K Mod64X Mod32K Mod32X),
        (alu::MOD, 1) => variant!(insn, class::ALU64: Smod64K Smod64X Smod32K Smod32X),
        (alu::OR, 0) => variant!(insn, class::ALU64: Or64K Or64X Or32K Or32X),
        (alu::AND, 0) => variant!(insn, class::ALU64: And64K And64X And32K And32X),
        (alu::XOR, 0) => variant!(insn, class::ALU64: Xor64K Xor64X Xor32K Xor32X),
        (alu::LSH, 0) => variant!(insn, class::ALU64: Lsh64K Lsh64X Lsh32K Lsh32X),
        (alu::RSH, 0) => variant!(insn, class::ALU64: Rsh64K Rsh64X Rsh32K Rsh32X),
        (alu::ARSH, 0) => variant!(insn, class::ALU64: Arsh64K Arsh64X Arsh32K Arsh32X),
        (alu::MOV, 0) => variant!(insn, class::ALU64: Mov64K Mov64X Mov32K Mov32X),
        (alu::MOV, ADDR_PERCPU) if is_64 && insn.is_reg_src() => OpCode::MovPercpu,
        (alu::MOV, 8) if insn.is_reg_src() && is_64 => OpCode::Movsx8To64,
        (alu::MOV, 16) if insn.is_reg_src() && is_64 => OpCode::Movsx16To64,
        (alu::MOV, 32) if insn.is_reg_src() && is_64 => OpCode::Movsx32To64,
        (alu::MOV, 8) if insn.is_reg_src() => OpCode::Movsx8To32,
        (alu::MOV, 16) if insn.is_reg_src() => OpCode::Movsx16To32,
        (alu::NEG, _) if is_64 => OpCode::Neg64,
        (alu::NEG, _) => OpCode::Neg32,
        (alu::END, _) => match (is_64, insn.is_reg_src(), insn.imm) {
            (false, false, 16) => OpCode::Le16,
            (false, false, 32) => OpCode::Le32,
            (false, false, 64) => OpCode::Le64,
            (false, true, 16) => OpCode::Be16,
            (false, true, 32) => OpCode::Be32,
            (false, true, 64) => OpCode::Be64,
            (true, false, 16) => OpCode::Swap16,
            (true, false, 32) => OpCode::Swap32,
            (true, false, 64) => OpCode::Swap64,
            _ => return None,
        },
        _ => return None,
    })
}

fn decode_jump(insn: Insn) -> Option<OpCode> {
    let is_64 = insn.class() == class::JMP;
    Some(match insn.op() {
        jmp::JEQ => variant!(insn, class::JMP: Jeq64K Jeq64X Jeq32K Jeq32X),
        jmp::JNE => variant!(insn, class::JMP: Jne64K Jne64X Jne32K Jne32X),
        jmp::JSET => variant!(insn, class::JMP: Jset64K Jset64X Jset32K Jset32X),
        jmp::JGT => variant!(insn, class::JMP: Jgt64K Jgt64X Jgt32K Jgt32X),
        jmp::JGE => variant!(insn, class::JMP: Jge64K Jge64X Jge32K Jge32X),
        jmp::JLT => variant!(insn, class::JMP: Jlt64K Jlt64X Jlt32K Jlt32X),
        jmp::JLE => variant!(insn, class::JMP: Jle64K Jle64X Jle32K Jle32X),
        jmp::JSGT => variant!(insn, class::JMP: Jsgt64K Jsgt64X Jsgt32K Jsgt32X),
        jmp::JSGE => variant!(insn, class::JMP: Jsge64K Jsge64X Jsge32K Jsge32X),
        jmp::JSLT => variant!(insn, class::JMP: Jslt64K Jslt64X Jslt32K Jslt32X),
        jmp::JSLE => variant!(insn, class::JMP: Jsle64K Jsle64X Jsle32K Jsle32X),
        jmp::JA => OpCode::Ja,
        jmp::JCOND if is_64 => OpCode::MayGoto,
        jmp::EXIT if is_64 => OpCode::Exit,
        jmp::CALL if insn == Insn::call(helper_id::TAIL_CALL) => OpCode::TailCall,
        jmp::CALL if insn.is_helper_call() => OpCode::CallHelper,
        jmp::CALL if insn.is_pseudo_call() => OpCode::CallFunction,
        _ => return None,
    })
}

fn decode_memory(insn: Insn) -> Option<OpCode> {
    use OpCode::*;
    let by_size = |byte, half, word, double| match insn.size() {
        size::B => byte,
        size::H => half,
        size::W => word,
        _ => double,
    };
    Some(match (insn.class(), insn.mode()) {
        (class::LDX, mode::MEM) => by_size(Ldx8, Ldx16, Ldx32, Ldx64),
        (class::LDX, mode::MEMSX) => by_size(Ldxsx8, Ldxsx16, Ldxsx32, Illegal),
        (class::ST, mode::MEM) => by_size(St8, St16, St32, St64),
        (class::STX, mode::MEM) => by_size(Stx8, Stx16, Stx32, Stx64),
        (class::STX, mode::ATOMIC) => match insn.imm {
            atomic::LOAD_ACQ | atomic::STORE_REL => by_size(Atomic8, Atomic16, Atomic32, Atomic64),
            atomic::XCHG | atomic::CMPXCHG => by_size(Illegal, Illegal, Atomic32, Atomic64),
            op => match op & !atomic::FETCH {
                atomic::ADD | atomic::OR | atomic::AND | atomic::XOR => {
                    by_size(Illegal, Illegal, Atomic32, Atomic64)
                }
                _ => return None,
            },
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bpfarray_core::insn::Reg;

    #[test]
    fn an_operation_takes_sixteen_bytes() {
        assert_eq!(size_of::<Op>(), 16);
    }

    #[test]
    fn jumps_out_of_the_program_go_to_its_end() {
        for insn in [Insn::ja(7), Insn::ja(-2), Insn::ja(i16::MIN)] {
            let code = Code::new(&[insn]);
            assert_eq!(code.ops()[0].target, 1);
            assert_eq!(code.ops()[1].code, OpCode::End);
        }
    }

    #[test]
    fn only_functions_whose_address_is_taken_can_be_called_back() {
        let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 2);
        let code = Code::new(&[lo, hi, Insn::exit(), Insn::exit()]);
        let addr = code.ops()[0].imm;
        assert_eq!(code.function(addr), Some(3));
        assert_eq!(code.function(addr - 1), None);
        assert_eq!(code.function(3), None);
    }

    #[test]
    fn every_bit_pattern_decodes() {
        for code in 0..=255 {
            for (off, imm) in [(0, 0), (1, 16), (-1, 0x100), (8, 0xe1), (32, -1)] {
                let insn = Insn::new(code, Reg::new(15), Reg::new(15), off, imm);
                assert_eq!(Code::new(&[insn]).ops.len(), 2);
            }
        }
    }
}
