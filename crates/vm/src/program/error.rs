//! Why programs cannot be loaded.

use bpfarray_core::Errno;
use bpfarray_core::map::prog_array::OwnerError;

use super::SourceLine;
use crate::elf::LoadError;
use crate::verify::VerifyError;
use crate::xlate::XlateError;

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
        /// What the verifier wrote down: always in strict mode, else as [`LoadOptions::log`](crate::LoadOptions::log) asked for.
        log: String,
    },
    /// The program refers to a map that is for another program only.
    #[error(
        "program '{program}', map '{map}': the map is exclusive to the program with another hash"
    )]
    Exclusive {
        /// The program's name.
        program: String,
        /// The map's name.
        map: String,
    },
    /// The program refers to a PROG_ARRAY for programs of another kind.
    #[error("program '{program}', map '{map}': {error}")]
    Owner {
        /// The program's name.
        program: String,
        /// The map's name.
        map: String,
        /// In what they differ.
        error: OwnerError,
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

impl ProgramError {
    /// The program's name, where there is such a program.
    pub fn program(&self) -> Option<&str> {
        match self {
            Self::NotFound { .. } | Self::Load(_) => None,
            Self::Verify { program, .. }
            | Self::Exclusive { program, .. }
            | Self::Owner { program, .. }
            | Self::Xlate { program, .. } => Some(program),
        }
    }

    /// The error number with which loaders and the kernel refuse such a program.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound { .. } => Errno::ENOENT,
            Self::Load(_) => Errno::EINVAL,
            Self::Verify { error, .. } => error.errno(),
            Self::Exclusive { .. } => Errno::EACCES,
            Self::Owner { error, .. } => error.errno(),
            Self::Xlate { .. } => Errno::E2BIG,
        }
    }
}

fn at(line: &Option<Box<SourceLine>>) -> String {
    line.as_ref().map(|line| format!(" ({line})")).unwrap_or_default()
}
