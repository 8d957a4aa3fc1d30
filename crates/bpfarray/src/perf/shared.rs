//! Rings in files: programs of several processes write, one of them reads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use bpfarray_core::Errno;
use rustix::process::getpid;
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};

use super::pages::{PAGE, Pages, count};
use super::{EventCounts, EventObject, EventOutputError, EventReadError};
use crate::directory::Directory;
use crate::file::{RingFile, Sample, SharedRingAttr, Wakeup};
use crate::lane::Lane;
use crate::slot::Slots;

/// Words of the first page, besides those of [`count`].
mod word {
    pub(super) const ENABLED: usize = 2048;
    pub(super) const PAUSED: usize = 2056;
    /// The ring there is: its pages in the low half, whether it overwrites in the lowest bit of the high half, and a number
    /// that no ring of the file had before in the others. 0 for none.
    pub(super) const RING: usize = 2064;
    /// The position by which wake-ups for bytes go.
    pub(super) const WAKEUP: usize = 2096;
    /// Records since the last wake-up for their number.
    pub(super) const EVENTS: usize = 2104;
}

const WORD: usize = size_of::<u64>();
const OVERWRITES: u64 = 1 << 32;
const ONE_RING: u64 = 1 << 33;

/// A perf event for output of programs whose ring is in a file, so that programs of several processes write to it. A reader
/// maps the file from its second page on. A pipe wakes it.
///
/// # Concurrency
/// Who writes waits for writers in other processes on the same CPU. They never wait for a reader.
///
/// # Kernel
/// `struct perf_event` of `PERF_COUNT_SW_BPF_OUTPUT`
pub struct SharedRing {
    file: RingFile,
    /// The end of the pipe.
    signal: File,
    directory: Arc<dyn Directory>,
    /// The ring as this process last found it.
    mapped: Slots<Mapped>,
}

struct Mapped {
    /// What the file said then.
    ring: u64,
    pages: Pages,
}

/// Why there is no new ring. The variants stand in the order in which they are checked.
#[derive(Debug, thiserror::Error)]
pub enum SharedRingError {
    /// Not a page, and a power of two of pages for records or none.
    #[error("a ring of {0} pages: not one, and a power of two")]
    Pages(u32),
    /// The file cannot be made that long, or not mapped.
    #[error("cannot change the file of the ring: {0}")]
    File(#[from] io::Error),
}

impl SharedRingError {
    /// The error number of `mmap` on a perf event.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Pages(_) => Errno::EINVAL,
            Self::File(error) => Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl SharedRing {
    /// Makes the file of a new event, which is not enabled and has no ring.
    ///
    /// # Errors
    /// What the system says, for instance that there is such a file.
    pub fn create(path: impl AsRef<Path>, attr: &SharedRingAttr) -> io::Result<()> {
        RingFile::create(path.as_ref(), attr)
    }

    /// Opens an event by its file and its pipe, which must be open for reading and writing, without waiting.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidData`] for a file that is none of an event.
    pub fn open(
        directory: &Arc<dyn Directory>,
        path: impl AsRef<Path>,
        signal: File,
    ) -> io::Result<Self> {
        let mapped = Slots::new(1).map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
        let file = RingFile::open(path.as_ref(), directory)?;
        directory.opened(signal.as_fd());
        Ok(Self { file, signal, directory: Arc::clone(directory), mapped })
    }

    /// What the event is.
    pub fn attr(&self) -> &SharedRingAttr {
        self.file.attr()
    }

    fn word(&self, offset: usize) -> u64 {
        // All offsets are inside and aligned.
        self.file.words().load_acquire(offset, WORD).unwrap_or(0)
    }

    fn set_word(&self, offset: usize, value: u64) {
        let _ = self.file.words().store_release(offset, WORD, value);
    }

    /// Lets programs write to it, or keeps them from it.
    ///
    /// # Kernel
    /// `PERF_EVENT_IOC_ENABLE`, `PERF_EVENT_IOC_DISABLE`
    #[doc(alias = "PERF_EVENT_IOC_ENABLE")]
    pub fn set_enabled(&self, enabled: bool) {
        self.set_word(word::ENABLED, enabled.into());
    }

    /// Lets all records be lost, or not any more. Gives whether there is a ring.
    ///
    /// # Kernel
    /// `PERF_EVENT_IOC_PAUSE_OUTPUT`
    #[doc(alias = "PERF_EVENT_IOC_PAUSE_OUTPUT")]
    #[must_use]
    pub fn set_paused(&self, paused: bool) -> bool {
        let _held = self.file.claim();
        let has_ring = self.pages() != 0;
        if has_ring {
            self.set_word(word::PAUSED, paused.into());
        }
        has_ring
    }

    /// Pages that a reader maps; 0 as long as there is no ring.
    pub fn pages(&self) -> u32 {
        self.word(word::RING) as u32
    }

    /// Gives the event a new ring, in place of one that nobody maps any more: `pages` are what a reader maps from the second page of the
    /// file on, a page and a power of two of pages for records, or none. With `overwrites`, records are overwritten whether they were
    /// read or not.
    ///
    /// # Errors
    /// The variants of [`SharedRingError`] in their order.
    ///
    /// # Kernel
    /// `rb_alloc`
    #[doc(alias = "rb_alloc")]
    pub fn allocate(&self, pages: u32, overwrites: bool) -> Result<(), SharedRingError> {
        if !(pages == 1 || pages.checked_sub(1).is_some_and(u32::is_power_of_two)) {
            return Err(SharedRingError::Pages(pages));
        }
        let _held = self.file.claim();
        let before = self.detach();
        self.file.resize(pages)?;
        let counts = [count::HEAD, count::LOST, word::WAKEUP, word::EVENTS, word::PAUSED];
        counts.into_iter().for_each(|count| self.set_word(count, 0));
        if pages > 1 {
            let described = self
                .map(pages, overwrites)
                .and_then(|pages| pages.describe().map_err(|_| Errno::ENOMEM));
            described.map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
        }
        let number = before.wrapping_add(ONE_RING);
        let overwrites = if overwrites { OVERWRITES } else { 0 };
        self.set_word(word::RING, number | overwrites | u64::from(pages));
        Ok(())
    }

    /// Takes its ring from the event. Gives the number of the ring there was last. For who has the lane.
    fn detach(&self) -> u64 {
        let number = self.word(word::RING) & !(ONE_RING - 1);
        self.set_word(word::RING, number);
        number
    }

    /// Takes its ring from the event if nobody has it mapped. Others must not map it meanwhile.
    ///
    /// # Kernel
    /// `perf_mmap_close`
    pub(crate) fn release_if_unmapped(&self) -> io::Result<()> {
        if self.pages() != 0 && self.file.is_unmapped()? {
            let _held = self.file.claim();
            self.detach();
        }
        Ok(())
    }

    fn map(&self, pages: u32, overwrites: bool) -> Result<Pages, Errno> {
        Pages::new(&self.file.memory(pages)?, self.attr().id.into(), overwrites)
    }

    /// What a record says of the program, besides its data.
    ///
    /// # Kernel
    /// `perf_output_sample`
    fn fields(&self, sample: Sample) -> Vec<u8> {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let number = |raw: i32| raw.cast_unsigned();
        let id = u64::from(self.attr().id);
        let fields: [(Sample, &dyn Fn() -> u64); 7] = [
            (Sample::IDENTIFIER, &|| id),
            (Sample::TID, &|| two(number(getpid().as_raw_pid()), number(gettid().as_raw_pid()))),
            (Sample::TIME, &now),
            (Sample::ID, &|| id),
            (Sample::STREAM_ID, &|| id),
            (Sample::CPU, &|| self.attr().cpu.into()),
            (Sample::PERIOD, &|| 0),
        ];
        let asked = fields.iter().filter(|(field, _)| sample.contains(*field));
        asked.flat_map(|(_, value)| value().to_ne_bytes()).collect()
    }

    /// The ring there is now. For who has its lane.
    fn current<'lane>(&'lane self, lane: &'lane Lane) -> Option<&'lane Pages> {
        let ring = self.word(word::RING);
        let known = self.mapped.get(lane, 0).filter(|mapped| mapped.ring == ring);
        if let Some(known) = known {
            return Some(&known.pages);
        }
        // Once for each ring: its reader has mapped it meanwhile. Whatever the number is, the memory has that many pages.
        let pages = self.map(ring as u32, ring & OVERWRITES != 0).ok()?;
        self.mapped.replace(0, Some(Mapped { ring, pages }));
        self.mapped.get(lane, 0).map(|mapped| &mapped.pages)
    }

    /// Whether the reader is to be woken, now that records reach up to `end`.
    ///
    /// # Kernel
    /// `__perf_output_begin`, `perf_output_sample`, `ring_buffer_init`
    fn is_wakeup_due(&self, pages: &Pages, end: u64) -> bool {
        let before = pages.count(word::WAKEUP);
        let mut wakeup = before;
        let watermark = match self.attr().wakeup {
            Wakeup::Watermark(bytes) if bytes != 0 => u64::from(bytes).min(pages.size()),
            Wakeup::Watermark(_) | Wakeup::Events(_) => pages.size() / 2,
        };
        if end.wrapping_sub(wakeup) > watermark {
            wakeup = wakeup.wrapping_add(watermark);
        }
        if let Wakeup::Events(due @ 1..) = self.attr().wakeup {
            let events = pages.count(word::EVENTS).wrapping_add(1);
            let is_due = events >= due.into();
            pages.set_count(word::EVENTS, if is_due { 0 } else { events });
            // The kernel moves the position, too.
            wakeup = wakeup.wrapping_add(is_due.into());
        }
        pages.set_count(word::WAKEUP, wakeup);
        wakeup != before
    }

    /// Wakes whoever waits for the pipe. What is in it is taken out first: an empty pipe that fills always wakes.
    fn wake(&self) {
        drain(&self.signal);
        // A pipe that others fill up in between wakes, too.
        let _ = (&self.signal).write(&[1]);
    }
}

/// Nanoseconds of the monotonic clock.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Takes out what is in a pipe.
fn drain(mut pipe: &File) {
    let mut bytes = [0; PAGE];
    while pipe.read(&mut bytes).is_ok_and(|len| len == bytes.len()) {}
}

impl EventObject for SharedRing {
    fn inherits(&self) -> bool {
        self.attr().inherit
    }

    fn output(&self, lane: &Lane, parts: &[&[u8]]) -> Result<(), EventOutputError> {
        let event = self.attr().cpu;
        if lane.cpu() != event {
            return Err(EventOutputError::OtherCpu { event, running: lane.cpu() });
        }
        if self.word(word::ENABLED) == 0 {
            return Err(EventOutputError::Disabled);
        }
        if self.pages() < 2 {
            return Err(EventOutputError::NoSpace);
        }
        let is_due = {
            let _held = self.file.claim();
            let pages = self.current(lane).ok_or(EventOutputError::NoSpace)?;
            if self.word(word::PAUSED) != 0 {
                return Err(pages.lose());
            }
            let sample = self.attr().sample;
            let parts = sample.contains(Sample::RAW).then_some(parts);
            let end = pages.output(&self.fields(sample), parts)?;
            self.is_wakeup_due(pages, end)
        };
        if is_due {
            self.wake();
        }
        Ok(())
    }

    /// Output counts nothing.
    fn read_local(&self, lane: &Lane) -> Result<EventCounts, EventReadError> {
        if self.attr().inherit {
            return Err(EventReadError::Inherited);
        }
        if lane.cpu() != self.attr().cpu {
            return Err(EventReadError::OtherCpu);
        }
        let time = now().saturating_sub(self.attr().since);
        Ok(EventCounts { counter: 0, enabled: time, running: time })
    }
}

impl Drop for SharedRing {
    fn drop(&mut self) {
        self.directory.closing(self.signal.as_fd());
    }
}

impl std::fmt::Debug for SharedRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedRing").field("attr", self.attr()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::object::Object;
    use bpfarray_core::map::Kind;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    use std::path::PathBuf;

    struct Nothing;

    impl Directory for Nothing {
        fn object(&self, _holder: Kind, _id: u64) -> Option<Object> {
            None
        }

        fn opened(&self, _file: BorrowedFd<'_>) {}

        fn closing(&self, _file: BorrowedFd<'_>) {}
    }

    /// An event for the programs in a lane, with its files.
    struct Event {
        dir: PathBuf,
        ring: SharedRing,
        pipe: File,
    }

    impl Drop for Event {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.dir).unwrap();
        }
    }

    impl Event {
        fn new(name: &str, lane: &Lane, sample: Sample, wakeup: Wakeup) -> Self {
            let dir = std::env::temp_dir().join(format!("bpfarray-{name}-{}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            let (path, signal) = (dir.join("ring"), dir.join("signal"));
            let attr =
                SharedRingAttr { id: 9, cpu: lane.cpu(), inherit: false, sample, wakeup, since: 0 };
            SharedRing::create(&path, &attr).unwrap();
            mknodat(CWD, &signal, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let open = || {
                let mut options = File::options();
                options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&signal).unwrap()
            };
            let directory: Arc<dyn Directory> = Arc::new(Nothing);
            let ring = SharedRing::open(&directory, &path, open()).unwrap();
            let pipe = open();
            Self { dir, ring, pipe }
        }

        fn is_woken(&self) -> bool {
            (&self.pipe).read(&mut [0; 8]).is_ok()
        }

        /// Bytes of the file, from a place in what readers map.
        fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            let file = File::open(self.dir.join("ring")).unwrap();
            file.read_exact_at(&mut bytes, PAGE as u64 + at).unwrap();
            bytes
        }
    }

    #[test]
    fn readers_are_woken_when_the_kernel_wakes_them() {
        // What Linux 6.18 did with rings of a page and records of 24 bytes.
        let by_number: Vec<u32> = (0..17).map(|ten| 10 * ten + 9).collect();
        let cases = [
            ("number", Wakeup::Events(10), [&by_number[..8], &[85], &by_number[8..]].concat()),
            ("half", Wakeup::Events(0), vec![85]),
            ("half-too", Wakeup::Watermark(0), vec![85]),
            ("never", Wakeup::Watermark(100_000), vec![]),
            ("each", Wakeup::Events(1), (0..170).collect()),
        ];
        let lane = Lane::enter();
        for (name, wakeup, expected) in cases {
            let event = Event::new(&format!("wakeup-{name}"), &lane, Sample::RAW, wakeup);
            event.ring.set_enabled(true);
            event.ring.allocate(2, false).unwrap();
            let mut found = Vec::new();
            for at in 0..180 {
                let is_written = event.ring.output(&lane, &[&[1; 12]]).is_ok();
                assert_eq!(is_written, at < 170);
                if event.is_woken() {
                    found.push(at);
                }
            }
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_keeps_records_out_is_judged_in_the_kernels_order() {
        let lane = Lane::enter();
        let event = Event::new("order", &lane, Sample::RAW, Wakeup::Events(1));
        let output = || event.ring.output(&lane, &[b"1234"]).map_err(EventOutputError::errno);
        assert_eq!(output(), Err(Errno::EOPNOTSUPP), "it is not enabled");
        event.ring.set_enabled(true);
        assert_eq!(output(), Err(Errno::ENOSPC), "there is no ring");
        assert!(!event.ring.set_paused(true));
        assert_eq!(event.ring.allocate(4, false).unwrap_err().errno(), Errno::EINVAL);
        event.ring.allocate(1, false).unwrap();
        assert_eq!(output(), Err(Errno::ENOSPC), "there is no room for records");
        event.ring.allocate(3, false).unwrap();
        assert_eq!(output(), Ok(()));
        assert!(event.ring.set_paused(true));
        assert_eq!(output(), Err(Errno::ENOSPC));
        assert!(event.ring.set_paused(false));
        assert_eq!(output(), Ok(()));
        // A sample of 16 bytes, a report of one loss, and a sample.
        assert_eq!(event.bytes(1024, 8), 56_u64.to_ne_bytes());
        assert_eq!(event.bytes(4096 + 24, 16), [9_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat());
        event.ring.release_if_unmapped().unwrap();
        assert_eq!((event.ring.pages(), output()), (0, Err(Errno::ENOSPC)));
        event.ring.allocate(2, true).unwrap();
        assert!((0..1000).all(|_| output().is_ok()), "old records make room");
        assert_eq!(event.bytes(1024, 8), 16_000_u64.to_ne_bytes());
    }

    #[test]
    fn a_record_has_the_fields_that_were_asked_for() {
        let lane = Lane::enter();
        let event = Event::new("fields", &lane, Sample::all(), Wakeup::Events(1));
        event.ring.set_enabled(true);
        event.ring.allocate(2, false).unwrap();
        let before = now();
        event.ring.output(&lane, &[b"data"]).unwrap();
        let record = event.bytes(4096, 72);
        let word = |at: usize| u64::from_ne_bytes(*record[at..].first_chunk().unwrap());
        assert_eq!(word(0), 9 | 1 << 32 | 72 << 48);
        assert_eq!((word(8), word(32), word(40)), (9, 9, 9), "its number");
        assert_eq!(word(16) as u32, std::process::id());
        assert!((before..=now()).contains(&word(24)));
        assert_eq!((word(48), word(56)), (lane.cpu().into(), 0));
        assert_eq!((record[64], &record[68..]), (4, &b"data"[..]));
    }
}
