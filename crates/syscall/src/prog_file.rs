//! The file of a program: what it was loaded with, so that every process can make it anew. `docs/format.md` has the bytes.
//!
//! Whoever may write to the file may write anything into it. So what is read from it is a loader's word, no more: instructions
//! go through the verifier of each process that runs them, and records are only shown.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bpfarray_core::insn::{INSN_SIZE, Insn};

/// The first bytes of such a file.
pub(crate) const MAGIC: [u8; 8] = *b"\x8fBPFPRG\n";

const VERSION: u32 = 1;
const TAG_LEN: usize = 8;
const HEADER_LEN: usize = 272;
const RUN_TIME_NS: usize = 88;
const RUN_CNT: usize = 96;
const TAG: usize = 56;
const ATTACH_BTF_ID: usize = 80;
const REST_OF_HASH: usize = 104;
const MADE: usize = 256;
const LICENSE: usize = 128;

/// Bytes of a license, with its NUL.
pub(crate) const LICENSE_LEN: usize = 128;

/// Bytes of a name, with its NUL.
pub(crate) const NAME_LEN: usize = 16;

/// # Kernel
/// `BPF_COMPLEXITY_LIMIT_INSNS`
pub(crate) const MAX_INSNS: u32 = 1_000_000;

/// Longest file: instructions with a record of either kind for each, and maps.
const MAX_LEN: u64 = HEADER_LEN as u64 + MAX_INSNS as u64 * 32 + (1 << 20);

/// Where a function begins, and its type.
///
/// # Kernel
/// `struct bpf_func_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct FuncInfo {
    pub(crate) insn_off: u32,
    pub(crate) type_id: u32,
}

impl FuncInfo {
    pub(crate) const LEN: usize = 8;

    pub(crate) fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [insn_off, type_id] = words(&bytes);
        Self { insn_off, type_id }
    }

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        bytes([self.insn_off, self.type_id])
    }
}

/// The source line from which instructions come.
///
/// # Kernel
/// `struct bpf_line_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct LineInfo {
    pub(crate) insn_off: u32,
    pub(crate) file_name_off: u32,
    pub(crate) line_off: u32,
    /// Line number, and column in the low 10 bits.
    pub(crate) line_col: u32,
}

impl LineInfo {
    pub(crate) const LEN: usize = 16;

    pub(crate) fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [insn_off, file_name_off, line_off, line_col] = words(&bytes);
        Self { insn_off, file_name_off, line_off, line_col }
    }

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        bytes([self.insn_off, self.file_name_off, self.line_off, self.line_col])
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|at| words.get(at).map_or(0, |word| u32::from_le_bytes(*word)))
}

fn bytes<const N: usize, const LEN: usize>(words: [u32; N]) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    bytes
}

/// What the loader made of a program: how long that is, so that whoever asks need not make it again.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Made {
    /// Bytes of translated instructions.
    pub(crate) xlated: u32,
    /// Bytes of machine code, which each process makes for itself.
    pub(crate) jited: u32,
    /// Records that the translation left.
    pub(crate) func_info: u32,
    pub(crate) line_info: u32,
}

/// A program as it was loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ProgFile {
    pub(crate) prog_type: u32,
    pub(crate) expected_attach_type: u32,
    pub(crate) prog_flags: u32,
    pub(crate) uid: u32,
    pub(crate) name: [u8; NAME_LEN],
    /// Nanoseconds since the machine started.
    pub(crate) load_time: u64,
    /// The kernel's, of the instructions as they were handed in.
    pub(crate) hash: [u8; 32],
    /// At most 127 bytes, without NUL.
    pub(crate) license: Vec<u8>,
    /// The BTF that the records refer to, or 0.
    pub(crate) btf_id: u32,
    /// What the program is for, in the BTF of the running kernel, or 0.
    pub(crate) attach_btf_id: u32,
    /// Maps are referred to by their place in `maps`.
    pub(crate) insns: Vec<Insn>,
    pub(crate) func_info: Vec<FuncInfo>,
    pub(crate) line_info: Vec<LineInfo>,
    pub(crate) made: Made,
    /// Ids of the maps it was loaded with, then of those that were bound to it.
    pub(crate) maps: Vec<u32>,
}

impl ProgFile {
    /// The name up to its NUL.
    pub(crate) fn name(&self) -> &str {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        std::str::from_utf8(&self.name[..end]).unwrap_or_default()
    }

    /// What the kernel shows of the hash.
    pub(crate) fn tag(&self) -> [u8; TAG_LEN] {
        let [a, b, c, d, e, f, g, h, ..] = self.hash;
        [a, b, c, d, e, f, g, h]
    }

    /// How many instructions the verifier looked at: here each one, once.
    pub(crate) fn verified_insns(&self) -> u32 {
        let halves = self.insns.iter().filter(|insn| insn.is_ld_imm64()).count();
        self.insns.len().saturating_sub(halves) as u32
    }

    /// Whether its license is one under which helpers for such programs can be called.
    pub(crate) fn is_gpl_compatible(&self) -> bool {
        str::from_utf8(&self.license).is_ok_and(bpfarray_vm::is_gpl_compatible)
    }

    /// The bytes of the file of a program that is listed under an id.
    pub(crate) fn encode(&self, id: u32) -> Vec<u8> {
        let mut file = vec![0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in file.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &MAGIC);
        let counts = [self.insns.len(), self.func_info.len(), self.line_info.len()];
        let first =
            [VERSION, id, self.prog_type, self.expected_attach_type, self.prog_flags, self.uid];
        for (place, word) in first.into_iter().enumerate() {
            put(8 + 4 * place, &word.to_le_bytes());
        }
        put(32, &self.name);
        put(48, &self.load_time.to_le_bytes());
        let (tag, rest) = self.hash.split_at(TAG_LEN);
        put(TAG, tag);
        put(REST_OF_HASH, rest);
        put(64, &self.btf_id.to_le_bytes());
        for (place, count) in counts.into_iter().enumerate() {
            put(68 + 4 * place, &(count as u32).to_le_bytes());
        }
        put(ATTACH_BTF_ID, &self.attach_btf_id.to_le_bytes());
        let Made { xlated, jited, func_info, line_info } = self.made;
        put(MADE, &bytes::<4, 16>([xlated, jited, func_info, line_info]));
        put(LICENSE, &self.license[..self.license.len().min(LICENSE_LEN - 1)]);
        file.extend(self.insns.iter().flat_map(|insn| insn.encode()));
        file.extend(self.func_info.iter().flat_map(|info| info.encode()));
        file.extend(self.line_info.iter().flat_map(|info| info.encode()));
        file.extend(self.maps.iter().flat_map(|map| map.to_le_bytes()));
        file
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What the system says, and `InvalidData` for a file that is not as [`ProgFile::encode`] makes them.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len > MAX_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, mut rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| {
            header.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_le_bytes(*word))
        };
        if header[..8] != MAGIC || word(8)? != VERSION {
            return None;
        }
        let license = &header[LICENSE..LICENSE + LICENSE_LEN];
        let license = license.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
        Some(Self {
            prog_type: word(16)?,
            expected_attach_type: word(20)?,
            prog_flags: word(24)?,
            uid: word(28)?,
            name: *header[32..].first_chunk()?,
            load_time: u64::from_le_bytes(*header[48..].first_chunk()?),
            hash: hash(header)?,
            license,
            made: Made {
                xlated: word(MADE)?,
                jited: word(MADE + 4)?,
                func_info: word(MADE + 8)?,
                line_info: word(MADE + 12)?,
            },
            btf_id: word(64)?,
            attach_btf_id: word(ATTACH_BTF_ID)?,
            insns: records(&mut rest, word(68)?, Insn::decode)?,
            func_info: records(&mut rest, word(72)?, FuncInfo::decode)?,
            line_info: records(&mut rest, word(76)?, LineInfo::decode)?,
            maps: rest.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        })
    }
}

const _: () = assert!(INSN_SIZE == 8);

/// The hash of a program, of which the tag was there before the rest.
fn hash(header: &[u8; HEADER_LEN]) -> Option<[u8; 32]> {
    let rest = header.get(REST_OF_HASH..REST_OF_HASH + 32 - TAG_LEN)?;
    let tag = header.get(TAG..TAG + TAG_LEN)?;
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(tag.iter().chain(rest)) {
        *to = *from;
    }
    Some(hash)
}

/// Takes `count` records off the front of `rest`.
fn records<T, const N: usize>(
    rest: &mut &[u8],
    count: u32,
    decode: impl Fn([u8; N]) -> T,
) -> Option<Vec<T>> {
    let len = N.checked_mul(usize::try_from(count).ok()?)?;
    let (own, others) = rest.split_at_checked(len)?;
    *rest = others;
    Some(own.as_chunks().0.iter().map(|record| decode(*record)).collect())
}

/// How long runs took in nanoseconds, and how many there were, while somebody wanted to know.
pub(crate) fn stats(file: &File) -> (u64, u64) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at as u64).map_or(0, |()| u64::from_le_bytes(bytes))
    };
    (number(RUN_TIME_NS), number(RUN_CNT))
}

/// Adds to what [`stats`] gives. The directory is locked meanwhile.
pub(crate) fn add_stats(file: &File, run_time_ns: u64, runs: u64) -> io::Result<()> {
    let (time, count) = stats(file);
    let [time, count] = [time.wrapping_add(run_time_ns), count.wrapping_add(runs)];
    file.write_all_at(&time.to_le_bytes(), RUN_TIME_NS as u64)?;
    file.write_all_at(&count.to_le_bytes(), RUN_CNT as u64)
}

#[cfg(test)]
mod tests {
    use bpfarray_core::insn::Reg;

    use super::*;

    fn program() -> ProgFile {
        ProgFile {
            prog_type: 6,
            expected_attach_type: 37,
            prog_flags: 32,
            uid: 1000,
            name: *b"count_packets\0\0\0",
            load_time: 1 << 40,
            hash: std::array::from_fn(|at| at as u8),
            license: b"Dual MIT/GPL".to_vec(),
            btf_id: 9,
            attach_btf_id: 64130,
            insns: vec![Insn::mov64_imm(Reg::R0, 2), Insn::exit()],
            func_info: vec![FuncInfo { insn_off: 0, type_id: 4 }],
            line_info: vec![LineInfo { insn_off: 1, file_name_off: 2, line_off: 3, line_col: 4 }],
            made: Made { xlated: 16, jited: 45, func_info: 1, line_info: 1 },
            maps: vec![5, 7],
        }
    }

    #[test]
    fn a_program_is_read_as_it_was_written() {
        let bytes = program().encode(3);
        assert_eq!(bytes[12..16], 3_u32.to_le_bytes());
        assert_eq!(ProgFile::decode(&bytes), Some(program()));
        assert_eq!(program().name(), "count_packets");
        assert!(program().is_gpl_compatible());
    }

    #[test]
    fn a_file_that_ends_early_or_promises_more_is_none() {
        let bytes = program().encode(3);
        // Maps are what is left.
        let fixed = bytes.len() - 8;
        assert!((0..fixed).all(|len| ProgFile::decode(&bytes[..len]).is_none()));
        for count in [68, 72, 76] {
            let mut bytes = bytes.clone();
            bytes[count..count + 4].fill(0xff);
            assert_eq!(ProgFile::decode(&bytes), None, "count at {count}");
        }
    }
}
