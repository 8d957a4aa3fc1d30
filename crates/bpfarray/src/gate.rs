//! The gate between writers of a map and its freezing.

use std::sync::Arc;

use bpfarray_core::map::{FreezeError, HandleMode, check_freeze};

use crate::file::{Held, MapFile};
use crate::sync::{AtomicU64, Ordering};

const FROZEN: u64 = 1 << 63;

/// Whether a map is frozen, and how many writers are at work: one word, so that both are judged at
/// once.
///
/// # Kernel
/// `writecnt`, `frozen` and `freeze_mutex` of `struct bpf_map`
pub(crate) struct WriteGate {
    state: AtomicU64,
    /// Keeps the gate of a map that other processes share.
    file: Option<Arc<MapFile>>,
}

impl WriteGate {
    pub(crate) fn new(file: Option<Arc<MapFile>>) -> Self {
        Self { state: AtomicU64::new(0), file }
    }

    /// The file of a map that other processes share.
    pub(crate) fn file(&self) -> Option<&Arc<MapFile>> {
        self.file.as_ref()
    }

    /// Counts in one more writer, until the guard is dropped.
    pub(crate) fn enter(&self) -> Write<'_> {
        match &self.file {
            None => Write::Private { gate: self, frozen: self.count_in() },
            Some(file) => Write::Shared(file.enter()),
        }
    }

    /// Counts in one more writer, and says whether the map was frozen before.
    fn count_in(&self) -> bool {
        self.state.fetch_add(1, Ordering::Relaxed) & FROZEN != 0
    }

    fn count_out(&self) {
        // Release: whoever freezes the map sees all that was written.
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Counts in one more writer, who calls [`WriteGate::leave`] later; refuses if the map is
    /// frozen.
    pub(crate) fn try_enter(&self) -> bool {
        if let Some(file) = &self.file {
            return file.try_enter();
        }
        let frozen = self.count_in();
        if frozen {
            self.count_out();
        }
        !frozen
    }

    pub(crate) fn leave(&self) {
        match &self.file {
            None => self.count_out(),
            Some(file) => file.leave(),
        }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        if let Some(file) = &self.file {
            return file.is_frozen();
        }
        self.state.load(Ordering::Acquire) & FROZEN != 0
    }

    /// Freezes the map for good.
    pub(crate) fn freeze(&self, mode: HandleMode) -> Result<(), FreezeError> {
        if let Some(file) = &self.file {
            return file.freeze(mode);
        }
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            check_freeze(mode, state & FROZEN != 0, state & !FROZEN)?;
            // A writer that enters later meets the bit in the same word.
            match self.state.compare_exchange_weak(
                state,
                state | FROZEN,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => state = now,
            }
        }
    }
}

/// One writer. If the map was frozen before it came, it must not write.
pub(crate) enum Write<'a> {
    Private {
        gate: &'a WriteGate,
        frozen: bool,
    },
    /// Holds a lane of the map's file, which freezing waits for, unless the map was frozen.
    Shared(Option<Held<'a>>),
}

impl Write<'_> {
    pub(crate) fn frozen(&self) -> bool {
        match self {
            Self::Private { frozen, .. } => *frozen,
            Self::Shared(held) => held.is_none(),
        }
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if let Self::Private { gate, .. } = self {
            gate.count_out();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_writer_keeps_the_map_busy() {
        let gate = WriteGate::new(None);
        let write = gate.enter();
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Err(FreezeError::Busy));
        drop(write);
        assert_eq!(gate.freeze(HandleMode::ReadOnly), Err(FreezeError::NotWritable));
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Ok(()));
        assert!(gate.is_frozen() && gate.enter().frozen());
    }

    #[test]
    fn frozen_beats_busy() {
        let gate = WriteGate::new(None);
        gate.freeze(HandleMode::WriteOnly).unwrap();
        let _write = gate.enter();
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Err(FreezeError::NotWritable));
    }

    #[test]
    fn a_long_writer_is_refused_without_being_counted() {
        let gate = WriteGate::new(None);
        assert!(gate.try_enter());
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Err(FreezeError::Busy));
        gate.leave();
        gate.freeze(HandleMode::ReadWrite).unwrap();
        assert!(!gate.try_enter());
        assert_eq!(gate.state.load(Ordering::Relaxed), FROZEN);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_nothing_is_written_once_the_map_is_frozen() {
        loom::model(|| {
            let shared = Arc::new((WriteGate::new(None), AtomicU64::new(0)));
            let writer = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (gate, value) = &*shared;
                    let write = gate.enter();
                    if !write.frozen() {
                        value.store(1, Ordering::Relaxed);
                    }
                }
            });
            let (gate, value) = &*shared;
            let frozen = gate.freeze(HandleMode::ReadWrite).is_ok();
            let seen = value.load(Ordering::Relaxed);
            writer.join().unwrap();
            if frozen {
                assert_eq!(value.load(Ordering::Relaxed), seen);
            }
        });
    }
}
