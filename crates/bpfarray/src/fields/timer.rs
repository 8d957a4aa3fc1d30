//! `bpf_timer`: what the elements of a map have armed, and the thread that calls back.
//!
//! A timer is in a table by the index of its element. The first start of any timer begins a thread that
//! sleeps until the next one is due, enters a lane, and calls the callback. Callbacks run one after the other.
//!
//! Locks nest in this order: the table of a map, a timer, the queue. None is held while a callback runs, or while
//! anything is waited for.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bpfarray_core::Errno;
use bpfarray_core::btf::FieldMask;
use rustix::time::{ClockId, clock_gettime};

use crate::lane::Lane;
use crate::map::{Inner, MapRef};
use crate::sync::Backoff;

/// The deadline is a time of the clock, and not one from now on.
const TIMER_ABS: u64 = 1;
/// The callback runs on the CPU that the timer was started on.
const TIMER_CPU_PIN: u64 = 2;

/// What a timer calls: a function of a program, which it keeps alive.
pub trait TimerCallback: Send + Sync {
    /// Calls the function with the map, the element's index and the address of its value.
    fn call(&self, lane: &Lane, map: &MapRef, index: u32, value: u64);
}

/// Why a timer does not do what it is told. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TimerError {
    /// There is no timer at this address; verified programs don't try.
    #[error("there is no bpf_timer here")]
    NoTimer,
    /// Flags that mean nothing, or a clock that timers do not have.
    #[error("flags {0:#x} are not valid for a timer")]
    Flags(u64),
    /// It is initialised already.
    #[error("the timer is initialised already")]
    Busy,
    /// It is not initialised, or has no callback.
    #[error("the timer is not initialised, or has no callback")]
    NotInitialised,
    /// No handle keeps the map, so that nobody could stop the timer.
    #[error("the map has no user")]
    NoUser,
    /// A callback that cancels its own timer would wait for itself.
    #[error("a callback cannot cancel its own timer")]
    Deadlock,
    /// There is no thread for callbacks.
    #[error("no thread for callbacks can be had")]
    NoThread,
}

impl TimerError {
    /// The error number, negated the helper's return value.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoTimer | Self::Flags(_) | Self::NotInitialised => Errno::EINVAL,
            Self::Busy => Errno::EBUSY,
            Self::NoUser => Errno::EPERM,
            Self::Deadlock => Errno::from_raw(libc::EDEADLK),
            Self::NoThread => Errno::ENOMEM,
        }
    }
}

/// When a timer is to call back.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TimerStart {
    /// Nanoseconds from now on; with `BPF_F_TIMER_ABS` (1) a time of the timer's clock.
    pub nsecs: u64,
    /// `BPF_F_TIMER_ABS` (1) and `BPF_F_TIMER_CPU_PIN` (2).
    pub flags: u64,
}

/// The timers of a map's elements.
#[derive(Default)]
pub(crate) struct Timers(Mutex<HashMap<u32, Arc<Timer>>>);

/// Where a timer stands in the queue: nanoseconds of the monotonic clock, and a number.
type Place = (u64, u64);

struct Timer {
    map: Weak<Inner>,
    index: u32,
    clock: ClockId,
    state: Mutex<State>,
    /// Numbers of calls that began and that ended; equal while none runs.
    begun: AtomicU64,
    ended: AtomicU64,
}

#[derive(Default)]
struct State {
    callback: Option<Arc<dyn TimerCallback>>,
    armed: Option<Place>,
    pinned: Option<u32>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000) + time.tv_nsec.cast_unsigned()
}

thread_local! {
    /// The timer whose callback this thread runs.
    static RUNNING: RefCell<Option<Arc<Timer>>> = const { RefCell::new(None) };
}

impl Timer {
    /// Takes it out of the queue; whether it was there.
    fn disarm(state: &mut State) -> bool {
        let Some(place) = state.armed.take() else { return false };
        locked(&QUEUE.entries).remove(&place);
        true
    }

    /// It will not begin another call.
    fn stop(&self) -> bool {
        let mut state = locked(&self.state);
        let was_armed = Self::disarm(&mut state);
        let callback = state.callback.take();
        drop(state);
        // It may be the last that holds its program and, with it, this map.
        drop(callback);
        was_armed
    }

    /// Calls back, if it is still armed for this place.
    fn expire(self: Arc<Self>, place: Place) {
        let pinned = locked(&self.state).pinned;
        // First of all: who cancels the timer in the last free lane must find it not begun.
        let lane = pinned.map_or_else(Lane::enter, Lane::enter_on);
        let mut state = locked(&self.state);
        if state.armed != Some(place) {
            return;
        }
        state.armed = None;
        let callback = state.callback.clone();
        self.begun.fetch_add(1, Ordering::AcqRel);
        drop(state);
        if let (Some(callback), Some(inner)) = (callback, self.map.upgrade()) {
            let map = MapRef { inner };
            RUNNING.set(Some(Arc::clone(&self)));
            let call = || callback.call(&lane, &map, self.index, map.value_addr(self.index));
            // A helper of the host that panics must not take the other timers with it; the message is out.
            let _ = catch_unwind(AssertUnwindSafe(call));
            RUNNING.set(None);
        }
        drop(lane);
        self.ended.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns when a call that has begun has ended.
    fn wait(&self) {
        let begun = self.begun.load(Ordering::Acquire);
        let mut backoff = Backoff::default();
        while self.ended.load(Ordering::Acquire) < begun {
            backoff.sleep();
        }
    }
}

impl Timers {
    fn get(&self, index: u32) -> Option<Arc<Timer>> {
        locked(&self.0).get(&index).cloned()
    }

    /// An element is overwritten: its timer is as before `bpf_timer_init`.
    ///
    /// # Kernel
    /// `bpf_timer_cancel_and_free`
    pub(super) fn free(&self, index: u32) {
        let timer = locked(&self.0).remove(&index);
        if let Some(timer) = timer {
            timer.stop();
        }
    }

    pub(super) fn free_all(&self) {
        let timers = std::mem::take(&mut *locked(&self.0));
        for timer in timers.values() {
            timer.stop();
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.free_all();
    }
}

impl MapRef {
    /// The element whose timer is at this address.
    fn timer_index(&self, addr: u64) -> Result<u32, TimerError> {
        let at = self.field_at(addr).filter(|at| at.field.kind.mask() == FieldMask::TIMER);
        at.map(|at| at.index).ok_or(TimerError::NoTimer)
    }

    fn timer(&self, addr: u64) -> Result<Arc<Timer>, TimerError> {
        let index = self.timer_index(addr)?;
        self.inner.timers.get(index).ok_or(TimerError::NotInitialised)
    }

    /// Initialises the `bpf_timer` at an address: `clock` is `CLOCK_REALTIME` (0), `CLOCK_MONOTONIC` (1) or
    /// `CLOCK_BOOTTIME` (7).
    ///
    /// # Errors
    /// [`TimerError::NoTimer`], [`TimerError::Flags`], [`TimerError::Busy`], [`TimerError::NoUser`].
    ///
    /// # Kernel
    /// `bpf_timer_init`
    #[doc(alias = "bpf_timer_init")]
    pub fn timer_init(&self, addr: u64, clock: u64) -> Result<(), TimerError> {
        let index = self.timer_index(addr)?;
        let clock = match clock {
            0 => ClockId::Realtime,
            1 => ClockId::Monotonic,
            7 => ClockId::Boottime,
            flags => return Err(TimerError::Flags(flags)),
        };
        let mut timers = locked(&self.inner.timers.0);
        if timers.contains_key(&index) {
            return Err(TimerError::Busy);
        }
        // Under the lock: the last user empties the table after it has gone.
        if self.is_without_handles() {
            return Err(TimerError::NoUser);
        }
        let (map, state) = (Arc::downgrade(&self.inner), Mutex::default());
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        timers.insert(index, Arc::new(Timer { map, index, clock, state, begun, ended }));
        Ok(())
    }

    /// Says what the `bpf_timer` at an address calls.
    ///
    /// # Errors
    /// [`TimerError::NoTimer`], [`TimerError::NotInitialised`], [`TimerError::NoUser`].
    ///
    /// # Kernel
    /// `bpf_timer_set_callback`
    #[doc(alias = "bpf_timer_set_callback")]
    pub fn timer_set_callback(
        &self,
        addr: u64,
        callback: Arc<dyn TimerCallback>,
    ) -> Result<(), TimerError> {
        let index = self.timer_index(addr)?;
        let timers = locked(&self.inner.timers.0);
        let timer = timers.get(&index).cloned().ok_or(TimerError::NotInitialised)?;
        if self.is_without_handles() {
            return Err(TimerError::NoUser);
        }
        let old = locked(&timer.state).callback.replace(callback);
        drop(timers);
        // It may be the last that holds its program.
        drop(old);
        Ok(())
    }

    /// Arms the `bpf_timer` at an address, anew if it is armed.
    ///
    /// # Errors
    /// [`TimerError::NoTimer`], [`TimerError::Flags`], [`TimerError::NotInitialised`], [`TimerError::NoThread`].
    ///
    /// # Concurrency
    /// Callbacks of all timers of the process run one after the other, on a thread of their own, each in a lane. What
    /// a jump of the clock does to a deadline that is set already is not followed.
    ///
    /// # Kernel
    /// `bpf_timer_start`
    #[doc(alias = "bpf_timer_start")]
    pub fn timer_start(&self, lane: &Lane, addr: u64, start: TimerStart) -> Result<(), TimerError> {
        let TimerStart { nsecs, flags } = start;
        let index = self.timer_index(addr)?;
        if flags & !(TIMER_ABS | TIMER_CPU_PIN) != 0 {
            return Err(TimerError::Flags(flags));
        }
        let timer = self.inner.timers.get(index).ok_or(TimerError::NotInitialised)?;
        let mut state = locked(&timer.state);
        if state.callback.is_none() {
            return Err(TimerError::NotInitialised);
        }
        QUEUE.begin()?;
        let delay =
            if flags & TIMER_ABS != 0 { nsecs.saturating_sub(now(timer.clock)) } else { nsecs };
        Timer::disarm(&mut state);
        let place = (now(ClockId::Monotonic).saturating_add(delay), QUEUE.number());
        state.armed = Some(place);
        state.pinned = (flags & TIMER_CPU_PIN != 0).then(|| lane.cpu());
        QUEUE.push(place, &timer);
        Ok(())
    }

    /// Disarms the `bpf_timer` at an address and makes it forget its callback; waits for a call that has begun. Gives
    /// whether it was armed.
    ///
    /// # Errors
    /// [`TimerError::NoTimer`], [`TimerError::NotInitialised`], [`TimerError::Deadlock`].
    ///
    /// # Kernel
    /// `bpf_timer_cancel`
    #[doc(alias = "bpf_timer_cancel")]
    pub fn timer_cancel(&self, addr: u64) -> Result<bool, TimerError> {
        let timer = self.timer(addr)?;
        let running = RUNNING.with_borrow(Clone::clone);
        if running.is_some_and(|running| Arc::ptr_eq(&running, &timer)) {
            return Err(TimerError::Deadlock);
        }
        let was_armed = timer.stop();
        timer.wait();
        Ok(was_armed)
    }
}

/// All armed timers of the process, by when they are due.
struct Queue {
    entries: Mutex<BTreeMap<Place, Arc<Timer>>>,
    changed: Condvar,
    numbers: AtomicU64,
    thread: OnceLock<()>,
}

static QUEUE: Queue = Queue {
    entries: Mutex::new(BTreeMap::new()),
    changed: Condvar::new(),
    numbers: AtomicU64::new(0),
    thread: OnceLock::new(),
};

impl Queue {
    /// Begins the thread, once.
    fn begin(&'static self) -> Result<(), TimerError> {
        static BEGINNING: Mutex<()> = Mutex::new(());
        if self.thread.get().is_some() {
            return Ok(());
        }
        let _beginning = locked(&BEGINNING);
        if self.thread.get().is_none() {
            let thread = std::thread::Builder::new().name("bpf-timers".into());
            thread.spawn(|| self.serve()).map_err(|_| TimerError::NoThread)?;
            let _ = self.thread.set(());
        }
        Ok(())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn push(&self, place: Place, timer: &Arc<Timer>) {
        let mut entries = locked(&self.entries);
        entries.insert(place, Arc::clone(timer));
        if entries.first_key_value().is_some_and(|(first, _)| *first == place) {
            self.changed.notify_one();
        }
    }

    fn serve(&self) {
        let mut entries = locked(&self.entries);
        loop {
            let Some((place, _)) = entries.first_key_value() else {
                entries = self.changed.wait(entries).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = place.0.saturating_sub(now(ClockId::Monotonic));
            if left != 0 {
                let waited = self.changed.wait_timeout(entries, Duration::from_nanos(left));
                (entries, _) = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let due = entries.pop_first();
            drop(entries);
            if let Some((place, timer)) = due {
                timer.expire(place);
            }
            entries = locked(&self.entries);
        }
    }
}
