//! Perf events in slots: which ones the maps of test programs hold, and what is in their rings.
//!
//! The name of a map says it. `rings` holds a ring of one page for each CPU, `drained` too, and there the ring
//! of CPU 0 is read after each run. `counters` holds counters of several kinds, see [`COUNTERS`].

use std::sync::Arc;

use bpfarray::perf::{
    EventCounts, EventOutputError, EventReadError, PerfEvent, PerfEventAttr, Ring, RingReader,
};
use bpfarray::{EventObject, Lane, Object};

/// Bytes of a page: what is in front of a ring's data.
pub(crate) const PAGE: usize = 4096;
/// Offset of `data_head` in `struct perf_event_mmap_page`.
pub(crate) const DATA_HEAD: usize = 1024;
/// Offset of `data_tail` there.
pub(crate) const DATA_TAIL: usize = 1032;
/// Pages of a ring.
pub(crate) const RING_PAGES: usize = 1;
/// Rings in a map: one for CPU 0, where programs run, and one for another.
pub(crate) const RING_CPUS: u32 = 2;

/// What is in the slots of `counters`, from the first on.
pub(crate) const COUNTERS: [PerfEventAttr; 5] = [
    PerfEventAttr::software(PerfEventAttr::SW_DUMMY, 0),
    PerfEventAttr::software(PerfEventAttr::SW_DUMMY, 1),
    PerfEventAttr::software_of_thread(PerfEventAttr::SW_DUMMY),
    PerfEventAttr::software(PerfEventAttr::SW_BPF_OUTPUT, 0),
    PerfEventAttr::software(PerfEventAttr::SW_BPF_OUTPUT, 1),
];

/// What the name of a PERF_EVENT_ARRAY says about its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// Rings, the bytes of which are the map's contents; whether they are read after each run.
    Rings { drained: bool },
    /// Counters.
    Counters,
    /// Nothing.
    Nothing,
}

impl Filling {
    pub(crate) fn of(map: &str) -> Self {
        match map {
            "rings" => Self::Rings { drained: false },
            "drained" => Self::Rings { drained: true },
            "counters" => Self::Counters,
            _ => Self::Nothing,
        }
    }
}

/// The bytes of a ring from the end of one record on to the end of another.
pub(crate) fn between(data: &[u8], tail: u64, head: u64) -> Vec<u8> {
    let start = tail as usize % data.len();
    let around = data.iter().skip(start).chain(data.iter().take(start));
    around.take(head.wrapping_sub(tail) as usize).copied().collect()
}

/// Zeroes what no other system repeats: the number of the event in records about lost ones.
pub(crate) fn without_ids(mut records: Vec<u8>) -> Vec<u8> {
    const LOST: u32 = 2;
    let mut at = 0;
    while let Some(&[kind @ .., _, _, len_low, len_high]) =
        records.get(at..).and_then(<[u8]>::first_chunk::<8>)
    {
        if kind == LOST.to_ne_bytes() {
            records[at + 8..at + 16].fill(0);
        }
        at += usize::from(u16::from_ne_bytes([len_low, len_high])).max(8);
    }
    records
}

/// A ring of ours.
pub(crate) struct OurRing {
    reader: RingReader,
    tail: u64,
    /// What was read before.
    drained: Vec<u8>,
}

impl OurRing {
    /// The event of a new ring, and the ring.
    pub(crate) fn new(cpu: u32) -> Result<(Object, Self), String> {
        let (event, reader) = Ring::new(cpu, RING_PAGES as u32).map_err(|e| e.to_string())?;
        Ok((Object::PerfEvent(event), Self { reader, tail: 0, drained: Vec::new() }))
    }

    /// Takes out what is in the ring.
    pub(crate) fn drain(&mut self) -> Result<(), String> {
        self.drained = self.records()?;
        while self.reader.next_record().is_some() {}
        self.tail = self.head()?;
        Ok(())
    }

    fn head(&self) -> Result<u64, String> {
        self.reader.ring().memory().load(DATA_HEAD, 8).map_err(|e| e.to_string())
    }

    /// The bytes of all records, those that were taken out first.
    pub(crate) fn records(&self) -> Result<Vec<u8>, String> {
        let mut data = vec![0; RING_PAGES * PAGE];
        self.reader.ring().memory().read(PAGE, &mut data).map_err(|e| e.to_string())?;
        Ok([&self.drained[..], &between(&data, self.tail, self.head()?)].concat())
    }
}

/// A counter that counts nothing, for systems that let only some observe, and for CPUs there are not.
struct Pretended(PerfEventAttr);

impl EventObject for Pretended {
    fn inherits(&self) -> bool {
        self.0.inherit
    }

    fn output(&self, lane: &Lane, _parts: &[&[u8]]) -> Result<(), EventOutputError> {
        self.0.check_output(lane)
    }

    fn read_local(&self, lane: &Lane) -> Result<EventCounts, EventReadError> {
        self.0.check_read_local(lane)?;
        Ok(EventCounts::default())
    }
}

/// A counter of ours: a real one where the system opens it.
pub(crate) fn our_counter(attr: &PerfEventAttr) -> Object {
    Object::PerfEvent(match PerfEvent::open(attr) {
        Ok(event) => Arc::new(event),
        Err(_) => {
            let this_thread = rustix::thread::gettid().as_raw_nonzero().get();
            let pid = if attr.pid == 0 { this_thread } else { attr.pid };
            Arc::new(Pretended(PerfEventAttr { pid, ..*attr }))
        }
    })
}
