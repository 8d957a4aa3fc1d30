//! Rings for all CPUs of a map, read together.

use std::fmt;
use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::attr::MapType;
use bpfarray_core::map::UpdateError;

use super::EventObject;
use super::ring::{Record, Ring, RingError, RingReader};
use crate::cpu::possible_cpus;
use crate::lane::Lane;
use crate::map::Map;
use crate::object::Object;

/// A ring for each CPU in the slots of a PERF_EVENT_ARRAY, and all their records.
///
/// It holds a handle to the map. Dropped, it takes its rings out of the slots.
///
/// # Concurrency
/// Programs write while it is read, and it may be read on another thread. It never waits: who finds no
/// record comes back later.
#[derive(Debug)]
pub struct PerfBuffer {
    map: Map,
    readers: Vec<RingReader>,
}

/// Why a map cannot be given rings. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PerfBufferError {
    /// The map is no PERF_EVENT_ARRAY.
    #[error("a map of type {0} holds no rings")]
    MapType(MapType),
    /// One of the rings cannot be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A slot cannot be filled.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

impl PerfBufferError {
    /// The error number.
    pub fn errno(self) -> Errno {
        match self {
            Self::MapType(_) => Errno::EINVAL,
            Self::Ring(error) => error.errno(),
            Self::Update(error) => error.errno(),
        }
    }
}

impl PerfBuffer {
    /// Puts a ring of `pages_per_cpu` times 4096 bytes into the slot of each possible CPU, as far as the map has
    /// slots, in the place of what may be there.
    ///
    /// # Errors
    /// The variants of [`PerfBufferError`] in their order.
    pub fn new(map: &Map, pages_per_cpu: u32) -> Result<Self, PerfBufferError> {
        if map.map_type() != MapType::PERF_EVENT_ARRAY {
            return Err(PerfBufferError::MapType(map.map_type()));
        }
        let mut this = Self { map: map.clone(), readers: Vec::new() };
        for cpu in 0..possible_cpus().min(map.max_entries()) {
            let (ring, reader) = Ring::new(cpu, pages_per_cpu)?;
            map.update_object(cpu, &Object::PerfEvent(ring), 0)?;
            this.readers.push(reader);
        }
        Ok(this)
    }

    /// Takes out the records there are now: those of a CPU in their order, CPU by CPU.
    pub fn records(&mut self) -> Records<'_> {
        Records { readers: self.readers.iter_mut(), current: None }
    }

    /// How many records were lost for want of room, reported or not.
    pub fn lost_samples(&self) -> u64 {
        self.readers.iter().map(|reader| reader.ring().lost_samples()).sum()
    }
}

impl Drop for PerfBuffer {
    fn drop(&mut self) {
        for reader in &self.readers {
            let (lane, ring) = (Lane::enter(), reader.ring());
            let ours = self.map.event(&lane, ring.cpu()).and_then(|event| {
                let event: &Arc<dyn EventObject> = event;
                event.downcast_ref::<Ring>().map(|event| std::ptr::eq(event, &**ring))
            });
            drop(lane);
            if ours == Some(true) {
                // A map that may not be changed any more keeps it.
                let _ = self.map.delete_elem(ring.cpu());
            }
        }
    }
}

/// The records of a [`PerfBuffer`] at one time.
pub struct Records<'a> {
    readers: std::slice::IterMut<'a, RingReader>,
    /// The ring that is read, and where it ended when that was begun.
    current: Option<(&'a mut RingReader, u64)>,
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            if let Some((reader, head)) = &mut self.current
                && let Some(record) = reader.next_before(*head)
            {
                return Some(record);
            }
            let reader = self.readers.next()?;
            let head = reader.head();
            self.current = Some((reader, head));
        }
    }
}

impl fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::map::testing::{ARRAY, create, objects};
    use crate::perf::{EventOutputError, F_CURRENT_CPU};

    #[test]
    fn each_cpu_gets_a_ring_and_none_stays_behind() {
        let map = objects(MapType::PERF_EVENT_ARRAY, possible_cpus() + 1);
        let lane = Lane::enter();
        let mut buffer = PerfBuffer::new(&map, 1).unwrap();
        for i in 0..200_u64 {
            let output = map.perf_event_output(&lane, F_CURRENT_CPU, &[&i.to_ne_bytes()]);
            assert_eq!(output.is_ok(), i < 170, "{i}");
        }
        for (i, record) in buffer.records().enumerate() {
            let data = [&i.to_ne_bytes()[..], &[0; 4]].concat();
            assert_eq!(record, Record::Sample { cpu: lane.cpu(), data });
        }
        assert_eq!((buffer.records().count(), buffer.lost_samples()), (0, 30));
        let foreign = Ring::new(0, 1).unwrap().0;
        map.update_object(possible_cpus(), &Object::PerfEvent(foreign), 0).unwrap();
        drop(buffer);
        let output = |flags| map.perf_event_output(&lane, flags, &[]);
        assert_eq!(output(F_CURRENT_CPU), Err(EventOutputError::Empty(lane.cpu())));
        assert_ne!(output(possible_cpus().into()), Err(EventOutputError::Empty(possible_cpus())));
    }

    #[test]
    fn a_buffer_that_was_replaced_leaves_the_new_one_alone() {
        let map = objects(MapType::PERF_EVENT_ARRAY, possible_cpus());
        let lane = Lane::enter();
        let old = PerfBuffer::new(&map, 1).unwrap();
        let mut new = PerfBuffer::new(&map, 2).unwrap();
        drop(old);
        map.perf_event_output(&lane, F_CURRENT_CPU, &[b"here"]).unwrap();
        assert_eq!(new.records().count(), 1);
    }

    #[test]
    fn what_is_written_while_it_is_read_is_for_the_next_time() {
        let map = objects(MapType::PERF_EVENT_ARRAY, possible_cpus());
        let lane = Lane::enter();
        let mut buffer = PerfBuffer::new(&map, 1).unwrap();
        let output = || map.perf_event_output(&lane, F_CURRENT_CPU, &[b"12345678"]).unwrap();
        output();
        let read = buffer.records().inspect(|_| output()).count();
        assert_eq!((read, buffer.records().count()), (1, 1));
    }

    #[test]
    fn maps_of_other_types_and_odd_sizes_are_refused() {
        let values = create(ARRAY);
        assert_eq!(PerfBuffer::new(&values, 1).unwrap_err().errno(), Errno::EINVAL);
        let map = objects(MapType::PERF_EVENT_ARRAY, 1);
        let error = PerfBuffer::new(&map, 6).unwrap_err();
        assert_eq!((error, error.errno()), (RingError::Pages(6).into(), Errno::EINVAL));
    }
}
