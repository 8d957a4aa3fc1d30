//! Operations on one map: random ones, what they answer, and both as lines of text.

use std::fmt;

use bpfarray_core::Errno;

use crate::create::{Creator, MapCreate, Request};
use crate::rng::Rng;
use crate::sys::Map;
use crate::text;

/// One element operation from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "commands and arguments of bpf(2)")]
pub enum Op {
    Lookup {
        key: u32,
        flags: u64,
    },
    /// The value is the first bytes that the generator gives for `seed`.
    Update {
        key: u32,
        flags: u64,
        seed: u64,
    },
    Delete {
        key: u32,
    },
    NextKey {
        key: Option<u32>,
    },
    Freeze,
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "results of bpf(2)")]
pub enum Output {
    Done,
    Value(Vec<u8>),
    Key(u32),
}

/// Output or error number.
pub type Answer = Result<Output, Errno>;

/// A map that operations can be applied to.
pub trait Elements {
    /// Applies one operation.
    ///
    /// # Errors
    /// The error number that bpf(2) gives.
    fn apply(&self, op: &Op) -> Answer;
}

/// The value of an update.
pub(crate) fn value(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
}

impl Elements for Map {
    fn apply(&self, op: &Op) -> Answer {
        match *op {
            Op::Lookup { key, flags } => self.lookup(&key.to_ne_bytes(), flags).map(Output::Value),
            Op::Update { key, flags, seed } => self
                .update(&key.to_ne_bytes(), &value(seed, self.value_len()), flags)
                .map(|()| Output::Done),
            Op::Delete { key } => self.delete(&key.to_ne_bytes()).map(|()| Output::Done),
            Op::NextKey { key } => {
                let key = key.map(u32::to_ne_bytes);
                let next = self.next_key(key.as_ref().map(<[u8; 4]>::as_slice))?;
                let next = next.try_into().map_err(|_| Errno::EPROTO)?;
                Ok(Output::Key(u32::from_ne_bytes(next)))
            }
            Op::Freeze => self.freeze().map(|()| Output::Done),
        }
    }
}

impl Op {
    /// An operation on a map of `max_entries` elements.
    pub fn random(rng: &mut Rng, max_entries: u32) -> Self {
        let key = match rng.below(10) {
            0 => rng.pick(&[0x8000_0000, u32::MAX, max_entries.next_power_of_two()]),
            1 => rng.pick(&[max_entries, max_entries + 1]),
            2 => max_entries - 1,
            _ => rng.below(max_entries),
        };
        match rng.below(100) {
            0..40 => {
                let flags = match rng.below(4) {
                    0 => rng.pick(&[1, 2, 3, 4, 5, 8, 0x10, 0x20, 1 << 32, 4 | 1 << 32, 1 << 63]),
                    _ => 0,
                };
                Self::Lookup { key, flags }
            }
            40..80 => {
                let flags = match rng.below(3) {
                    0 => rng.pick(&[1, 3, 4, 5, 6, 7, 8, 12, 16, 1 << 32, 2 | 1 << 32, 1 << 63]),
                    1 => 2,
                    _ => 0,
                };
                Self::Update { key, flags, seed: rng.next_u64() >> 40 }
            }
            80..88 => Self::Delete { key },
            88..99 => Self::NextKey { key: (!rng.percent(15)).then_some(key) },
            _ => Self::Freeze,
        }
    }

    /// The operation that `Display` wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let mut number = || text::number(words.next()?);
        Some(match name {
            "lookup" => Self::Lookup { key: number()? as u32, flags: number()? },
            "update" => Self::Update { key: number()? as u32, flags: number()?, seed: number()? },
            "delete" => Self::Delete { key: number()? as u32 },
            "next" => Self::NextKey { key: number().map(|key| key as u32) },
            "freeze" => Self::Freeze,
            _ => return None,
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { key, flags } => write!(f, "lookup {key} {flags:#x}"),
            Self::Update { key, flags, seed } => write!(f, "update {key} {flags:#x} {seed:#x}"),
            Self::Delete { key } => write!(f, "delete {key}"),
            Self::NextKey { key: Some(key) } => write!(f, "next {key}"),
            Self::NextKey { key: None } => f.write_str("next"),
            Self::Freeze => f.write_str("freeze"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("ok"),
            Self::Value(value) => f.write_str(&text::bytes(value)),
            Self::Key(key) => write!(f, "{key}"),
        }
    }
}

/// An answer as one word.
pub fn to_text<T: fmt::Display>(answer: &Result<T, Errno>) -> String {
    match answer {
        Ok(output) => output.to_string(),
        Err(errno) => errno.to_string(),
    }
}

/// A map and what is done with it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The map.
    pub request: Request,
    /// The operations, in order.
    pub ops: Vec<Op>,
}

impl Case {
    /// The case of a seed: a valid map and up to 100 operations.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
        let create = MapCreate::random_shape(&mut rng);
        let len = rng.within(1, 100);
        let ops = (0..len).map(|_| Op::random(&mut rng, create.max_entries)).collect();
        Self { request: Request { creator, create }, ops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_back_as_they_were_written() {
        let mut rng = Rng::new(1);
        for _ in 0..1000 {
            let op = Op::random(&mut rng, 7);
            assert_eq!(Op::parse(&op.to_string()), Some(op));
        }
    }

    #[test]
    fn a_longer_value_starts_like_a_shorter_one() {
        assert_eq!(value(5, 100)[..13], value(5, 13));
    }
}
