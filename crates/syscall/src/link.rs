//! Links in the root directory. `docs/format.md` has the bytes of their files.
//!
//! A link keeps its program and its map, of which it is a user, by hard links in a directory beside it. The program may be replaced,
//! so nobody remembers what a link links.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;

use crate::root::{Kind, Locked, Root, errno, open_as};

/// The first bytes of such a file.
pub(crate) const MAGIC: [u8; 8] = *b"\x8fBPFLNK\n";

/// What the program of a link is called for.
///
/// # Kernel
/// `target` of `bpf_map_elem_reg_info`
pub(crate) const ITER_TARGET: &str = "bpf_map_elem";

/// # Kernel
/// `BPF_LINK_TYPE_ITER`
pub(crate) const LINK_TYPE_ITER: u32 = 4;

const VERSION: u32 = 1;
const LEN: usize = 28;
const PROG_ID: u64 = 20;

/// A link of a program to the map for whose elements it is called.
///
/// # Kernel
/// `struct bpf_iter_link`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct LinkFile {
    pub(crate) prog_id: u32,
    pub(crate) map_id: u32,
}

impl LinkFile {
    fn encode(self, id: u32) -> Vec<u8> {
        let words = [VERSION, id, LINK_TYPE_ITER, self.prog_id, self.map_id];
        MAGIC.into_iter().chain(words.into_iter().flat_map(u32::to_le_bytes)).collect()
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let words = bytes.as_chunks::<4>().0;
        let word = |at: usize| words.get(at).map(|word| u32::from_le_bytes(*word));
        let is_known =
            bytes.starts_with(&MAGIC) && (word(2)?, word(4)?) == (VERSION, LINK_TYPE_ITER);
        if is_known { Some(Self { prog_id: word(5)?, map_id: word(6)? }) } else { None }
    }

    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, 0)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Root {
    /// What a link links.
    pub(crate) fn link(&self, id: u32) -> Result<LinkFile, Errno> {
        let file = open_as(&self.object(Kind::Link, id), HandleMode::ReadOnly)?;
        LinkFile::read(&file).map_err(|error| errno(&error))
    }
}

impl Locked<'_> {
    /// Makes the file of a new link, which keeps its program and its map.
    pub(crate) fn create_link(&self, id: u32, link: LinkFile) -> Result<(), Errno> {
        let kept = [(Kind::Prog, link.prog_id), (Kind::Map, link.map_id)];
        self.create_keeper((Kind::Link, id), &link.encode(id), kept.into_iter())
    }

    /// Puts a program in the place of a link's own one. Who dies meanwhile leaves a link that keeps both.
    pub(crate) fn replace_prog(&self, id: u32, new: u32) -> Result<(), Errno> {
        let old = self.root.link(id)?.prog_id;
        if old == new {
            return Ok(());
        }
        let keeper = (Kind::Link, id);
        match self.keep(keeper, Kind::Prog, new) {
            Err(Errno::EEXIST) => {}
            kept => kept?,
        }
        let io = |error: io::Error| errno(&error);
        let file = open_as(&self.root.object(Kind::Link, id), HandleMode::ReadWrite)?;
        file.write_all_at(&new.to_le_bytes(), PROG_ID).map_err(io)?;
        fs::remove_file(self.root.name_kept_by(keeper, Kind::Prog, old)).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_as_it_was_written() {
        let link = LinkFile { prog_id: 7, map_id: 1 << 30 };
        let bytes: [u8; LEN] = link.encode(5).try_into().unwrap();
        assert_eq!(LinkFile::decode(&bytes), Some(link));
        assert_eq!(bytes[12..16], 5_u32.to_le_bytes());
        for at in [0, 8, 16] {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(LinkFile::decode(&other), None, "byte {at}");
        }
    }
}
