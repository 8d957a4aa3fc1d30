//! Slots: where programs find the objects that a map holds.
//!
//! **Invariant.** The pointer in a slot is null or comes from [`Box::into_raw`], and no other slot
//! has it. Whoever swaps it out owns it, and either hands it to [`rcu`](crate::rcu), which drops it
//! when every lane that was claimed then has been left, or has the slots to itself. So a pointer
//! that was loaded in a lane is valid until that lane is left.
//!
//! A reader could break this by keeping a reference past its lane: [`Slots::get`] binds it to the
//! [`Lane`], which cannot leave its thread, and of which the last guard leaves the lane.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use bpfarray_core::Errno;

use crate::lane::Lane;
use crate::rcu;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// Places for objects of type `T`, each filled or empty. Reading takes no lock and counts no
/// references.
pub(crate) struct Slots<T: Send + Sync + 'static> {
    slots: Box<[AtomicPtr<T>]>,
    /// Number of slots that are filled. Emptying all of them ends when it finds none.
    filled: AtomicU64,
}

/// An object that no slot has any more.
struct Unlinked<T>(NonNull<T>);

// SAFETY: an `Unlinked` is the only owner of a `T`, and does nothing but drop it.
unsafe impl<T: Send> Send for Unlinked<T> {}

impl<T> Drop for Unlinked<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer was made by `Box::into_raw` and swapped out of its slot, which only
        // one thread can have done; and no lane can see it any more, says who drops this.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl<T: Send + Sync + 'static> Slots<T> {
    /// Empty slots. They use no memory before they are filled.
    pub(crate) fn new(len: u32) -> Result<Self, Errno> {
        let slots = Self::allocate(len).ok_or(Errno::ENOMEM)?;
        Ok(Self { slots, filled: AtomicU64::new(0) })
    }

    #[cfg(not(loom))]
    fn allocate(len: u32) -> Option<Box<[AtomicPtr<T>]>> {
        let layout = std::alloc::Layout::array::<AtomicPtr<T>>(len as usize).ok()?;
        if layout.size() == 0 {
            return Some(Box::default());
        }
        // SAFETY: the size is not zero.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?.cast();
        let slots = NonNull::slice_from_raw_parts(at, len as usize);
        // SAFETY: the memory is new, from the global allocator, and of the layout of such a slice;
        // bytes of zero are null pointers.
        Some(unsafe { Box::from_raw(slots.as_ptr()) })
    }

    #[cfg(loom)]
    fn allocate(len: u32) -> Option<Box<[AtomicPtr<T>]>> {
        Some((0..len).map(|_| AtomicPtr::new(ptr::null_mut())).collect())
    }

    /// What is in a slot; `None` also past the end.
    #[inline]
    pub(crate) fn get<'lane>(&'lane self, lane: &'lane Lane, index: u32) -> Option<&'lane T> {
        let _ = lane;
        let object = self.load(index)?;
        // SAFETY: by the invariant the object lives as long as any lane that was claimed when it
        // was in the slot, and as the slots; the lane is held, and the slots are borrowed, for
        // `'lane`. Nobody makes an exclusive reference before.
        Some(unsafe { object.as_ref() })
    }

    fn load(&self, index: u32) -> Option<NonNull<T>> {
        // Acquire: the object is seen as it was when it was put there.
        NonNull::new(self.slots.get(index as usize)?.load(Ordering::Acquire))
    }

    /// Puts an object into a slot or, with `None`, empties it; gives whether it was filled before.
    /// The old object is handed to [`rcu`], which the caller polls when it holds no locks.
    pub(crate) fn replace(&self, index: u32, object: Option<T>) -> Option<bool> {
        Some(match self.swap(index, object)? {
            Some(old) => {
                rcu::defer(Box::new(old));
                true
            }
            None => false,
        })
    }

    /// Empties the slots whose objects meet a condition, and hands these to [`rcu`].
    pub(crate) fn clear_where(&self, condition: impl Fn(&T) -> bool) {
        for index in 0..self.slots.len() as u32 {
            if self.filled.load(Ordering::Relaxed) == 0 {
                break;
            }
            // An empty slot needs no lane.
            if self.load(index).is_some() && self.get(&Lane::enter(), index).is_some_and(&condition)
            {
                self.replace(index, None);
            }
        }
    }

    /// `None` past the end.
    fn swap(&self, index: u32, object: Option<T>) -> Option<Option<Unlinked<T>>> {
        let slot = self.slots.get(index as usize)?;
        let fills = object.is_some();
        let new = object.map_or(ptr::null_mut(), |object| Box::into_raw(Box::new(object)));
        if fills {
            self.filled.fetch_add(1, Ordering::Relaxed);
        }
        // Release: readers see the object as it is now. Acquire: whoever drops the old one does so
        // after it was put there.
        let old = NonNull::new(slot.swap(new, Ordering::AcqRel)).map(Unlinked);
        if old.is_some() {
            self.filled.fetch_sub(1, Ordering::Relaxed);
        }
        Some(old)
    }
}

impl<T: Send + Sync + 'static> Drop for Slots<T> {
    fn drop(&mut self) {
        for index in 0..self.slots.len() as u32 {
            if self.filled.load(Ordering::Relaxed) == 0 {
                break;
            }
            // Dropped here and now: a reader would borrow the slots.
            self.swap(index, None);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn slots_are_empty_until_filled_and_end_where_they_end() {
        let slots = Slots::new(3).unwrap();
        let lane = Lane::enter();
        assert_eq!(slots.get(&lane, 0), None::<&u32>);
        assert_eq!(slots.replace(2, Some(7)), Some(false));
        assert_eq!(slots.replace(2, Some(8)), Some(true));
        assert_eq!((slots.get(&lane, 2), slots.get(&lane, 3)), (Some(&8), None));
        assert_eq!(slots.replace(3, Some(9)), None);
        assert_eq!(slots.replace(2, None), Some(true));
        assert_eq!(slots.replace(2, None), Some(false));
    }

    #[test]
    fn an_object_stays_readable_in_the_lane_that_found_it() {
        let slots = Slots::new(1).unwrap();
        let object = Arc::new(5);
        slots.replace(0, Some(Arc::clone(&object)));
        let lane = Lane::enter();
        let found = slots.get(&lane, 0).unwrap();
        slots.replace(0, None);
        rcu::poll();
        assert_eq!((**found, Arc::strong_count(&object)), (5, 2));
        drop(lane);
        rcu::barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 1);
    }

    #[test]
    fn nothing_is_leaked_by_replacing_clearing_and_dropping() {
        let object = Arc::new(());
        let slots = Slots::new(1000).unwrap();
        for _ in 0..2 {
            for index in [0, 7, 999] {
                slots.replace(index, Some(Arc::clone(&object)));
            }
        }
        rcu::barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 4);
        slots.clear_where(|_| true);
        rcu::barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 1);
        slots.replace(5, Some(Arc::clone(&object)));
        drop(slots);
        assert_eq!(Arc::strong_count(&object), 1);
    }

    #[test]
    fn empty_slots_cost_nothing() {
        let slots = Slots::<u8>::new(1 << 28).unwrap();
        assert_eq!(slots.get(&Lane::enter(), 1 << 27), None);
    }

    #[test]
    fn readers_never_see_a_dropped_object() {
        /// Shows by its value whether it was dropped.
        struct Canary(AtomicU64);
        impl Drop for Canary {
            fn drop(&mut self) {
                self.0.store(0xdead, Ordering::Relaxed);
            }
        }
        let slots = Slots::new(2).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let lane = Lane::enter();
                        for index in 0..2 {
                            if let Some(canary) = slots.get(&lane, index) {
                                let Canary(value) = canary;
                                assert_eq!(value.load(Ordering::Relaxed), 1);
                            }
                        }
                    }
                });
            }
            for round in 0..20_000 {
                let new = (round % 3 != 0).then(|| Canary(AtomicU64::new(1)));
                slots.replace(round % 2, new);
                rcu::poll();
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;
    use crate::lane::Lanes;
    use crate::rcu::Reclaim;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// Loom complains when a read and a write of the cell can meet.
    struct Tracked(UnsafeCell<u64>);

    // SAFETY: what the model is to show: nobody reads when it is written.
    unsafe impl Send for Tracked {}
    // SAFETY: as above.
    unsafe impl Sync for Tracked {}

    impl Drop for Tracked {
        fn drop(&mut self) {
            // SAFETY: as above, checked by loom.
            self.0.with_mut(|value| unsafe { *value = 0 });
        }
    }

    fn read(slots: &Slots<Tracked>, lanes: &Lanes) -> Option<u64> {
        let lane = lanes.claim(1);
        let value = slots.load(0).map(|object| {
            // SAFETY: the lane is claimed. Loom checks that nobody writes meanwhile.
            unsafe { object.as_ref().0.with(|value| *value) }
        });
        lanes.release(lane);
        value
    }

    #[test]
    fn loom_a_slot_is_replaced_while_a_reader_reads() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(2));
            let slots = Arc::new(Slots::new(1).unwrap());
            drop(slots.swap(0, Some(Tracked(UnsafeCell::new(1)))));
            let reader = thread::spawn({
                let (lanes, slots) = (lanes.clone(), slots.clone());
                move || assert!(matches!(read(&slots, &lanes), Some(1 | 2)))
            });
            let reclaim = Reclaim::new();
            if let Some(Some(old)) = slots.swap(0, Some(Tracked(UnsafeCell::new(2)))) {
                reclaim.defer(Box::new(old));
            }
            reclaim.poll(&lanes);
            reader.join().unwrap();
            reclaim.poll(&lanes);
        });
    }

    #[test]
    fn loom_two_writers_never_drop_the_same_object() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(1));
            let slots = Arc::new(Slots::new(1).unwrap());
            let write = |value, slots: &Slots<Tracked>, lanes: &Lanes| {
                let reclaim = Reclaim::new();
                if let Some(Some(old)) = slots.swap(0, Some(Tracked(UnsafeCell::new(value)))) {
                    reclaim.defer(Box::new(old));
                }
                reclaim.poll(lanes);
            };
            let other = thread::spawn({
                let (lanes, slots) = (lanes.clone(), slots.clone());
                move || write(1, &slots, &lanes)
            });
            write(2, &slots, &lanes);
            other.join().unwrap();
            assert_eq!(slots.filled.load(Ordering::Relaxed), 1);
        });
    }
}
