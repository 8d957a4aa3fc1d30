//! What can be wrong with BTF.

use super::Kind;

/// Why bytes are not BTF, or a question about a type has no answer.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BtfError {
    /// Fewer bytes than a header takes.
    #[error("BTF: {len} bytes are too few for a header")]
    ShortHeader {
        /// Bytes there are.
        len: usize,
    },
    /// The first two bytes are not those of little-endian BTF.
    #[error("BTF: magic {magic:#06x} is not that of little-endian BTF")]
    BadMagic {
        /// The first two bytes.
        magic: u16,
    },
    /// A format version other than 1, or header flags, of which none are defined.
    #[error("BTF: version {version} with flags {flags:#x} is unknown")]
    BadVersion {
        /// Version field.
        version: u8,
        /// Flags field.
        flags: u8,
    },
    /// A header length that is too small, past the end, or covers fields of which we know nothing.
    #[error("BTF: header length {hdr_len} is invalid")]
    BadHeaderLen {
        /// Header length field.
        hdr_len: u32,
    },
    /// A section that does not lie behind the header and within the bytes, or is not made of whole words.
    #[error("BTF: {section} section at {offset} with {len} bytes does not fit")]
    BadSection {
        /// `type` or `string`.
        section: &'static str,
        /// Bytes from the end of the header.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// Strings that do not begin and end with a NUL, or are not UTF-8.
    #[error("BTF: the string section is not a list of NUL-terminated UTF-8 strings")]
    BadStrings,
    /// A type that breaks a rule of its kind.
    #[error("BTF: type {id}: {defect}")]
    BadType {
        /// The type.
        id: u32,
        /// The rule.
        defect: Defect,
    },
    /// No type has this id.
    #[error("BTF: there is no type {id}")]
    NoSuchType {
        /// The id asked for.
        id: u32,
    },
    /// The type has no size: a function, a forward declaration, void.
    #[error("BTF: type {id} has no size")]
    Unsized {
        /// The type asked for.
        id: u32,
    },
    /// The type is of another kind than the operation is for.
    #[error("BTF: type {id} is no {expected}")]
    WrongKind {
        /// The type asked for.
        id: u32,
        /// The kind it should have.
        expected: Kind,
    },
    /// A variable does not lie within its section.
    #[error("BTF: variable {index} of section type {id} does not lie within the section")]
    VarOutside {
        /// The section's type.
        id: u32,
        /// Index of the variable in it.
        index: usize,
    },
}

/// The rule a type breaks.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The section ends within the type.
    #[error("cut short")]
    Truncated,
    /// A kind Linux 6.18 does not know.
    #[error("kind {0} is unknown")]
    UnknownKind(u8),
    /// A length for a kind that has no list.
    #[error("{0} with {1} elements")]
    UnexpectedLen(Kind, u16),
    /// The kind flag on a kind that gives it no meaning.
    #[error("{0} with the kind flag")]
    UnexpectedFlag(Kind),
    /// A string offset outside the string section.
    #[error("string offset {0} is outside the string section")]
    BadString(u32),
    /// A reference to a type that does not exist.
    #[error("it refers to type {0}, which does not exist")]
    BadReference(u32),
    /// A reference to a type of a kind that cannot stand there.
    #[error("it refers to type {0}, which is of the wrong kind")]
    WrongReference(u32),
    /// An integer whose bits do not fit its size, or with an unknown encoding.
    #[error("integer of {size} bytes with encoding {encoding:#010x}")]
    BadInt {
        /// Bytes.
        size: u32,
        /// Encoding, bit offset and number of bits.
        encoding: u32,
    },
    /// A size the kind cannot have.
    #[error("{0} of {1} bytes")]
    BadSize(Kind, u32),
    /// A linkage other than static, global and extern.
    #[error("linkage {0} is unknown")]
    BadLinkage(u32),
    /// A member that does not lie within its struct or union.
    #[error("member {0} lies outside")]
    MemberOutside(u32),
    /// It contains itself, or types contain types deeper than any sane program nests them.
    #[error("it contains itself, or more than {} levels of types", super::MAX_DEPTH)]
    TooDeep,
    /// An array of more than `u32::MAX` bytes.
    #[error("it has more than 4 GiB")]
    TooBig,
}

impl Defect {
    pub(super) const fn of(self, id: u32) -> BtfError {
        BtfError::BadType { id, defect: self }
    }
}
