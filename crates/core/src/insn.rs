//! BPF instructions of ISA v1 to v4: encoding, decoding and constructors.
//!
//! An instruction is 8 bytes: opcode, register byte (destination low, source high), 16-bit offset,
//! 32-bit immediate, little-endian. A 64-bit immediate load (`BPF_LD | BPF_IMM | BPF_DW`) takes two.

/// Bytes of one encoded instruction.
pub const INSN_SIZE: usize = 8;

/// Instruction classes: the low three bits of the opcode.
pub mod class {
    /// 64-bit immediate load and the legacy packet loads.
    pub const LD: u8 = 0x00;
    /// Load from memory.
    pub const LDX: u8 = 0x01;
    /// Store an immediate.
    pub const ST: u8 = 0x02;
    /// Store a register; atomics.
    pub const STX: u8 = 0x03;
    /// 32-bit arithmetic.
    pub const ALU: u8 = 0x04;
    /// 64-bit jumps.
    pub const JMP: u8 = 0x05;
    /// 32-bit jumps.
    pub const JMP32: u8 = 0x06;
    /// 64-bit arithmetic.
    pub const ALU64: u8 = 0x07;
}

/// Access sizes of loads and stores: bits 3 and 4 of the opcode.
pub mod size {
    /// 4 bytes.
    pub const W: u8 = 0x00;
    /// 2 bytes.
    pub const H: u8 = 0x08;
    /// 1 byte.
    pub const B: u8 = 0x10;
    /// 8 bytes.
    pub const DW: u8 = 0x18;
}

/// Modes of loads and stores: the top three bits of the opcode.
pub mod mode {
    /// 64-bit immediate.
    pub const IMM: u8 = 0x00;
    /// Legacy packet load at a fixed offset.
    pub const ABS: u8 = 0x20;
    /// Legacy packet load at a register offset.
    pub const IND: u8 = 0x40;
    /// Ordinary memory access.
    pub const MEM: u8 = 0x60;
    /// Sign-extending load.
    pub const MEMSX: u8 = 0x80;
    /// Atomic operation, named by the immediate.
    pub const ATOMIC: u8 = 0xc0;
}

/// Arithmetic operations: the top four bits of the opcode.
pub mod alu {
    /// dst += src
    pub const ADD: u8 = 0x00;
    /// dst -= src
    pub const SUB: u8 = 0x10;
    /// dst *= src
    pub const MUL: u8 = 0x20;
    /// dst /= src, unsigned; signed when the offset field is 1. Division by zero gives 0.
    pub const DIV: u8 = 0x30;
    /// dst |= src
    pub const OR: u8 = 0x40;
    /// dst &= src
    pub const AND: u8 = 0x50;
    /// dst <<= src
    pub const LSH: u8 = 0x60;
    /// dst >>= src, unsigned
    pub const RSH: u8 = 0x70;
    /// dst = -dst
    pub const NEG: u8 = 0x80;
    /// dst %= src, unsigned; signed when the offset field is 1. Modulo zero leaves dst.
    pub const MOD: u8 = 0x90;
    /// dst ^= src
    pub const XOR: u8 = 0xa0;
    /// dst = src; sign-extending when the offset field is 8, 16 or 32.
    pub const MOV: u8 = 0xb0;
    /// dst >>= src, signed
    pub const ARSH: u8 = 0xc0;
    /// Byte order conversion of the low `imm` bits.
    pub const END: u8 = 0xd0;
}

/// Jump operations: the top four bits of the opcode.
pub mod jmp {
    /// Unconditional; in class JMP32 the distance is the immediate.
    pub const JA: u8 = 0x00;
    /// dst == src
    pub const JEQ: u8 = 0x10;
    /// dst > src, unsigned
    pub const JGT: u8 = 0x20;
    /// dst >= src, unsigned
    pub const JGE: u8 = 0x30;
    /// dst & src
    pub const JSET: u8 = 0x40;
    /// dst != src
    pub const JNE: u8 = 0x50;
    /// dst > src, signed
    pub const JSGT: u8 = 0x60;
    /// dst >= src, signed
    pub const JSGE: u8 = 0x70;
    /// Call of a helper or subprogram.
    pub const CALL: u8 = 0x80;
    /// Return.
    pub const EXIT: u8 = 0x90;
    /// dst < src, unsigned
    pub const JLT: u8 = 0xa0;
    /// dst <= src, unsigned
    pub const JLE: u8 = 0xb0;
    /// dst < src, signed
    pub const JSLT: u8 = 0xc0;
    /// dst <= src, signed
    pub const JSLE: u8 = 0xd0;
    /// `may_goto`: leaves the loop when its budget is spent.
    pub const JCOND: u8 = 0xe0;
}

/// Atomic operations: the immediate of a `STX | ATOMIC` instruction.
pub mod atomic {
    /// Also return the old value in the source register.
    pub const FETCH: i32 = 0x01;
    /// Memory += src
    pub const ADD: i32 = 0x00;
    /// Memory |= src
    pub const OR: i32 = 0x40;
    /// Memory &= src
    pub const AND: i32 = 0x50;
    /// Memory ^= src
    pub const XOR: i32 = 0xa0;
    /// Exchange memory and src.
    pub const XCHG: i32 = 0xe0 | FETCH;
    /// If memory equals r0, store src; r0 becomes the old value.
    pub const CMPXCHG: i32 = 0xf0 | FETCH;
    /// Load with acquire ordering.
    pub const LOAD_ACQ: i32 = 0x100;
    /// Store with release ordering.
    pub const STORE_REL: i32 = 0x110;
}

/// Operand source bit of arithmetic and jump opcodes: set for a register, clear for the immediate.
pub const X: u8 = 0x08;

/// Meanings of the source register field of a 64-bit immediate load.
pub mod pseudo {
    /// The immediate is a map file descriptor (in `xlated` dumps, a map id).
    pub const MAP_FD: u8 = 1;
    /// The address of a map's value; the second immediate is the byte offset.
    pub const MAP_VALUE: u8 = 2;
    /// The address of a kernel variable.
    pub const BTF_ID: u8 = 3;
    /// The address of a function of the same program; the immediate is the distance in instructions.
    pub const FUNC: u8 = 4;
    /// As [`MAP_FD`], the immediate being an index into the program's list of maps.
    pub const MAP_IDX: u8 = 5;
    /// As [`MAP_VALUE`], the immediate being an index into the program's list of maps.
    pub const MAP_IDX_VALUE: u8 = 6;
    /// Source register of a call instruction whose immediate is the distance to a subprogram.
    pub const CALL: u8 = 1;
    /// Source register of a call instruction that names a kernel function.
    pub const KFUNC_CALL: u8 = 2;
}

/// Offset field that makes `MOV64 dst, src` add the running CPU's per-CPU base.
pub const ADDR_PERCPU: i16 = -1;

/// A register, r0 to r10. The four bits of an encoded field may also hold 11 to 15, which no valid program uses.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(u8);

impl Reg {
    /// Return value.
    pub const R0: Self = Self(0);
    /// First argument.
    pub const R1: Self = Self(1);
    /// Second argument.
    pub const R2: Self = Self(2);
    /// Third argument.
    pub const R3: Self = Self(3);
    /// Fourth argument.
    pub const R4: Self = Self(4);
    /// Fifth argument.
    pub const R5: Self = Self(5);
    /// Callee-saved.
    pub const R6: Self = Self(6);
    /// Callee-saved.
    pub const R7: Self = Self(7);
    /// Callee-saved.
    pub const R8: Self = Self(8);
    /// Callee-saved.
    pub const R9: Self = Self(9);
    /// Frame pointer, read only.
    pub const R10: Self = Self(10);

    /// The register of a four-bit field; higher bits of `n` are dropped.
    pub const fn new(n: u8) -> Self {
        Self(n & 0xf)
    }

    /// The register's number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl core::fmt::Display for Reg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl core::fmt::Debug for Reg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// One instruction.
///
/// ```
/// use bpfarray_core::insn::{Insn, Reg, alu, jmp};
/// let insn = Insn::alu64_imm(alu::ADD, Reg::R1, 312);
/// assert_eq!(insn.encode(), [0x07, 0x01, 0, 0, 0x38, 0x01, 0, 0]);
/// assert_eq!(Insn::decode(insn.encode()), insn);
/// ```
///
/// # Kernel
/// `struct bpf_insn`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "bpf_insn")]
pub struct Insn {
    /// Opcode.
    pub code: u8,
    /// Destination register.
    pub dst: Reg,
    /// Source register, or a `pseudo` kind.
    pub src: Reg,
    /// Signed offset.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

impl Insn {
    /// An instruction from its five fields.
    pub const fn new(code: u8, dst: Reg, src: Reg, off: i16, imm: i32) -> Self {
        Self { code, dst, src, off, imm }
    }

    /// The 8 bytes of the instruction.
    pub const fn encode(self) -> [u8; INSN_SIZE] {
        let [o0, o1] = self.off.to_le_bytes();
        let [i0, i1, i2, i3] = self.imm.to_le_bytes();
        [self.code, self.dst.0 | self.src.0 << 4, o0, o1, i0, i1, i2, i3]
    }

    /// The instruction of 8 bytes. Every bit pattern decodes; whether it is legal is another question.
    pub const fn decode(b: [u8; INSN_SIZE]) -> Self {
        Self {
            code: b[0],
            dst: Reg::new(b[1]),
            src: Reg::new(b[1] >> 4),
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// The instruction class, one of [`class`].
    pub const fn class(self) -> u8 {
        self.code & 0x07
    }

    /// The operation of an arithmetic or jump instruction, one of [`alu`] or [`jmp`].
    pub const fn op(self) -> u8 {
        self.code & 0xf0
    }

    /// The access size of a load or store, one of [`size`].
    pub const fn size(self) -> u8 {
        self.code & 0x18
    }

    /// The access size of a load or store, in bytes.
    pub const fn size_bytes(self) -> u32 {
        match self.size() {
            size::W => 4,
            size::H => 2,
            size::B => 1,
            _ => 8,
        }
    }

    /// The mode of a load or store, one of [`mode`].
    pub const fn mode(self) -> u8 {
        self.code & 0xe0
    }

    /// Whether the second operand of an arithmetic or jump instruction is a register.
    pub const fn is_reg_src(self) -> bool {
        self.code & X != 0
    }

    /// Whether this is the first half of a 64-bit immediate load, which takes two instructions.
    pub const fn is_ld_imm64(self) -> bool {
        self.code == class::LD | mode::IMM | size::DW
    }

    /// Whether this is a call of a helper by id.
    pub const fn is_helper_call(self) -> bool {
        self.code == class::JMP | jmp::CALL && self.src.0 == 0
    }

    /// Whether this is a call of a subprogram.
    pub const fn is_pseudo_call(self) -> bool {
        self.code == class::JMP | jmp::CALL && self.src.0 == pseudo::CALL
    }

    /// `dst op= imm`, 64 bits.
    pub const fn alu64_imm(op: u8, dst: Reg, imm: i32) -> Self {
        Self::new(class::ALU64 | op, dst, Reg::R0, 0, imm)
    }

    /// `dst op= src`, 64 bits.
    pub const fn alu64_reg(op: u8, dst: Reg, src: Reg) -> Self {
        Self::new(class::ALU64 | op | X, dst, src, 0, 0)
    }

    /// `dst op= imm`, 32 bits; the upper half becomes zero.
    pub const fn alu32_imm(op: u8, dst: Reg, imm: i32) -> Self {
        Self::new(class::ALU | op, dst, Reg::R0, 0, imm)
    }

    /// `dst op= src`, 32 bits; the upper half becomes zero.
    pub const fn alu32_reg(op: u8, dst: Reg, src: Reg) -> Self {
        Self::new(class::ALU | op | X, dst, src, 0, 0)
    }

    /// `dst = src`, 64 bits.
    pub const fn mov64_reg(dst: Reg, src: Reg) -> Self {
        Self::alu64_reg(alu::MOV, dst, src)
    }

    /// `dst = imm`, sign-extended to 64 bits.
    pub const fn mov64_imm(dst: Reg, imm: i32) -> Self {
        Self::alu64_imm(alu::MOV, dst, imm)
    }

    /// `dst = src + this CPU's per-CPU base`.
    #[doc(alias = "BPF_MOV64_PERCPU_REG")]
    pub const fn mov64_percpu_reg(dst: Reg, src: Reg) -> Self {
        Self::new(class::ALU64 | alu::MOV | X, dst, src, ADDR_PERCPU, 0)
    }

    /// `dst = *(size *)(src + off)`, zero-extended.
    pub const fn ldx_mem(size: u8, dst: Reg, src: Reg, off: i16) -> Self {
        Self::new(class::LDX | mode::MEM | size, dst, src, off, 0)
    }

    /// `*(size *)(dst + off) = src`.
    pub const fn stx_mem(size: u8, dst: Reg, src: Reg, off: i16) -> Self {
        Self::new(class::STX | mode::MEM | size, dst, src, off, 0)
    }

    /// `*(size *)(dst + off) = imm`.
    pub const fn st_mem(size: u8, dst: Reg, off: i16, imm: i32) -> Self {
        Self::new(class::ST | mode::MEM | size, dst, Reg::R0, off, imm)
    }

    /// Atomic operation `op` on `*(size *)(dst + off)`.
    pub const fn atomic(size: u8, op: i32, dst: Reg, src: Reg, off: i16) -> Self {
        Self::new(class::STX | mode::ATOMIC | size, dst, src, off, op)
    }

    /// Both halves of `dst = imm` with 64 bits.
    pub const fn ld_imm64(dst: Reg, src: Reg, imm: u64) -> [Self; 2] {
        [
            Self::new(class::LD | mode::IMM | size::DW, dst, src, 0, imm as i32),
            Self::new(0, Reg::R0, Reg::R0, 0, (imm >> 32) as i32),
        ]
    }

    /// Jump by `off` instructions if `dst op imm`, 64-bit comparison with the sign-extended immediate.
    pub const fn jmp_imm(op: u8, dst: Reg, imm: i32, off: i16) -> Self {
        Self::new(class::JMP | op, dst, Reg::R0, off, imm)
    }

    /// Jump by `off` instructions.
    pub const fn ja(off: i16) -> Self {
        Self::new(class::JMP | jmp::JA, Reg::R0, Reg::R0, off, 0)
    }

    /// Call of the helper with this id.
    pub const fn call(helper: u32) -> Self {
        Self::new(class::JMP | jmp::CALL, Reg::R0, Reg::R0, 0, helper as i32)
    }

    /// Return `r0`.
    pub const fn exit() -> Self {
        Self::new(class::JMP | jmp::EXIT, Reg::R0, Reg::R0, 0, 0)
    }
}
