//! What the kernel's verifier knows about numbers, read from its log.
//!
//! A program loads two numbers from a map value, works on them, and compares them now and then. Where a jump
//! is taken, the program ends at a place of its own, so that no path ends early because another one has
//! been there.

use std::collections::HashMap;

use bpfarray_core::insn::{Insn, Reg, X, alu, class, jmp, mode, pseudo, size};
use bpfarray_vm::ProgType;

use crate::attr::ProgLoad;
use crate::create::MapCreate;
use crate::kernel::Kernel;
use crate::rng::Rng;
use crate::sys::{LoadError, Map, Prog};
use crate::text;

/// Why the kernel's answers could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("creating the map: {0}")]
    Create(bpfarray_core::Errno),
    #[error("loading the program of seed {seed}: {error}")]
    Load { seed: u64, error: LoadError },
    #[error("seed {seed}: instruction {at} is not in the log:\n{log}")]
    Log { seed: u64, at: usize, log: String },
}

/// The registers that are worked on.
const NUMBERS: [Reg; 2] = [Reg::R6, Reg::R7];

const OPS: [u8; 11] = [
    alu::ADD,
    alu::SUB,
    alu::MUL,
    alu::DIV,
    alu::OR,
    alu::AND,
    alu::LSH,
    alu::RSH,
    alu::MOD,
    alu::XOR,
    alu::ARSH,
];
const JUMPS: [u8; 11] = [
    jmp::JEQ,
    jmp::JGT,
    jmp::JGE,
    jmp::JSET,
    jmp::JNE,
    jmp::JSGT,
    jmp::JSGE,
    jmp::JLT,
    jmp::JLE,
    jmp::JSLT,
    jmp::JSLE,
];

/// The program of a seed.
fn program(seed: u64) -> Vec<Insn> {
    let rng = &mut Rng::new(seed);
    let mut insns = Insn::ld_imm64(Reg::R9, Reg::new(pseudo::MAP_IDX_VALUE), 0).to_vec();
    for (reg, off) in NUMBERS.into_iter().zip([0, 8]) {
        let size = rng.pick(&[size::B, size::H, size::W, size::DW, size::DW]);
        let is_signed = size != size::DW && rng.percent(50);
        let mode = if is_signed { mode::MEMSX } else { mode::MEM };
        insns.push(Insn::new(class::LDX | mode | size, reg, Reg::R9, off, 0));
    }
    let mut jumps = Vec::new();
    for _ in 0..rng.within(3, 8) {
        if rng.percent(35) {
            jumps.push(insns.len());
            insns.push(jump(rng));
        } else {
            insns.push(operation(rng));
        }
    }
    let end = [Insn::mov64_imm(Reg::R0, 0), Insn::exit()];
    insns.extend(end);
    for at in jumps {
        insns[at].off = (insns.len() - at - 1) as i16;
        insns.extend(end);
    }
    insns
}

fn operands(rng: &mut Rng) -> (Reg, Reg) {
    if rng.percent(50) { (Reg::R6, Reg::R7) } else { (Reg::R7, Reg::R6) }
}

fn immediate(rng: &mut Rng) -> i32 {
    match rng.below(4) {
        0 => rng.pick(&[0, 1, -1, 0xff, 0x7fff, -0x8000, i32::MAX, i32::MIN, 0x00ff_0000]),
        1 => 1 << rng.below(32),
        2 => rng.next_u64() as i32 >> rng.below(32),
        _ => (rng.next_u64() as u32 >> rng.below(32)) as i32,
    }
}

fn operation(rng: &mut Rng) -> Insn {
    let (class, bits) = rng.pick(&[(class::ALU, 32), (class::ALU64, 64)]);
    let (dst, src) = operands(rng);
    match rng.below(16) {
        0 => Insn::new(class | alu::NEG, dst, Reg::R0, 0, 0),
        1 => {
            let source = if bits == 32 && rng.percent(50) { X } else { 0 };
            Insn::new(class | alu::END | source, dst, Reg::R0, 0, rng.pick(&[16, 32, 64]))
        }
        // Within a register: what two registers share would be linked.
        2 | 3 => {
            let extended: &[i16] = if bits == 32 { &[0, 8, 16] } else { &[8, 16, 32] };
            Insn::new(class | alu::MOV | X, dst, dst, rng.pick(extended), 0)
        }
        4 => Insn::new(class | alu::MOV, dst, Reg::R0, 0, immediate(rng)),
        // What makes numbers small.
        5 | 6 => Insn::new(class | alu::AND, dst, Reg::R0, 0, immediate(rng)),
        _ => {
            let op = rng.pick(&OPS);
            let off = i16::from(matches!(op, alu::DIV | alu::MOD) && rng.percent(30));
            if rng.percent(60) {
                return Insn::new(class | op | X, dst, src, off, 0);
            }
            let imm = match op {
                alu::LSH | alu::RSH | alu::ARSH => rng.below(bits) as i32,
                alu::DIV | alu::MOD => immediate(rng).max(1),
                _ => immediate(rng),
            };
            Insn::new(class | op, dst, Reg::R0, off, imm)
        }
    }
}

/// A jump whose distance is still to be found.
fn jump(rng: &mut Rng) -> Insn {
    let (class, op) = (rng.pick(&[class::JMP, class::JMP32]), rng.pick(&JUMPS));
    let (dst, src) = operands(rng);
    match rng.below(2) {
        0 => Insn::new(class | op | X, dst, src, 0, 0),
        _ => Insn::new(class | op, dst, Reg::R0, 0, immediate(rng)),
    }
}

/// What the log tells of registers, as it stands there but for marks and ids.
type Registers = HashMap<String, String>;

/// What came after an instruction.
#[derive(Default)]
struct Step {
    after: Registers,
    /// The next instruction.
    next: usize,
    /// What is known where a jump is taken that may be or not.
    taken: Option<Registers>,
}

/// The instructions of the path that is followed first, until the program ends.
fn parse(log: &str) -> HashMap<usize, Step> {
    let mut steps: HashMap<usize, Step> = HashMap::new();
    let (mut last, mut is_first_path) = (0, true);
    for line in log.lines() {
        let (place, rest) = line.split_once(": ").unwrap_or_default();
        if let Some((from, _)) =
            place.strip_prefix("from ").and_then(|place| place.split_once(" to "))
        {
            is_first_path = false;
            if let Some(step) = from.parse().ok().and_then(|from: usize| steps.get_mut(&from)) {
                step.taken.get_or_insert_with(|| registers(rest));
            }
        }
        let Ok(at) = place.parse() else { continue };
        if !is_first_path {
            continue;
        }
        if rest.starts_with('(') {
            if let Some(step) = steps.get_mut(&last) {
                step.next = at;
            }
            last = at;
            let known = rest.split_once("; ").map_or("", |(_, known)| known);
            steps.insert(at, Step { after: registers(known), ..Step::default() });
        } else if let Some(step) = steps.get_mut(&last) {
            // The instruction itself had something written before.
            step.after.extend(registers(rest));
        }
    }
    steps
}

/// Registers of a line such as `R6=scalar(id=1,umin=1) R7=P5`.
fn registers(line: &str) -> Registers {
    let mut registers = Registers::new();
    let mut rest = line.trim();
    while let Some((name, value)) = rest.split_once('=') {
        let mut depth = 0;
        let end = value.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ' ' && depth == 0
        });
        let (value, after) = value.split_at(end.unwrap_or(value.len()));
        registers.insert(name.to_lowercase(), without_marks(value));
        rest = after.trim();
    }
    registers
}

fn without_marks(value: &str) -> String {
    let value = value.strip_prefix('P').unwrap_or(value);
    match value.strip_prefix("scalar(id=") {
        Some(rest) => {
            let known = rest.find([',', ')']).map_or("", |end| rest[end..].trim_start_matches(','));
            format!("scalar({known}")
        }
        None => value.into(),
    }
}

/// What the kernel knows before and after each instruction of a random program: questions and answers.
///
/// # Errors
/// Whatever the kernel refused, or a log that is not understood.
pub fn ask(_kernel: Kernel, seed: u64) -> Result<Vec<(String, String)>, Error> {
    let map = Map::create(&MapCreate::array(MapCreate::ARRAY, 16, 1)).map_err(Error::Create)?;
    let insns = program(seed);
    let maps = [&map];
    let load = ProgLoad::new(ProgType::RAW_TRACEPOINT.0, &insns, &maps);
    let log = Prog::verify(&load).map_err(|error| Error::Load { seed, error })?;
    let steps = parse(&log);
    let mut known = Registers::new();
    let (mut facts, mut at) = (Vec::new(), 0);
    while insns[at].code != class::JMP | jmp::EXIT {
        let insn = insns[at];
        let missing = || Error::Log { seed, at, log: log.clone() };
        let step = steps.get(&at).ok_or_else(missing)?;
        let is_jump = matches!(insn.class(), class::JMP | class::JMP32);
        let is_move = insn.op() == alu::MOV && !insn.is_reg_src();
        if is_jump || matches!(insn.class(), class::ALU | class::ALU64) && !is_move {
            let has_src =
                insn.is_reg_src() && insn.op() != alu::END || is_jump && insn.is_reg_src();
            let state = |known: &Registers| -> Option<String> {
                let dst = known.get(&insn.dst.to_string())?;
                Some(match has_src {
                    true => format!("{dst} | {}", known.get(&insn.src.to_string())?),
                    false => dst.clone(),
                })
            };
            let code = text::hex(&insn.encode());
            let question = format!("{code} {}", state(&known).ok_or_else(missing)?);
            let answer = match (is_jump, &step.taken) {
                (false, _) => step.after.get(&insn.dst.to_string()).cloned(),
                (true, None) if step.next == at + 1 => Some("? / -".into()),
                (true, None) => Some("- / ?".into()),
                (true, Some(taken)) => state(&step.after)
                    .zip(state(taken))
                    .map(|(stays, goes)| format!("{stays} / {goes}")),
            };
            facts.push((question, answer.ok_or_else(missing)?));
        }
        known.extend(step.after.clone());
        at = step.next;
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_a_log_are_read_without_marks() {
        let line = "R6=Pscalar(id=2,umin=1,var_off=(0x0; 0xff)) R7=P-5 R9=map_value(ks=4,vs=16)";
        let registers = registers(line);
        assert_eq!(registers["r6"], "scalar(umin=1,var_off=(0x0; 0xff))");
        assert_eq!(registers["r7"], "-5");
        assert_eq!(without_marks("scalar(id=12)"), "scalar()");
    }
}
