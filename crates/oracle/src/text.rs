//! Pieces of the vector files' line format.

use std::fmt::Write as _;

/// Longest byte string that vector files write out; of longer ones they hold a digest.
const WRITTEN_OUT: usize = 32;

/// Bytes as hexadecimal, or `#` with length and digest where they are long.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    if bytes.len() > WRITTEN_OUT { digest(bytes) } else { hex(bytes) }
}

/// Bytes as hexadecimal, `-` for none.
pub(crate) fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".into();
    }
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// The bytes of a string that [`hex`] wrote.
pub(crate) fn unhex(s: &str) -> Option<Vec<u8>> {
    if s == "-" {
        return Some(Vec::new());
    }
    let digits: Option<Vec<u8>> = s.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|d| d[0] << 4 | d[1]).collect())
}

/// A number, decimal or with `0x`.
pub(crate) fn number(s: &str) -> Option<u64> {
    match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => s.parse().ok(),
    }
}

/// Length and digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("#{}:{:016x}", bytes.len(), fnv1a(bytes))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bytes_become_a_digest() {
        assert_eq!(bytes(&[1, 0xab]), "01ab");
        assert_eq!(bytes(&[0; 33]), format!("#33:{:016x}", fnv1a(&[0; 33])));
        assert_ne!(bytes(&[0; 33]), bytes(&[1; 33]));
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(unhex(&hex(&[0, 0x7f, 0xff])), Some(vec![0, 0x7f, 0xff]));
        assert_eq!(unhex(&hex(&[])), Some(Vec::new()));
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("abc"), None);
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("10"), Some(10));
    }
}
