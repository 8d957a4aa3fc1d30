//! Perf events of the running kernel, as counters.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bpfarray_core::Errno;
use rustix::thread::gettid;

use super::open::perf_event_open;
use super::{EventCounts, EventObject, EventOutputError, EventReadError};
use crate::lane::Lane;

/// What an event counts, and for whom.
///
/// # Kernel
/// `struct perf_event_attr`, and the arguments of `perf_event_open`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "perf_event_attr")]
pub struct PerfEventAttr {
    /// The kind of event, such as [`PerfEventAttr::TYPE_SOFTWARE`].
    pub event_type: u32,
    /// Which event of that kind, such as [`PerfEventAttr::SW_TASK_CLOCK`].
    pub config: u64,
    /// The thread that is observed; 0 is the one that opens the event, -1 all threads of a CPU.
    pub pid: i32,
    /// The CPU that is observed; -1 is each the thread runs on.
    pub cpu: i32,
    /// Whether children of the thread are observed too.
    pub inherit: bool,
}

impl PerfEventAttr {
    /// Events that the kernel's software counts: `PERF_TYPE_SOFTWARE`.
    #[doc(alias = "PERF_TYPE_SOFTWARE")]
    pub const TYPE_SOFTWARE: u32 = 1;
    /// Time in ns: `PERF_COUNT_SW_CPU_CLOCK`.
    #[doc(alias = "PERF_COUNT_SW_CPU_CLOCK")]
    pub const SW_CPU_CLOCK: u64 = 0;
    /// Time of the thread in ns: `PERF_COUNT_SW_TASK_CLOCK`.
    #[doc(alias = "PERF_COUNT_SW_TASK_CLOCK")]
    pub const SW_TASK_CLOCK: u64 = 1;
    /// Nothing: `PERF_COUNT_SW_DUMMY`.
    #[doc(alias = "PERF_COUNT_SW_DUMMY")]
    pub const SW_DUMMY: u64 = 9;
    /// Output of programs: `PERF_COUNT_SW_BPF_OUTPUT`.
    #[doc(alias = "PERF_COUNT_SW_BPF_OUTPUT")]
    pub const SW_BPF_OUTPUT: u64 = 10;

    /// A software event of all threads on a CPU.
    pub const fn software(config: u64, cpu: i32) -> Self {
        Self { event_type: Self::TYPE_SOFTWARE, config, pid: -1, cpu, inherit: false }
    }

    /// A software event of the thread that opens it, on whatever CPU.
    pub const fn software_of_thread(config: u64) -> Self {
        Self { event_type: Self::TYPE_SOFTWARE, config, pid: 0, cpu: -1, inherit: false }
    }

    /// Whether a program that runs in this lane may read the event.
    ///
    /// # Errors
    /// The variants of [`EventReadError`] from `Inherited` on, in their order.
    ///
    /// # Kernel
    /// `perf_event_read_local`
    #[doc(alias = "perf_event_read_local")]
    pub fn check_read_local(&self, lane: &Lane) -> Result<(), EventReadError> {
        if self.inherit {
            return Err(EventReadError::Inherited);
        }
        if self.pid != -1 {
            let current = gettid().as_raw_nonzero().get();
            return if self.pid == current { Ok(()) } else { Err(EventReadError::OtherTask) };
        }
        let here = i32::try_from(lane.cpu()) == Ok(self.cpu);
        if here { Ok(()) } else { Err(EventReadError::OtherCpu) }
    }

    /// What output of a program in this lane comes to: only the kernel writes to an event's own ring.
    ///
    /// # Errors
    /// [`EventOutputError::NotOutput`], [`EventOutputError::OtherCpu`]; or else [`EventOutputError::NoSpace`], as
    /// for an event whose ring is not mapped.
    ///
    /// # Kernel
    /// `__bpf_perf_event_output`
    pub fn check_output(&self, lane: &Lane) -> Result<(), EventOutputError> {
        if (self.event_type, self.config) != (Self::TYPE_SOFTWARE, Self::SW_BPF_OUTPUT) {
            return Err(EventOutputError::NotOutput);
        }
        match u32::try_from(self.cpu) {
            Ok(event) if event != lane.cpu() => {
                Err(EventOutputError::OtherCpu { event, running: lane.cpu() })
            }
            _ => Err(EventOutputError::NoSpace),
        }
    }

    /// The thread by its number, where it is the calling one.
    fn resolved(self) -> Self {
        let pid = if self.pid == 0 { gettid().as_raw_nonzero().get() } else { self.pid };
        Self { pid, ..self }
    }
}

/// A perf event of the running kernel: programs can read what it has counted.
///
/// Only the kernel writes into such an event's ring, so output to it fails as if no ring were mapped;
/// programs write to a [`Ring`](super::Ring).
///
/// # Kernel
/// `struct perf_event`
#[derive(Debug)]
pub struct PerfEvent {
    attr: PerfEventAttr,
    file: std::fs::File,
}

/// Why there is no such event. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PerfEventError {
    /// The descriptor is not one of a perf event.
    #[error("the descriptor is not one of a perf event")]
    NotAnEvent,
    /// The event gives something else than count, time enabled and time running when it is read.
    #[error("the event is not read as count, time enabled and time running")]
    ReadFormat,
    /// The system does not open it.
    #[error("perf_event_open: {0}")]
    Open(Errno),
}

impl PerfEventError {
    /// The error number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotAnEvent => Errno::EBADF,
            Self::ReadFormat => Errno::EINVAL,
            Self::Open(errno) => errno,
        }
    }
}

impl PerfEvent {
    /// Opens an event, which counts at once.
    ///
    /// # Errors
    /// [`PerfEventError::Open`], for instance where the system lets only administrators observe.
    ///
    /// # Kernel
    /// `perf_event_open`
    #[doc(alias = "perf_event_open")]
    pub fn open(attr: &PerfEventAttr) -> Result<Self, PerfEventError> {
        let fd = perf_event_open(attr).map_err(PerfEventError::Open)?;
        Ok(Self { attr: attr.resolved(), file: fd.into() })
    }

    /// Takes over the descriptor of an event that somebody opened, with the read format
    /// `PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING`.
    ///
    /// Needs `/proc`, to see what the descriptor is. The kernel does not tell what it was opened for. `attr` has to say it, with the
    /// number of a thread in place of 0.
    ///
    /// # Errors
    /// [`PerfEventError::NotAnEvent`], [`PerfEventError::ReadFormat`].
    ///
    /// # Kernel
    /// `perf_event_get`
    #[doc(alias = "perf_event_get")]
    pub fn from_fd(fd: OwnedFd, attr: &PerfEventAttr) -> Result<Self, PerfEventError> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        if !link.is_ok_and(|link| link.as_os_str() == "anon_inode:[perf_event]") {
            return Err(PerfEventError::NotAnEvent);
        }
        let this = Self { attr: attr.resolved(), file: fd.into() };
        this.read().map_err(|_| PerfEventError::ReadFormat)?;
        Ok(this)
    }

    /// What the event counts.
    pub fn attr(&self) -> &PerfEventAttr {
        &self.attr
    }

    /// What it has counted, wherever this is called.
    ///
    /// # Errors
    /// What the system says; [`Errno::EINVAL`] where it gives something else than the three numbers.
    pub fn read(&self) -> Result<EventCounts, Errno> {
        // A byte more than there should be shows another format.
        let mut bytes = [0; EventCounts::SIZE + 8];
        let len = (&self.file)
            .read(&mut bytes)
            .map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))?;
        let (counts, _) = bytes.split_first_chunk().ok_or(Errno::EINVAL)?;
        if len == EventCounts::SIZE {
            Ok(EventCounts::from_bytes(counts))
        } else {
            Err(Errno::EINVAL)
        }
    }
}

impl AsFd for PerfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl EventObject for PerfEvent {
    fn inherits(&self) -> bool {
        self.attr.inherit
    }

    fn output(&self, lane: &Lane, _parts: &[&[u8]]) -> Result<(), EventOutputError> {
        self.attr.check_output(lane)
    }

    fn read_local(&self, lane: &Lane) -> Result<EventCounts, EventReadError> {
        self.attr.check_read_local(lane)?;
        self.read().map_err(EventReadError::Unreadable)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::MapType;
    use crate::map::testing::objects;
    use crate::object::Object;
    use std::sync::Arc;

    /// `None`, loudly, where the system does not let this user observe.
    fn open(attr: PerfEventAttr) -> Option<PerfEvent> {
        PerfEvent::open(&attr).inspect_err(|error| eprintln!("SKIPPED: {attr:?}: {error}")).ok()
    }

    #[test]
    fn a_program_reads_its_own_thread_and_cpu_and_no_other() {
        let lane = Lane::enter();
        let cpu = lane.cpu() as i32;
        let Some(of_thread) = open(PerfEventAttr::software_of_thread(PerfEventAttr::SW_TASK_CLOCK))
        else {
            return;
        };
        let first = of_thread.read_local(&lane).unwrap();
        std::hint::black_box((0..100_000).map(std::hint::black_box).sum::<u64>());
        let second = of_thread.read_local(&lane).unwrap();
        assert!(first.counter < second.counter, "{first:?} {second:?}");
        assert!(first.running < second.running);
        let elsewhere = std::thread::scope(|scope| {
            scope.spawn(|| of_thread.read_local(&Lane::enter())).join().unwrap()
        });
        assert_eq!(elsewhere, Err(EventReadError::OtherTask));
        assert!(
            std::thread::scope(|scope| scope.spawn(|| of_thread.read()).join().unwrap()).is_ok()
        );

        let Some(here) = open(PerfEventAttr::software(PerfEventAttr::SW_DUMMY, cpu)) else {
            return;
        };
        assert_eq!(here.read_local(&lane).map(|counts| counts.counter), Ok(0));
        let attr = PerfEventAttr { cpu: cpu + 1, ..*here.attr() };
        assert_eq!(attr.check_read_local(&lane), Err(EventReadError::OtherCpu));
    }

    #[test]
    fn a_counter_takes_no_output_and_neither_does_a_ring_of_the_kernel() {
        let lane = Lane::enter();
        let cpu = lane.cpu() as i32;
        let Some(clock) = open(PerfEventAttr::software(PerfEventAttr::SW_CPU_CLOCK, cpu)) else {
            return;
        };
        assert_eq!(clock.output(&lane, &[b"x"]).unwrap_err().errno(), Errno::EINVAL);
        let Some(output) = open(PerfEventAttr::software(PerfEventAttr::SW_BPF_OUTPUT, cpu)) else {
            return;
        };
        assert_eq!(output.output(&lane, &[b"x"]), Err(EventOutputError::NoSpace));
    }

    #[test]
    fn an_event_that_children_inherit_cannot_be_held() {
        let attr = PerfEventAttr::software_of_thread(PerfEventAttr::SW_DUMMY);
        let Some(event) = open(PerfEventAttr { inherit: true, ..attr }) else { return };
        let map = objects(MapType::PERF_EVENT_ARRAY, 1);
        assert_eq!(event.read_local(&Lane::enter()), Err(EventReadError::Inherited));
        let error = map.update_object(0, &Object::PerfEvent(Arc::new(event)), 0).unwrap_err();
        assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    }

    #[test]
    fn descriptors_of_other_files_are_no_events() {
        let attr = PerfEventAttr::software_of_thread(PerfEventAttr::SW_DUMMY);
        let file = std::fs::File::open("/dev/zero").unwrap();
        let error = PerfEvent::from_fd(file.into(), &attr).unwrap_err();
        assert_eq!((error, error.errno()), (PerfEventError::NotAnEvent, Errno::EBADF));
        let Some(event) = open(attr) else { return };
        let again = event.as_fd().try_clone_to_owned().unwrap();
        let again = PerfEvent::from_fd(again, event.attr()).unwrap();
        assert_eq!(again.read_local(&Lane::enter()).unwrap().counter, 0);
    }

    #[test]
    fn what_cannot_be_observed_is_refused_by_the_system() {
        let nobody = PerfEventAttr::software(PerfEventAttr::SW_DUMMY, -1);
        assert!(matches!(PerfEvent::open(&nobody), Err(PerfEventError::Open(_))));
    }
}
