//! What can be wrong with an object.

use std::fmt;
use std::sync::Arc;

use bpfarray_core::btf::{BtfError, BtfExtError, Kind};

use crate::core_reloc::CoreRelocDefect;

/// Why bytes are not an object that can be loaded, or a program in it cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file, but not a relocatable little-endian BPF object.
    #[error("not a BPF object: {0}")]
    NotBpf(&'static str),
    /// A part of the ELF file lies outside of it or contradicts itself.
    #[error("{part}: {reason}")]
    Elf {
        /// The part, such as `section headers`.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A section with instructions that does not hold a whole number of them.
    #[error("section '{section}': {size} bytes are not a whole number of instructions")]
    SectionSize {
        /// Name of the section.
        section: String,
        /// Its bytes.
        size: usize,
    },
    /// A function symbol that does not cover whole instructions of its section.
    #[error(
        "section '{section}': function '{function}' at byte {offset} with {size} bytes does not \
         cover whole instructions of the section"
    )]
    Function {
        /// Name of the section.
        section: String,
        /// Name of the function.
        function: String,
        /// Byte offset in the section.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// The type information is damaged.
    #[error("section '.BTF': {0}")]
    Btf(#[source] BtfError),
    /// What the compiler tells about instructions is damaged.
    #[error("section '.BTF.ext': {0}")]
    BtfExt(#[source] BtfExtError),
    /// Records about instructions that are not in ascending order.
    #[error("section '.BTF.ext': records about section '{section}' are not in ascending order")]
    BtfExtOrder {
        /// Name of the section the records are about.
        section: String,
    },
    /// Map definitions are written in types, of which there are none.
    #[error("section '.maps': there is no type information about it (compile with -g)")]
    MapsWithoutBtf,
    /// A map is not defined as it should be.
    #[error("map '{map}': {defect}")]
    Map {
        /// Name of the map.
        map: String,
        /// What is wrong with its definition.
        #[source]
        defect: MapDefect,
    },
    /// A CO-RE relocation cannot be applied.
    #[error("{place}: CO-RE relocation: {defect}")]
    CoreReloc {
        /// The instruction.
        place: Box<InsnPlace>,
        /// What is wrong with its relocation.
        #[source]
        defect: CoreRelocDefect,
    },
    /// An instruction refers to something it cannot refer to.
    #[error("{place}: {defect}")]
    Insn {
        /// The instruction.
        place: Box<InsnPlace>,
        /// What is wrong with the reference.
        #[source]
        defect: RelocDefect,
    },
    /// Programs with their subprograms have more instructions than any sane object.
    #[error("the programs have more than {0} instructions in all, subprograms counted each time")]
    TooManyInsns(usize),
    /// A section name that says nothing of the type of its programs.
    #[error(
        "section '{section}', program '{program}': the section's name tells no type of program"
    )]
    UnknownSection {
        /// Name of the program.
        program: String,
        /// Name of its section.
        section: String,
    },
}

impl LoadError {
    pub(super) fn elf(part: impl Into<String>, reason: impl ToString) -> Self {
        Self::Elf { part: part.into(), reason: reason.to_string() }
    }

    /// Whether only the program that has it is affected: what it needs exists in a running kernel only.
    pub(super) fn is_kernel_only(&self) -> bool {
        matches!(
            self,
            Self::Insn { defect: RelocDefect::Kconfig(_) | RelocDefect::Ksym { .. }, .. }
        )
    }
}

/// Where an instruction of an object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InsnPlace {
    /// Name of its section.
    pub section: String,
    /// The function it is in, unless no symbol covers it.
    pub function: Option<FunctionName>,
    /// Its index in the function, or else in the section; a 64-bit load counts as two.
    pub insn: usize,
}

/// The name of a function, and what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FunctionName {
    /// It can be run on its own.
    Program(Arc<str>),
    /// Programs call it.
    Subprogram(Arc<str>),
}

impl fmt::Display for InsnPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section '{}', ", self.section)?;
        match &self.function {
            Some(FunctionName::Program(name)) => write!(f, "program '{name}', ")?,
            Some(FunctionName::Subprogram(name)) => write!(f, "function '{name}', ")?,
            None => {}
        }
        write!(f, "instruction {}", self.insn)
    }
}

/// What is wrong with the definition of a map.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapDefect {
    /// A field that is no part of a map definition.
    #[error("unknown field '{0}'")]
    UnknownField(String),
    /// A field of another kind than its macro makes.
    #[error("field '{field}': expected {expected}, found {found}")]
    Kind {
        /// Name of the field.
        field: &'static str,
        /// Kind it should have.
        expected: Kind,
        /// Kind it has.
        found: Kind,
    },
    /// A `key` or `value` type without a size.
    #[error("field '{field}': its size is unknown: {source}")]
    Unsized {
        /// Name of the field.
        field: &'static str,
        /// Why.
        source: BtfError,
    },
    /// A size given twice, differently.
    #[error("field '{field}': a size of {new} contradicts the size of {old} given before")]
    Conflict {
        /// Name of the field.
        field: &'static str,
        /// Bytes given first.
        old: u32,
        /// Bytes given then.
        new: u32,
    },
    /// A field with a value that means nothing.
    #[error("field '{field}': {value} is not valid")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A name that cannot be honest.
    #[error("a name of {0} bytes is too long")]
    NameTooLong(usize),
    /// No `type`.
    #[error("field 'type' is missing")]
    NoType,
    /// A field an inner map cannot have.
    #[error("field '{0}' is not for inner maps")]
    InInnerMap(&'static str),
    /// `values` somewhere else than at the end.
    #[error("field 'values' must be the last one")]
    ValuesNotLast,
    /// `values` in a map whose values are neither maps nor programs.
    #[error("field 'values' is only for maps of maps and program arrays")]
    Values,
    /// Something other than a variable that holds a definition.
    #[error("expected a struct variable that is defined in this object, found {0}")]
    NoDefinition(Kind),
    /// A legacy definition of an impossible size.
    #[error("its definition has {0} bytes; it needs at least 16, within its section")]
    LegacySize(u64),
    /// A legacy definition that is longer than is known, with something behind the known fields.
    #[error("its definition has unknown options, non-zero bytes behind the first 20")]
    LegacyTail,
    /// A data section whose size does not fit a map.
    #[error("{0} bytes are too large for a map value")]
    TooLarge(u64),
    /// An initial value that is not at a slot.
    #[error("initial value at byte {0} of '.maps' is not at a slot of 'values'")]
    SlotOffset(u64),
    /// An initial value that is no map, or no program, of this object.
    #[error("slot {slot}: '{symbol}' is no {expected} of this object")]
    Slot {
        /// Index of the slot.
        slot: u32,
        /// What it refers to.
        symbol: String,
        /// `map` or `program`.
        expected: &'static str,
    },
}

impl MapDefect {
    pub(super) fn of(self, map: &str) -> LoadError {
        LoadError::Map { map: map.to_owned(), defect: self }
    }
}

/// What is wrong with the reference of an instruction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelocDefect {
    /// A relocation of an instruction that refers to nothing.
    #[error("relocation against '{symbol}' of opcode {code:#04x}, which takes none")]
    Opcode {
        /// What it refers to.
        symbol: String,
        /// The opcode.
        code: u8,
    },
    /// A relocation that is not at the start of an instruction of this section.
    #[error("relocation at byte {0}, which is not the start of an instruction")]
    Offset(u64),
    /// A relocation against a symbol that does not exist.
    #[error("relocation against symbol {0}, which does not exist")]
    NoSymbol(u32),
    /// A symbol that is not defined here, and of which nothing is known.
    #[error("relocation against unknown symbol '{0}'")]
    UnknownSymbol(String),
    /// A kernel configuration value.
    #[error("'{0}' is a kernel configuration value (__kconfig); there is no kernel here")]
    Kconfig(String),
    /// A variable or function of the kernel.
    #[error("'{symbol}' is a {} (__ksym); there is no kernel here",
        if *.is_func { "kernel function" } else { "kernel variable" })]
    Ksym {
        /// Its name.
        symbol: String,
        /// Whether it is a function.
        is_func: bool,
    },
    /// A symbol in a section that is not part of the program.
    #[error("'{symbol}' is in section '{section}', which holds neither code, data nor maps")]
    Section {
        /// What it refers to.
        symbol: String,
        /// Where that is.
        section: String,
    },
    /// A symbol in no section: a common symbol or an absolute value.
    #[error("'{0}' is in no section (is it without an initial value?)")]
    NoSection(String),
    /// An address that is not the start of a map definition.
    #[error("no map definition begins at byte {offset} of section '{section}'")]
    NoMap {
        /// Section of map definitions.
        section: String,
        /// Byte offset in it.
        offset: i64,
    },
    /// An address that is not the start of a function.
    #[error("no function begins at byte {offset} of section '{section}'")]
    NoFunction {
        /// Section with instructions.
        section: String,
        /// Byte offset in it.
        offset: i64,
    },
    /// An address that cannot be in a data section.
    #[error("byte {offset} of section '{section}' cannot be addressed")]
    NoValue {
        /// Data section.
        section: String,
        /// Byte offset in it.
        offset: i64,
    },
    /// The first half of a 64-bit load without the second.
    #[error("64-bit load without its second half")]
    HalfLoad,
    /// A 64-bit load of an object that only a relocation can name.
    #[error("64-bit load of kind {0} without a relocation")]
    Unrelocated(usize),
}
