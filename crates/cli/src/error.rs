//! Why a command failed, in one line.

use std::io;
use std::path::{Path, PathBuf};

use bpfarray_core::btf::BtfError;
use bpfarray_vm::context::ContextError;
use bpfarray_vm::elf::{LoadError, ProgramSpec};
use bpfarray_vm::fault::Fault;
use bpfarray_vm::prog_type::ProgType;
use bpfarray_vm::{LoadObjectError, ProgramError, SourceLine};

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
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// Whether the reader of the output has gone, who needs not be told.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Problem(Box<Kind>);

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error(transparent)]
    Object(#[from] LoadObjectError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Context(#[from] ContextError),
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
    #[error("section '{section}', program '{program}'{}: {fault}{}", in_packet(*.packet), at(.line))]
    Fault {
        section: String,
        program: String,
        /// Which packet of a capture it ran on, counted from 1.
        packet: Option<usize>,
        fault: Fault,
        line: Option<SourceLine>,
    },
}

impl Kind {
    pub(crate) fn fault(
        spec: &ProgramSpec,
        packet: Option<usize>,
        line: Option<&SourceLine>,
        fault: Fault,
    ) -> Self {
        let (section, program) = (spec.section.clone(), spec.name.clone());
        Self::Fault { section, program, packet, fault, line: line.cloned() }
    }
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

fn in_packet(number: Option<usize>) -> String {
    number.map_or(String::new(), |number| format!(", packet {number}"))
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
