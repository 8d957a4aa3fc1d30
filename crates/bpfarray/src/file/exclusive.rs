//! For which program an exclusive map is, as the header page of its file says.

use bpfarray_core::attr::PROG_HASH_LEN;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::header::{HeaderError, checksum};

/// Where it is in the header page.
pub(crate) const EXCLUSIVE_OFFSET: u64 = 192;

/// The hash of the program, as it is in the file. All zero in files of other maps.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ExclusiveHeader {
    prog_hash: [u8; PROG_HASH_LEN],
    checksum: U64,
}

impl ExclusiveHeader {
    pub(crate) fn of(prog_hash: [u8; PROG_HASH_LEN]) -> Self {
        Self { prog_hash, checksum: checksum(&prog_hash).into() }
    }

    /// Judges what a file says. Any hash may be that of a program.
    pub(crate) fn check(&self) -> Result<[u8; PROG_HASH_LEN], HeaderError> {
        let (found, expected) = (self.checksum.get(), checksum(&self.prog_hash));
        if found == expected {
            Ok(self.prog_hash)
        } else {
            Err(HeaderError::Checksum { found, expected })
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_is_noticed() {
        let hash = std::array::from_fn(|at| at as u8);
        let header = ExclusiveHeader::of(hash);
        assert_eq!(header.check(), Ok(hash));
        for at in 0..size_of::<ExclusiveHeader>() {
            let mut header = header;
            header.as_mut_bytes()[at] ^= 0x10;
            assert!(header.check().is_err(), "byte {at}");
        }
    }
}
