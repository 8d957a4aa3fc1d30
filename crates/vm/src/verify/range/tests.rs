//! Whatever is known of numbers, no operation and no comparison loses one that is there.

use bpfarray_core::insn::{Insn, Reg, X, alu, class, jmp};
use proptest::array::{uniform4, uniform5};
use proptest::prelude::*;

use super::bounds::{Half, Wide};
use super::{LOW, Range, Tnum};

fn holds(range: &Range, n: u64) -> bool {
    range.contains(&Range::constant(n))
}

fn run(op: u8, is_64: bool, off: i16, a: u64, b: u64) -> u64 {
    let (x, y) = (a as u32, b as u32);
    let low = match op {
        alu::ADD => x.wrapping_add(y),
        alu::SUB => x.wrapping_sub(y),
        alu::MUL => x.wrapping_mul(y),
        alu::AND => x & y,
        alu::OR => x | y,
        alu::XOR => x ^ y,
        alu::LSH => x.wrapping_shl(y),
        alu::RSH => x.wrapping_shr(y),
        alu::ARSH => (x as i32).wrapping_shr(y) as u32,
        alu::NEG => x.wrapping_neg(),
        alu::MOV if off != 0 => sign_extended(b, off) as u32,
        alu::MOV => y,
        alu::DIV if off == 0 => x.checked_div(y).unwrap_or(0),
        alu::DIV if y == 0 => 0,
        alu::DIV => (x as i32).wrapping_div(y as i32) as u32,
        _ if off == 0 => x.checked_rem(y).unwrap_or(x),
        _ if y == 0 => x,
        _ => (x as i32).wrapping_rem(y as i32) as u32,
    };
    if !is_64 {
        return low.into();
    }
    match op {
        alu::ADD => a.wrapping_add(b),
        alu::SUB => a.wrapping_sub(b),
        alu::MUL => a.wrapping_mul(b),
        alu::AND => a & b,
        alu::OR => a | b,
        alu::XOR => a ^ b,
        alu::LSH => a.wrapping_shl(b as u32),
        alu::RSH => a.wrapping_shr(b as u32),
        alu::ARSH => (a as i64).wrapping_shr(b as u32) as u64,
        alu::NEG => a.wrapping_neg(),
        alu::MOV if off != 0 => sign_extended(b, off),
        alu::MOV => b,
        alu::DIV if off == 0 => a.checked_div(b).unwrap_or(0),
        alu::DIV if b == 0 => 0,
        alu::DIV => (a as i64).wrapping_div(b as i64) as u64,
        _ if off == 0 => a.checked_rem(b).unwrap_or(a),
        _ if b == 0 => a,
        _ => (a as i64).wrapping_rem(b as i64) as u64,
    }
}

fn sign_extended(n: u64, bits: i16) -> u64 {
    (match bits {
        8 => i64::from(n as i8),
        16 => i64::from(n as i16),
        _ => i64::from(n as i32),
    }) as u64
}

fn compares(op: u8, is_64: bool, a: u64, b: u64) -> bool {
    let (a, b, x, y) = if is_64 {
        (a, b, a as i64, b as i64)
    } else {
        (a & LOW, b & LOW, i64::from(a as i32), i64::from(b as i32))
    };
    match op {
        jmp::JEQ => a == b,
        jmp::JNE => a != b,
        jmp::JGT => a > b,
        jmp::JGE => a >= b,
        jmp::JLT => a < b,
        jmp::JLE => a <= b,
        jmp::JSGT => x > y,
        jmp::JSGE => x >= y,
        jmp::JSLT => x < y,
        jmp::JSLE => x <= y,
        _ => a & b != 0,
    }
}

/// All kinds of numbers, and many where signs and halves begin and end.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32, 0..8_u8).prop_map(|(n, by, kind)| match kind {
        0 => n,
        1 => n >> by,
        2 => u64::from(n as u32),
        3 => (n as i64 >> by) as u64,
        4 => n % 40,
        5 => (n % 40).wrapping_sub(20),
        6 => (1 << 63) + n % 40 - 20,
        _ => (1 << (31 + n % 2)) + by as u64 - 20,
    })
}

/// Any of these being nothing, or something.
fn maybe() -> impl Strategy<Value = Option<u64>> {
    proptest::option::weighted(0.4, number())
}

/// A number and a set with it, made of known bits, bounds, or all of that.
fn member() -> impl Strategy<Value = (u64, Range)> {
    (number(), maybe(), uniform4(maybe()), uniform4(maybe())).prop_map(|(n, mask, wide, half)| {
        let mask = mask.unwrap_or(u64::MAX);
        let [below, above, signed_below, signed_above] = wide;
        let (s, low) = (n as i64, n as u32);
        let wide = Wide {
            umin: below.map_or(0, |by| n.saturating_sub(by)),
            umax: above.map_or(u64::MAX, |by| n.saturating_add(by)),
            smin: signed_below.map_or(i64::MIN, |by| s.saturating_sub_unsigned(by)),
            smax: signed_above.map_or(i64::MAX, |by| s.saturating_add_unsigned(by)),
        };
        let [below, above, signed_below, signed_above] = half.map(|by| by.map(|by| by as u32));
        let s = low as i32;
        let half = Half {
            umin: below.map_or(0, |by| low.saturating_sub(by)),
            umax: above.map_or(u32::MAX, |by| low.saturating_add(by)),
            smin: signed_below.map_or(i32::MIN, |by| s.saturating_sub_unsigned(by)),
            smax: signed_above.map_or(i32::MAX, |by| s.saturating_add_unsigned(by)),
        };
        let range = Range::of(Tnum { value: n & !mask, mask }, wide, half);
        (n, range.expect("a set that is not empty stays so"))
    })
}

/// A member of a set, or a constant.
fn operand() -> impl Strategy<Value = (u64, Range)> {
    prop_oneof![
        3 => member(),
        1 => number().prop_map(|n| (n, Range::constant(n))),
        1 => (0..80_u64).prop_map(|n| (n, Range::constant(n))),
    ]
}

const ALU_OPS: [u8; 13] = [
    alu::ADD,
    alu::SUB,
    alu::MUL,
    alu::AND,
    alu::OR,
    alu::XOR,
    alu::LSH,
    alu::RSH,
    alu::ARSH,
    alu::DIV,
    alu::MOD,
    alu::NEG,
    alu::MOV,
];

const JUMPS: [u8; 11] = [
    jmp::JEQ,
    jmp::JNE,
    jmp::JGT,
    jmp::JGE,
    jmp::JLT,
    jmp::JLE,
    jmp::JSGT,
    jmp::JSGE,
    jmp::JSLT,
    jmp::JSLE,
    jmp::JSET,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn what_is_known_of_a_number_admits_it((n, range) in operand()) {
        prop_assert!(holds(&range, n), "{range:?} {n:#x}");
        prop_assert!(range.value().is_none_or(|value| value == n));
        prop_assert!(range.contains(&range) && Range::ANY.contains(&range));
        for (size, mask) in [(1, 0xff), (2, 0xffff), (4, LOW), (8, u64::MAX)] {
            let truncated = range.truncated(size);
            prop_assert!(holds(&truncated, n & mask), "{range:?} {n:#x} {truncated}");
            prop_assert!(Range::bytes(size).contains(&truncated));
        }
    }

    #[test]
    fn a_result_is_in_the_range_of_results((a, left) in member(), (b, right) in operand(), is_64: bool) {
        for op in ALU_OPS {
            let offs: &[i16] = match op {
                alu::MOV => &[0, 8, 16, 32],
                alu::DIV | alu::MOD => &[0, 1],
                _ => &[0],
            };
            for &off in offs {
                let result = Range::alu(op, is_64, off, left, right);
                let concrete = run(op, is_64, off, a, b);
                prop_assert!(holds(&result, concrete), "{op:#x} {off} {left} {right} {result} {concrete:#x}");
            }
        }
    }

    #[test]
    fn results_of_constants_are_constants(a in number(), b in number(), is_64: bool) {
        for op in ALU_OPS {
            let result = Range::alu(op, is_64, 0, Range::constant(a), Range::constant(b));
            // The remainder is only known to be less than the divisor.
            let is_known = result.value() == Some(run(op, is_64, 0, a, b)) || op == alu::MOD;
            prop_assert!(is_known || b as u32 == 0, "{op:#x} {a:#x} {b:#x} {result}");
        }
    }

    #[test]
    fn a_converted_number_is_in_the_range_of_conversions((n, range) in operand()) {
        let (half, quarter) = (n as u32, n as u16);
        for (class, source, bits, converted) in [
            (class::ALU64, 0, 64, n.swap_bytes()),
            (class::ALU64, 0, 32, half.swap_bytes().into()),
            (class::ALU64, 0, 16, quarter.swap_bytes().into()),
            (class::ALU, 0, 64, n.to_le()),
            (class::ALU, 0, 32, half.to_le().into()),
            (class::ALU, 0, 16, quarter.to_le().into()),
            (class::ALU, X, 64, n.to_be()),
            (class::ALU, X, 32, half.to_be().into()),
            (class::ALU, X, 16, quarter.to_be().into()),
        ] {
            let insn = Insn::new(class | alu::END | source, Reg::R0, Reg::R0, 0, bits);
            prop_assert!(holds(&range.swap(insn), converted), "{insn:?} {range}");
            prop_assert_eq!(Range::constant(n).swap(insn).value(), Some(converted));
        }
    }

    #[test]
    fn a_branch_keeps_the_numbers_that_take_it(
        (a, left) in member(), (b, right) in operand(), is_64: bool,
    ) {
        for op in JUMPS {
            let taken = compares(op, is_64, a, b);
            let kept = Range::compare(op, is_64, taken, left, right);
            let is_kept = kept.is_some_and(|(l, r)| holds(&l, a) && holds(&r, b));
            prop_assert!(is_kept, "{op:#x} {taken} {left} {right}");
        }
    }

    #[test]
    fn a_comparison_of_constants_goes_one_way(a in number(), b in number(), is_64: bool) {
        for op in JUMPS {
            let taken = compares(op, is_64, a, b);
            let other = Range::compare(op, is_64, !taken, Range::constant(a), Range::constant(b));
            prop_assert_eq!(other, None, "{:#x} {:#x} {:#x}", op, a, b);
        }
    }

    #[test]
    fn a_union_contains_both((_, left) in operand(), (n, right) in operand()) {
        let union = left.union(right);
        prop_assert!(union.contains(&left) && union.contains(&right));
        prop_assert!(holds(&union, n));
        if left.contains(&right) {
            prop_assert!(holds(&left, n));
            prop_assert_eq!(union, left);
        }
    }

    /// In a few bits, all pairs can be tried: no known bit is given away by the operations that can keep all.
    #[test]
    fn known_bits_of_small_numbers_are_as_many_as_there_can_be(parts in uniform5(0..32_u64)) {
        let [v, m, w, k, n] = parts;
        let (a, b) = (Tnum { value: v & !m, mask: m }, Tnum { value: w & !k, mask: k });
        let members = |t: Tnum| (0..32_u64).filter(move |n| n & !t.mask == t.value);
        let best = |op: fn(u64, u64) -> u64| {
            members(a)
                .flat_map(|x| members(b).map(move |y| Tnum::constant(op(x, y))))
                .reduce(Tnum::union)
        };
        prop_assert_eq!(Some(a.add(b)), best(u64::wrapping_add));
        prop_assert_eq!(Some(a.sub(b)), best(u64::wrapping_sub));
        prop_assert_eq!(Some(a.and(b)), best(|x, y| x & y));
        prop_assert_eq!(Some(a.or(b)), best(|x, y| x | y));
        prop_assert_eq!(Some(a.xor(b)), best(|x, y| x ^ y));
        prop_assert!(best(u64::wrapping_mul).is_some_and(|best| a.mul(b).contains(best)));
        prop_assert_eq!(a.union(b), members(a).chain(members(b)).map(Tnum::constant).reduce(Tnum::union).unwrap());
        prop_assert_eq!(a.at_least(n), members(a).find(|member| *member >= n));
        prop_assert_eq!(a.at_most(n), members(a).rfind(|member| *member <= n));
        let common = members(a).filter(|n| n & !b.mask == b.value).map(Tnum::constant);
        prop_assert_eq!(a.meet(b), common.reduce(Tnum::union));
    }
}

#[test]
fn numbers_are_written_as_in_the_log_of_the_verifier() {
    let masked = |n: u64, mask: u64| {
        Range::alu(alu::AND, true, 0, Range::constant(mask), Range::ANY).union(Range::constant(n))
    };
    for (range, text) in [
        (Range::ANY, "scalar()"),
        (Range::constant(7), "7"),
        (Range::constant(32767), "32767"),
        (Range::constant(32768), "0x8000"),
        (Range::constant(u64::MAX), "-1"),
        (Range::constant(-70_000_i64 as u64), "0xfffffffffffeee90"),
        (masked(0, 0xff), "scalar(smin=smin32=0,smax=umax=smax32=umax32=255,var_off=(0x0; 0xff))"),
        (Range::bytes(4), "scalar(smin=0,smax=umax=0xffffffff,var_off=(0x0; 0xffffffff))"),
        (Range::sign_extended(1), "scalar(smin=smin32=-128,smax=smax32=127)"),
        (
            masked(0, !7),
            "scalar(smax=0x7ffffffffffffff8,umax=0xfffffffffffffff8,smax32=0x7ffffff8,umax32=0xfffffff8,var_off=(0x0; 0xfffffffffffffff8))",
        ),
        (Range::unsigned(1, u64::MAX), "scalar(umin=1)"),
    ] {
        assert_eq!(range.to_string(), text);
    }
}
