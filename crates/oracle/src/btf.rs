//! The little BTF that a program with callbacks needs to be loaded.

use std::collections::BTreeSet;

use bpfarray_core::insn::{Insn, pseudo};

/// Type id of the function in [`blob`].
pub(crate) const FUNC: u32 = 3;

/// BTF of one function without arguments that returns int: enough for the kernel, which takes
/// the types of arguments from the program itself where the function is static.
pub(crate) fn blob() -> Vec<u8> {
    const INT: u32 = 1 << 24;
    const FUNC_PROTO: u32 = 13 << 24;
    const FUNC: u32 = 12 << 24;
    const SIGNED_32_BITS: u32 = 1 << 24 | 32;
    let strings = b"\0int\0f\0";
    // Each type: name, kind, size or type, and for the integer its encoding.
    let types = [1, INT, 4, SIGNED_32_BITS, 0, FUNC_PROTO, 1, 5, FUNC, 2];
    let types_len = types.len() as u32 * 4;
    let header =
        [0x0001_eb9f, 24, 0, types_len, types_len, strings.len() as u32].map(u32::to_le_bytes);
    let types = types.map(u32::to_le_bytes);
    [header.as_flattened(), types.as_flattened(), strings].concat()
}

/// `func_info` for every function of a program: the main one and whatever is called or taken the
/// address of.
pub(crate) fn func_info(insns: &[Insn]) -> Vec<(u32, u32)> {
    let target = |(i, insn): (usize, &Insn)| {
        let is_func = insn.is_ld_imm64() && insn.src.index() == usize::from(pseudo::FUNC);
        let refers = insn.is_pseudo_call() || is_func;
        refers.then(|| (i as u32 + 1).wrapping_add_signed(insn.imm))
    };
    let starts: BTreeSet<u32> =
        std::iter::once(0).chain(insns.iter().enumerate().filter_map(target)).collect();
    starts.into_iter().map(|start| (start, FUNC)).collect()
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::{Reg, class, jmp};

    use super::*;

    #[test]
    fn every_function_is_listed_once_and_in_order() {
        let call = |off| Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, off);
        let [func, high] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 2);
        let insns = [call(4), call(3), func, high, Insn::exit(), Insn::exit(), Insn::exit()];
        assert_eq!(func_info(&insns), [(0, FUNC), (5, FUNC)]);
    }
}
