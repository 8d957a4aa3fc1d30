//! What an object says about a program.

use std::sync::Arc;

use bpfarray_core::btf::LineInfo;
use bpfarray_core::insn::{INSN_SIZE, Insn};

use super::LoadError;
use crate::prog_type::{AttachType, ProgType, SectionDef};

/// A program of an object.
///
/// A program of an unknown type, or one that needs a running kernel, does not stand in the way of the others:
/// only asking for what is not there is an error.
#[derive(Clone, Debug)]
pub struct ProgramSpec {
    /// Its name.
    pub name: String,
    /// Its section, without the `?` of programs not loaded by default.
    pub section: String,
    /// Whether it is loaded unless asked otherwise.
    pub autoload: bool,
    /// What the section says about it.
    pub def: Option<&'static SectionDef>,
    pub(super) code: Result<ProgramCode, LoadError>,
}

impl ProgramSpec {
    /// The program's type.
    ///
    /// # Errors
    /// [`LoadError::UnknownSection`]
    pub fn prog_type(&self) -> Result<ProgType, LoadError> {
        match self.def {
            Some(def) => Ok(def.prog_type),
            None => Err(LoadError::UnknownSection {
                program: self.name.clone(),
                section: self.section.clone(),
            }),
        }
    }

    /// How the program expects to be attached, where its type asks for it.
    pub fn expected_attach_type(&self) -> Option<AttachType> {
        self.def.and_then(|def| def.expected_attach_type)
    }

    /// The program's instructions.
    ///
    /// # Errors
    /// [`LoadError::Insn`] if they refer to a `__kconfig` or `__ksym` symbol.
    pub fn code(&self) -> Result<&ProgramCode, LoadError> {
        self.code.as_ref().map_err(LoadError::clone)
    }
}

/// The instructions of a program: its own, then those of every function it can reach, each once.
///
/// They can be loaded as they are: maps are referred to by their index ([`MAP_IDX`] and [`MAP_IDX_VALUE`]),
/// functions by their distance ([`CALL`] and [`FUNC`]).
///
/// [`MAP_IDX`]: bpfarray_core::insn::pseudo::MAP_IDX
/// [`MAP_IDX_VALUE`]: bpfarray_core::insn::pseudo::MAP_IDX_VALUE
/// [`CALL`]: bpfarray_core::insn::pseudo::CALL
/// [`FUNC`]: bpfarray_core::insn::pseudo::FUNC
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramCode {
    /// The instructions.
    pub insns: Vec<Insn>,
    /// Where functions begin, in ascending order; the program itself is the first.
    pub functions: Vec<Function>,
    /// From which source lines the instructions come, in ascending order.
    pub lines: Vec<Line>,
}

impl ProgramCode {
    /// The function an instruction is in.
    pub fn function(&self, insn: usize) -> Option<&Function> {
        let behind = self.functions.partition_point(|function| function.insn <= insn);
        self.functions.get(behind.checked_sub(1)?)
    }

    /// The source line an instruction comes from. One record covers the instructions up to the next.
    pub fn line(&self, insn: usize) -> Option<&Line> {
        let behind = self.lines.partition_point(|line| line.insn <= insn);
        let line = self.lines.get(behind.checked_sub(1)?)?;
        // Each function has lines of its own.
        (line.insn >= self.function(insn)?.insn).then_some(line)
    }
}

/// Where a function begins in a program.
///
/// # Kernel
/// `struct bpf_func_info`
#[derive(Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_func_info")]
pub struct Function {
    /// Index of its first instruction.
    pub insn: usize,
    /// Its name.
    pub name: Arc<str>,
    /// Its type in the object's BTF, or 0.
    pub type_id: u32,
}

/// The source line that instructions come from. Offsets are those of strings in the object's BTF.
///
/// # Kernel
/// `struct bpf_line_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_line_info")]
pub struct Line {
    /// Index of the first of the instructions.
    pub insn: usize,
    /// Name of the file.
    pub file_name_off: u32,
    /// Text of the line.
    pub line_off: u32,
    /// Line number, from 1.
    pub line: u32,
    /// Column number, from 1; 0 if unknown.
    pub column: u32,
}

impl Line {
    pub(super) fn in_section(info: &LineInfo) -> Self {
        Self {
            insn: info.insn_off as usize / INSN_SIZE,
            file_name_off: info.file_name_off,
            line_off: info.line_off,
            line: info.line,
            column: info.column,
        }
    }
}
