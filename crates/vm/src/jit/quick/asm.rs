//! Machine code of x86-64: the few forms that templates are made of.
//!
//! Encodings are those of Intel's manual, volume 2. Every instruction has a REX prefix, whether it needs one or not: with it a byte of
//! any register can be named.

/// A register, by its number in encodings.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Reg(u8);

pub(super) const RAX: Reg = Reg(0);
pub(super) const RCX: Reg = Reg(1);
pub(super) const RDX: Reg = Reg(2);
pub(super) const RBX: Reg = Reg(3);
pub(super) const RSP: Reg = Reg(4);
pub(super) const RBP: Reg = Reg(5);
pub(super) const RSI: Reg = Reg(6);
pub(super) const RDI: Reg = Reg(7);
pub(super) const R8: Reg = Reg(8);
pub(super) const R9: Reg = Reg(9);
pub(super) const R10: Reg = Reg(10);
pub(super) const R11: Reg = Reg(11);
pub(super) const R12: Reg = Reg(12);
pub(super) const R13: Reg = Reg(13);
pub(super) const R14: Reg = Reg(14);
pub(super) const R15: Reg = Reg(15);

/// What an instruction works on besides a register.
#[derive(Copy, Clone, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    /// Memory at a distance from the address in a register.
    Mem(Reg, i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

/// Bytes of an operand.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Width {
    B8 = 1,
    B16 = 2,
    B32 = 4,
    B64 = 8,
}

impl Width {
    pub(super) const fn of(bytes: u32) -> Self {
        match bytes {
            1 => Self::B8,
            2 => Self::B16,
            4 => Self::B32,
            _ => Self::B64,
        }
    }
}

/// Operations of two operands: what `op r/m, r` has for its opcode and `op r/m, imm` beside its own.
#[derive(Copy, Clone, Debug)]
pub(super) enum Arith {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts, by what they have beside their opcode.
#[derive(Copy, Clone, Debug)]
pub(super) enum Shift {
    Left = 4,
    Right = 5,
    Arithmetic = 7,
}

/// Conditions of jumps. The lowest bit turns one into its opposite.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Cond(u8);

impl Cond {
    pub(super) const BELOW: Self = Self(0x2);
    pub(super) const ABOVE_OR_EQUAL: Self = Self(0x3);
    pub(super) const EQUAL: Self = Self(0x4);
    pub(super) const NOT_EQUAL: Self = Self(0x5);
    pub(super) const BELOW_OR_EQUAL: Self = Self(0x6);
    pub(super) const ABOVE: Self = Self(0x7);
    pub(super) const LESS: Self = Self(0xc);
    pub(super) const GREATER_OR_EQUAL: Self = Self(0xd);
    pub(super) const LESS_OR_EQUAL: Self = Self(0xe);
    pub(super) const GREATER: Self = Self(0xf);

    pub(super) const fn opposite(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// A jump or call whose distance is still to be filled in.
#[derive(Copy, Clone, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Opcodes that [`Asm::op`] takes as they are.
pub(super) mod opcode {
    pub(in crate::jit::quick) const LEA: &[u8] = &[0x8d];
    pub(in crate::jit::quick) const MOVZX8: &[u8] = &[0x0f, 0xb6];
    pub(in crate::jit::quick) const MOVZX16: &[u8] = &[0x0f, 0xb7];
    pub(in crate::jit::quick) const MOVSX8: &[u8] = &[0x0f, 0xbe];
    pub(in crate::jit::quick) const MOVSX16: &[u8] = &[0x0f, 0xbf];
    pub(in crate::jit::quick) const MOVSX32: &[u8] = &[0x63];
    pub(in crate::jit::quick) const IMUL: &[u8] = &[0x0f, 0xaf];
    pub(in crate::jit::quick) const TEST: &[u8] = &[0x85];
    pub(in crate::jit::quick) const CMOVNE: &[u8] = &[0x0f, 0x45];
    pub(in crate::jit::quick) const XADD: &[u8] = &[0x0f, 0xc1];
    pub(in crate::jit::quick) const XCHG: &[u8] = &[0x87];
    pub(in crate::jit::quick) const CMPXCHG: &[u8] = &[0x0f, 0xb1];
    /// With one operand, and a number beside the opcode that says what is done.
    pub(in crate::jit::quick) const UNARY: &[u8] = &[0xf7];
}

/// What [`opcode::UNARY`] does.
#[derive(Copy, Clone, Debug)]
pub(super) enum Unary {
    Neg = 3,
    /// Divides rdx and rax by the operand: the quotient goes to rax, what remains to rdx.
    Div = 6,
    Idiv = 7,
}

/// Machine code that grows.
#[derive(Default, Debug)]
pub(super) struct Asm {
    bytes: Vec<u8>,
}

impl Asm {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn align(&mut self, to: usize) {
        // What is never reached traps.
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0xcc);
    }

    fn imm32(&mut self, number: i32) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// An instruction with a register, or a number beside the opcode, and another operand.
    fn encode(&mut self, width: Width, opcode: &[u8], Reg(reg): Reg, operand: Operand) {
        if width == Width::B16 {
            self.bytes.push(0x66);
        }
        let Reg(base) = match operand {
            Operand::Reg(reg) | Operand::Mem(reg, _) => reg,
        };
        let wide = u8::from(width == Width::B64);
        self.bytes.push(0x40 | wide << 3 | (reg >> 3) << 2 | base >> 3);
        self.bytes.extend_from_slice(opcode);
        let modrm = (reg & 7) << 3 | base & 7;
        let Operand::Mem(_, distance) = operand else {
            self.bytes.push(0xc0 | modrm);
            return;
        };
        let short = i8::try_from(distance);
        self.bytes.push(if short.is_ok() { 0x40 } else { 0x80 } | modrm);
        if base & 7 == RSP.0 {
            self.bytes.push(0x24);
        }
        match short {
            Ok(distance) => self.bytes.push(distance as u8),
            Err(_) => self.imm32(distance),
        }
    }

    pub(super) fn op(
        &mut self,
        width: Width,
        opcode: &[u8],
        reg: Reg,
        operand: impl Into<Operand>,
    ) {
        self.encode(width, opcode, reg, operand.into());
    }

    /// `reg = source`; of 32 bits, which clears the upper half, or 64.
    pub(super) fn mov(&mut self, width: Width, reg: Reg, source: impl Into<Operand>) {
        self.encode(width, &[0x8b], reg, source.into());
    }

    pub(super) fn store(&mut self, width: Width, place: Operand, reg: Reg) {
        let opcode = if width == Width::B8 { 0x88 } else { 0x89 };
        self.encode(width, &[opcode], reg, place);
    }

    /// Stores a number, as wide as the place and sign-extended from 32 bits.
    pub(super) fn store_imm(&mut self, width: Width, place: Operand, number: i32) {
        let opcode = if width == Width::B8 { 0xc6 } else { 0xc7 };
        self.encode(width, &[opcode], Reg(0), place);
        let bytes = number.to_le_bytes();
        self.bytes.extend_from_slice(&bytes[..(width as usize).min(4)]);
    }

    /// `reg = number`. Flags stay as they are.
    pub(super) fn mov_imm(&mut self, Reg(reg): Reg, number: u64) {
        if let Ok(number) = u32::try_from(number) {
            self.bytes.extend_from_slice(&[0x40 | reg >> 3, 0xb8 | reg & 7]);
            self.imm32(number as i32);
        } else if let Ok(number) = i32::try_from(number as i64) {
            self.store_imm(Width::B64, Operand::Reg(Reg(reg)), number);
        } else {
            self.bytes.extend_from_slice(&[0x48 | reg >> 3, 0xb8 | reg & 7]);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn zero(&mut self, reg: Reg) {
        self.arith(Width::B32, Arith::Xor, reg.into(), reg);
    }

    pub(super) fn arith(&mut self, width: Width, what: Arith, operand: Operand, reg: Reg) {
        self.encode(width, &[(what as u8) << 3 | 1], reg, operand);
    }

    pub(super) fn arith_imm(&mut self, width: Width, what: Arith, operand: Operand, number: i32) {
        match i8::try_from(number) {
            Ok(number) => {
                self.encode(width, &[0x83], Reg(what as u8), operand);
                self.bytes.push(number as u8);
            }
            Err(_) => {
                self.encode(width, &[0x81], Reg(what as u8), operand);
                self.imm32(number);
            }
        }
    }

    pub(super) fn imul_imm(&mut self, width: Width, reg: Reg, number: i32) {
        self.encode(width, &[0x69], reg, reg.into());
        self.imm32(number);
    }

    pub(super) fn test_imm(&mut self, width: Width, reg: Reg, number: i32) {
        self.encode(width, opcode::UNARY, Reg(0), reg.into());
        self.imm32(number);
    }

    pub(super) fn unary(&mut self, width: Width, what: Unary, reg: Reg) {
        self.encode(width, opcode::UNARY, Reg(what as u8), reg.into());
    }

    /// Fills rdx with rax's sign.
    pub(super) fn sign_of_rax(&mut self, width: Width) {
        self.bytes.extend_from_slice(&[if width == Width::B64 { 0x48 } else { 0x40 }, 0x99]);
    }

    pub(super) fn shift_imm(&mut self, width: Width, what: Shift, reg: Reg, by: u8) {
        self.encode(width, &[0xc1], Reg(what as u8), reg.into());
        self.bytes.push(by);
    }

    /// Shifts by what is in the low byte of rcx.
    pub(super) fn shift_cl(&mut self, width: Width, what: Shift, reg: Reg) {
        self.encode(width, &[0xd3], Reg(what as u8), reg.into());
    }

    /// Turns around the two low bytes.
    pub(super) fn swap16(&mut self, reg: Reg) {
        self.encode(Width::B16, &[0xc1], Reg(0), reg.into());
        self.bytes.push(8);
    }

    pub(super) fn bswap(&mut self, width: Width, Reg(reg): Reg) {
        let wide = u8::from(width == Width::B64);
        self.bytes.extend_from_slice(&[0x40 | wide << 3 | reg >> 3, 0x0f, 0xc8 | reg & 7]);
    }

    /// Makes the next instruction, which changes memory, atomic.
    pub(super) fn lock(&mut self) {
        self.bytes.push(0xf0);
    }

    pub(super) fn push(&mut self, Reg(reg): Reg) {
        self.bytes.extend_from_slice(&[0x40 | reg >> 3, 0x50 | reg & 7]);
    }

    pub(super) fn push_imm(&mut self, number: i32) {
        self.bytes.push(0x68);
        self.imm32(number);
    }

    pub(super) fn pop(&mut self, Reg(reg): Reg) {
        self.bytes.extend_from_slice(&[0x40 | reg >> 3, 0x58 | reg & 7]);
    }

    pub(super) fn leave(&mut self) {
        self.bytes.push(0xc9);
    }

    pub(super) fn ret(&mut self) {
        self.bytes.push(0xc3);
    }

    pub(super) fn call_reg(&mut self, reg: Reg) {
        self.encode(Width::B32, &[0xff], Reg(2), reg.into());
    }

    pub(super) fn jump_reg(&mut self, reg: Reg) {
        self.encode(Width::B32, &[0xff], Reg(4), reg.into());
    }

    pub(super) fn jump(&mut self) -> Jump {
        self.bytes.push(0xe9);
        self.distance()
    }

    pub(super) fn jump_if(&mut self, Cond(cond): Cond) -> Jump {
        self.bytes.extend_from_slice(&[0x0f, 0x80 | cond]);
        self.distance()
    }

    pub(super) fn call(&mut self) -> Jump {
        self.bytes.push(0xe8);
        self.distance()
    }

    fn distance(&mut self) -> Jump {
        let at = self.bytes.len();
        self.imm32(0);
        Jump(at)
    }

    /// Makes a jump go to a place. `None` for a distance that no jump has room for.
    pub(super) fn land(&mut self, Jump(at): Jump, place: usize) -> Option<()> {
        let distance = i32::try_from(place as i64 - (at as i64 + 4)).ok()?;
        *self.bytes.get_mut(at..)?.first_chunk_mut::<4>()? = distance.to_le_bytes();
        Some(())
    }

    /// Makes a jump go to what is emitted next.
    pub(super) fn land_here(&mut self, jump: Jump) -> Option<()> {
        self.land(jump, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GNU as gives for the same instructions, but for REX prefixes that it leaves out and shorter distances.
    #[test]
    fn encodings_are_those_of_other_assemblers() {
        let bytes = |emit: &dyn Fn(&mut Asm)| {
            let mut asm = Asm::default();
            emit(&mut asm);
            asm.into_bytes()
        };
        type Emit<'a> = &'a dyn Fn(&mut Asm);
        let cases: [(&[u8], Emit<'_>); 25] = [
            (&[0x4c, 0x8b, 0x4d, 0xf8], &|asm| asm.mov(Width::B64, R9, Operand::Mem(RBP, -8))),
            (&[0x45, 0x8b, 0x64, 0x24, 0x10], &|asm| {
                asm.mov(Width::B32, R12, Operand::Mem(R12, 16));
            }),
            (&[0x49, 0x8b, 0x85, 0x00, 0x01, 0x00, 0x00], &|asm| {
                asm.mov(Width::B64, RAX, Operand::Mem(R13, 256));
            }),
            (&[0x40, 0x88, 0x7e, 0x01], &|asm| asm.store(Width::B8, Operand::Mem(RSI, 1), RDI)),
            (&[0x66, 0x44, 0x89, 0x7c, 0x24, 0x02], &|asm| {
                asm.store(Width::B16, Operand::Mem(RSP, 2), R15);
            }),
            (&[0x66, 0x41, 0xc7, 0x40, 0x00, 0xfe, 0xff], &|asm| {
                asm.store_imm(Width::B16, Operand::Mem(R8, 0), -2);
            }),
            (&[0x41, 0xb9, 0xff, 0xff, 0xff, 0xff], &|asm| asm.mov_imm(R9, u32::MAX.into())),
            (&[0x49, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff], &|asm| asm.mov_imm(R9, u64::MAX)),
            (&[0x49, 0xb9, 0, 0, 0, 0, 1, 0, 0, 0], &|asm| asm.mov_imm(R9, 1 << 32)),
            (&[0x4d, 0x29, 0xcb], &|asm| asm.arith(Width::B64, Arith::Sub, R11.into(), R9)),
            (&[0x40, 0x81, 0xe3, 0x00, 0x01, 0x00, 0x00], &|asm| {
                asm.arith_imm(Width::B32, Arith::And, RBX.into(), 256);
            }),
            (&[0x4d, 0x0f, 0xaf, 0xf0], &|asm| asm.op(Width::B64, opcode::IMUL, R14, R8)),
            (&[0x49, 0xc1, 0xfa, 0x05], &|asm| {
                asm.shift_imm(Width::B64, Shift::Arithmetic, R10, 5);
            }),
            (&[0xf0, 0x4d, 0x0f, 0xb1, 0x59, 0x00], &|asm| {
                asm.lock();
                asm.op(Width::B64, opcode::CMPXCHG, R11, Operand::Mem(R9, 0));
            }),
            (&[0x66, 0x41, 0xc1, 0xc5, 0x08], &|asm| asm.swap16(R13)),
            (&[0x49, 0x0f, 0xcf], &|asm| asm.bswap(Width::B64, R15)),
            (&[0x4c, 0x8d, 0x4d, 0x7f], &|asm| {
                asm.op(Width::B64, opcode::LEA, R9, Operand::Mem(RBP, 127));
            }),
            (&[0x4d, 0x8d, 0x8d, 0x80, 0, 0, 0], &|asm| {
                asm.op(Width::B64, opcode::LEA, R9, Operand::Mem(R13, 128));
            }),
            (&[0x49, 0xc7, 0x44, 0x24, 0x80, 0xff, 0xff, 0xff, 0xff], &|asm| {
                asm.store_imm(Width::B64, Operand::Mem(R12, -128), -1);
            }),
            (&[0x44, 0x88, 0x7c, 0x24, 0x00], &|asm| {
                asm.store(Width::B8, Operand::Mem(RSP, 0), R15);
            }),
            (&[0x4d, 0x69, 0xf6, 0x00, 0x00, 0x00, 0x80], &|asm| {
                asm.imul_imm(Width::B64, R14, i32::MIN);
            }),
            (&[0x41, 0xf7, 0xc1, 0x07, 0, 0, 0], &|asm| asm.test_imm(Width::B32, R9, 7)),
            (&[0xf0, 0x45, 0x0f, 0xc1, 0x59, 0x00], &|asm| {
                asm.lock();
                asm.op(Width::B32, opcode::XADD, R11, Operand::Mem(R9, 0));
            }),
            (&[0x68, 0xff, 0xff, 0xff, 0x7f], &|asm| asm.push_imm(i32::MAX)),
            (&[0x4d, 0x0f, 0x45, 0xcb], &|asm| asm.op(Width::B64, opcode::CMOVNE, R9, R11)),
        ];
        for (expected, emit) in cases {
            assert_eq!(bytes(emit), expected);
        }
    }

    #[test]
    fn a_jump_lands_where_it_is_told_to() {
        let mut asm = Asm::default();
        let start = asm.len();
        let forth = asm.jump_if(Cond::EQUAL.opposite());
        let back = asm.jump();
        asm.land(back, start).unwrap();
        asm.land_here(forth).unwrap();
        let expected = [0x0f, 0x85, 5, 0, 0, 0, 0xe9, 0xf5, 0xff, 0xff, 0xff];
        assert_eq!(asm.into_bytes(), expected);
    }
}
