//! Rings: records from the programs of one CPU to one reader.
//!
//! The memory is what mapping a perf event shows in the kernel: a page like `struct perf_event_mmap_page`, then
//! the data, a power of two of bytes. The writer raises `data_head` when a record is whole, the reader
//! `data_tail` when it is done with one, and both only ever grow.
//!
//! There is one writer at a time because only who is in the ring's lane may write, and one reader because
//! there is one [`RingReader`], whose methods need it exclusively. The positions that each goes by are its
//! own: what stands in the memory about its own side is never read back.

use std::sync::Arc;
use std::time::Instant;

use bpfarray_core::Errno;

use super::pages::{HEADER, PAGE, Pages, RAW_SIZE, RECORD_LOST, RECORD_SAMPLE, count, page};
use super::{EventCounts, EventObject, EventOutputError, EventReadError};
use crate::lane::Lane;
use crate::memory::Memory;

/// What programs on one CPU write their records to: a perf event with its ring.
///
/// # Concurrency
/// Written in its CPU's lane, without locks, while the reader reads.
///
/// # Kernel
/// `struct perf_buffer`, on an event `PERF_COUNT_SW_BPF_OUTPUT`
#[derive(Debug)]
#[doc(alias = "perf_buffer")]
#[doc(alias = "PERF_COUNT_SW_BPF_OUTPUT")]
pub struct Ring {
    cpu: u32,
    /// Changed in the lane only.
    pages: Pages,
    since: Instant,
}

/// Why there is no ring.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// Not a power of two of pages.
    #[error("a ring of {0} pages: not a power of two")]
    Pages(u32),
    /// There is no memory.
    #[error("no memory for the ring: {0}")]
    Memory(Errno),
}

impl RingError {
    /// The error number of `mmap` on a perf event.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Pages(_) => Errno::EINVAL,
            Self::Memory(errno) => errno,
        }
    }
}

impl Ring {
    /// An empty ring for the programs on a CPU, with `pages` times 4096 bytes for records, and the end it is
    /// read from.
    ///
    /// # Errors
    /// The variants of [`RingError`] in their order.
    pub fn new(cpu: u32, pages: u32) -> Result<(Arc<Self>, RingReader), RingError> {
        if !pages.is_power_of_two() {
            return Err(RingError::Pages(pages));
        }
        let no_memory = |_| RingError::Memory(Errno::ENOMEM);
        let len = (pages as usize).checked_add(2).and_then(|pages| pages.checked_mul(PAGE));
        let memory = Memory::anonymous(len.ok_or(RingError::Memory(Errno::ENOMEM))?);
        let memory = memory.map_err(RingError::Memory)?;
        let pages = Pages::new(&memory, 0, false).map_err(RingError::Memory)?;
        pages.describe().map_err(no_memory)?;
        let ring = Arc::new(Self { cpu, pages, since: Instant::now() });
        let reader = RingReader { ring: Arc::clone(&ring), tail: 0 };
        Ok((ring, reader))
    }

    /// The CPU whose programs write here.
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// The ring as it would be mapped: the page of positions, then the records.
    ///
    /// # Kernel
    /// `struct perf_event_mmap_page`
    #[doc(alias = "perf_event_mmap_page")]
    pub fn memory(&self) -> &Memory {
        self.pages.ring()
    }

    /// How many records were lost for want of room, reported or not.
    ///
    /// # Kernel
    /// `PERF_FORMAT_LOST`
    #[doc(alias = "PERF_FORMAT_LOST")]
    pub fn lost_samples(&self) -> u64 {
        self.pages.count(count::LOST_SAMPLES)
    }
}

impl EventObject for Ring {
    fn inherits(&self) -> bool {
        false
    }

    fn output(&self, lane: &Lane, parts: &[&[u8]]) -> Result<(), EventOutputError> {
        if lane.cpu() != self.cpu {
            return Err(EventOutputError::OtherCpu { event: self.cpu, running: lane.cpu() });
        }
        self.pages.output(&[], Some(parts)).map(|_| ())
    }

    /// Output counts nothing.
    fn read_local(&self, lane: &Lane) -> Result<EventCounts, EventReadError> {
        if lane.cpu() != self.cpu {
            return Err(EventReadError::OtherCpu);
        }
        let time = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(EventCounts { counter: 0, enabled: time, running: time })
    }
}

/// What came out of a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// What a program wrote.
    ///
    /// # Kernel
    /// `PERF_RECORD_SAMPLE`
    #[doc(alias = "PERF_RECORD_SAMPLE")]
    Sample {
        /// The CPU it ran on.
        cpu: u32,
        /// The bytes, with up to 7 of padding: 4 more than a multiple of 8.
        data: Vec<u8>,
    },
    /// Records that were lost before the next one, for the ring was full.
    ///
    /// # Kernel
    /// `PERF_RECORD_LOST`
    #[doc(alias = "PERF_RECORD_LOST")]
    Lost {
        /// The CPU on which.
        cpu: u32,
        /// How many.
        count: u64,
    },
}

/// The end from which a [`Ring`] is read. It may be used by another thread than those that write.
#[derive(Debug)]
pub struct RingReader {
    ring: Arc<Ring>,
    tail: u64,
}

impl RingReader {
    /// The ring.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Up to where there are records now.
    pub(super) fn head(&self) -> u64 {
        // Acquire: the records are seen too.
        self.ring.memory().load_acquire(page::DATA_HEAD, 8).unwrap_or(self.tail)
    }

    /// Takes out the next record; `None` if there is none now.
    pub fn next_record(&mut self) -> Option<Record> {
        self.next_before(self.head())
    }

    /// Takes out the next record before the position `head`, at which there was the head once.
    pub(super) fn next_before(&mut self, head: u64) -> Option<Record> {
        while self.tail != head {
            let available = head.wrapping_sub(self.tail);
            let (len, record) = self.record(available).unwrap_or((available, None));
            self.tail = self.tail.wrapping_add(len);
            // Release: the bytes were read before they may be overwritten.
            let _ = self.ring.memory().store_release(page::DATA_TAIL, 8, self.tail);
            if record.is_some() {
                return record;
            }
        }
        None
    }

    /// Length and contents of the record at the tail, without contents where it is of a kind that programs
    /// don't write. `None` for what can be no record.
    fn record(&self, available: u64) -> Option<(u64, Option<Record>)> {
        let cpu = self.ring.cpu;
        let header = self.read(0, HEADER)?;
        let kind = u32::from_ne_bytes(*header.first_chunk()?);
        let len = u64::from(u16::from_ne_bytes(*header.last_chunk()?));
        if len < HEADER || len > available || available > self.ring.pages.size() {
            return None;
        }
        let record = match kind {
            RECORD_SAMPLE => {
                let size = u32::from_ne_bytes(*self.read(HEADER, RAW_SIZE)?.first_chunk()?);
                if HEADER + RAW_SIZE + u64::from(size) > len {
                    return None;
                }
                let data = self.read(HEADER + RAW_SIZE, size.into())?;
                Some(Record::Sample { cpu, data })
            }
            RECORD_LOST => {
                let count = u64::from_ne_bytes(*self.read(HEADER + 8, 8)?.first_chunk()?);
                Some(Record::Lost { cpu, count })
            }
            _ => None,
        };
        Some((len, record))
    }

    /// Copies bytes from a distance behind the tail, around the end of the ring where they cross it.
    fn read(&self, distance: u64, len: u64) -> Option<Vec<u8>> {
        let (memory, size) = (self.ring.memory(), self.ring.pages.size());
        let at = (self.tail.wrapping_add(distance) & (size - 1)) as usize;
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        let (here, start) = {
            let len = bytes.len();
            bytes.split_at_mut(len.min(size as usize - at))
        };
        memory.read(PAGE + at, here).ok()?;
        memory.read(PAGE, start).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn sample(cpu: u32, data: &[u8]) -> Record {
        let mut data = data.to_vec();
        data.resize((data.len() + 4).next_multiple_of(8) - 4, 0);
        Record::Sample { cpu, data }
    }

    /// The bytes of the data, from the start of the ring.
    fn bytes(ring: &Ring, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ring.memory().read(PAGE, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_sample_looks_as_in_the_kernel() {
        let lane = Lane::enter();
        let (ring, _) = Ring::new(lane.cpu(), 1).unwrap();
        ring.output(&lane, &[&[0xaa; 5], &[0xbb; 3]]).unwrap();
        let expected: [&[u8]; 6] = [
            &9_u32.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &24_u16.to_ne_bytes(),
            &12_u32.to_ne_bytes(),
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xbb, 0xbb, 0xbb],
            &[0; 4],
        ];
        assert_eq!(bytes(&ring, 24), expected.concat());
        assert_eq!(ring.memory().load(page::DATA_HEAD, 8), Ok(24));
        assert_eq!(ring.memory().load(page::DATA_TAIL, 8), Ok(0));
        assert_eq!(ring.memory().load(page::DATA_OFFSET, 8), Ok(4096));
        assert_eq!(ring.memory().load(page::DATA_SIZE, 8), Ok(4096));
    }

    #[test]
    fn one_page_holds_170_samples_of_8_bytes_and_the_rest_is_reported_as_lost() {
        let lane = Lane::enter();
        let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
        for round in 0..5_u64 {
            let already_lost = u64::from(round > 0);
            // 4095 bytes can be used; the report takes 24 of them.
            let fit = 170 - already_lost;
            for i in 0..175 {
                let expected = if i < fit { Ok(()) } else { Err(EventOutputError::NoSpace) };
                assert_eq!(ring.output(&lane, &[&i.to_ne_bytes()]), expected, "{round} {i}");
            }
            if round > 0 {
                let count = 175 - (170 - u64::from(round > 1));
                assert_eq!(reader.next_record(), Some(Record::Lost { cpu: lane.cpu(), count }));
            }
            for i in 0..fit {
                assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &i.to_ne_bytes())));
            }
            assert_eq!(reader.next_record(), None);
        }
        assert_eq!(ring.lost_samples(), 5 + 4 * 6);
    }

    #[test]
    fn room_for_a_sample_alone_is_none_while_losses_are_unreported() {
        let lane = Lane::enter();
        let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
        for i in 0..171_u64 {
            let expected = if i < 170 { Ok(()) } else { Err(EventOutputError::NoSpace) };
            assert_eq!(ring.output(&lane, &[&i.to_ne_bytes()]), expected, "{i}");
        }
        // 15 bytes were free. With one record read there is room for the sample, but not for the report too.
        assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &0_u64.to_ne_bytes())));
        assert_eq!(ring.output(&lane, &[&[0xff; 8]]), Err(EventOutputError::NoSpace));
        assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &1_u64.to_ne_bytes())));
        assert_eq!(ring.output(&lane, &[&[0xff; 8]]), Ok(()));
        for i in 2..170_u64 {
            assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &i.to_ne_bytes())));
        }
        assert_eq!(reader.next_record(), Some(Record::Lost { cpu: lane.cpu(), count: 2 }));
        assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &[0xff; 8])));
        assert_eq!(reader.next_record(), None);
    }

    #[test]
    fn records_of_every_length_go_around_the_end() {
        let lane = Lane::enter();
        let (ring, mut reader) = Ring::new(lane.cpu(), 2).unwrap();
        for i in 0..5_000_usize {
            let data: Vec<u8> = (0..i % 613).map(|at| (i + at) as u8).collect();
            let (first, rest) = data.split_at(data.len() / 3);
            ring.output(&lane, &[first, rest]).unwrap();
            if i % 3 == 2 {
                for i in i - 2..=i {
                    let data: Vec<u8> = (0..i % 613).map(|at| (i + at) as u8).collect();
                    assert_eq!(reader.next_record(), Some(sample(lane.cpu(), &data)), "{i}");
                }
                assert_eq!(reader.next_record(), None);
            }
        }
        assert!(ring.memory().load(page::DATA_HEAD, 8).unwrap() > 100 * 8192);
    }

    #[test]
    fn a_ring_is_never_quite_full() {
        let lane = Lane::enter();
        let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
        // 4096 bytes with the header would be the whole ring.
        assert_eq!(ring.output(&lane, &[&[1; 4084]]), Err(EventOutputError::NoSpace));
        assert_eq!(ring.output(&lane, &[&[1; 4052]]), Ok(()));
        assert_eq!(reader.next_record(), Some(Record::Lost { cpu: lane.cpu(), count: 1 }));
        assert_eq!(ring.output(&lane, &[&[0; 65_521]]), Err(EventOutputError::TooLong(65_521)));
        assert_eq!(ring.lost_samples(), 1);
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        let lane = Lane::enter();
        for (at, bytes) in [(6, &[0_u8; 2][..]), (6, &[25, 0]), (8, &[13, 0, 0, 0]), (0, &[3])] {
            let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
            ring.output(&lane, &[b"12345678"]).unwrap();
            ring.memory().write(PAGE + at, bytes).unwrap();
            assert_eq!(reader.next_record(), None);
            ring.output(&lane, &[b"next"]).unwrap();
            assert_eq!(reader.next_record(), Some(sample(lane.cpu(), b"next")));
        }
        let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
        ring.memory().store(page::DATA_HEAD, 8, u64::MAX).unwrap();
        assert_eq!(reader.next_record(), None);
    }

    #[test]
    fn a_reader_in_another_thread_gets_every_record_or_hears_of_its_loss() {
        const RECORDS: u64 = 100_000;
        let lane = Lane::enter();
        let (ring, mut reader) = Ring::new(lane.cpu(), 1).unwrap();
        let done = AtomicBool::new(false);
        let (done, writer) = (&done, &*ring);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut next, mut read) = (0, 0);
                loop {
                    let was_done = done.load(Ordering::Acquire);
                    while let Some(record) = reader.next_record() {
                        match record {
                            Record::Lost { count, .. } => next += count,
                            Record::Sample { data, .. } => {
                                // The number, and then itself as often as its last digit says.
                                let words: Vec<u64> = data[..data.len() / 8 * 8]
                                    .chunks_exact(8)
                                    .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
                                    .collect();
                                assert_eq!(words, vec![next; 1 + (next % 10) as usize]);
                                next += 1;
                                read += 1;
                            }
                        }
                    }
                    if was_done {
                        return (next, read);
                    }
                }
            });
            for i in 0..RECORDS {
                let data = vec![i.to_ne_bytes(); 1 + (i % 10) as usize].concat();
                let _ = writer.output(&lane, &[&data]);
                if i % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            // Losses after the last record are not reported, so make room for one.
            while writer.output(&lane, &[&RECORDS.to_ne_bytes()]).is_err() {
                std::thread::yield_now();
                // What was lost here is no record of the test.
                writer.pages.set_count(count::LOST, writer.pages.count(count::LOST) - 1);
            }
            done.store(true, Ordering::Release);
            let (next, read) = reader.join().unwrap();
            assert_eq!(next, RECORDS + 1);
            assert!(read > 170, "only {read} were read");
        });
    }

    #[test]
    fn sizes_other_than_powers_of_two_are_refused() {
        assert_eq!(Ring::new(0, 3).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(Ring::new(0, 0).unwrap_err(), RingError::Pages(0));
    }
}
