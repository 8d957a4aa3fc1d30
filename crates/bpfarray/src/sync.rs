//! Synchronisation primitives, so that loom runs the same code as everybody else.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

/// Waiting for another thread: a few short spins, then the processor goes to someone else.
#[derive(Default)]
pub(crate) struct Backoff {
    round: u32,
}

impl Backoff {
    #[cfg(not(loom))]
    pub(crate) fn wait(&mut self) {
        const SPIN_ROUNDS: u32 = 6;
        if self.round < SPIN_ROUNDS {
            for _ in 0..1 << self.round {
                std::hint::spin_loop();
            }
            self.round += 1;
        } else {
            std::thread::yield_now();
        }
    }

    #[cfg(loom)]
    pub(crate) fn wait(&mut self) {
        self.round += 1;
        loom::thread::yield_now();
    }
}
