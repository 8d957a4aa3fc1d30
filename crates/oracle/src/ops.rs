//! Operations on one map: random ones, what they answer, and both as lines of text.

use std::fmt;

use bpfarray_core::Errno;
use bpfarray_vm::ProgType;

use crate::create::MapCreate;
use crate::objects;
use crate::request::{Creator, Request};
use crate::rng::Rng;
use crate::text;

/// One operation from outside.
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
    /// An update with the descriptor of what has this name in the catalogue of objects.
    Put {
        key: u32,
        flags: u64,
        object: &'static str,
    },
    Delete {
        key: u32,
    },
    NextKey {
        key: Option<u32>,
    },
    Freeze,
    /// Opens the handle again and closes the old one. Not for the one that came with the map.
    Reopen,
    /// Loads a program of this type that refers to the map, and drops it.
    Refer {
        prog_type: u32,
    },
}

/// What a handle was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What the creation flags say.
    Created,
    /// To read.
    ReadOnly,
    /// To write.
    WriteOnly,
}

impl Mode {
    /// The handles that there are to a map.
    pub const ALL: [Self; 3] = [Self::Created, Self::ReadOnly, Self::WriteOnly];

    /// `BPF_F_RDONLY`, `BPF_F_WRONLY` or neither.
    pub(crate) fn open_flags(self) -> u32 {
        match self {
            Self::Created => 0,
            Self::ReadOnly => 0x8,
            Self::WriteOnly => 0x10,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Created => "",
            Self::ReadOnly => "read-only ",
            Self::WriteOnly => "write-only ",
        }
    }
}

/// An operation and the handle it goes through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The handle.
    pub mode: Mode,
    /// The operation.
    pub op: Op,
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "results of bpf(2)")]
pub enum Output {
    Done,
    Value(Vec<u8>),
    Key(u32),
    /// The name in the catalogue of what has the id that was read.
    Object(&'static str),
}

/// Output or error number.
pub type Answer = Result<Output, Errno>;

/// The value of an update.
pub(crate) fn value(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
}

impl Op {
    /// An operation on a map like this, into which `fitting` objects can be put.
    fn random(rng: &mut Rng, map: &MapCreate, fitting: &[&'static str]) -> Self {
        let max_entries = map.max_entries;
        let key = match rng.below(10) {
            0 => rng.pick(&[0x8000_0000, u32::MAX, max_entries.next_power_of_two()]),
            1 => rng.pick(&[max_entries, max_entries + 1]),
            2 => max_entries - 1,
            _ => rng.below(max_entries),
        };
        match rng.below(1000) {
            0..350 => {
                let flags = match rng.below(4) {
                    0 => rng.pick(&[1, 2, 3, 4, 5, 8, 0x10, 0x20, 1 << 32, 4 | 1 << 32, 1 << 63]),
                    _ => 0,
                };
                Self::Lookup { key, flags }
            }
            350..750 => {
                let flags = match rng.below(if map.holds_objects() { 8 } else { 3 }) {
                    0 => rng.pick(&[1, 3, 4, 5, 6, 7, 8, 12, 16, 1 << 32, 2 | 1 << 32, 1 << 63]),
                    1 => 2,
                    _ => 0,
                };
                if map.holds_objects() {
                    Self::Put { key, flags, object: objects::random(rng, map.map_type, fitting) }
                } else {
                    Self::Update { key, flags, seed: rng.next_u64() >> 40 }
                }
            }
            750..850 => Self::Delete { key },
            850..950 => Self::NextKey { key: (!rng.percent(15)).then_some(key) },
            950..997 if map.map_type == MapCreate::PROG_ARRAY => {
                let types = [ProgType::SOCKET_FILTER, ProgType::XDP, ProgType::CGROUP_SKB];
                Self::Refer { prog_type: rng.pick(&types).0 }
            }
            950..997 => Self::Reopen,
            _ => Self::Freeze,
        }
    }
}

impl Step {
    /// An operation on a map like this, into which `fitting` objects can be put.
    pub fn random(rng: &mut Rng, map: &MapCreate, fitting: &[&'static str]) -> Self {
        let op = Op::random(rng, map, fitting);
        let mode = match rng.below(24) {
            0 => Mode::ReadOnly,
            1..4 => Mode::WriteOnly,
            _ if op == Op::Reopen => Mode::WriteOnly,
            _ => Mode::Created,
        };
        Self { mode, op }
    }

    /// The step that `Display` wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let (mode, line) = [Mode::ReadOnly, Mode::WriteOnly]
            .into_iter()
            .find_map(|mode| Some((mode, line.strip_prefix(mode.prefix())?)))
            .unwrap_or((Mode::Created, line));
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let last = words.clone().last();
        let mut number = || text::number(words.next()?);
        let op = match name {
            "lookup" => Op::Lookup { key: number()? as u32, flags: number()? },
            "update" => Op::Update { key: number()? as u32, flags: number()?, seed: number()? },
            "put" => {
                Op::Put { key: number()? as u32, flags: number()?, object: objects::parse(last?)? }
            }
            "delete" => Op::Delete { key: number()? as u32 },
            "next" => Op::NextKey { key: number().map(|key| key as u32) },
            "freeze" => Op::Freeze,
            "reopen" => Op::Reopen,
            "refer" => Op::Refer { prog_type: number()? as u32 },
            _ => return None,
        };
        Some(Self { mode, op })
    }

    /// Whether the step is about something that is not to be had on this machine.
    pub fn is_missing(&self) -> bool {
        matches!(self.op, Op::Put { object, .. } if objects::is_missing(object))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mode.prefix())?;
        match &self.op {
            Op::Lookup { key, flags } => write!(f, "lookup {key} {flags:#x}"),
            Op::Update { key, flags, seed } => write!(f, "update {key} {flags:#x} {seed:#x}"),
            Op::Put { key, flags, object } => write!(f, "put {key} {flags:#x} {object}"),
            Op::Delete { key } => write!(f, "delete {key}"),
            Op::NextKey { key: Some(key) } => write!(f, "next {key}"),
            Op::NextKey { key: None } => f.write_str("next"),
            Op::Freeze => f.write_str("freeze"),
            Op::Reopen => f.write_str("reopen"),
            Op::Refer { prog_type } => write!(f, "refer {prog_type}"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("ok"),
            Self::Value(value) => f.write_str(&text::bytes(value)),
            Self::Key(key) => write!(f, "{key}"),
            Self::Object(name) => f.write_str(name),
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
    pub steps: Vec<Step>,
}

impl Case {
    /// The case of a seed: a valid map and up to 100 operations.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
        // What is done to an ARRAY_OF_MAPS takes the kernel milliseconds.
        let map_type = match rng.below(100) {
            0..33 => MapCreate::ARRAY,
            33..58 => MapCreate::PERCPU_ARRAY,
            58..78 => MapCreate::PROG_ARRAY,
            750..850 => MapCreate::PERF_EVENT_ARRAY,
            850..950 => MapCreate::CGROUP_ARRAY,
            _ => MapCreate::ARRAY_OF_MAPS,
        };
        let mut request = Request::new(creator, MapCreate::random_shape(&mut rng, map_type));
        if request.create.holds_objects() {
            request.create.max_entries = rng.within(1, 6);
            if rng.percent(80) {
                // Without the mode of the handle, more happens.
                request.create.map_flags &= !0x18;
            }
        }
        if map_type == MapCreate::ARRAY_OF_MAPS {
            request = request.with_inner(objects::random_template(&mut rng));
        }
        let len = rng.within(1, 100);
        let fitting = objects::fitting(&mut rng, &request);
        let steps = (0..len).map(|_| Step::random(&mut rng, &request.create, &fitting)).collect();
        Self { request, steps }
    }

    /// The case of a seed, on values with special fields: locks, timers, counts, objects.
    pub fn with_fields(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
        let (request, fitting) = if rng.percent(15) {
            let (template, fitting) = objects::random_typed_template(&mut rng);
            let create = MapCreate::array(MapCreate::ARRAY_OF_MAPS, 4, rng.within(1, 4));
            (Request::new(creator, create).with_inner(template), fitting)
        } else {
            (Request::new(creator, MapCreate::random_typed(&mut rng)), Vec::new())
        };
        let len = rng.within(1, 30);
        let steps = (0..len).map(|_| Step::random(&mut rng, &request.create, &fitting)).collect();
        Self { request, steps }
    }

    /// The creation, and the first `steps` operations.
    pub fn lines(&self, steps: usize) -> Vec<String> {
        let operations = self.steps.iter().take(steps).map(ToString::to_string);
        std::iter::once(self.request.to_string()).chain(operations).collect()
    }

    /// Whether a step is about something that is not to be had on this machine.
    pub fn is_missing(&self) -> bool {
        self.steps.iter().any(Step::is_missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_back_as_they_were_written() {
        for seed in 0..100 {
            for step in Case::random(seed).steps {
                assert_eq!(Step::parse(&step.to_string()), Some(step));
            }
            let request = Case::with_fields(seed).request;
            assert_eq!(Request::parse(&request.to_string()), Some(request));
        }
    }

    #[test]
    fn a_longer_value_starts_like_a_shorter_one() {
        assert_eq!(value(5, 100)[..13], value(5, 13));
    }
}
