//! What a run left behind, for people ([`text`]) and for programs ([`json`]).

mod cells;
mod hex;
pub(crate) mod json;
pub(crate) mod table;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use bpfarray::Map;
use bpfarray_core::btf::Btf;
use bpfarray_core::map::{Kind, LookupError};
use bpfarray_vm::elf::ProgramSpec;
use bpfarray_vm::prog_type::ProgType;
use bpfarray_vm::{Engine, Program};

use crate::events::Received;
use crate::value::{Column, Value, text_len};
pub(crate) use hex::Hex;
use table::Table;

/// About how many bytes of text a map becomes unless everything is asked for. An object can define maps of
/// many GiB in a few bytes, and nobody reads so much.
const SHOWN_TEXT: u64 = 32 << 20;

/// Bytes of a map's values that are searched for such as are not zero, and what a small one counts as.
const SCANNED_BYTES: u64 = 64 << 20;
const LEAST_SCANNED: u64 = 8;

/// Bytes of JSON for a byte: `"0x00",`.
const TEXT_OF_BYTE: u64 = 7;

/// Bytes of JSON for what is around the values of an element, and around each of them.
const TEXT_OF_ELEMENT: u64 = 64;

/// What came of running a program.
pub(crate) struct Run<'a> {
    program: &'a str,
    prog_type: ProgType,
    engine: Engine,
    /// How often each value was returned.
    retvals: BTreeMap<u32, u64>,
    pub(crate) runs: u64,
    /// How often a packet was too short or too long to run on.
    pub(crate) skipped: u64,
    /// All runs together, with the time it takes to place each packet in its buffer.
    pub(crate) time: Duration,
}

impl<'a> Run<'a> {
    pub(crate) fn new(spec: &'a ProgramSpec, program: &Program) -> Self {
        let (prog_type, engine) = (program.prog_type(), program.engine());
        let (retvals, time) = (BTreeMap::new(), Duration::ZERO);
        Self { program: &spec.name, prog_type, engine, retvals, runs: 0, skipped: 0, time }
    }

    /// Counts a run.
    pub(crate) fn count(&mut self, retval: u32) {
        self.runs += 1;
        *self.retvals.entry(retval).or_default() += 1;
    }

    pub(crate) fn ns_per_run(&self) -> f64 {
        if self.runs == 0 { 0.0 } else { self.time.as_nanos() as f64 / self.runs as f64 }
    }
}

/// A map to be shown: its memory, and what its bytes mean.
#[derive(Debug)]
pub(crate) struct MapView<'a> {
    /// The name of the map; of a data section its name, such as `.data`.
    pub(crate) name: &'a str,
    map: &'a Map,
    key: Option<Typed<'a>>,
    value: Option<Typed<'a>>,
    /// What came out of the map's rings, if it has any.
    events: Option<Received>,
}

/// A type that fits what it describes and whose values can be printed.
#[derive(Copy, Clone, Debug)]
struct Typed<'a> {
    btf: &'a Btf,
    id: u32,
    /// About how many bytes of text a value is.
    text_len: u64,
}

impl<'a> Typed<'a> {
    fn new(btf: &'a Btf, id: u32, size: u32) -> Option<Self> {
        let fits = id != 0 && btf.size_of(id) == Ok(size);
        let text_len = text_len(btf, id).filter(|_| fits)?;
        Some(Self { btf, id, text_len })
    }

    fn value<'b>(&self, bytes: &'b [u8]) -> Value<'b>
    where
        'a: 'b,
    {
        Value::new(self.btf, self.id, bytes)
    }
}

impl<'a> MapView<'a> {
    /// `key` and `value` are the ids of the types in `btf`, 0 where there is none.
    pub(crate) fn new(
        name: &'a str,
        map: &'a Map,
        btf: Option<&'a Btf>,
        key: u32,
        value: u32,
    ) -> Self {
        let typed = |id, size| btf.and_then(|btf| Typed::new(btf, id, size));
        let (key, value) = (typed(key, map.key_size()), typed(value, map.value_size()));
        Self { name, map, key, value, events: None }
    }

    /// The same map, with what came out of its rings.
    pub(crate) fn with_events(self, events: Option<Received>) -> Self {
        Self { events, ..self }
    }

    /// How many elements can be read.
    fn readable(&self) -> u32 {
        if self.is_readable() { self.map.max_entries() } else { 0 }
    }

    /// How many elements are looked at for those to be shown, where not all are asked for.
    fn scanned(&self) -> u32 {
        let element = self.map.user_size().max(LEAST_SCANNED);
        u32::try_from(SCANNED_BYTES / element).unwrap_or(u32::MAX).min(self.readable())
    }

    /// How many elements may be shown, where not all are asked for.
    fn fit(&self) -> u32 {
        let formatted = |ty: Option<Typed<'_>>| ty.map_or(0, |ty| ty.text_len);
        let bytes = TEXT_OF_BYTE * u64::from(self.map.value_size());
        let value = TEXT_OF_ELEMENT.saturating_add(bytes).saturating_add(formatted(self.value));
        let stride = u64::from(self.map.layout().elem_size()).max(1);
        let values = self.map.user_size() / stride;
        let key = TEXT_OF_ELEMENT + TEXT_OF_BYTE * 4 + formatted(self.key);
        let element = value.saturating_mul(values.max(1)).saturating_add(key);
        u32::try_from(SHOWN_TEXT / element).unwrap_or(u32::MAX)
    }

    /// Whether elements can be read, which those of some types cannot, nor those of a map whose creator gave
    /// up the right to (`BPF_F_WRONLY`).
    fn is_readable(&self) -> bool {
        !matches!(
            self.map.lookup_elem(0, &mut [], 0),
            Err(LookupError::Unsupported | LookupError::NotReadable)
        )
    }

    /// Room for one element, for all CPUs if it is of a per-CPU map.
    fn buffer(&self) -> Vec<u8> {
        vec![0; self.map.user_size() as usize]
    }

    /// Reads an element; gives `false` for a slot that is empty.
    fn read(&self, index: u32, buffer: &mut [u8]) -> Result<bool, LookupError> {
        match self.map.lookup_elem(index, buffer, 0) {
            Err(LookupError::NoEntry { .. }) => Ok(false),
            read => read.map(|()| true),
        }
    }

    fn is_percpu(&self) -> bool {
        self.map.layout().kind() == Kind::PercpuArray
    }

    /// The values of an element, one for each CPU; of maps that are not per-CPU, a single one.
    fn values<'b>(&self, element: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let value_size = self.map.value_size() as usize;
        let stride = self.map.layout().elem_size() as usize;
        element.chunks(stride.max(1)).map(move |value| value.get(..value_size).unwrap_or(value))
    }

    /// Adds an element's key to a row: by name if the type of keys has names, or else its index.
    fn push_key(&self, row: &mut Table, index: u32) {
        match self.key {
            Some(ty) => row.push(ty.value(&index.to_le_bytes())),
            None => row.push(index),
        }
    }

    fn key_is_number(&self) -> bool {
        self.key.is_none_or(|ty| Column::whole(ty.btf, ty.id).is_number)
    }
}
