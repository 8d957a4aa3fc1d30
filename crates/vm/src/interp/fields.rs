//! What a running program holds of special fields: a lock, objects of the host, timers' callbacks.

use std::sync::Arc;

use bpfarray::btf::{FieldMask, SpecialField};
use bpfarray::{ElementLock, Kptr, Lane, MapRef, TimerCallback};
use bpfarray_core::helper_id;

use super::machine::Machine;
use super::{Executable, call_back, waiting};
use crate::fault::{FaultKind, HelperError};

/// What a run holds. All of it is let go when the run ends, however it ends.
#[derive(Default)]
pub(super) struct Held {
    lock: Option<ElementLock>,
    /// Objects that the program took out of values and did not put back yet.
    kptrs: Vec<Kptr>,
}

impl Held {
    /// Whether there is nothing to let go, nor memory to free.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { lock, kptrs } = self;
        lock.is_none() && kptrs.capacity() == 0
    }

    /// Checks that no lock is held, for what must not happen under one.
    #[inline]
    pub(super) fn check_unlocked(&self, what: &str) -> Result<(), FaultKind> {
        match &self.lock {
            None => Ok(()),
            Some(_) => Err(FaultKind::Locked(what.into())),
        }
    }
}

impl<'e> Machine<'e> {
    /// The field at an address, if it is of the wanted kind, and the map it is in.
    pub(crate) fn field(
        &self,
        addr: u64,
        wanted: FieldMask,
        name: &'static str,
    ) -> Result<(&'e MapRef, u32), HelperError> {
        let found = self.map_with_fields(addr).and_then(|map| {
            let is_wanted = |field: &SpecialField| wanted.contains(field.kind.mask());
            let at = map.field_at(addr).filter(|at| is_wanted(at.field))?;
            Some((map, at.index))
        });
        found.ok_or(HelperError::NoField { addr, name })
    }

    /// Takes a lock. Waiting for who holds it costs fuel.
    ///
    /// # Kernel
    /// `bpf_spin_lock`
    pub(crate) fn spin_lock(&mut self, addr: u64) -> Result<(), HelperError> {
        let (map, index) = self.field(addr, FieldMask::SPIN_LOCK, "bpf_spin_lock")?;
        if self.held.lock.is_some() {
            return Err(HelperError::SecondLock);
        }
        let mut round = 0;
        loop {
            if let Some(lock) = map.try_lock(index) {
                self.held.lock = Some(lock);
                return Ok(());
            }
            self.burn(waiting(round)).map_err(|_| HelperError::OutOfFuel)?;
            round += 1;
        }
    }

    /// Releases the lock that is held, which must be this one.
    ///
    /// # Kernel
    /// `bpf_spin_unlock`
    pub(crate) fn spin_unlock(&mut self, addr: u64) -> Result<(), HelperError> {
        match self.held.lock.take_if(|lock| lock.addr() == addr) {
            Some(lock) => {
                drop(lock);
                Ok(())
            }
            None => Err(HelperError::NotLocked(addr)),
        }
    }

    /// Puts an object into a kptr, or nothing, and takes out what was there: it is the program's own now.
    ///
    /// # Kernel
    /// `bpf_kptr_xchg`
    pub(crate) fn kptr_xchg(&mut self, addr: u64, new: u64) -> Result<u64, HelperError> {
        let (map, _) = self.field(addr, FieldMask::KPTR, "kptr")?;
        let new = match new {
            0 => None,
            handle => {
                let owned = self.held.kptrs.iter().position(|kptr| kptr.handle() == handle);
                Some(self.held.kptrs.swap_remove(owned.ok_or(HelperError::NotOwned(handle))?))
            }
        };
        let old = map.prog_swap_kptr(addr, new);
        let old = old.map_err(|_| HelperError::NoField { addr, name: "kptr" })?;
        let handle = old.as_ref().map_or(0, Kptr::handle);
        self.held.kptrs.extend(old);
        Ok(handle)
    }

    /// What the timer of a map calls back: a function of the running program, which stays alive for that.
    pub(crate) fn timer_callback(
        &self,
        function: u64,
        map: &MapRef,
    ) -> Result<Arc<dyn TimerCallback>, HelperError> {
        let running = self.running;
        running.code.function(function).ok_or(HelperError::NotAFunction(function))?;
        let is_own = running.environment.regions.maps().iter().any(|own| own.addr() == map.addr());
        // An inner map may have left its slot when the timer calls.
        let executable = match is_own {
            true => Arc::clone(running),
            false => Arc::new(running.with_map(map.clone())),
        };
        Ok(Arc::new(Callback { executable, function }))
    }

    /// Checks that a helper may be called: under a lock, only the one that unlocks.
    #[inline]
    pub(crate) fn check_helper(&self, id: u32, name: &str) -> Result<(), FaultKind> {
        match id {
            helper_id::SPIN_LOCK | helper_id::SPIN_UNLOCK => Ok(()),
            _ => self.held.check_unlocked(name),
        }
    }

    /// Whether a lock is held, with which no function may return.
    #[inline(always)]
    pub(crate) fn is_locked(&self) -> bool {
        self.held.lock.is_some()
    }
}

/// A function of a program, which is kept for it.
struct Callback {
    executable: Arc<Executable>,
    function: u64,
}

impl TimerCallback for Callback {
    fn call(&self, lane: &Lane, map: &MapRef, index: u32, value: u64) {
        // There is nobody to hand a fault to.
        let called = call_back(&self.executable, lane, self.function, map, index, value);
        if let Err(fault) = called {
            let environment = &self.executable.environment;
            let text = format!("program '{}', timer: {fault}\n", environment.name);
            environment.helpers.trace(&text);
        }
    }
}
