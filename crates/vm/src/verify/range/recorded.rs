//! What Linux knows about numbers, recorded from its verifier's log, and what is known here.

use bpfarray_core::insn::{INSN_SIZE, Insn, alu, class, jmp};

use super::bounds::{Half, Wide};
use super::{Range, Tnum};

const RECORDED: &str = include_str!("../../../../../testdata/verifier/ranges.vec");

/// A number as the log has it, in decimal or in hexadecimal.
fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse::<i128>().unwrap() as u64,
    }
}

/// Exactly what the log says, nothing derived from it.
fn parse(text: &str) -> Range {
    let Some(known) = text.strip_prefix("scalar(").and_then(|known| known.strip_suffix(')')) else {
        return Range::constant(number(text));
    };
    let (mut bits, mut wide, mut half) = (Tnum::ANY, Wide::ANY, Half::ANY);
    for fact in known.split(',').filter(|fact| !fact.is_empty()) {
        let (names, value) = fact.rsplit_once('=').unwrap();
        if names == "var_off" {
            let (value, mask) =
                value.trim_matches(['(', ')']).split_once("; ").expect("value and mask");
            bits = Tnum { value: number(value), mask: number(mask) };
            continue;
        }
        let n = number(value);
        for name in names.split('=') {
            match name {
                "umin" => wide.umin = n,
                "umax" => wide.umax = n,
                "smin" => wide.smin = n as i64,
                "smax" => wide.smax = n as i64,
                "umin32" => half.umin = n as u32,
                "umax32" => half.umax = n as u32,
                "smin32" => half.smin = n as i32,
                "smax32" => half.smax = n as i32,
                _ => panic!("{name} in {text}"),
            }
        }
    }
    Range::from_parts(bits, wide, half)
}

/// Whether Linux may know less about the results of an operation. It gives up at divisions and at shifts by what
/// is no constant below the width, at shifts to the left where the highest bit may be set; and takes the
/// result of a sign-extending move for any number that can be one unless all upper bits agree.
fn gives_up(insn: Insn, src: Range) -> bool {
    let width = if insn.class() == class::ALU { 32 } else { 64 };
    match insn.op() {
        alu::DIV | alu::MOD | alu::LSH => true,
        alu::RSH | alu::ARSH => src.value().is_none_or(|by| by >= width),
        alu::MOV => insn.off != 0,
        _ => false,
    }
}

/// Whether Linux may know less about a number after a comparison. It forgets bounds before it takes away the
/// bits of a mask; and where a number turns out to be its half, a signed one that is not negative, it
/// forgets all other bounds.
fn forgets(insn: Insn, linux: Range) -> bool {
    insn.op() == jmp::JSET || linux.umax <= i32::MAX as u64
}

/// Whether Linux follows two paths instead, one for each number; the log has what comes of -1 first.
fn forks(insn: Insn, dst: Range, src: Range) -> bool {
    matches!(insn.op(), alu::AND | alu::OR)
        && src.value().is_some()
        && (dst.half.smin, dst.half.smax) == (-1, 0)
}

/// How often we know what Linux knows.
#[derive(Default, Debug)]
struct Tally {
    equal: usize,
    /// We know more.
    tighter: usize,
}

impl Tally {
    fn count(&mut self, fact: &str, may_be_tighter: bool, ours: Range, linux: Range) {
        if ours == linux {
            self.equal += 1;
        } else {
            self.tighter += 1;
            let is_tighter = may_be_tighter && linux.contains(&ours);
            assert!(is_tighter, "{fact}\nours:  {ours}\nLinux: {linux}");
        }
    }
}

#[test]
fn a_log_is_written_as_it_was_read() {
    for fact in RECORDED.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let (question, answer) = fact.split_once(" = ").unwrap();
        let states = question.split_once(' ').unwrap().1.split(" | ");
        let states = states.chain(answer.split(" / ").flat_map(|way| way.split(" | ")));
        for text in states.filter(|text| !matches!(*text, "-" | "?")) {
            assert_eq!(parse(text).to_string(), text);
        }
    }
}

#[test]
fn as_much_is_known_about_numbers_as_linux_knows() {
    let (mut results, mut branches) = (Tally::default(), Tally::default());
    let mut dead = 0;
    for fact in RECORDED.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let (question, answer) = fact.split_once(" = ").unwrap();
        let (code, known) = question.split_once(' ').unwrap();
        let code: [u8; INSN_SIZE] =
            std::array::from_fn(|i| u8::from_str_radix(&code[2 * i..2 * i + 2], 16).unwrap());
        let insn = Insn::decode(code);
        let mut known = known.split(" | ").map(parse);
        let dst = known.next().unwrap();
        let is_64 = matches!(insn.class(), class::ALU64 | class::JMP);
        let src = known.next().unwrap_or(Range::constant(match is_64 {
            true => i64::from(insn.imm) as u64,
            false => u64::from(insn.imm as u32),
        }));
        let Some((stays, goes)) = answer.split_once(" / ") else {
            let ours = match insn.op() {
                alu::END => dst.swap(insn),
                op => Range::alu(op, is_64, insn.off, dst, src),
            };
            let linux = parse(answer);
            if forks(insn, dst, src) {
                assert!(ours.contains(&linux), "{fact}");
            } else {
                results.count(fact, gives_up(insn, src), ours, linux);
            }
            continue;
        };
        for (way, holds) in [(stays, false), (goes, true)] {
            let ours = Range::compare(insn.op(), is_64, holds, dst, src);
            match (way, ours) {
                ("-", ours) => assert_eq!(ours, None, "{fact}"),
                ("?", ours) => assert!(ours.is_some(), "{fact}"),
                (way, Some((dst, src))) => {
                    for (ours, linux) in [dst, src].into_iter().zip(way.split(" | ").map(parse)) {
                        branches.count(fact, forgets(insn, linux), ours, linux);
                    }
                }
                (_, None) => dead += 1,
            }
        }
    }
    println!(
        "results: {results:?}, branches: {branches:?}, {dead} ways only here known to be dead"
    );
    assert!(results.equal > 1_000 && branches.equal > 2_000);
    assert!(dead * 1_000 < branches.equal);
}
