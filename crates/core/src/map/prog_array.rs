//! `BPF_MAP_TYPE_PROG_ARRAY`: programs to jump to.

/// Most tail calls of one run.
///
/// # Kernel
/// `MAX_TAIL_CALL_CNT`
#[doc(alias = "MAX_TAIL_CALL_CNT")]
pub const MAX_TAIL_CALLS: u32 = 33;

/// What all programs of one PROG_ARRAY have in common. The first program that is put into a map, or that
/// refers to it, becomes its owner, for good.
///
/// # Kernel
/// `struct bpf_map_owner`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_map_owner")]
pub struct Owner {
    /// Program type.
    pub prog_type: u32,
    /// Whether the program is compiled; an interpreted one cannot jump into a compiled one.
    pub jited: bool,
    /// Whether the program takes XDP packets in fragments.
    pub xdp_has_frags: bool,
    /// How the program expects to be attached.
    pub expected_attach_type: u32,
}

/// Which slot a tail call goes to, if it goes anywhere: `None` past the end and when `done` tail calls have
/// used up the budget. That the slot is empty is for the caller to find; it uses up nothing.
///
/// The index is cut to 32 bits.
///
/// # Kernel
/// `bpf_tail_call`
#[doc(alias = "bpf_tail_call")]
pub const fn tail_call(max_entries: u32, index: u64, done: u32) -> Option<u32> {
    let index = index as u32;
    if index < max_entries && done < MAX_TAIL_CALLS { Some(index) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_cut_to_32_bits_and_the_budget_is_33() {
        assert_eq!(tail_call(4, 1 << 32, 0), Some(0));
        assert_eq!(tail_call(4, u64::MAX, 0), None);
        assert_eq!(tail_call(4, 3, 32), Some(3));
        assert_eq!(tail_call(4, 3, 33), None);
    }
}
