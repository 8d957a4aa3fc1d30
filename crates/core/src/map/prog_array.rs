//! `BPF_MAP_TYPE_PROG_ARRAY`: programs to jump to.

use crate::errno::Errno;

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

impl Owner {
    /// Whether a program of another owner's properties may share its map.
    ///
    /// # Errors
    /// [`OwnerError`] with the first property that differs.
    ///
    /// # Kernel
    /// `bpf_prog_map_compatible`
    #[doc(alias = "bpf_prog_map_compatible")]
    #[doc(alias = "bpf_map_owner_matches")]
    pub fn compatible(&self, program: &Self) -> Result<(), OwnerError> {
        if self.prog_type != program.prog_type {
            Err(OwnerError("prog_type"))
        } else if self.jited != program.jited {
            Err(OwnerError("jited"))
        } else if self.xdp_has_frags != program.xdp_has_frags {
            Err(OwnerError("xdp_has_frags"))
        } else if self.expected_attach_type != program.expected_attach_type {
            Err(OwnerError("expected_attach_type"))
        } else {
            Ok(())
        }
    }
}

/// A program that differs from the owner of a PROG_ARRAY in the property that is named.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the program differs from the map's owner in {0}")]
pub struct OwnerError(pub &'static str);

impl OwnerError {
    /// The error number that loading or inserting such a program reports.
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
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
    fn every_property_of_the_owner_counts() {
        let owner =
            Owner { prog_type: 6, jited: true, xdp_has_frags: false, expected_attach_type: 37 };
        assert_eq!(owner.compatible(&owner), Ok(()));
        for (other, property) in [
            (Owner { prog_type: 1, jited: false, ..owner }, "prog_type"),
            (Owner { jited: false, ..owner }, "jited"),
            (Owner { xdp_has_frags: true, ..owner }, "xdp_has_frags"),
            (Owner { expected_attach_type: 0, ..owner }, "expected_attach_type"),
        ] {
            assert_eq!(owner.compatible(&other), Err(OwnerError(property)));
        }
    }

    #[test]
    fn the_index_is_cut_to_32_bits_and_the_budget_is_33() {
        assert_eq!(tail_call(4, 1 << 32, 0), Some(0));
        assert_eq!(tail_call(4, u64::MAX, 0), None);
        assert_eq!(tail_call(4, 3, 32), Some(3));
        assert_eq!(tail_call(4, 3, 33), None);
    }
}
