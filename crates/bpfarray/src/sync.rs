//! Synchronisation primitives, so that loom runs the same code as everybody else.

use std::sync::PoisonError;

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, Ordering},
};

/// Locks, also after a panic: what is under the locks of this crate is changed in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
