//! Lanes of a map that several processes share: who may change a CPU's values without atomics.
//!
//! A lane is a word in the file: 0, or its owner. An owner is a *seat* and a thread of the process
//! that has the seat. A process takes a seat by locking a byte of the file, one byte for each seat,
//! and the kernel drops that lock when the process ends, however it ends. So whoever waits in vain
//! for a lane tries to lock its owner's seat: if that works the owner is dead, and all lanes of the
//! seat are freed while the lock is held. Nobody can take the seat meanwhile, so a lane of a living
//! process is never freed by others. Whoever takes a seat first frees what a dead predecessor left.
//!
//! Processes, not threads, die without cleaning up: a thread leaves its lanes when it unwinds.

use std::marker::PhantomData;

use crate::sync::Backoff;

/// A lane that nobody is in.
const FREE: u64 = 0;

/// How many rounds to wait between looks at whether the owner is alive.
#[cfg(not(loom))]
const PATIENCE: u32 = 64;
#[cfg(loom)]
const PATIENCE: u32 = 1;

/// The seat of an owner.
pub(super) fn seat_of(owner: u64) -> u32 {
    (owner >> 32) as u32
}

/// The words of all lanes.
pub(super) trait Slots {
    fn count(&self) -> u32;
    /// Replaces the owner of a lane if it is `old`, and gives the owner there was. Acquires.
    fn replace(&self, lane: u32, old: u64, new: u64) -> u64;
    /// Sets a lane free. Releases.
    fn free(&self, lane: u32);
}

/// Who is alive.
pub(super) trait Seats {
    /// The seat of this process.
    fn own(&self) -> u32;
    /// Calls `bury` while it is certain that nobody has the seat and nobody takes it.
    fn if_dead(&self, seat: u32, bury: impl FnOnce());
}

pub(super) struct Lanes<S, T> {
    slots: S,
    seats: T,
}

/// A lane held by this thread until dropped. Guards on one thread must be dropped in reverse order.
pub(crate) struct Held<'a> {
    release: Option<&'a dyn Release>,
    lane: u32,
    /// Bound to its thread.
    thread: PhantomData<*const ()>,
}

trait Release {
    fn release(&self, lane: u32);
}

impl<S: Slots, T> Release for Lanes<S, T> {
    #[inline]
    fn release(&self, lane: u32) {
        self.slots.free(lane);
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(lanes) = self.release {
            lanes.release(self.lane);
        }
    }
}

impl<S: Slots, T: Seats> Lanes<S, T> {
    /// Lanes for the owner of `seats`' own seat, where nobody uses that seat already.
    pub(super) fn new(slots: S, seats: T) -> Self {
        let lanes = Self { slots, seats };
        lanes.bury(lanes.seats.own());
        lanes
    }

    #[inline]
    fn owner(&self, thread: u32) -> u64 {
        u64::from(self.seats.own()) << 32 | u64::from(thread)
    }

    /// Frees the lanes of a seat that nobody uses.
    fn bury(&self, seat: u32) {
        for lane in 0..self.slots.count() {
            let owner = self.slots.replace(lane, FREE, FREE);
            if owner != FREE && seat_of(owner) == seat {
                self.slots.replace(lane, owner, FREE);
            }
        }
    }

    /// Waits for a lane and claims it. A thread that is in the lane already stays in it.
    #[inline]
    pub(super) fn claim(&self, lane: u32, thread: u32) -> Held<'_> {
        let me = self.owner(thread);
        let found = self.slots.replace(lane, FREE, me);
        if found != FREE && found != me {
            self.claim_contended(lane, me);
        }
        self.held(lane, found != me)
    }

    /// Claims the lane `wanted`, or another one while that is taken. A thread that is in a lane
    /// already stays in it, so that it never waits for one lane in another.
    pub(super) fn claim_any(&self, wanted: u32, thread: u32) -> Held<'_> {
        let me = self.owner(thread);
        let count = self.slots.count();
        let mut wait = Wait::default();
        loop {
            for lane in (0..count).map(|step| (wanted % count + step) % count) {
                let found = self.slots.replace(lane, FREE, me);
                if found == FREE || found == me {
                    return self.held(lane, found == FREE);
                }
                if wait.is_due() {
                    self.look_after(found);
                }
            }
            wait.pause();
        }
    }

    /// Whether a thread is in any lane.
    pub(super) fn is_held_by(&self, thread: u32) -> bool {
        let me = self.owner(thread);
        (0..self.slots.count()).any(|lane| self.slots.replace(lane, FREE, FREE) == me)
    }

    /// Returns when every lane that is claimed now has been left once. The calling thread must not
    /// be in one.
    ///
    /// Claiming is a read-modify-write of the lane's word. A claim that comes before the one made
    /// here is released before it, and what was done in the lane is visible afterwards. One that
    /// comes later acquires what this thread wrote before it called.
    pub(super) fn synchronize(&self, thread: u32) {
        for lane in 0..self.slots.count() {
            drop(self.claim(lane, thread));
        }
    }

    #[inline]
    fn held(&self, lane: u32, release: bool) -> Held<'_> {
        Held { release: release.then_some(self), lane, thread: PhantomData }
    }

    #[cold]
    fn claim_contended(&self, lane: u32, me: u64) {
        let mut wait = Wait::default();
        loop {
            let found = self.slots.replace(lane, FREE, me);
            if found == FREE {
                return;
            }
            if wait.is_due() {
                self.look_after(found);
            }
            wait.pause();
        }
    }

    /// Frees the lanes of an owner that died.
    fn look_after(&self, owner: u64) {
        let seat = seat_of(owner);
        if seat != self.seats.own() {
            self.seats.if_dead(seat, || self.bury(seat));
        }
    }
}

#[derive(Default)]
struct Wait {
    backoff: Backoff,
    rounds: u32,
}

impl Wait {
    fn is_due(&self) -> bool {
        self.rounds % PATIENCE == PATIENCE - 1
    }

    fn pause(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        self.backoff.wait();
    }
}

#[cfg(test)]
mod model {
    use super::*;
    use crate::sync::{AtomicU64, Ordering};
    #[cfg(loom)]
    use loom::sync::{Arc, Mutex};
    #[cfg(not(loom))]
    use std::sync::{Arc, Mutex};

    /// Lanes whose words are atomics, and seats of which one may be dead.
    pub(super) type Model = Lanes<Words, Table>;

    #[derive(Clone)]
    pub(super) struct Words(Arc<Vec<AtomicU64>>);

    impl Slots for Words {
        fn count(&self) -> u32 {
            self.0.len() as u32
        }

        fn replace(&self, lane: u32, old: u64, new: u64) -> u64 {
            self.0[lane as usize]
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .unwrap_or_else(|found| found)
        }

        fn free(&self, lane: u32) {
            self.0[lane as usize].store(FREE, Ordering::Release);
        }
    }

    /// Every seat is taken, but [`DEAD`] only once somebody has taken it.
    #[derive(Clone)]
    pub(super) struct Table {
        own: u32,
        taken: Arc<Mutex<bool>>,
    }

    impl Seats for Table {
        fn own(&self) -> u32 {
            self.own
        }

        fn if_dead(&self, seat: u32, bury: impl FnOnce()) {
            let taken = self.taken.lock().unwrap();
            if seat == DEAD && !*taken {
                bury();
            }
        }
    }

    pub(super) const DEAD: u32 = 9;

    /// Lanes of which the first few were left by a dead owner.
    pub(super) fn lanes(count: u32, dead: u32) -> Model {
        let word = |lane| if lane < dead { u64::from(DEAD) << 32 | 5 } else { FREE };
        let words = (0..count).map(|lane| AtomicU64::new(word(lane))).collect();
        let table = Table { own: 1, taken: Arc::new(Mutex::new(false)) };
        Lanes::new(Words(Arc::new(words)), table)
    }

    /// The same lanes, for a process that takes the dead owner's seat.
    pub(super) fn successor(lanes: &Model) -> Model {
        let taken = Arc::clone(&lanes.seats.taken);
        *taken.lock().unwrap() = true;
        Lanes::new(lanes.slots.clone(), Table { own: DEAD, taken })
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::model::*;

    #[test]
    fn a_thread_in_a_lane_stays_in_it() {
        let lanes = lanes(2, 0);
        let outer = lanes.claim(1, 7);
        assert!(lanes.is_held_by(7) && !lanes.is_held_by(8));
        let inner = lanes.claim(1, 7);
        let any = lanes.claim_any(1, 7);
        assert_eq!(any.lane, 1);
        drop((any, inner));
        assert!(lanes.is_held_by(7), "inner guards release nothing");
        drop(outer);
        assert!(!lanes.is_held_by(7));
    }

    #[test]
    fn a_taken_lane_is_replaced_by_a_free_one() {
        let lanes = lanes(2, 0);
        let _first = lanes.claim(1, 7);
        assert_eq!(lanes.claim_any(1, 8).lane, 0);
        assert_eq!(lanes.claim_any(u32::MAX, 8).lane, 0);
    }

    #[test]
    fn lanes_of_the_dead_are_taken_back() {
        let lanes = lanes(2, 2);
        assert_eq!(lanes.claim(1, 7).lane, 1);
        lanes.synchronize(7);
        assert_eq!(lanes.claim_any(0, 7).lane, 0);
    }

    #[test]
    fn a_new_owner_of_a_seat_frees_what_the_last_one_left() {
        let lanes = successor(&lanes(2, 2));
        assert_eq!(lanes.claim(0, 5).lane, 0);
        assert!(!lanes.is_held_by(5), "released, so it was free");
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::model::*;
    use crate::sync::{AtomicU64, Ordering};
    use loom::sync::Arc;
    use loom::thread;

    /// Two threads count in one lane, without read-modify-writes; the lane was left by `dead`
    /// owners.
    fn count_in_one_lane(dead: u32) {
        loom::model(move || {
            let shared = Arc::new((lanes(1, dead), AtomicU64::new(0)));
            let count = |thread: u32| {
                let shared = Arc::clone(&shared);
                move || {
                    let (lanes, value) = &*shared;
                    let _held = lanes.claim(0, thread);
                    let old = value.load(Ordering::Relaxed);
                    value.store(old + 1, Ordering::Relaxed);
                }
            };
            let other = thread::spawn(count(1));
            count(2)();
            other.join().unwrap();
            assert_eq!(shared.1.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn loom_no_update_of_a_shared_lane_is_lost() {
        count_in_one_lane(0);
    }

    #[test]
    fn loom_no_update_is_lost_when_two_take_back_the_lane_of_a_dead_owner() {
        count_in_one_lane(1);
    }

    #[test]
    fn loom_a_lane_is_not_taken_from_the_one_who_succeeds_a_dead_owner() {
        loom::model(|| {
            let shared = Arc::new((lanes(1, 1), AtomicU64::new(0)));
            let count = |lanes: &Model, value: &AtomicU64| {
                let _held = lanes.claim(0, 5);
                let old = value.load(Ordering::Relaxed);
                value.store(old + 1, Ordering::Relaxed);
            };
            let other = thread::spawn({
                let shared = Arc::clone(&shared);
                // As the same thread of the same seat, whose lane the word still names.
                move || count(&successor(&shared.0), &shared.1)
            });
            count(&shared.0, &shared.1);
            other.join().unwrap();
            assert_eq!(shared.1.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn loom_nothing_is_written_in_a_lane_once_it_was_waited_for() {
        loom::model(|| {
            let shared = Arc::new((lanes(1, 0), AtomicU64::new(0), AtomicU64::new(0)));
            let writer = thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (lanes, frozen, value) = &*shared;
                    let _held = lanes.claim(0, 1);
                    if frozen.load(Ordering::Relaxed) == 0 {
                        value.store(1, Ordering::Relaxed);
                    }
                }
            });
            let (lanes, frozen, value) = &*shared;
            frozen.store(1, Ordering::Relaxed);
            lanes.synchronize(2);
            let seen = value.load(Ordering::Relaxed);
            writer.join().unwrap();
            assert_eq!(value.load(Ordering::Relaxed), seen);
        });
    }
}
