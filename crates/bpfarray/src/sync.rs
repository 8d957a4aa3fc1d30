//! Synchronisation primitives, so that loom runs the same code as everybody else.

use std::sync::PoisonError;
#[cfg(not(loom))]
use std::time::Duration;

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

/// Waiting for another thread: a few short spins, then the processor goes to someone else, and when that
/// does not help this thread sleeps, so that even one of lower priority gets to run.
#[derive(Default)]
pub(crate) struct Backoff {
    round: u32,
}

#[cfg(not(loom))]
const SPIN_ROUNDS: u32 = 6;
#[cfg(not(loom))]
const NAP: Duration = Duration::from_micros(20);

#[cfg(not(loom))]
fn spin(round: u32) {
    (0..1 << round).for_each(|_| std::hint::spin_loop());
}

impl Backoff {
    /// For what others wait for in turn. Sleeps in the end, so that even a thread of lower priority gets
    /// to run.
    #[cfg(not(loom))]
    pub(crate) fn wait(&mut self) {
        const YIELD_ROUNDS: u32 = 100;
        match self.round {
            round if round < SPIN_ROUNDS => spin(round),
            round if round < YIELD_ROUNDS => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
        self.round = self.round.saturating_add(1);
    }

    /// For a thread that may have been preempted by this one. Who sleeps is soon woken and preferred then,
    /// where who yields waits until the others have used up their time.
    #[cfg(not(loom))]
    pub(crate) fn sleep(&mut self) {
        match self.round {
            round if round < SPIN_ROUNDS => spin(round),
            _ => std::thread::sleep(NAP),
        }
        self.round = self.round.saturating_add(1);
    }

    #[cfg(loom)]
    pub(crate) fn wait(&mut self) {
        self.round += 1;
        loom::thread::yield_now();
    }

    #[cfg(loom)]
    pub(crate) fn sleep(&mut self) {
        self.wait();
    }
}
