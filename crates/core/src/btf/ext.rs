//! `.BTF.ext`: what a compiler says about the instructions of each program section.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Btf, MAGIC, VERSION};

/// Header up to and with the fields every `.BTF.ext` has.
const MIN_HDR_LEN: usize = 24;
/// Header with the CO-RE fields, which came later.
const CORE_HDR_LEN: u32 = 32;

/// The records of a `.BTF.ext` section, by program section.
#[derive(Clone, Debug, Default)]
pub struct BtfExt {
    /// Which function begins where.
    pub func_info: Vec<ExtSection<FuncInfo>>,
    /// Which instruction comes from which source line.
    pub line_info: Vec<ExtSection<LineInfo>>,
    /// CO-RE relocations.
    pub core_relo: Vec<ExtSection<CoreRelo>>,
}

/// The records about one program section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtSection<T> {
    /// Name of the ELF section.
    pub section: String,
    /// Its records, in the order they have in the file.
    pub records: Vec<T>,
}

/// The function that begins at an instruction.
///
/// # Kernel
/// `struct bpf_func_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_func_info")]
pub struct FuncInfo {
    /// Bytes from the start of the section.
    pub insn_off: u32,
    /// The function's type.
    pub type_id: u32,
}

/// The source line of an instruction.
///
/// # Kernel
/// `struct bpf_line_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_line_info")]
pub struct LineInfo {
    /// Bytes from the start of the section.
    pub insn_off: u32,
    /// File name, see [`Btf::string`].
    pub file_name_off: u32,
    /// Text of the line, see [`Btf::string`].
    pub line_off: u32,
    /// Line number.
    pub line: u32,
    /// Column number.
    pub column: u32,
}

/// A place in the code that depends on the layout of a type.
///
/// # Kernel
/// `struct bpf_core_relo`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_core_relo")]
pub struct CoreRelo {
    /// Bytes from the start of the section.
    pub insn_off: u32,
    /// The type, in the object's own BTF.
    pub type_id: u32,
    /// Path into the type, see [`Btf::string`]: `0:1:2` is the third member of the second member.
    pub access_str_off: u32,
    /// What is asked about it (`enum bpf_core_relo_kind`).
    pub kind: u32,
}

/// Why bytes are not a `.BTF.ext` section.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BtfExtError {
    /// The header is cut short, of another byte order or version, or has a length that is not its own.
    #[error("BTF.ext: the header is invalid")]
    BadHeader,
    /// A part that does not lie behind the header and within the bytes.
    #[error("BTF.ext: {part} does not fit")]
    BadPart {
        /// `func_info`, `line_info` or `core_relo`.
        part: &'static str,
    },
    /// A part whose records have a size they cannot have.
    #[error("BTF.ext: {part} has records of {size} bytes")]
    BadRecordSize {
        /// `func_info`, `line_info` or `core_relo`.
        part: &'static str,
        /// Bytes of a record.
        size: u32,
    },
    /// A part that ends within the records of a section.
    #[error("BTF.ext: {part} is cut short")]
    Truncated {
        /// `func_info`, `line_info` or `core_relo`.
        part: &'static str,
    },
    /// A string offset outside the string section of the BTF.
    #[error("BTF.ext: {part} has string offset {offset}, which is outside the string section")]
    BadString {
        /// `func_info`, `line_info` or `core_relo`.
        part: &'static str,
        /// The offset.
        offset: u32,
    },
    /// A type id the BTF does not have.
    #[error("BTF.ext: {part} refers to type {id}, which does not exist")]
    NoSuchType {
        /// `func_info`, `line_info` or `core_relo`.
        part: &'static str,
        /// The id.
        id: u32,
    },
}

/// A record of `WORDS` words; longer ones of later versions begin with the same words.
trait Record: Sized {
    const PART: &'static str;
    const WORDS: usize;
    fn decode(words: &[u32], btf: &Btf) -> Result<Self, BtfExtError>;
}

fn known_type(part: &'static str, btf: &Btf, id: u32) -> Result<u32, BtfExtError> {
    if id < btf.len() { Ok(id) } else { Err(BtfExtError::NoSuchType { part, id }) }
}

fn known_string(part: &'static str, btf: &Btf, offset: u32) -> Result<u32, BtfExtError> {
    match btf.string(offset) {
        Some(_) => Ok(offset),
        None => Err(BtfExtError::BadString { part, offset }),
    }
}

impl Record for FuncInfo {
    const PART: &'static str = "func_info";
    const WORDS: usize = 2;

    fn decode(words: &[u32], btf: &Btf) -> Result<Self, BtfExtError> {
        let &[insn_off, type_id, ..] = words else {
            return Err(BtfExtError::Truncated { part: Self::PART });
        };
        Ok(Self { insn_off, type_id: known_type(Self::PART, btf, type_id)? })
    }
}

impl Record for LineInfo {
    const PART: &'static str = "line_info";
    const WORDS: usize = 4;

    fn decode(words: &[u32], btf: &Btf) -> Result<Self, BtfExtError> {
        let &[insn_off, file_name_off, line_off, line_col, ..] = words else {
            return Err(BtfExtError::Truncated { part: Self::PART });
        };
        Ok(Self {
            insn_off,
            file_name_off: known_string(Self::PART, btf, file_name_off)?,
            line_off: known_string(Self::PART, btf, line_off)?,
            line: line_col >> 10,
            column: line_col & 0x3ff,
        })
    }
}

impl Record for CoreRelo {
    const PART: &'static str = "core_relo";
    const WORDS: usize = 4;

    fn decode(words: &[u32], btf: &Btf) -> Result<Self, BtfExtError> {
        let &[insn_off, type_id, access_str_off, kind, ..] = words else {
            return Err(BtfExtError::Truncated { part: Self::PART });
        };
        Ok(Self {
            insn_off,
            type_id: known_type(Self::PART, btf, type_id)?,
            access_str_off: known_string(Self::PART, btf, access_str_off)?,
            kind,
        })
    }
}

impl BtfExt {
    /// The records in the bytes of a `.BTF.ext` section; `btf` is the `.BTF` section of the same object.
    ///
    /// # Errors
    /// The header, then for each part (functions, lines, CO-RE) its bounds, the size of its records, and
    /// for each record that it is there and refers to strings and types that are.
    pub fn parse(data: &[u8], btf: &Btf) -> Result<Self, BtfExtError> {
        let bad = BtfExtError::BadHeader;
        let (&[m0, m1, version, flags, l0, l1, l2, l3], _) = data.split_first_chunk().ok_or(bad)?;
        let hdr_len = u32::from_le_bytes([l0, l1, l2, l3]);
        let header = data.get(..hdr_len as usize).ok_or(bad)?;
        let is_known = u16::from_le_bytes([m0, m1]) == MAGIC && version == VERSION && flags == 0;
        if !is_known || header.len() < MIN_HDR_LEN || !hdr_len.is_multiple_of(4) {
            return Err(bad);
        }
        let fields: Vec<u32> =
            header.as_chunks().0.iter().skip(2).map(|field| u32::from_le_bytes(*field)).collect();
        let body = &data[header.len()..];
        let &[func_off, func_len, line_off, line_len, ref later @ ..] = fields.as_slice() else {
            return Err(bad);
        };
        let core_relo = match *later {
            [core_off, core_len, ..] if hdr_len >= CORE_HDR_LEN => (core_off, core_len),
            _ => (0, 0),
        };
        Ok(Self {
            func_info: parse_part(body, (func_off, func_len), btf)?,
            line_info: parse_part(body, (line_off, line_len), btf)?,
            core_relo: parse_part(body, core_relo, btf)?,
        })
    }
}

fn parse_part<T: Record>(
    body: &[u8],
    (offset, len): (u32, u32),
    btf: &Btf,
) -> Result<Vec<ExtSection<T>>, BtfExtError> {
    let part = T::PART;
    if len == 0 {
        return Ok(Vec::new());
    }
    let end = (offset as usize).checked_add(len as usize);
    let bytes = end.and_then(|end| body.get(offset as usize..end));
    let bytes = bytes.ok_or(BtfExtError::BadPart { part })?;
    let (chunks, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(BtfExtError::Truncated { part });
    }
    let words: Vec<u32> = chunks.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let Some((&size, mut words)) = words.split_first() else {
        return Ok(Vec::new());
    };
    let record_words = size as usize / 4;
    if !size.is_multiple_of(4) || record_words < T::WORDS {
        return Err(BtfExtError::BadRecordSize { part, size });
    }
    let truncated = BtfExtError::Truncated { part };
    let mut sections = Vec::new();
    while let Some((&[name, count], rest)) = words.split_first_chunk() {
        let len = record_words.checked_mul(count as usize).ok_or(truncated)?;
        let (records, rest) = rest.split_at_checked(len).ok_or(truncated)?;
        let section = btf.string(name).ok_or(BtfExtError::BadString { part, offset: name })?;
        let records = records.chunks_exact(record_words).map(|record| T::decode(record, btf));
        sections.push(ExtSection {
            section: section.into(),
            records: records.collect::<Result<_, _>>()?,
        });
        words = rest;
    }
    if words.is_empty() { Ok(sections) } else { Err(truncated) }
}
