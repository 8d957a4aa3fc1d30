//! The gate between writers of a map and its freezing.

use bpfarray_core::map::{FreezeError, HandleMode, check_freeze};

use crate::sync::{AtomicU64, Ordering};

const FROZEN: u64 = 1 << 63;

/// Whether a map is frozen, and how many writers are at work: one word, so that both are judged at
/// once.
///
/// # Kernel
/// `writecnt`, `frozen` and `freeze_mutex` of `struct bpf_map`
#[derive(Debug)]
pub(crate) struct WriteGate {
    state: AtomicU64,
}

impl WriteGate {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU64::new(0) }
    }

    /// Counts in one more writer, until the guard is dropped.
    pub(crate) fn enter(&self) -> Write<'_> {
        let frozen = self.state.fetch_add(1, Ordering::Relaxed) & FROZEN != 0;
        Write { gate: self, frozen }
    }

    /// Counts in one more writer, who calls [`WriteGate::leave`] later; refuses if the map is
    /// frozen.
    pub(crate) fn try_enter(&self) -> bool {
        let write = self.enter();
        if !write.frozen {
            std::mem::forget(write);
            return true;
        }
        false
    }

    pub(crate) fn leave(&self) {
        // Release: whoever freezes the map sees all that was written.
        self.state.fetch_sub(1, Ordering::Release);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.state.load(Ordering::Acquire) & FROZEN != 0
    }

    /// Freezes the map for good.
    pub(crate) fn freeze(&self, mode: HandleMode) -> Result<(), FreezeError> {
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
pub(crate) struct Write<'a> {
    gate: &'a WriteGate,
    frozen: bool,
}

impl Write<'_> {
    pub(crate) fn frozen(&self) -> bool {
        self.frozen
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_writer_keeps_the_map_busy() {
        let gate = WriteGate::new();
        let write = gate.enter();
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Err(FreezeError::Busy));
        drop(write);
        assert_eq!(gate.freeze(HandleMode::ReadOnly), Err(FreezeError::NotWritable));
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Ok(()));
        assert!(gate.is_frozen() && gate.enter().frozen());
    }

    #[test]
    fn frozen_beats_busy() {
        let gate = WriteGate::new();
        gate.freeze(HandleMode::WriteOnly).unwrap();
        let _write = gate.enter();
        assert_eq!(gate.freeze(HandleMode::ReadWrite), Err(FreezeError::NotWritable));
    }

    #[test]
    fn a_long_writer_is_refused_without_being_counted() {
        let gate = WriteGate::new();
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
            let shared = Arc::new((WriteGate::new(), AtomicU64::new(0)));
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
