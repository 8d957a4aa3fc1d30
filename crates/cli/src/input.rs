//! Files that somebody names, read whole but not without end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, InFile, Kind};

const MIB: u64 = 1 << 20;

/// Longest object, type information, context or packet.
pub(crate) const FILE_LIMIT: u64 = 64 * MIB;

/// Longest capture.
pub(crate) const CAPTURE_LIMIT: u64 = 1024 * MIB;

/// The bytes of a file, of which there may be `limit`.
///
/// # Errors
/// [`Error::File`] if it cannot be read or is longer.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let bytes = read_at_most(path, limit).in_file(path)?;
    bytes.ok_or(Kind::TooLong { limit: limit / MIB }).in_file(path)
}

/// `None` for a file that is longer.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    // What is no regular file has no length to go by.
    let len = file.metadata()?.len();
    if len > limit {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_as_long_as_the_limit_is_read_and_no_longer_one() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let len = path.metadata().unwrap().len();
        assert_eq!(read(path, len).unwrap(), std::fs::read(path).unwrap());
        assert!(read(path, len - 1).is_err());
    }

    #[test]
    fn a_file_without_end_is_given_up() {
        let error = read(Path::new("/dev/zero"), MIB).unwrap_err().to_string();
        assert_eq!(error, "/dev/zero: longer than 1 MiB, the limit for such files");
    }
}
