//! Objects that go when nobody can see them any more.
//!
//! Whoever unlinks an object that programs may be using hands it over here instead of dropping it.
//! It is dropped when every lane that was claimed then has been left: by a later hand-over, by a
//! map that goes, or by [`barrier`]. So a writer never waits for readers.

use std::sync::LazyLock;

use crate::lane::{GracePeriod, InLane, LANES, Lanes, outside_lanes};
use crate::sync::{AtomicU64, Backoff, Mutex, Ordering, lock};

/// Something to drop.
type Object = Box<dyn Send>;

/// Objects in two batches, so that one grace period serves all that come while another one lasts.
#[derive(Default)]
struct Queue {
    /// Unlinked before the grace period began.
    waiting: Option<(GracePeriod, Vec<Object>)>,
    /// Unlinked since.
    next: Vec<Object>,
}

impl Queue {
    /// Takes out what can be dropped, and begins the grace period of what came meanwhile.
    fn take_expired(&mut self, lanes: &Lanes) -> Vec<Object> {
        let mut expired = Vec::new();
        loop {
            match &mut self.waiting {
                Some((grace_period, objects)) => {
                    if !grace_period.is_over(lanes) {
                        return expired;
                    }
                    expired.append(objects);
                    self.waiting = None;
                }
                None if self.next.is_empty() => return expired,
                None => {
                    let objects = std::mem::take(&mut self.next);
                    self.waiting = Some((lanes.grace_period(), objects));
                }
            }
        }
    }
}

/// What was unlinked and is not dropped yet.
pub(crate) struct Reclaim {
    queue: Mutex<Queue>,
    /// How many threads are dropping what they took out of the queue.
    dropping: AtomicU64,
}

impl Reclaim {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::new(Queue::default()), dropping: AtomicU64::new(0) }
    }

    /// Takes over an object that no new reader can find. Drops nothing, so locks may be held.
    pub(crate) fn defer(&self, object: Object) {
        lock(&self.queue).next.push(object);
    }

    /// Drops what no lane can see any more.
    pub(crate) fn poll(&self, lanes: &Lanes) {
        let expired = {
            let mut queue = lock(&self.queue);
            let expired = queue.take_expired(lanes);
            if expired.is_empty() {
                return;
            }
            // Under the lock: `barrier` finds these objects either in the queue or counted.
            self.dropping.fetch_add(1, Ordering::Relaxed);
            expired
        };
        // Without the lock, for what is dropped may own other objects and hand them over.
        drop(expired);
        self.dropping.fetch_sub(1, Ordering::Release);
    }

    /// Returns when all that was handed over before has been dropped.
    fn barrier(&self, lanes: &Lanes) {
        let mut backoff = Backoff::default();
        loop {
            self.poll(lanes);
            let queue = lock(&self.queue);
            let idle = self.dropping.load(Ordering::Acquire) == 0;
            if idle && queue.waiting.is_none() && queue.next.is_empty() {
                return;
            }
            drop(queue);
            backoff.sleep();
        }
    }
}

static RECLAIM: LazyLock<Reclaim> = LazyLock::new(Reclaim::new);

/// Hands over an object that was unlinked from where programs find it: it is dropped once every
/// lane that is claimed now has been left. If none is, that is now.
///
/// ```
/// use std::sync::Arc;
/// use bpfarray::{Lane, rcu};
/// let object = Arc::new(());
/// let lane = Lane::enter();
/// rcu::call(Box::new(Arc::clone(&object)));
/// assert_eq!(Arc::strong_count(&object), 2);
/// drop(lane);
/// rcu::barrier()?;
/// assert_eq!(Arc::strong_count(&object), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Never waits for a lane. The object may be dropped by any thread, also by one that is in a lane.
///
/// # Kernel
/// `call_rcu`
#[doc(alias = "call_rcu")]
#[doc(alias = "kfree_rcu")]
pub fn call(object: Box<dyn Send>) {
    defer(object);
    poll();
}

/// As [`call`], for a caller that holds locks and polls later.
pub(crate) fn defer(object: Object) {
    RECLAIM.defer(object);
}

/// Drops what was handed over and is out of every lane's sight.
pub(crate) fn poll() {
    RECLAIM.poll(&LANES);
}

/// Waits until everything that was handed over has been dropped, also what that hands over in
/// turn.
///
/// Not for the `drop` of something that is itself being dropped here: it would wait for itself.
///
/// # Errors
/// [`InLane`] if this thread is in a lane.
///
/// # Kernel
/// `rcu_barrier`
#[doc(alias = "rcu_barrier")]
pub fn barrier() -> Result<(), InLane> {
    outside_lanes()?;
    RECLAIM.barrier(&LANES);
    Ok(())
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::lane::Lane;
    use std::sync::Arc;

    #[test]
    fn an_object_outlives_the_lanes_that_could_see_it_and_no_others() {
        let (lanes, reclaim) = (Lanes::new(2), Reclaim::new());
        let object = Arc::new(());
        lanes.claim(0);
        reclaim.defer(Box::new(Arc::clone(&object)));
        reclaim.poll(&lanes);
        lanes.claim(1);
        reclaim.poll(&lanes);
        assert_eq!(Arc::strong_count(&object), 2, "lane 0 could see it");
        lanes.release(0);
        reclaim.poll(&lanes);
        assert_eq!(Arc::strong_count(&object), 1, "lane 1 was entered later");
    }

    #[test]
    fn what_comes_during_a_grace_period_waits_for_the_next_one() {
        let (lanes, reclaim) = (Lanes::new(2), Reclaim::new());
        let (first, second) = (Arc::new(()), Arc::new(()));
        lanes.claim(0);
        reclaim.defer(Box::new(Arc::clone(&first)));
        reclaim.poll(&lanes);
        lanes.claim(1);
        reclaim.defer(Box::new(Arc::clone(&second)));
        lanes.release(0);
        reclaim.poll(&lanes);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 2));
        lanes.release(1);
        reclaim.poll(&lanes);
        assert_eq!(Arc::strong_count(&second), 1);
    }

    #[test]
    fn without_lanes_an_object_goes_at_once() {
        let (lanes, reclaim) = (Lanes::new(4), Reclaim::new());
        let object = Arc::new(());
        reclaim.defer(Box::new(Arc::clone(&object)));
        reclaim.poll(&lanes);
        assert_eq!(Arc::strong_count(&object), 1);
    }

    struct HandsOver(Option<Arc<()>>);

    impl Drop for HandsOver {
        fn drop(&mut self) {
            call(Box::new(self.0.take()));
        }
    }

    #[test]
    fn barrier_waits_for_what_dropped_objects_hand_over() {
        let object = Arc::new(());
        call(Box::new(HandsOver(Some(Arc::clone(&object)))));
        barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 1);
    }

    #[test]
    fn barrier_refuses_to_wait_for_its_own_lane() {
        let _lane = Lane::enter();
        assert_eq!(barrier(), Err(InLane));
    }

    #[test]
    fn nothing_is_leaked_by_threads_that_unlink_and_read() {
        let object = Arc::new(());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        drop(Lane::enter());
                        call(Box::new(Arc::clone(&object)));
                    }
                });
            }
        });
        barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 1);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct SetsOnDrop(Arc<AtomicU64>);

    impl Drop for SetsOnDrop {
        fn drop(&mut self) {
            self.0.store(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn loom_nothing_is_dropped_while_a_lane_can_see_it() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(2));
            let linked = Arc::new(AtomicU64::new(1));
            let dropped = Arc::new(AtomicU64::new(0));
            let reader = thread::spawn({
                let (lanes, linked, dropped) = (lanes.clone(), linked.clone(), dropped.clone());
                move || {
                    let lane = lanes.claim(1);
                    if linked.load(Ordering::Relaxed) == 1 {
                        assert_eq!(dropped.load(Ordering::Relaxed), 0, "dropped while in use");
                    }
                    lanes.release(lane);
                }
            });
            let reclaim = Reclaim::new();
            linked.store(0, Ordering::Relaxed);
            reclaim.defer(Box::new(SetsOnDrop(dropped.clone())));
            reclaim.poll(&lanes);
            reader.join().unwrap();
            reclaim.barrier(&lanes);
            assert_eq!(dropped.load(Ordering::Relaxed), 1, "leaked");
        });
    }

    #[test]
    fn loom_barrier_waits_for_what_another_thread_is_dropping() {
        loom::model(|| {
            let shared = Arc::new((Lanes::new(1), Reclaim::new()));
            let dropped = Arc::new(AtomicU64::new(0));
            shared.1.defer(Box::new(SetsOnDrop(dropped.clone())));
            let poller = thread::spawn({
                let shared = shared.clone();
                move || shared.1.poll(&shared.0)
            });
            shared.1.barrier(&shared.0);
            assert_eq!(dropped.load(Ordering::Relaxed), 1);
            poller.join().unwrap();
        });
    }
}
