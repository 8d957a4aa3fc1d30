//! Why a command failed, in one line.

use std::io;
use std::path::{Path, PathBuf};

use bpfarray::perf::PerfBufferError;
use bpfarray_core::btf::BtfError;
use bpfarray_syscall::RootError;
use bpfarray_syscall::seccomp::SpawnError;
use bpfarray_vm::context::ContextError;
use bpfarray_vm::elf::LoadError;
use bpfarray_vm::fault::Fault;
use bpfarray_vm::prog_type::ProgType;
use bpfarray_vm::{Loaded, MapError, Program, ProgramError, SourceLine};

use crate::clean::Clean;
use crate::packets::CaptureError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something about a file.
    #[error("{}", Clean(format_args!("{}: {problem}", path.display())))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {}", plain(.0))]
    Output(#[from] io::Error),
}

impl Error {
    /// Whether the reader of the output has gone, who need not be told.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl Error {
    /// What is wrong, without the file's name.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::File { problem, .. } => problem.to_string(),
            Self::Output(_) => self.to_string(),
        }
    }
}

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Problem(Box<Kind>);

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{}", plain(.0))]
    Io(#[from] io::Error),
    #[error("longer than {limit} MiB, the limit for such files")]
    TooLong { limit: u64 },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("{}{error}", in_section(.section))]
    Program { section: Option<String>, error: ProgramError },
    #[error("{refused} of {programs} programs refused")]
    Refused { refused: usize, programs: usize },
    #[error("map '{map}': {error}")]
    Rings { map: String, error: PerfBufferError },
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("no program to run")]
    NoProgram,
    #[error("no such program in PATH")]
    NotInPath,
    #[error("statically linked, so its calls can only be answered with --seccomp")]
    Static,
    #[error(
        "changes its user or capabilities when it starts, so its calls can only be answered with --seccomp"
    )]
    Privileged,
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the library that answers calls is not there; BPFARRAY_PRELOAD can name it")]
    NoLibrary,
    #[error("the dynamic loader takes no library whose path has a blank or a colon")]
    LibraryPath,
    #[error("the dynamic loader does not load the library")]
    NotLoaded,
    #[error("there are no programs in it")]
    NoPrograms,
    #[error("there is no program '{name}' in it, only {}", list(.available))]
    NoSuchProgram { name: String, available: Vec<String> },
    #[error("choose one of its programs with --prog: {}", list(.available))]
    SeveralPrograms { available: Vec<String> },
    #[error(
        "program '{program}' is of type {prog_type} and needs packets: give --pcap or --data-in"
    )]
    NeedsPacket { program: String, prog_type: ProgType },
    #[error("program '{program}' is of type {prog_type} and takes no packets, only --ctx-in")]
    TakesNoPacket { program: String, prog_type: ProgType },
    #[error("section '{section}', program '{program}', {}{fault}{}", in_packet(*.packet), at(.line))]
    Fault {
        section: String,
        program: String,
        /// Which packet of a capture it ran on, counted from 1.
        packet: Option<usize>,
        /// Without the name of its program.
        fault: Fault,
        line: Option<SourceLine>,
    },
}

impl Kind {
    /// Why there is no such program; the section of some is not known to those who say so.
    pub(crate) fn program(
        error: ProgramError,
        section: impl FnOnce(&str) -> Option<String>,
    ) -> Self {
        let section = error.program().and_then(section);
        Self::Program { section, error }
    }

    /// A fault of `ran`, or of another program that it has called.
    pub(crate) fn fault(
        loaded: &Loaded,
        ran: &Program,
        packet: Option<usize>,
        mut fault: Fault,
    ) -> Self {
        let called = fault.program.take().and_then(|name| loaded.program(&name).ok());
        let program = called.as_ref().unwrap_or(ran);
        let line = program.source_line(fault.insn).cloned();
        let program = program.name().to_owned();
        let mut programs = loaded.programs().iter();
        let section = programs.find(|spec| spec.name == program);
        let section = section.map(|spec| spec.section.clone()).unwrap_or_default();
        Self::Fault { section, program, packet, fault, line }
    }
}

/// What an error of the system means, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|number| format!(" (os error {number})"));
    number.and_then(|number| text.strip_suffix(&number)).unwrap_or(&text).to_owned()
}

fn in_section(section: &Option<String>) -> String {
    section.as_ref().map_or(String::new(), |section| format!("section '{section}', "))
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

fn in_packet(number: Option<usize>) -> String {
    number.map_or(String::new(), |number| format!("packet {number}, "))
}

fn at(line: &Option<SourceLine>) -> String {
    line.as_ref().map_or(String::new(), |line| format!(" ({line})"))
}

/// Says which file a problem is about.
pub(crate) trait InFile<T> {
    /// The same, or an error that names the file.
    ///
    /// # Errors
    /// The one there was.
    fn in_file(self, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<Kind>> InFile<T> for Result<T, E> {
    fn in_file(self, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::File {
            path: path.to_owned(),
            problem: Problem(Box::new(error.into())),
        })
    }
}
