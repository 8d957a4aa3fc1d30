//! The attribute blocks of bpf(2): what goes in and what comes back, as plain structs.

use bpfarray_core::insn::Insn;

use crate::sys::{Btf, Map};

/// `union bpf_attr` as bytes, all zero to begin with.
#[repr(align(8))]
#[derive(Clone)]
pub(crate) struct Attr([u8; Self::SIZE]);

impl Default for Attr {
    fn default() -> Self {
        Self([0; Self::SIZE])
    }
}

impl Attr {
    pub(crate) const SIZE: usize = 168;

    pub(crate) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.bytes(at, &value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.bytes(at, &value.to_ne_bytes())
    }

    /// A length. One that needs more than 32 bits becomes the longest, which the kernel refuses.
    pub(crate) fn len(&mut self, at: usize, len: usize) -> &mut Self {
        self.u32(at, u32::try_from(len).unwrap_or(u32::MAX))
    }

    pub(crate) fn ptr<T>(&mut self, at: usize, ptr: *const T) -> &mut Self {
        self.u64(at, ptr as u64)
    }

    pub(crate) fn bytes(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn get_u32(&self, at: usize) -> u32 {
        u32_at(&self.0, at)
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The head of `struct bpf_map_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of struct bpf_map_info")]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    pub name: [u8; 16],
}

impl MapInfo {
    pub(crate) const SIZE: usize = 40;

    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            map_type: u32_at(bytes, 0),
            id: u32_at(bytes, 4),
            key_size: u32_at(bytes, 8),
            value_size: u32_at(bytes, 12),
            max_entries: u32_at(bytes, 16),
            map_flags: u32_at(bytes, 20),
            name: std::array::from_fn(|i| bytes[24 + i]),
        }
    }
}

/// A program to load. The licence is always one the kernel takes as GPL-compatible.
#[derive(Clone, Copy, Debug)]
pub struct ProgLoad<'a> {
    /// `BPF_PROG_TYPE_*`
    pub prog_type: u32,
    /// `BPF_*` attach type, 0 for most.
    pub expected_attach_type: u32,
    /// `BPF_F_*` load flags.
    pub prog_flags: u32,
    /// The instructions.
    pub insns: &'a [Insn],
    /// The maps that instructions refer to by index.
    pub maps: &'a [&'a Map],
    /// BTF that holds the types of `func_info`.
    pub btf: Option<&'a Btf>,
    /// For each function its first instruction and its type id.
    pub func_info: &'a [(u32, u32)],
}

impl<'a> ProgLoad<'a> {
    /// A program without BTF or flags.
    pub fn new(prog_type: u32, insns: &'a [Insn], maps: &'a [&'a Map]) -> Self {
        Self {
            prog_type,
            expected_attach_type: 0,
            prog_flags: 0,
            insns,
            maps,
            btf: None,
            func_info: &[],
        }
    }
}

/// Input of a test run.
#[derive(Clone, Copy, Debug, Default)]
pub struct TestRun<'a> {
    /// The packet; empty for program types that take none.
    pub data_in: &'a [u8],
    /// Room for the packet as the program leaves it.
    pub data_out_len: usize,
    /// The context; empty for none.
    pub ctx_in: &'a [u8],
    /// Whether the kernel writes the context back over the input, as for syscall programs, and not
    /// to an output buffer.
    pub ctx_is_copied_back: bool,
    /// How often to run, 0 for once.
    pub repeat: u32,
}

/// Output of a test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRunResult {
    /// What the program returned.
    pub retval: u32,
    /// The packet as the program left it.
    pub data_out: Vec<u8>,
    /// The context as the program left it, where one was given.
    pub ctx_out: Vec<u8>,
    /// Nanoseconds of one run on average, for program types that are timed.
    pub duration_ns: u32,
}
