//! Lanes: what holds a thread on a CPU's data, where the kernel would hold it on the CPU.
//!
//! A BPF program in the kernel cannot migrate while it runs, so nobody else touches its CPU's
//! values. Here a thread *enters a lane* instead: it claims the slot of the CPU it runs on, or
//! another free one, and uses that CPU's values until it leaves. Whoever is in a lane is also in a
//! read-side critical section: [`synchronize`] waits for it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::LazyLock;

use crate::cpu::{current_cpu, possible_cpus};
use crate::sync::{AtomicU64, Backoff, Ordering};

/// How often a lane was claimed and released. The lane is free when both are equal.
///
/// `claims` changes only by read-modify-writes, `releases` only by the lane's owner. Padded, for
/// neighbours belong to other CPUs, and processors fetch cache lines in pairs.
#[repr(align(128))]
struct Slot {
    claims: AtomicU64,
    releases: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        Self { claims: AtomicU64::new(0), releases: AtomicU64::new(0) }
    }

    #[inline]
    fn try_claim(&self) -> bool {
        // Acquire: all that earlier owners did in the lane is visible to the next one.
        let releases = self.releases.load(Ordering::Acquire);
        // Acquire: see `Lanes::grace_period`. A claim that succeeds is the one after the last
        // release.
        self.claims
            .compare_exchange(releases, releases + 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Only for the owner of the lane.
    #[inline]
    fn release(&self) {
        let releases = self.releases.load(Ordering::Relaxed);
        // Release: whoever claims the lane next, or waits for this, sees all that was done in it.
        self.releases.store(releases + 1, Ordering::Release);
    }
}

pub(crate) struct Lanes {
    slots: Box<[Slot]>,
}

impl Lanes {
    /// Free lanes, at least one.
    pub(crate) fn new(count: u32) -> Self {
        Self { slots: (0..count.max(1)).map(|_| Slot::new()).collect() }
    }

    /// Claims the lane `wanted` or, while that is taken, any other; waits if all are.
    #[inline]
    fn claim_slot(&self, wanted: u32) -> (u32, &Slot) {
        if let Some(slot) = self.slots.get(wanted as usize)
            && slot.try_claim()
        {
            return (wanted, slot);
        }
        self.claim_any(wanted)
    }

    /// The number alone of what [`Lanes::claim_slot`] claims.
    #[cfg(test)]
    pub(crate) fn claim(&self, wanted: u32) -> u32 {
        self.claim_slot(wanted).0
    }

    /// Claims one lane, which must exist, and waits while it is taken.
    fn claim_only(&self, lane: u32) -> (u32, &Slot) {
        let slot = &self.slots[lane as usize];
        let mut backoff = Backoff::default();
        while !slot.try_claim() {
            backoff.wait();
        }
        (lane, slot)
    }

    #[cold]
    fn claim_any(&self, wanted: u32) -> (u32, &Slot) {
        let count = self.slots.len();
        let mut backoff = Backoff::default();
        loop {
            for step in 0..count {
                let lane = (wanted as usize % count + step) % count;
                let slot = &self.slots[lane];
                if slot.try_claim() {
                    return (lane as u32, slot);
                }
            }
            backoff.wait();
        }
    }

    /// Frees a lane that the caller has claimed.
    #[cfg(test)]
    pub(crate) fn release(&self, lane: u32) {
        self.slots[lane as usize].release();
    }

    /// The lanes that are claimed now, to be asked later whether they have been released.
    ///
    /// Say a writer unlinks an object and then calls this, and a reader claims a lane and then
    /// follows the link. Counting claims here is a read-modify-write, as claiming is, so one comes
    /// first. If it is the claim, it is counted here, and waited for. If it is the counting, the
    /// claim reads what the counting wrote, or what further read-modify-writes made of it, and
    /// acquires with it the unlinking: the reader finds the new link.
    pub(crate) fn grace_period(&self) -> GracePeriod {
        let claims = self.slots.iter().map(|slot| slot.claims.fetch_add(0, Ordering::AcqRel));
        let mut grace_period = GracePeriod { claims: claims.enumerate().collect() };
        grace_period.is_over(self);
        grace_period
    }

    /// Returns when every lane that is claimed now has been released once.
    fn synchronize(&self) {
        let mut grace_period = self.grace_period();
        let mut backoff = Backoff::default();
        while !grace_period.is_over(self) {
            backoff.sleep();
        }
    }
}

/// The lanes that were claimed at one instant and that have not been released since, as far as
/// is known: each with its number of claims then.
pub(crate) struct GracePeriod {
    claims: Vec<(usize, u64)>,
}

impl GracePeriod {
    /// Whether every one of the lanes, which are `lanes`, has been released.
    pub(crate) fn is_over(&mut self, lanes: &Lanes) -> bool {
        // Acquire: all that was done in those lanes was done before what follows.
        self.claims
            .retain(|&(lane, claims)| lanes.slots[lane].releases.load(Ordering::Acquire) < claims);
        self.claims.is_empty()
    }
}

pub(crate) static LANES: LazyLock<Lanes> = LazyLock::new(|| Lanes::new(possible_cpus()));

/// The lane a thread is in.
struct Held {
    /// The one that it claimed last.
    lane: Cell<u32>,
    /// How many guards there are; 0 means no lane.
    depth: Cell<u32>,
}

thread_local! {
    static HELD: Held = const { Held { lane: Cell::new(0), depth: Cell::new(0) } };
}

/// A claim of one CPU's lane, held by this thread until dropped.
///
/// While it is held, no other thread has the same lane: what is only changed in its owner's lane
/// needs no atomic read-modify-write. Stay in a lane only briefly and don't wait for other threads
/// there; where more threads want lanes than there are CPUs, they wait. Entering again on the same
/// thread gives the same lane.
///
/// ```
/// use bpfarray::{Lane, possible_cpus};
/// let lane = Lane::enter();
/// assert!(lane.cpu() < possible_cpus());
/// assert_eq!(Lane::enter().cpu(), lane.cpu());
/// ```
///
/// # Concurrency
/// A thread that panics leaves its lane while unwinding. A guard that is forgotten keeps its lane
/// for good. In the child after `fork`, lanes that other threads held in the parent stay claimed.
///
/// # Kernel
/// `migrate_disable` and `rcu_read_lock`
#[doc(alias = "migrate_disable")]
#[doc(alias = "rcu_read_lock")]
#[must_use = "the lane is left when the guard is dropped"]
pub struct Lane {
    cpu: u32,
    slot: &'static Slot,
    /// Bound to its thread: neither `Send` nor `Sync`.
    thread: PhantomData<*const ()>,
}

impl Lane {
    /// Enters the lane of the CPU this thread runs on, or another one if that is taken.
    #[inline(always)]
    pub fn enter() -> Self {
        match Self::enter_again() {
            Some(lane) => lane,
            None => Self::enter_first(LANES.claim_slot(current_cpu())),
        }
    }

    /// Enters the lane of one CPU, and waits while another thread is in it. A thread that is in a lane stays there.
    pub(crate) fn enter_on(cpu: u32) -> Self {
        Self::enter_again().unwrap_or_else(|| Self::enter_first(LANES.claim_only(cpu)))
    }

    /// Enters the lane that this thread is in, if it is in one.
    #[inline(always)]
    fn enter_again() -> Option<Self> {
        // Not a part of every place that enters a lane.
        #[inline(never)]
        fn again(held: &Held) -> Lane {
            held.depth.set(held.depth.get() + 1);
            let cpu = held.lane.get();
            Lane { cpu, slot: &LANES.slots[cpu as usize], thread: PhantomData }
        }
        HELD.with(|held| (held.depth.get() != 0).then(|| again(held)))
    }

    /// Enters a lane that was just claimed for this thread, which is in no other.
    #[inline(always)]
    fn enter_first((cpu, slot): (u32, &'static Slot)) -> Self {
        HELD.with(|held| {
            held.lane.set(cpu);
            held.depth.set(1);
        });
        Self { cpu, slot, thread: PhantomData }
    }

    /// The CPU whose values belong to this lane, less than [`possible_cpus`].
    ///
    /// # Kernel
    /// `smp_processor_id`
    #[doc(alias = "smp_processor_id")]
    #[inline]
    pub fn cpu(&self) -> u32 {
        self.cpu
    }
}

impl Drop for Lane {
    #[inline]
    fn drop(&mut self) {
        HELD.with(|held| {
            let depth = held.depth.get();
            if depth == 1 {
                self.slot.release();
            }
            held.depth.set(depth - 1);
        });
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({})", self.cpu)
    }
}

/// A thread that is in a lane would wait for itself.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot wait for all lanes from inside a lane")]
pub struct InLane;

/// Waits until every lane that is claimed now has been left once.
///
/// What was unlinked before the call is then out of every running program's sight, and can be
/// freed.
///
/// # Errors
/// [`InLane`] if this thread is in a lane itself.
///
/// # Kernel
/// `synchronize_rcu`
#[doc(alias = "synchronize_rcu")]
pub fn synchronize() -> Result<(), InLane> {
    outside_lanes()?;
    LANES.synchronize();
    Ok(())
}

/// Refuses to wait for the lane this thread is in.
pub(crate) fn outside_lanes() -> Result<(), InLane> {
    if HELD.with(|held| held.depth.get()) == 0 { Ok(()) } else { Err(InLane) }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn a_taken_lane_is_replaced_by_a_free_one() {
        let lanes = Lanes::new(3);
        assert_eq!(lanes.claim(1), 1);
        assert_eq!(lanes.claim(1), 2);
        assert_eq!(lanes.claim(1), 0);
        lanes.release(2);
        assert_eq!(lanes.claim(0), 2);
    }

    #[test]
    fn a_cpu_that_does_not_exist_gets_some_lane() {
        let lanes = Lanes::new(2);
        assert_eq!(lanes.claim(u32::MAX), 1);
        assert_eq!(lanes.claim(u32::MAX), 0);
    }

    #[test]
    fn inner_guards_may_outlive_outer_ones() {
        let outer = Lane::enter();
        let inner = Lane::enter();
        assert_eq!(inner.cpu(), outer.cpu());
        drop(outer);
        assert_eq!(synchronize(), Err(InLane));
        drop(inner);
        assert_eq!(synchronize(), Ok(()));
    }

    #[test]
    fn a_panic_leaves_the_lane() {
        let panicked = std::thread::spawn(|| {
            let _outer = Lane::enter();
            let _inner = Lane::enter();
            std::panic::resume_unwind(Box::new("in a lane"));
        })
        .join();
        assert!(panicked.is_err());
        // Would wait for ever for a lane that is still claimed.
        assert_eq!(synchronize(), Ok(()));
    }

    #[test]
    fn synchronize_waits_for_a_lane_but_not_for_later_ones() {
        let lanes = Lanes::new(2);
        let left = AtomicBool::new(false);
        assert_eq!(lanes.claim(0), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lanes.synchronize();
                assert!(left.load(Ordering::Relaxed));
            });
            std::thread::sleep(Duration::from_millis(20));
            left.store(true, Ordering::Relaxed);
            lanes.release(0);
            assert_eq!(lanes.claim(0), 0, "claimed again, for good");
        });
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// A value per lane, changed without read-modify-writes.
    fn count_in_lanes(count: u32, wanted: [u32; 2]) {
        loom::model(move || {
            let lanes = Arc::new(Lanes::new(count));
            let values: Arc<Vec<_>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
            let threads = wanted.map(|wanted| {
                let (lanes, values) = (Arc::clone(&lanes), Arc::clone(&values));
                thread::spawn(move || {
                    let lane = lanes.claim(wanted);
                    let value = &values[lane as usize];
                    let old = value.load(Ordering::Relaxed);
                    value.store(old + 1, Ordering::Relaxed);
                    lanes.release(lane);
                })
            });
            for thread in threads {
                thread.join().unwrap();
            }
            let sum: u64 = values.iter().map(|value| value.load(Ordering::Relaxed)).sum();
            assert_eq!(sum, 2);
        });
    }

    #[test]
    fn loom_no_update_is_lost_when_two_threads_share_one_lane() {
        count_in_lanes(1, [0, 0]);
    }

    #[test]
    fn loom_no_update_is_lost_when_a_thread_takes_another_lane() {
        count_in_lanes(2, [1, 1]);
    }

    #[test]
    fn loom_no_update_is_lost_after_waiting_for_the_lane() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(1));
            let value = Arc::new(AtomicU64::new(0));
            let count = {
                let (lanes, value) = (Arc::clone(&lanes), Arc::clone(&value));
                move || {
                    lanes.claim(0);
                    let old = value.load(Ordering::Relaxed);
                    value.store(old + 1, Ordering::Relaxed);
                    lanes.release(0);
                }
            };
            let thread = thread::spawn(count.clone());
            lanes.synchronize();
            count();
            thread.join().unwrap();
            assert_eq!(value.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn loom_synchronize_waits_for_a_reader_that_can_see_the_old_object() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(2));
            let linked = Arc::new(AtomicU64::new(1));
            let in_use = Arc::new(AtomicU64::new(0));
            let reader = thread::spawn({
                let (lanes, linked, in_use) =
                    (Arc::clone(&lanes), Arc::clone(&linked), Arc::clone(&in_use));
                move || {
                    let lane = lanes.claim(1);
                    if linked.load(Ordering::Relaxed) == 1 {
                        in_use.store(1, Ordering::Relaxed);
                        in_use.store(0, Ordering::Relaxed);
                    }
                    lanes.release(lane);
                }
            });
            linked.store(0, Ordering::Relaxed);
            lanes.synchronize();
            assert_eq!(in_use.load(Ordering::Relaxed), 0, "freed while in use");
            reader.join().unwrap();
        });
    }
}
