//! Bytes as bpftool writes them in JSON: a list of `"0x2a"`.

use serde::ser::{Serialize, Serializer};

/// All 256 of them, for dumps of large maps consist of little else.
static BYTES: [[u8; 4]; 256] = {
    let digits = b"0123456789abcdef";
    let mut bytes = [*b"0x00"; 256];
    let mut byte = 0;
    while byte < bytes.len() {
        bytes[byte][2] = digits[byte >> 4];
        bytes[byte][3] = digits[byte & 15];
        byte += 1;
    }
    bytes
};

/// Serializes bytes as a list of strings in base 16.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let text = |byte: &u8| std::str::from_utf8(&BYTES[usize::from(*byte)]).unwrap_or_default();
        to.collect_seq(self.0.iter().map(text))
    }
}
