//! A program that can run, from any number of threads.

use std::fmt;
use std::sync::Arc;

use bpfarray::Map;
use bpfarray_core::btf::Btf;
use bpfarray_core::insn::Insn;

use crate::context::Context;
use crate::elf::{LoadError, ProgramCode};
use crate::fault::Fault;
use crate::helper::HelperSet;
use crate::interp::{Code, Environment as RunEnvironment, run};
use crate::prog_type::ProgType;
use crate::verify::{Environment, VerifyError, verify};
use crate::xlate::{XlateError, Xlated, xlate};

/// Why there is no program.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The object has no program of this name.
    #[error("there is no program '{program}'")]
    NotFound {
        /// The name asked for.
        program: String,
    },
    /// The object's program is not complete.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program can never be right.
    #[error("program '{program}', {error}{}", at(.line))]
    Verify {
        /// The program's name.
        program: String,
        /// What is wrong with it.
        error: Box<VerifyError>,
        /// Where that is in its source.
        line: Option<Box<SourceLine>>,
    },
    /// The program became too long.
    #[error("program '{program}', {error}")]
    Xlate {
        /// The program's name.
        program: String,
        /// Where.
        error: XlateError,
    },
}

fn at(line: &Option<Box<SourceLine>>) -> String {
    line.as_ref().map(|line| format!(" ({line})")).unwrap_or_default()
}

/// A place in a program's source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceLine {
    /// Name of the file, as the compiler was given it.
    pub file: String,
    /// Line number, from 1.
    pub line: u32,
    /// The line.
    pub text: String,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text.trim())
    }
}

/// How a run ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The program's r0.
    pub r0: u64,
}

impl Outcome {
    /// The low half of r0: what the kernel takes as the result.
    pub const fn retval(self) -> u32 {
        self.r0 as u32
    }
}

/// A program that can run.
///
/// ```
/// use bpfarray_core::insn::{Insn, Reg, alu};
/// use bpfarray_vm::{Context, ProgType, Program};
/// let insns = [Insn::mov64_imm(Reg::R0, 6), Insn::alu64_imm(alu::MUL, Reg::R0, 7), Insn::exit()];
/// let program = Program::from_insns(ProgType::SYSCALL, &insns, &[])?;
/// let mut context = Context::new(ProgType::SYSCALL, &[], None)?;
/// assert_eq!(program.run(&mut context)?.retval(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// A program may run on any number of threads at once; each run enters a lane. A clone is another
/// handle to the same program.
#[derive(Clone)]
pub struct Program(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    name: String,
    prog_type: ProgType,
    maps: Vec<Map>,
    xlated: Xlated,
    code: Code,
    environment: RunEnvironment,
    /// For each instruction, as loaded, its source line.
    lines: Vec<(usize, SourceLine)>,
}

impl Program {
    /// A program from its instructions, with Linux's helpers.
    ///
    /// Maps are referred to by their index in `maps` (`pseudo::MAP_IDX`, `pseudo::MAP_IDX_VALUE`).
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Xlate`].
    pub fn from_insns(
        prog_type: ProgType,
        insns: &[Insn],
        maps: &[Map],
    ) -> Result<Self, ProgramError> {
        Self::with_helpers(prog_type, insns, maps, &Arc::new(HelperSet::linux()))
    }

    /// As [`Program::from_insns`], with the helpers of a host.
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Xlate`].
    pub fn with_helpers(
        prog_type: ProgType,
        insns: &[Insn],
        maps: &[Map],
        helpers: &Arc<HelperSet>,
    ) -> Result<Self, ProgramError> {
        let code = ProgramCode { insns: insns.to_vec(), ..ProgramCode::default() };
        Self::build("", prog_type, &code, None, maps, helpers)
    }

    pub(crate) fn build(
        name: &str,
        prog_type: ProgType,
        code: &ProgramCode,
        btf: Option<&Btf>,
        maps: &[Map],
        helpers: &Arc<HelperSet>,
    ) -> Result<Self, ProgramError> {
        let lines = source_lines(code, btf);
        let environment = Environment { prog_type, maps, helpers };
        let verified = verify(code.insns.clone(), &environment).map_err(|error| {
            let line = line_of(&lines, error.insn).cloned().map(Box::new);
            ProgramError::Verify { program: name.to_owned(), error: Box::new(error), line }
        })?;
        let xlated = xlate(&verified, maps)
            .map_err(|error| ProgramError::Xlate { program: name.to_owned(), error })?;
        let code = Code::new(&xlated.link(maps));
        let environment = RunEnvironment::new(maps, helpers);
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            prog_type,
            maps: maps.to_vec(),
            xlated,
            code,
            environment,
            lines,
        })))
    }

    /// The program's name; empty for one made from instructions.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The program's type.
    pub fn prog_type(&self) -> ProgType {
        self.0.prog_type
    }

    /// The maps the program can refer to.
    pub fn maps(&self) -> &[Map] {
        &self.0.maps
    }

    /// The instructions that run, as the kernel would show them: maps by their id.
    ///
    /// # Kernel
    /// `xlated_prog_insns` of `struct bpf_prog_info`
    #[doc(alias = "xlated_prog_insns")]
    pub fn xlated(&self) -> Vec<Insn> {
        self.0.xlated.dump(&self.0.maps)
    }

    /// The source line that instruction `insn` of [`Program::xlated`] comes from.
    pub fn source_line(&self, insn: usize) -> Option<&SourceLine> {
        line_of(&self.0.lines, self.0.xlated.origin(insn))
    }

    /// The same program with another bound on a run: it ends after about `fuel` instructions.
    #[must_use]
    pub fn with_fuel(mut self, fuel: u64) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.environment = inner.environment.clone().with_fuel(fuel);
        self
    }

    /// Runs the program once.
    ///
    /// # Errors
    /// A [`Fault`] ends the run where the program does what it may not, or has used up its fuel. What it had
    /// done to maps, packet and context stays done.
    ///
    /// # Kernel
    /// `bpf_prog_run`
    #[doc(alias = "bpf_prog_run")]
    pub fn run(&self, context: &mut Context) -> Result<Outcome, Fault> {
        let r0 = run(&self.0.code, &self.0.environment, context)?;
        Ok(Outcome { r0 })
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({:?}, {})", self.0.name, self.0.prog_type)
    }
}

fn source_lines(code: &ProgramCode, btf: Option<&Btf>) -> Vec<(usize, SourceLine)> {
    let string = |offset| btf.and_then(|btf| btf.string(offset)).unwrap_or_default().to_owned();
    let line = |line: &crate::elf::Line| SourceLine {
        file: string(line.file_name_off),
        line: line.line,
        text: string(line.line_off),
    };
    code.lines.iter().map(|info| (info.insn, line(info))).collect()
}

fn line_of(lines: &[(usize, SourceLine)], insn: usize) -> Option<&SourceLine> {
    let behind = lines.partition_point(|(first, _)| *first <= insn);
    Some(&lines.get(behind.checked_sub(1)?)?.1)
}
