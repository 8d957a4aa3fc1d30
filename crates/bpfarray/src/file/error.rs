//! Why a map file cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use bpfarray_core::Errno;
use bpfarray_core::attr::CreateError;

use super::header::HeaderError;

/// Why a map file cannot be created, opened or pinned.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no map file, a damaged one, or one that lies.
    #[error("{}: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The file is a directory, a pipe or a device.
    #[error("{}: not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Values with special fields that mean something in one process only, such as timers and objects.
    #[error("{}: values with {field} cannot be in a file", path.display())]
    SpecialField {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
    },
    /// The map's memory is not in a file.
    #[error("the map is private to this process")]
    Private,
    /// Slots that name objects of a directory, without a directory.
    #[error("{}: the map holds objects of a directory of maps, which is not given", .0.display())]
    NoDirectory(PathBuf),
    /// Processors that keep numbers the other way round, or systems with larger pages.
    #[error("map files need a little-endian processor and pages of 4096 bytes")]
    Machine,
}

impl FileError {
    /// The error number that tells most about it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { source, .. } => Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
            Self::Header { source: HeaderError::Attr(error), .. } => error.errno(),
            Self::Header { source: HeaderError::TooLarge { .. }, .. } => Errno::E2BIG,
            Self::SpecialField { .. } => Errno::EOPNOTSUPP,
            Self::Header { .. }
            | Self::NotRegular(_)
            | Self::Private
            | Self::NoDirectory(_)
            | Self::Machine => Errno::EINVAL,
        }
    }

    pub(super) fn io<E>(path: &Path, action: &'static str) -> impl FnOnce(E) -> Self
    where
        io::Error: From<E>,
    {
        move |error| Self::Io { path: path.to_owned(), action, source: error.into() }
    }

    pub(super) fn header<E>(path: &Path) -> impl FnOnce(E) -> Self
    where
        HeaderError: From<E>,
    {
        move |error| Self::Header { path: path.to_owned(), source: error.into() }
    }

    pub(super) fn errno_of(path: &Path, action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| {
            let source = io::Error::from_raw_os_error(errno.raw());
            Self::Io { path: path.to_owned(), action, source }
        }
    }

    pub(super) fn create(path: &Path) -> impl FnOnce(CreateError) -> Self {
        Self::header(path)
    }
}
