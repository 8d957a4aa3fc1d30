//! Perf events: what programs tell through a PERF_EVENT_ARRAY, and what they read there.
//!
//! A host that wants to hear from programs gives the map a [`PerfBuffer`], which is a [`Ring`] for each CPU; each
//! record that a program writes comes out of it as a [`Record`]. Counters are [`PerfEvent`]s: perf events of
//! the running kernel.
//!
//! ```
//! use bpfarray::attr::{MapAttr, MapType};
//! use bpfarray::perf::{F_CURRENT_CPU, PerfBuffer, Record};
//! use bpfarray::{Lane, Map, possible_cpus};
//!
//! let sizes = MapAttr { key_size: 4, value_size: 4, ..MapAttr::default() };
//! let events = MapAttr { map_type: MapType::PERF_EVENT_ARRAY, max_entries: possible_cpus(), ..sizes };
//! let map = Map::create(&events)?;
//! let mut buffer = PerfBuffer::new(&map, 8)?;
//!
//! let lane = Lane::enter(); // as each run of a program does
//! map.perf_event_output(&lane, F_CURRENT_CPU, &[b"hello"])?;
//! let record = buffer.records().next();
//! let data = b"hello\0\0\0\0\0\0\0".to_vec(); // with the padding of the record
//! assert_eq!(record, Some(Record::Sample { cpu: lane.cpu(), data }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod buffer;
mod event;
mod open;
mod pages;
mod ring;
mod shared;

use std::any::Any;

use bpfarray_core::Errno;

pub use self::buffer::{PerfBuffer, PerfBufferError, Records};
pub use self::event::{PerfEvent, PerfEventAttr, PerfEventError};
pub use self::ring::{Record, Ring, RingError, RingReader};
pub use self::shared::{SharedRing, SharedRingError};
pub use crate::file::{Sample, SharedRingAttr, Wakeup};
use crate::lane::Lane;
use crate::map::{Contents, MapRef};

/// The bits of a helper's flags that name a slot.
///
/// # Kernel
/// `BPF_F_INDEX_MASK`
#[doc(alias = "BPF_F_INDEX_MASK")]
pub const F_INDEX_MASK: u64 = 0xffff_ffff;

/// Names the slot of the CPU that the program runs on.
///
/// # Kernel
/// `BPF_F_CURRENT_CPU`
#[doc(alias = "BPF_F_CURRENT_CPU")]
pub const F_CURRENT_CPU: u64 = F_INDEX_MASK;

/// The bits of a helper's flags that say how many bytes of the packet follow the data.
///
/// # Kernel
/// `BPF_F_CTXLEN_MASK`
#[doc(alias = "BPF_F_CTXLEN_MASK")]
pub const F_CTXLEN_MASK: u64 = 0xf_ffff << 32;

/// A perf event, as a PERF_EVENT_ARRAY sees it: a [`Ring`], a [`PerfEvent`], or what a host makes of it.
///
/// # Kernel
/// `struct perf_event`
#[doc(alias = "perf_event")]
pub trait EventObject: Any + Send + Sync {
    /// Whether children of the observed task inherit the event. Such events cannot be held.
    fn inherits(&self) -> bool;

    /// Takes a record of a program that runs in this lane: the parts in order make its data.
    ///
    /// # Errors
    /// The variants of [`EventOutputError`] from `NotOutput` on, in their order.
    fn output(&self, lane: &Lane, parts: &[&[u8]]) -> Result<(), EventOutputError>;

    /// What the event has counted, for a program that runs in this lane.
    ///
    /// # Errors
    /// The variants of [`EventReadError`] from `Inherited` on, in their order.
    ///
    /// # Kernel
    /// `perf_event_read_local`
    fn read_local(&self, lane: &Lane) -> Result<EventCounts, EventReadError>;
}

impl dyn EventObject {
    /// The event as the type it was inserted as.
    pub fn downcast_ref<E: EventObject>(&self) -> Option<&E> {
        (self as &dyn Any).downcast_ref()
    }
}

/// What an event has counted.
///
/// # Kernel
/// `struct bpf_perf_event_value`
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
#[doc(alias = "bpf_perf_event_value")]
pub struct EventCounts {
    /// The count.
    pub counter: u64,
    /// For how many ns the event has been enabled.
    pub enabled: u64,
    /// For how many ns of these it has counted.
    pub running: u64,
}

impl EventCounts {
    /// Bytes of the kernel's structure.
    pub const SIZE: usize = 24;

    /// The kernel's structure, in host order.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (to, word) in bytes.chunks_mut(8).zip([self.counter, self.enabled, self.running]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word =
            |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
        Self { counter: word(0), enabled: word(8), running: word(16) }
    }
}

/// Why a record went nowhere. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EventOutputError {
    /// The map is no PERF_EVENT_ARRAY, which verified programs don't try.
    #[error("the map is no PERF_EVENT_ARRAY")]
    MapType,
    /// Flags beyond those that name a slot.
    #[error("flags {0:#x} name more than a slot")]
    Flags(u64),
    /// No such slot.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of slots.
        max_entries: u32,
    },
    /// The slot is empty.
    #[error("slot {0} is empty")]
    Empty(u32),
    /// The event takes no output.
    #[error("the event takes no output of programs")]
    NotOutput,
    /// The event is another CPU's.
    #[error("the event is for CPU {event}, and the program runs on CPU {running}")]
    OtherCpu {
        /// The CPU of the event.
        event: u32,
        /// The CPU of the program's lane.
        running: u32,
    },
    /// The event is not enabled.
    #[error("the event is not enabled")]
    Disabled,
    /// A record of more bytes than its header can say.
    #[error("a record of {0} bytes of data is longer than a record can be")]
    TooLong(usize),
    /// The ring is full, or there is none.
    #[error("the ring has no room")]
    NoSpace,
}

impl EventOutputError {
    /// The error number, negated the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapType | Self::Flags(_) | Self::NotOutput => Errno::EINVAL,
            Self::Index { .. } | Self::TooLong(_) => Errno::E2BIG,
            Self::Empty(_) => Errno::ENOENT,
            Self::OtherCpu { .. } | Self::Disabled => Errno::EOPNOTSUPP,
            Self::NoSpace => Errno::ENOSPC,
        }
    }
}

/// Why a program cannot read an event. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EventReadError {
    /// The map is no PERF_EVENT_ARRAY, which verified programs don't try.
    #[error("the map is no PERF_EVENT_ARRAY")]
    MapType,
    /// Flags beyond those that name a slot.
    #[error("flags {0:#x} name more than a slot")]
    Flags(u64),
    /// No such slot.
    #[error("index {index} is not below max_entries {max_entries}")]
    Index {
        /// The index asked for.
        index: u32,
        /// The number of slots.
        max_entries: u32,
    },
    /// The slot is empty.
    #[error("slot {0} is empty")]
    Empty(u32),
    /// The children's counts could not be had.
    #[error("an inherited event cannot be read here")]
    Inherited,
    /// The event is another task's.
    #[error("the event counts another task")]
    OtherTask,
    /// The event is another CPU's.
    #[error("the event counts on another CPU")]
    OtherCpu,
    /// The system does not give the count.
    #[error("cannot read the event: {0}")]
    Unreadable(Errno),
}

impl EventReadError {
    /// The error number, negated the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapType | Self::Flags(_) | Self::OtherTask | Self::OtherCpu => Errno::EINVAL,
            Self::Index { .. } => Errno::E2BIG,
            Self::Empty(_) => Errno::ENOENT,
            Self::Inherited => Errno::EOPNOTSUPP,
            Self::Unreadable(errno) => errno,
        }
    }
}

/// Why flags of a helper lead to no event.
enum NoEvent {
    MapType,
    Flags(u64),
    Index { index: u32, max_entries: u32 },
    Empty(u32),
}

impl From<NoEvent> for EventOutputError {
    fn from(error: NoEvent) -> Self {
        match error {
            NoEvent::MapType => Self::MapType,
            NoEvent::Flags(flags) => Self::Flags(flags),
            NoEvent::Index { index, max_entries } => Self::Index { index, max_entries },
            NoEvent::Empty(index) => Self::Empty(index),
        }
    }
}

impl From<NoEvent> for EventReadError {
    fn from(error: NoEvent) -> Self {
        match error {
            NoEvent::MapType => Self::MapType,
            NoEvent::Flags(flags) => Self::Flags(flags),
            NoEvent::Index { index, max_entries } => Self::Index { index, max_entries },
            NoEvent::Empty(index) => Self::Empty(index),
        }
    }
}

impl MapRef {
    /// The event that a helper's flags name.
    fn named_event<'lane>(
        &'lane self,
        lane: &'lane Lane,
        flags: u64,
    ) -> Result<&'lane dyn EventObject, NoEvent> {
        let Contents::Events(events) = &self.inner.contents else { return Err(NoEvent::MapType) };
        if flags & !F_INDEX_MASK != 0 {
            return Err(NoEvent::Flags(flags));
        }
        let index = if flags == F_CURRENT_CPU { lane.cpu() } else { flags as u32 };
        let max_entries = self.max_entries();
        if index >= max_entries {
            return Err(NoEvent::Index { index, max_entries });
        }
        let entry = events.get(lane, index).ok_or(NoEvent::Empty(index))?;
        Ok(&*entry.event)
    }

    /// Hands a record to the event in a slot: `flags` is its index or [`F_CURRENT_CPU`], and the parts in order
    /// make the data.
    ///
    /// # Errors
    /// The variants of [`EventOutputError`] in their order.
    ///
    /// # Concurrency
    /// Takes no lock and waits for nobody. What a full ring has no room for is lost and counted.
    ///
    /// # Kernel
    /// `__bpf_perf_event_output`
    #[doc(alias = "bpf_perf_event_output")]
    pub fn perf_event_output(
        &self,
        lane: &Lane,
        flags: u64,
        parts: &[&[u8]],
    ) -> Result<(), EventOutputError> {
        self.named_event(lane, flags)?.output(lane, parts)
    }

    /// Reads the event in a slot: `flags` is its index or [`F_CURRENT_CPU`].
    ///
    /// # Errors
    /// The variants of [`EventReadError`] in their order.
    ///
    /// # Kernel
    /// `get_map_perf_counter`
    #[doc(alias = "bpf_perf_event_read")]
    #[doc(alias = "bpf_perf_event_read_value")]
    pub fn perf_event_read(&self, lane: &Lane, flags: u64) -> Result<EventCounts, EventReadError> {
        self.named_event(lane, flags)?.read_local(lane)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::MapType;
    use crate::map::testing::{ARRAY, create, objects};
    use crate::object::Object;
    use std::sync::Arc;

    #[test]
    fn flags_are_judged_before_the_slot_and_the_slot_before_its_event() {
        let map = objects(MapType::PERF_EVENT_ARRAY, 4);
        let lane = Lane::enter();
        let cpu = lane.cpu();
        let other = cpu + 1;
        let ring = |cpu| Ring::new(cpu, 1).unwrap().0;
        map.update_object(2, &Object::PerfEvent(ring(cpu)), 0).unwrap();
        map.update_object(3, &Object::PerfEvent(ring(other)), 0).unwrap();
        let output = |flags| map.perf_event_output(&lane, flags, &[b"1234"]);
        let read = |flags| map.perf_event_read(&lane, flags).map(|counts| counts.counter);
        let bad = 1 << 32 | 9;
        assert_eq!(
            (output(bad), read(bad)),
            (Err(EventOutputError::Flags(bad)), Err(EventReadError::Flags(bad)))
        );
        let errno = |flags| (output(flags).unwrap_err().errno(), read(flags).unwrap_err().errno());
        assert_eq!(errno(bad), (Errno::EINVAL, Errno::EINVAL));
        assert_eq!(errno(4), (Errno::E2BIG, Errno::E2BIG));
        assert_eq!(errno(0xffff_fffe), (Errno::E2BIG, Errno::E2BIG));
        assert_eq!(errno(1), (Errno::ENOENT, Errno::ENOENT));
        assert_eq!(errno(3), (Errno::EOPNOTSUPP, Errno::EINVAL));
        assert_eq!((output(2), read(2)), (Ok(()), Ok(0)));
        let values = create(ARRAY);
        assert_eq!(values.perf_event_output(&lane, 0, &[]), Err(EventOutputError::MapType));
        assert_eq!(values.perf_event_read(&lane, 0), Err(EventReadError::MapType));
    }

    #[test]
    fn the_current_cpu_is_that_of_the_lane() {
        let map = objects(MapType::PERF_EVENT_ARRAY, crate::possible_cpus());
        let lane = Lane::enter();
        let (ring, _) = Ring::new(lane.cpu(), 1).unwrap();
        let event: Arc<dyn EventObject> = ring;
        map.update_object(lane.cpu(), &Object::PerfEvent(event), 0).unwrap();
        assert_eq!(
            map.perf_event_output(&lane, F_CURRENT_CPU, &[&[0; 4090]]),
            Err(EventOutputError::NoSpace)
        );
        assert_eq!(map.perf_event_output(&lane, F_CURRENT_CPU, &[]), Ok(()));
        map.delete_elem(lane.cpu()).unwrap();
        let empty = Err(EventOutputError::Empty(lane.cpu()));
        assert_eq!(map.perf_event_output(&lane, F_CURRENT_CPU, &[]), empty);
    }

    #[test]
    fn counts_become_the_structure_of_the_kernel() {
        let counts = EventCounts { counter: 1, enabled: 2, running: 3 };
        assert_eq!(EventCounts::from_bytes(&counts.to_bytes()), counts);
        assert_eq!(counts.to_bytes()[8..16], 2_u64.to_ne_bytes());
    }
}
