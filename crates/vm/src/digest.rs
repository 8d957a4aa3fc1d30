//! What tells one program from another: the hash over its instructions.

use bpfarray_core::insn::{Insn, Reg, pseudo};
use sha2::{Digest, Sha256};

/// SHA-256 of instructions as a loader hands them to the kernel, but for the descriptors of maps.
///
/// Loaders of objects write descriptors where our instructions have indices into the program's list; the kernel
/// counts both halves of such a load as 0, the offset of a direct value included.
///
/// # Kernel
/// `bpf_prog_calc_tag`
pub(crate) fn digest(insns: &[Insn]) -> [u8; 32] {
    hash(insns.iter().map(|&insn| {
        let kind = match insn.src.index() as u8 {
            pseudo::MAP_IDX if insn.is_ld_imm64() => pseudo::MAP_FD,
            pseudo::MAP_IDX_VALUE if insn.is_ld_imm64() => pseudo::MAP_VALUE,
            _ => return insn,
        };
        Insn { src: Reg::new(kind), ..insn }
    }))
}

/// SHA-256 of a program's instructions as they are handed to `BPF_PROG_LOAD`, without the descriptors of maps. The first 8 bytes are
/// the tag that the kernel shows for it; an exclusive map names the program by the whole.
///
/// ```
/// use bpfarray_core::insn::{Insn, Reg};
/// let hash = bpfarray_vm::prog_hash(&[Insn::mov64_imm(Reg::R0, 2), Insn::exit()]);
/// assert!(hash.starts_with(&[0x61, 0x4b, 0x43, 0x4c, 0xd8, 0x32, 0x4e, 0xcc]));
/// ```
///
/// # Kernel
/// `bpf_prog_calc_tag`
#[doc(alias = "bpf_prog_calc_tag")]
pub fn prog_hash(insns: &[Insn]) -> [u8; 32] {
    hash(insns.iter().copied())
}

fn hash(insns: impl Iterator<Item = Insn>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut second_of_map = false;
    for insn in insns {
        let is_map = insn.is_ld_imm64()
            && matches!(insn.src.index() as u8, pseudo::MAP_FD | pseudo::MAP_VALUE);
        hasher.update(match is_map || second_of_map {
            true => Insn { imm: 0, ..insn }.encode(),
            false => insn.encode(),
        });
        second_of_map = is_map;
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tags are Linux 6.18's for the programs that differ in the descriptor only.
    #[test]
    fn the_digest_begins_with_the_kernels_tag() {
        let with_map = |kind, index, offset| {
            let [lo, hi] =
                Insn::ld_imm64(Reg::R1, Reg::new(kind), u64::from(index) | u64::from(offset) << 32);
            digest(&[lo, hi, Insn::mov64_imm(Reg::R0, 0), Insn::exit()])
        };
        let tag = |digest: [u8; 32]| u64::from_be_bytes(*digest.first_chunk().unwrap());
        for index in [0_u32, 7] {
            assert_eq!(tag(with_map(pseudo::MAP_IDX, index, 0_u32)), 0x0bd0_1686_76c7_c779);
            for offset in [0, 4] {
                let value = with_map(pseudo::MAP_IDX_VALUE, index, offset);
                assert_eq!(tag(value), 0x2881_3e61_6f1f_93d1);
            }
        }
    }

    #[test]
    fn a_number_that_looks_like_a_map_counts() {
        let load = |imm| digest(&Insn::ld_imm64(Reg::R0, Reg::R0, imm));
        assert_ne!(load(1), load(2));
        assert_ne!(load(1), load(1 | 1 << 32));
    }
}
