//! Disassembly in the words of the kernel's verifier log, which are also those of `bpftool prog dump xlated`.
//!
//! ```
//! use bpfarray_core::disasm::Disasm;
//! use bpfarray_core::insn::{Insn, Reg, alu};
//! let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::R0, 1 << 40);
//! let insns = [Insn::alu64_imm(alu::ADD, Reg::R1, 312), lo, hi, Insn::call(1)];
//! let text: Vec<String> = Disasm::new(&insns).map(|line| format!("{}: {line}", line.index)).collect();
//! assert_eq!(
//!     text,
//!     ["0: (07) r1 += 312", "1: (18) r2 = 0x10000000000", "3: (85) call bpf_map_lookup_elem#1"]
//! );
//! ```
//!
//! Every bit pattern has a text. What no instruction set version defines reads `BUG_` and the opcode,
//! as in the kernel.

use core::fmt;

use crate::helper_id;
use crate::insn::{ADDR_PERCPU, Insn, Reg, alu, atomic, class, jmp, mode, pseudo, size};

/// Where a disassembly takes the names of what instructions refer to.
pub trait Names {
    /// The name of the helper with this id, with its `bpf_` prefix.
    fn helper(&self, id: u32) -> Option<&str> {
        helper_id::name(id)
    }

    /// The name of the map a 64-bit immediate load refers to: `kind` is one of [`pseudo`]'s four kinds of
    /// maps, `imm` the descriptor, id or index. Printed as `map[name]` in place of `map[id:5]`.
    fn map(&self, kind: u8, imm: i32) -> Option<&str> {
        let _ = (kind, imm);
        None
    }

    /// The name of the subprogram whose first instruction is at `index`.
    fn subprog(&self, index: usize) -> Option<&str> {
        let _ = index;
        None
    }
}

/// Linux's names of the helpers, and no others.
#[derive(Copy, Clone, Debug, Default)]
pub struct HelperNames;

impl Names for HelperNames {}

/// The lines of a program's disassembly, in order.
#[derive(Clone, Debug)]
pub struct Disasm<'a, N: ?Sized = HelperNames> {
    insns: &'a [Insn],
    names: &'a N,
    next: usize,
}

impl<'a> Disasm<'a> {
    /// The lines of `insns`, with the names of helpers.
    pub const fn new(insns: &'a [Insn]) -> Self {
        Self { insns, names: &HelperNames, next: 0 }
    }
}

impl<'a, N: Names + ?Sized> Disasm<'a, N> {
    /// The lines of `insns`, with names from `names`.
    pub const fn with_names(insns: &'a [Insn], names: &'a N) -> Self {
        Self { insns, names, next: 0 }
    }
}

impl<'a, N: Names + ?Sized> Iterator for Disasm<'a, N> {
    type Item = Line<'a, N>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        let insn = *self.insns.get(index)?;
        let second = if insn.is_ld_imm64() { self.insns.get(index + 1).copied() } else { None };
        self.next += 1 + usize::from(second.is_some());
        Some(Line { index, insn, second, names: self.names })
    }
}

/// One line: an instruction, or the two halves of a 64-bit immediate load.
///
/// Displays as `(opcode) text`, without the index and without a line end.
///
/// # Kernel
/// `print_bpf_insn`
#[derive(Copy, Clone, Debug)]
#[doc(alias = "print_bpf_insn")]
pub struct Line<'a, N: ?Sized = HelperNames> {
    /// Index of the instruction in the program.
    pub index: usize,
    /// The instruction.
    pub insn: Insn,
    /// The second half of a 64-bit immediate load, if the program does not end before it.
    pub second: Option<Insn>,
    names: &'a N,
}

impl<N: Names + ?Sized> fmt::Display for Line<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.insn.class() {
            class::ALU | class::ALU64 => fmt_alu(self.insn, f),
            class::LD => self.fmt_ld(f),
            class::LDX => fmt_ldx(self.insn, f),
            class::ST => fmt_st(self.insn, f),
            class::STX => fmt_stx(self.insn, f),
            _ => self.fmt_jmp(f),
        }
    }
}

/// A register by the name its operand size gives it: `r1`, or `w1` for its lower half.
struct SizedReg(Reg, bool);

impl fmt::Display for SizedReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.1 { 'w' } else { 'r' }, self.0.index())
    }
}

/// The second operand of an arithmetic instruction or a jump.
enum Operand {
    Reg(&'static str, SizedReg),
    Dec(i32),
    Hex(i32),
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reg(cast, reg) => write!(f, "{cast}{reg}"),
            Self::Dec(imm) => write!(f, "{imm}"),
            Self::Hex(imm) => write!(f, "{imm:#x}"),
        }
    }
}

fn fmt_alu(insn: Insn, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Insn { code, dst, src, off, imm } = insn;
    let is_32 = insn.class() == class::ALU;
    let is_mov64_reg = code == class::ALU64 | alu::MOV | crate::insn::X;
    if is_mov64_reg && off == ADDR_PERCPU {
        return write!(f, "({code:02x}) {dst} = &(void __percpu *)({src})");
    }
    if is_mov64_reg && off == 1 {
        let (to, from) = (imm as u32 >> 16, imm as u16);
        return write!(f, "({code:02x}) {dst} = addr_space_cast({src}, {to}, {from})");
    }
    let op = match insn.op() {
        alu::END => {
            let order = match (is_32, insn.is_reg_src()) {
                (false, _) => "bswap",
                (true, false) => "le",
                (true, true) => "be",
            };
            return write!(f, "({code:02x}) {dst} = {order}{imm} {dst}");
        }
        alu::NEG => {
            let dst = SizedReg(dst, is_32);
            return write!(f, "({code:02x}) {dst} = -{dst}");
        }
        alu::ADD => "+=",
        alu::SUB => "-=",
        alu::MUL => "*=",
        alu::DIV if off == 1 => "s/=",
        alu::DIV => "/=",
        alu::OR => "|=",
        alu::AND => "&=",
        alu::LSH => "<<=",
        alu::RSH => ">>=",
        alu::MOD if off == 1 => "s%=",
        alu::MOD => "%=",
        alu::XOR => "^=",
        alu::MOV => "=",
        alu::ARSH => "s>>=",
        _ => return write!(f, "BUG_alu_{code:02x}"),
    };
    let cast = match (insn.op(), off) {
        (alu::MOV, 8) => "(s8)",
        (alu::MOV, 16) => "(s16)",
        (alu::MOV, 32) => "(s32)",
        _ => "",
    };
    let operand = match insn.is_reg_src() {
        true => Operand::Reg(cast, SizedReg(src, is_32)),
        false => Operand::Dec(imm),
    };
    write!(f, "({code:02x}) {} {op} {operand}", SizedReg(dst, is_32))
}

/// A memory operand: `*(u64 *)(r1 +8)` is a `*` before this.
struct Place(&'static str, Reg, i16);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} *)({} {:+})", self.0, self.1, self.2)
    }
}

fn unsigned_type(insn: Insn) -> &'static str {
    match insn.size() {
        size::W => "u32",
        size::H => "u16",
        size::B => "u8",
        _ => "u64",
    }
}

fn fmt_ldx(insn: Insn, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let code = insn.code;
    let ty = match (insn.mode(), insn.size()) {
        (mode::MEM, _) => unsigned_type(insn),
        (mode::MEMSX, size::W) => "s32",
        (mode::MEMSX, size::H) => "s16",
        (mode::MEMSX, size::B) => "s8",
        _ => return write!(f, "BUG_ldx_{code:02x}"),
    };
    write!(f, "({code:02x}) {} = *{}", insn.dst, Place(ty, insn.src, insn.off))
}

fn fmt_st(insn: Insn, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let code = insn.code;
    if insn.mode() != mode::MEM {
        return write!(f, "BUG_st_{code:02x}");
    }
    let place = Place(unsigned_type(insn), insn.dst, insn.off);
    write!(f, "({code:02x}) *{place} = {}", insn.imm)
}

fn fmt_stx(insn: Insn, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Insn { code, src, .. } = insn;
    let place = Place(unsigned_type(insn), insn.dst, insn.off);
    match insn.mode() {
        mode::MEM => return write!(f, "({code:02x}) *{place} = {src}"),
        mode::ATOMIC => {}
        _ => return write!(f, "BUG_{code:02x}"),
    }
    let bits = if insn.size() == size::DW { "64" } else { "" };
    let (sign, name) = match insn.imm & !atomic::FETCH {
        atomic::ADD => ("+=", "add"),
        atomic::OR => ("|=", "or"),
        atomic::AND => ("&=", "and"),
        atomic::XOR => ("^=", "xor"),
        _ => {
            return match insn.imm {
                atomic::XCHG => write!(f, "({code:02x}) {src} = atomic{bits}_xchg({place}, {src})"),
                atomic::CMPXCHG => {
                    write!(f, "({code:02x}) r0 = atomic{bits}_cmpxchg({place}, r0, {src})")
                }
                atomic::LOAD_ACQ => {
                    let place = Place(unsigned_type(insn), src, insn.off);
                    write!(f, "({code:02x}) {} = load_acquire({place})", insn.dst)
                }
                atomic::STORE_REL => write!(f, "({code:02x}) store_release({place}, {src})"),
                _ => write!(f, "BUG_{code:02x}"),
            };
        }
    };
    match insn.imm & atomic::FETCH {
        0 => write!(f, "({code:02x}) lock *{place} {sign} {src}"),
        _ => write!(f, "({code:02x}) {src} = atomic{bits}_fetch_{name}({place}, {src})"),
    }
}

impl<N: Names + ?Sized> Line<'_, N> {
    fn fmt_ld(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Insn { code, src, imm, .. } = self.insn;
        let ty = unsigned_type(self.insn);
        match (self.insn.mode(), self.second) {
            (mode::ABS, _) => write!(f, "({code:02x}) r0 = *({ty} *)skb[{imm}]"),
            (mode::IND, _) => write!(f, "({code:02x}) r0 = *({ty} *)skb[{src} + {imm}]"),
            (mode::IMM, Some(second)) => {
                write!(f, "({code:02x}) {} = ", self.insn.dst)?;
                self.fmt_imm64(second.imm, f)
            }
            _ => write!(f, "BUG_ld_{code:02x}"),
        }
    }

    fn fmt_imm64(&self, second: i32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let imm = self.insn.imm;
        let kind = self.insn.src.index() as u8;
        let (key, offset) = match kind {
            pseudo::MAP_FD => ("id", None),
            pseudo::MAP_VALUE => ("id", Some(second)),
            pseudo::MAP_IDX => ("idx", None),
            pseudo::MAP_IDX_VALUE => ("idx", Some(second)),
            pseudo::FUNC => return write!(f, "subprog[{imm:+}]"),
            _ => {
                let wide = u64::from(second as u32) << 32 | u64::from(imm as u32);
                return write!(f, "{wide:#x}");
            }
        };
        match self.names.map(kind, imm) {
            Some(name) => write!(f, "map[{name}]")?,
            None => write!(f, "map[{key}:{}]", imm as u32)?,
        }
        match offset {
            Some(offset) => write!(f, "[0]+{}", offset as u32),
            None => Ok(()),
        }
    }

    fn fmt_call(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Insn { code, src, imm, .. } = self.insn;
        write!(f, "({code:02x}) call ")?;
        match src.index() as u8 {
            pseudo::CALL => {
                write!(f, "pc{imm:+}")?;
                let target = (self.index as i64 + 1).checked_add(i64::from(imm));
                let target = target.and_then(|index| usize::try_from(index).ok());
                match target.and_then(|index| self.names.subprog(index)) {
                    Some(name) => write!(f, "#{name}"),
                    None => Ok(()),
                }
            }
            pseudo::KFUNC_CALL => write!(f, "kernel-function#{imm}"),
            0 => write!(f, "{}#{imm}", self.names.helper(imm as u32).unwrap_or("unknown")),
            _ => write!(f, "unknown#{imm}"),
        }
    }

    fn fmt_jmp(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const JA: u8 = class::JMP | jmp::JA;
        const JA32: u8 = class::JMP32 | jmp::JA;
        const JCOND: u8 = class::JMP | jmp::JCOND;
        const EXIT: u8 = class::JMP | jmp::EXIT;

        let Insn { code, dst, src, off, imm } = self.insn;
        let is_32 = self.insn.class() == class::JMP32;
        let op = match self.insn.op() {
            jmp::CALL => return self.fmt_call(f),
            _ if code == JA => return write!(f, "({code:02x}) goto pc{off:+}"),
            _ if code == JA32 => return write!(f, "({code:02x}) gotol pc{imm:+}"),
            _ if code == JCOND => return write!(f, "({code:02x}) may_goto pc{off:+}"),
            _ if code == EXIT => return write!(f, "({code:02x}) exit"),
            jmp::JEQ => "==",
            jmp::JGT => ">",
            jmp::JGE => ">=",
            jmp::JSET => "&",
            jmp::JNE => "!=",
            jmp::JSGT => "s>",
            jmp::JSGE => "s>=",
            jmp::JLT => "<",
            jmp::JLE => "<=",
            jmp::JSLT => "s<",
            jmp::JSLE => "s<=",
            _ => return write!(f, "BUG_jmp_{code:02x}"),
        };
        let operand = match self.insn.is_reg_src() {
            true => Operand::Reg("", SizedReg(src, is_32)),
            false => Operand::Hex(imm),
        };
        write!(f, "({code:02x}) if {} {op} {operand} goto pc{off:+}", SizedReg(dst, is_32))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    /// What a live kernel 6.18 wrote into its verifier log: the bytes in hexadecimal, then the text.
    const RECORDED: &str = include_str!("../../../testdata/disasm/linux-6.18.txt");

    fn decode_hex(hex: &str) -> Vec<Insn> {
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect();
        bytes.chunks(8).map(|chunk| Insn::decode(chunk.try_into().unwrap())).collect()
    }

    fn text(insns: &[Insn]) -> String {
        Disasm::new(insns).map(|line| line.to_string()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_recorded_line_reads_as_the_kernel_wrote_it() {
        let lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for line in lines {
            let (hex, expected) = line.split_once(' ').unwrap();
            assert_eq!(text(&decode_hex(hex)), expected, "{hex}");
            count += 1;
        }
        assert!(count > 150, "only {count} recorded lines");
    }

    #[test]
    fn what_the_log_cannot_show_reads_as_in_its_source() {
        let reg = Reg::new;
        let mov_x = class::ALU64 | alu::MOV | crate::insn::X;
        assert_eq!(
            text(&[Insn::mov64_percpu_reg(reg(0), reg(0))]),
            "(bf) r0 = &(void __percpu *)(r0)"
        );
        assert_eq!(
            text(&[Insn::new(mov_x, reg(1), reg(2), 1, 0x0001_0000)]),
            "(bf) r1 = addr_space_cast(r2, 1, 0)"
        );
        assert_eq!(text(&[Insn::call(99_999)]), "(85) call unknown#99999");
        assert_eq!(text(&[Insn::new(0x85, reg(0), reg(2), 0, 7)]), "(85) call kernel-function#7");
        let map = |kind| Insn::ld_imm64(reg(1), reg(kind), 8 << 32 | 5);
        assert_eq!(text(&map(pseudo::MAP_FD)), "(18) r1 = map[id:5]");
        assert_eq!(text(&map(pseudo::MAP_VALUE)), "(18) r1 = map[id:5][0]+8");
        assert_eq!(text(&map(pseudo::MAP_IDX)), "(18) r1 = map[idx:5]");
        assert_eq!(text(&map(pseudo::MAP_IDX_VALUE)), "(18) r1 = map[idx:5][0]+8");
        assert_eq!(text(&map(pseudo::FUNC)), "(18) r1 = subprog[+5]");
    }

    #[test]
    fn undefined_opcodes_read_as_bugs() {
        let insn = |code, imm| Insn::new(code, Reg::R1, Reg::R2, 0, imm);
        for (insn, expected) in [
            (insn(0xe7, 0), "BUG_alu_e7"),
            (insn(0x99, 0), "BUG_ldx_99"),
            (insn(0xdb, 0x20), "BUG_db"),
            (insn(0xdb, 0x41 | 0x100), "BUG_db"),
            (insn(0x1b, 0), "BUG_1b"),
            (insn(0x1a, 0), "BUG_st_1a"),
            (insn(0x00, 0), "BUG_ld_00"),
            (insn(0xf5, 0), "BUG_jmp_f5"),
            (insn(0xe6, 0), "BUG_jmp_e6"),
            (insn(0x96, 0), "BUG_jmp_96"),
        ] {
            assert_eq!(text(&[insn]), expected);
        }
    }

    #[test]
    fn a_wide_load_cut_in_half_is_one_line() {
        let [lo, _] = Insn::ld_imm64(Reg::R1, Reg::R0, 1);
        assert_eq!(text(&[Insn::exit(), lo]), "(95) exit\nBUG_ld_18");
    }

    #[test]
    fn names_of_maps_and_subprograms_come_from_the_caller() {
        struct Mine;
        impl Names for Mine {
            fn map(&self, kind: u8, imm: i32) -> Option<&str> {
                (kind == pseudo::MAP_IDX_VALUE && imm == 1).then_some("counters")
            }
            fn subprog(&self, index: usize) -> Option<&str> {
                (index == 3).then_some("count")
            }
        }
        let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), 16 << 32 | 1);
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::R1, 0, 0);
        let insns = [lo, hi, call, Insn::exit()];
        let lines: Vec<String> = Disasm::with_names(&insns, &Mine).map(|l| l.to_string()).collect();
        assert_eq!(lines, ["(18) r1 = map[counters][0]+16", "(85) call pc+0#count", "(95) exit"]);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_text(raw in prop::collection::vec(any::<[u8; 8]>(), 0..16)) {
            let insns: Vec<Insn> = raw.iter().map(|bytes| Insn::decode(*bytes)).collect();
            let mut covered = 0;
            for line in Disasm::new(&insns) {
                prop_assert_eq!(line.index, covered);
                covered += 1 + usize::from(line.second.is_some());
                let text = format!("{line}");
                let opcode = format!("({:02x}) ", line.insn.code);
                let known = text.starts_with(&opcode) || text.starts_with("BUG_");
                prop_assert!(known, "{}", text);
            }
            prop_assert_eq!(covered, insns.len());
        }
    }
}
