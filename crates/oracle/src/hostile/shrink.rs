//! From a long program to a short one that is told apart in the same way.

use bpfarray_core::insn::{Insn, class, jmp, pseudo};

use super::mutate::drop_insn;

/// Drops instructions one by one as long as `still` says of the rest what was said of the whole.
pub fn shrink(insns: &[Insn], mut still: impl FnMut(&[Insn]) -> bool) -> Vec<Insn> {
    let mut insns = insns.to_vec();
    loop {
        let mut is_shorter = false;
        for at in (0..insns.len()).rev() {
            let is_second_half = at > 0 && insns[at - 1].is_ld_imm64();
            if is_idle(&insns, at) || is_second_half {
                continue;
            }
            let mut tried = insns.clone();
            let is_pair = insns[at].is_ld_imm64();
            drop_insn(&mut tried, at, is_pair);
            if still(&tried) {
                (insns, is_shorter) = (tried, true);
            }
        }
        // All that does nothing at once, or else one by one: where there is a loop, they may count.
        let idle: Vec<usize> = (0..insns.len()).filter(|at| is_idle(&insns, *at)).collect();
        let one_by_one = idle.iter().rev().map(std::slice::from_ref);
        for places in std::iter::once(idle.as_slice()).chain(one_by_one) {
            let short = without(&insns, places);
            if short.len() < insns.len() && still(&short) {
                (insns, is_shorter) = (short, true);
                if places.len() > 1 {
                    break;
                }
            }
        }
        if !is_shorter {
            return insns;
        }
    }
}

/// Whether the instruction in this place does nothing, and is not a part of another one.
fn is_idle(insns: &[Insn], at: usize) -> bool {
    insns.get(at) == Some(&Insn::ja(0)) && (at == 0 || !insns[at - 1].is_ld_imm64())
}

/// The program without the instructions in these places; what jumped there jumps behind them.
fn without(insns: &[Insn], places: &[usize]) -> Vec<Insn> {
    let is_kept = |(at, _): (usize, &Insn)| places.binary_search(&at).is_err();
    // How many instructions are kept before each.
    let mut before = vec![0_i64];
    for place in insns.iter().enumerate() {
        before.push(before[place.0] + i64::from(is_kept(place)));
    }
    let moved = |at: usize, distance: i64| {
        let target = at as i64 + 1 + distance;
        let new = usize::try_from(target).ok().and_then(|target| before.get(target));
        new.map_or(distance, |new| new - before[at] - 1)
    };
    let mut kept = Vec::new();
    for (at, insn) in insns.iter().enumerate().filter(|place| is_kept(*place)) {
        let mut insn = *insn;
        let is_func = insn.is_ld_imm64() && insn.src.index() == usize::from(pseudo::FUNC);
        let is_jump = matches!(insn.class(), class::JMP | class::JMP32);
        if is_func || insn.is_pseudo_call() || insn.code == class::JMP32 | jmp::JA {
            insn.imm = moved(at, insn.imm.into()) as i32;
        } else if is_jump && !matches!(insn.op(), jmp::CALL | jmp::EXIT) {
            insn.off = moved(at, insn.off.into()) as i16;
        }
        kept.push(insn);
    }
    kept
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::Reg;

    use super::*;

    #[test]
    fn what_is_kept_jumps_where_it_jumped() {
        let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::R0, 5);
        let store = Insn::mov64_imm(Reg::R3, 3);
        let insns = [Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 4), lo, hi, store, store, Insn::exit()];
        let short = shrink(&insns, |insns| {
            insns.contains(&lo) && insns.last() == Some(&Insn::exit()) && insns[0].op() == jmp::JEQ
        });
        assert_eq!(short, [Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 2), lo, hi, Insn::exit()]);
    }
}
