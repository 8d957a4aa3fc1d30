//! What programs write to the PERF_EVENT_ARRAYs of their object.

use bpfarray::attr::MapType;
use bpfarray::perf::{PerfBuffer, PerfBufferError, Record};
use bpfarray_vm::Loaded;
use serde::Serialize;

/// Pages of a ring: they are read after each run, so they need to hold only what one run writes.
const PAGES_PER_CPU: u32 = 64;

/// The rings of an object, and what came out of them.
pub(crate) struct Events {
    maps: Vec<(String, PerfBuffer, Received)>,
}

/// What came out of the rings of a map.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub(crate) struct Received {
    pub(crate) records: u64,
    /// Bytes of data, with the padding of the records.
    pub(crate) bytes: u64,
    /// Records for which there was no room.
    pub(crate) lost: u64,
}

impl Events {
    /// Puts rings into the PERF_EVENT_ARRAYs of an object, but for those that nobody may update.
    ///
    /// # Errors
    /// The map, and why it got no rings.
    pub(crate) fn attach(loaded: &Loaded) -> Result<Self, (String, PerfBufferError)> {
        let mut maps = Vec::new();
        for (spec, map) in loaded.maps() {
            if map.map_type() != MapType::PERF_EVENT_ARRAY {
                continue;
            }
            match PerfBuffer::new(map, PAGES_PER_CPU) {
                Ok(buffer) => maps.push((spec.name.clone(), buffer, Received::default())),
                Err(PerfBufferError::Update(_)) => {}
                Err(error) => return Err((spec.name.clone(), error)),
            }
        }
        Ok(Self { maps })
    }

    /// Takes out and counts what is in the rings.
    pub(crate) fn read(&mut self) {
        for (_, buffer, received) in &mut self.maps {
            for record in buffer.records() {
                if let Record::Sample { data, .. } = record {
                    received.records += 1;
                    received.bytes += data.len() as u64;
                }
            }
        }
    }

    /// What came out of the rings of a map, if it has any.
    pub(crate) fn received(&self, map: &str) -> Option<Received> {
        let (_, buffer, received) = self.maps.iter().find(|(name, ..)| name == map)?;
        Some(Received { lost: buffer.lost_samples(), ..*received })
    }
}
