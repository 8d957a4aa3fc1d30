//! The owner of a PROG_ARRAY that processes share: one word of the header, set once.

use bpfarray_core::map::prog_array::{Owner, OwnerError};

use super::MapFile;
use super::header::OWNER_OFFSET;

const SIZE: usize = size_of::<u64>();

const IS_SET: u64 = 1;
const JITED: u64 = 1 << 1;
const XDP_HAS_FRAGS: u64 = 1 << 2;
const PROG_TYPE: u32 = 8;
const ATTACH_TYPE: u32 = 32;

/// `None` for a program type that the kernel could not have, of more than 24 bits.
fn encode(owner: &Owner) -> Option<u64> {
    let flags = [(true, IS_SET), (owner.jited, JITED), (owner.xdp_has_frags, XDP_HAS_FRAGS)];
    let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |word, (_, flag)| word | flag);
    let types = u64::from(owner.prog_type) << PROG_TYPE
        | u64::from(owner.expected_attach_type) << ATTACH_TYPE;
    (owner.prog_type < 1 << (ATTACH_TYPE - PROG_TYPE)).then_some(flags | types)
}

fn decode(word: u64) -> Option<Owner> {
    (word & IS_SET != 0).then_some(Owner {
        prog_type: word as u32 >> PROG_TYPE,
        jited: word & JITED != 0,
        xdp_has_frags: word & XDP_HAS_FRAGS != 0,
        expected_attach_type: (word >> ATTACH_TYPE) as u32,
    })
}

impl MapFile {
    /// What all programs in the map have in common, once there was one.
    pub(crate) fn owner(&self) -> Option<Owner> {
        decode(self.header.load_acquire(OWNER_OFFSET, SIZE).unwrap_or(0))
    }

    /// Makes a program's properties those of the map, if it is the first, or compares them. In a file that is opened
    /// for reading only, they are only compared.
    pub(crate) fn claim_owner(&self, program: &Owner) -> Result<(), OwnerError> {
        let new = encode(program).ok_or(OwnerError("prog_type"))?;
        if !self.is_read_only() {
            let _ = self.header.compare_exchange(OWNER_OFFSET, SIZE, 0, new);
        }
        self.owner().map_or(Ok(()), |owner| owner.compatible(program))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn an_owner_comes_back_as_it_was() {
        let plain =
            Owner { prog_type: 6, jited: false, xdp_has_frags: false, expected_attach_type: 37 };
        for owner in [
            plain,
            Owner { jited: true, prog_type: 0, ..plain },
            Owner { xdp_has_frags: true, expected_attach_type: u32::MAX, ..plain },
        ] {
            assert_eq!(encode(&owner).and_then(decode), Some(owner));
        }
        assert_eq!(encode(&Owner { prog_type: 1 << 24, ..plain }), None);
        assert_eq!(decode(0), None);
    }
}
