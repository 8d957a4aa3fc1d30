//! A running program: its memory, as instructions and helpers reach it.

use std::any::Any;
use std::mem::offset_of;
use std::sync::Arc;

use arrayvec::ArrayVec;
use bpfarray::{AtomicError, Lane, MapRef, Memory};

use super::fields::Held;
use super::stack::{MAX_FRAMES, Stack};
use super::{Environment, Executable, MAX_LOOPS};
use crate::context::Context;
use crate::fault::{AccessError, AccessReason, Fault, FaultKind, HelperError};
use crate::program::Program;
use crate::region::{Hit, Ranges};

/// What a function needs to have back when one that it called returns.
#[derive(Copy, Clone, Default)]
pub(super) struct Frame<'e> {
    /// The function's first instruction.
    pub(super) entry: usize,
    /// Where the caller goes on.
    pub(super) resume: usize,
    /// The caller's r6 to r9.
    pub(super) saved: [u64; 4],
    /// How often `may_goto` stays in its loop.
    pub(super) may_goto: u32,
    /// What the caller runs, if a tail call has put another program into this frame.
    pub(super) caller: Option<&'e Arc<Executable>>,
}

/// A program that is running, as the helpers see it that it calls.
///
/// Addresses that helpers get as arguments are just numbers. [`Machine::read`] and [`Machine::write`]
/// check that the program may touch what is there.
pub struct Machine<'e> {
    pub(crate) running: &'e Arc<Executable>,
    /// What the host runs.
    entered: &'e Arc<Executable>,
    context: &'e mut Context,
    lane: &'e Lane,
    pub(crate) stack: &'e mut Stack,
    /// The interpreter's; generated code has frames of its own.
    pub(super) frames: ArrayVec<Frame<'e>, MAX_FRAMES>,
    pub(crate) fuel: u64,
    /// What the per-CPU move adds.
    percpu_base: u64,
    /// Where the last reads were that generated code did not find by itself. Code of Cranelift looks there first.
    pub(crate) read_hit: Hit,
    /// The same for what may be read and written.
    pub(crate) write_hit: Hit,
    /// Why generated code ends the run.
    pub(crate) stopped: Option<Stopped>,
    /// Where among the regions the last access was.
    hint: usize,
    /// The memory of the inner map that was accessed last, where the last access there was.
    inner: Option<(Ranges, usize)>,
    /// Tail calls that were made.
    tail_calls: u32,
    pub(super) held: Held,
    /// How often the interpreter came to each instruction of what the host runs, where somebody wants to know.
    pub(super) counts: Option<&'e mut Vec<u64>>,
}

/// What ends a run in generated code, until that has returned.
pub(crate) enum Stopped {
    Fault(Box<Fault>),
    /// A panic of a host's helper, which must not unwind through generated code.
    Panic(Box<dyn Any + Send>),
}

/// Where in a [`Machine`] generated code finds what it reads and writes by itself.
pub(crate) mod place {
    use super::*;

    pub(crate) const FUEL: usize = offset_of!(Machine<'static>, fuel);
    pub(crate) const RUNNING: usize = offset_of!(Machine<'static>, running);
    pub(crate) const PERCPU_BASE: usize = offset_of!(Machine<'static>, percpu_base);
    /// The address of the stack of the run.
    pub(crate) const STACK: usize = offset_of!(Machine<'static>, stack);
    pub(crate) const READ_HIT: usize = offset_of!(Machine<'static>, read_hit);
    pub(crate) const WRITE_HIT: usize = offset_of!(Machine<'static>, write_hit);
    /// The address of the context of the run.
    pub(crate) const CONTEXT: usize = offset_of!(Machine<'static>, context);
}

impl<'e> Machine<'e> {
    #[inline(always)]
    pub(super) fn new(
        executable: &'e Arc<Executable>,
        context: &'e mut Context,
        lane: &'e Lane,
        stack: &'e mut Stack,
        counts: Option<&'e mut Vec<u64>>,
    ) -> Self {
        Self {
            running: executable,
            entered: executable,
            context,
            lane,
            stack,
            frames: ArrayVec::new_const(),
            fuel: executable.environment.fuel,
            percpu_base: executable.environment.regions.window(lane.cpu()),
            read_hit: Hit::NOWHERE,
            write_hit: Hit::NOWHERE,
            stopped: None,
            hint: 0,
            inner: None,
            tail_calls: 0,
            held: Held::default(),
            counts,
        }
    }

    /// Whether there is nothing in the machine that has to be let go or freed: it may be forgotten.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            stopped,
            inner,
            held,
            // The others borrow, or are numbers. Whoever adds a field has to say here what it is.
            running: _,
            entered: _,
            context: _,
            lane: _,
            stack: _,
            counts: _,
            frames: _,
            fuel: _,
            percpu_base: _,
            read_hit: _,
            write_hit: _,
            hint: _,
            tail_calls: _,
        } = self;
        stopped.is_none() && inner.is_none() && held.is_empty()
    }

    /// Counts that an instruction is executed.
    pub(super) fn count(&mut self, at: usize) {
        let is_entered = Arc::ptr_eq(self.running, self.entered);
        let counts = self.counts.as_mut().filter(|_| is_entered);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(at)) {
            *count += 1;
        }
    }

    /// Takes a frame of zeroes into use and gives its top, the new r10.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame<'e>) -> Result<u64, FaultKind> {
        self.frames.try_push(frame).map_err(|_| FaultKind::CallDepth)?;
        self.stack.push();
        Ok(self.stack.top())
    }

    /// Takes the last frame out of use.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Frame<'e>> {
        let frame = self.frames.pop()?;
        self.stack.pop();
        if let Some(caller) = frame.caller {
            self.run(caller);
        }
        Some(frame)
    }

    pub(crate) fn run(&mut self, program: &'e Arc<Executable>) {
        self.running = program;
        (self.hint, self.inner) = (0, None);
        (self.read_hit, self.write_hit) = (Hit::NOWHERE, Hit::NOWHERE);
    }

    /// The program that a tail call goes to, if it goes anywhere, which it then is sure to do. `known` is the map among
    /// those of the program, if that is known.
    #[inline]
    pub(crate) fn tail_call_target(
        &mut self,
        args: [u64; 5],
        known: Option<&'e MapRef>,
    ) -> Result<Option<&'e Arc<Executable>>, FaultKind> {
        let [ctx, map, index, ..] = args;
        self.held.check_unlocked("bpf_tail_call")?;
        let map = match known {
            Some(known) if known.addr() == map && ctx == self.context.buffer().ctx_addr() => known,
            _ => {
                let map = self.context(ctx).map(drop).and_then(|()| self.map(map));
                map.map_err(|error| FaultKind::helper(&"bpf_tail_call".into(), &args, error))?
            }
        };
        let target = map.tail_call(self.lane, index, self.tail_calls);
        let program = target.and_then(|program| program.downcast_ref::<Program>());
        // The owner of a PROG_ARRAY has programs of one engine only.
        let target = program
            .map(|program| program.executable_in_run(self.context))
            .filter(|target| target.engine() == self.running.engine());
        self.tail_calls += u32::from(target.is_some());
        Ok(target)
    }

    /// Puts the program of a tail call into the running function's frame, if there is one to go to.
    ///
    /// # Kernel
    /// `bpf_tail_call`
    pub(super) fn tail_call(&mut self, args: [u64; 5]) -> Result<bool, FaultKind> {
        let Some(program) = self.tail_call_target(args, None)? else { return Ok(false) };
        let caller = self.running;
        let Some(frame) = self.pop() else { return Ok(false) };
        // A frame that was taken over once still returns to the program it was made for.
        let caller = Some(frame.caller.unwrap_or(caller));
        self.run(program);
        let frame = Frame { entry: 0, may_goto: MAX_LOOPS, caller, ..frame };
        self.push(frame)?;
        Ok(true)
    }

    /// r10 of the running function.
    #[inline]
    pub(super) fn frame_top(&self) -> u64 {
        self.stack.top()
    }

    /// Takes `amount` from the fuel.
    #[inline]
    pub(super) fn burn(&mut self, amount: u64) -> Result<(), FaultKind> {
        self.fuel = self.fuel.checked_sub(amount).ok_or(FaultKind::OutOfFuel)?;
        Ok(())
    }

    /// First instruction of the running function.
    pub(super) fn entry(&self) -> usize {
        self.frames.last().map_or(0, |frame| frame.entry)
    }

    /// Name of the running program, if it is not the one that the host runs.
    pub(super) fn other_program(&self) -> Option<Arc<str>> {
        let other = !std::ptr::eq(self.running, self.entered);
        other.then(|| Arc::clone(&self.environment().name))
    }

    /// What the running program runs with.
    #[inline]
    pub(super) fn environment(&self) -> &'e Environment {
        &self.running.environment
    }

    /// What the per-CPU move adds.
    pub(super) fn percpu_base(&self) -> u64 {
        self.percpu_base
    }

    #[inline(always)]
    pub(crate) fn load<const SIZE: usize>(&mut self, addr: u64) -> Result<u64, AccessError> {
        match self.stack.load::<SIZE>(addr) {
            Some(number) => Ok(number),
            None => self.load_elsewhere::<SIZE>(addr),
        }
    }

    #[inline]
    fn load_elsewhere<const SIZE: usize>(&mut self, addr: u64) -> Result<u64, AccessError> {
        let loaded = match self.context.buffer().load(addr, SIZE) {
            Some(loaded) => loaded,
            None => self
                .locate(addr, SIZE, false)
                .and_then(|(memory, at)| memory.load(at, SIZE).map_err(|_| AccessReason::Nowhere)),
        };
        if let Err(AccessReason::Field(_)) = loaded
            && SIZE == 8
            && let Some(handle) =
                self.map_with_fields(addr).and_then(|map| map.prog_load_kptr(addr))
        {
            return Ok(handle);
        }
        loaded.map_err(|reason| denied(addr, SIZE, false, reason))
    }

    #[inline(always)]
    pub(crate) fn store<const SIZE: usize>(
        &mut self,
        addr: u64,
        number: u64,
    ) -> Result<(), AccessError> {
        match self.stack.store::<SIZE>(addr, number) {
            Some(()) => Ok(()),
            None => self.store_elsewhere::<SIZE>(addr, number),
        }
    }

    #[inline]
    fn store_elsewhere<const SIZE: usize>(
        &mut self,
        addr: u64,
        number: u64,
    ) -> Result<(), AccessError> {
        self.locate(addr, SIZE, true)
            .and_then(|(memory, at)| {
                memory.store(at, SIZE, number).map_err(|_| AccessReason::Nowhere)
            })
            .map_err(|reason| denied(addr, SIZE, true, reason))
    }

    /// Runs an operation on memory that the program may read, or write.
    pub(super) fn access<T>(
        &mut self,
        addr: u64,
        size: usize,
        write: bool,
        operation: impl FnOnce(&Memory, usize) -> Result<T, AtomicError>,
    ) -> Result<T, AccessError> {
        self.locate(addr, size, write)
            .and_then(|(memory, at)| operation(memory, at).map_err(|_| AccessReason::Misaligned))
            .map_err(|reason| denied(addr, size, write, reason))
    }

    /// The memory and the offset in it of an access.
    #[inline]
    fn locate(
        &mut self,
        addr: u64,
        size: usize,
        write: bool,
    ) -> Result<(&Memory, usize), AccessReason> {
        if let Some(located) = self.stack.locate(addr, size, write) {
            return located;
        }
        if let Some(located) = self.context.buffer().locate(addr, size, write) {
            return located.map(|at| (self.context.buffer().memory(), at));
        }
        let regions = &self.running.environment.regions;
        match regions.ranges().locate(addr, size, write, &mut self.hint) {
            Err(AccessReason::Nowhere) => {}
            located => return located,
        }
        // An inner map is likely to be the one of the last access.
        if !self.inner.as_ref().is_some_and(|(ranges, _)| ranges.contains(addr)) {
            self.inner = regions.inner_ranges(self.lane, addr).map(|ranges| (ranges, 0));
        }
        let (ranges, hint) = self.inner.as_mut().ok_or(AccessReason::Nowhere)?;
        ranges.locate(addr, size, write, hint)
    }

    /// Checks an atomic operation as [`Machine::access`] and the operation itself do.
    pub(crate) fn check_atomic(
        &mut self,
        addr: u64,
        size: usize,
        reads: bool,
        writes: bool,
    ) -> Result<(), AccessError> {
        if reads {
            self.access(addr, size, false, |_, _| Ok(()))?;
        }
        if writes {
            self.access(addr, size, true, |_, _| Ok(()))?;
        }
        match addr.is_multiple_of(size as u64) {
            true => Ok(()),
            false => Err(denied(addr, size, writes, AccessReason::Misaligned)),
        }
    }

    /// Keeps where an access was, for generated code to find the next one there by itself.
    pub(crate) fn remember(&mut self, addr: u64, write: bool) {
        let ranges = self.running.environment.regions.ranges();
        let inner = || self.inner.as_ref().and_then(|(ranges, _)| ranges.hit(addr, write));
        let Some(hit) = ranges.hit(addr, write).or_else(inner) else { return };
        if write {
            self.write_hit = hit;
        } else {
            self.read_hit = hit;
        }
    }

    /// Reads bytes of the program's memory.
    ///
    /// # Errors
    /// [`HelperError::Access`] if the program may not read them; [`HelperError::OutOfFuel`].
    pub fn read(&mut self, addr: u64, bytes: &mut [u8]) -> Result<(), HelperError> {
        let size = bytes.len();
        self.locate(addr, size, false)
            .and_then(|(memory, at)| memory.read(at, bytes).map_err(|_| AccessReason::Nowhere))
            .map_err(|reason| denied(addr, size, false, reason))?;
        self.charge(size)
    }

    /// As [`Machine::read`], into memory of its own, which is made only if the program may read all of it.
    ///
    /// # Errors
    /// As [`Machine::read`].
    pub fn read_vec(&mut self, addr: u64, size: u64) -> Result<Vec<u8>, HelperError> {
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        self.locate(addr, len, false)
            .map(drop)
            .map_err(|reason| denied(addr, len, false, reason))?;
        let mut bytes = vec![0; len];
        self.read(addr, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a string up to, and without, its NUL; at most `max` bytes.
    ///
    /// # Errors
    /// [`HelperError::Access`] if the memory ends before the string; [`HelperError::OutOfFuel`].
    pub fn read_str(&mut self, addr: u64, max: usize) -> Result<Vec<u8>, HelperError> {
        let mut string = Vec::new();
        while string.len() < max {
            if string.len() % 8 == 7 {
                self.charge(8)?;
            }
            let mut byte = [0];
            self.read(addr.wrapping_add(string.len() as u64), &mut byte)?;
            match byte {
                [0] => break,
                [byte] => string.push(byte),
            }
        }
        Ok(string)
    }

    /// Writes bytes to the program's memory.
    ///
    /// # Errors
    /// [`HelperError::Access`] if the program may not write there; [`HelperError::OutOfFuel`].
    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<(), HelperError> {
        self.locate(addr, bytes.len(), true)
            .and_then(|(memory, at)| memory.write(at, bytes).map_err(|_| AccessReason::Nowhere))
            .map_err(|reason| denied(addr, bytes.len(), true, reason))?;
        self.charge(bytes.len())
    }

    /// Writes zeroes to the program's memory.
    ///
    /// # Errors
    /// As [`Machine::write`].
    pub fn clear(&mut self, addr: u64, size: u64) -> Result<(), HelperError> {
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        self.locate(addr, len, true)
            .and_then(|(memory, at)| memory.fill(at, len, 0).map_err(|_| AccessReason::Nowhere))
            .map_err(|reason| denied(addr, len, true, reason))?;
        self.charge(len)
    }

    /// Moving memory takes time like instructions do.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), HelperError> {
        self.burn(bytes as u64 / 8).map_err(|_| HelperError::OutOfFuel)
    }

    /// The map an argument names.
    ///
    /// # Errors
    /// [`HelperError::NotAMap`] if it is not the address of one of the program's maps.
    pub fn map(&self, addr: u64) -> Result<&'e MapRef, HelperError> {
        self.running.environment.regions.map(self.lane, addr).ok_or(HelperError::NotAMap(addr))
    }

    /// The map in whose values an address is, if they have special fields.
    pub(super) fn map_with_fields(&self, addr: u64) -> Option<&'e MapRef> {
        self.running.environment.regions.map_with_fields(self.lane, addr)
    }

    /// The lane the program runs in.
    pub fn lane(&self) -> &'e Lane {
        self.lane
    }

    /// Writes text where [`HelperSet::set_trace`](crate::helper::HelperSet::set_trace) wants it.
    pub fn trace(&self, text: &str) {
        self.running.environment.helpers.trace(text);
    }

    /// Checks that an argument is the context, and gives it.
    pub(crate) fn context(&mut self, addr: u64) -> Result<&mut Context, HelperError> {
        if addr != self.context.buffer().ctx_addr() {
            return Err(HelperError::NotTheContext(addr));
        }
        Ok(self.context)
    }

    /// The context of the run, for helpers that are not handed it.
    pub(crate) fn current_context(&mut self) -> &mut Context {
        self.context
    }

    /// Calls a function of the program, whose address a helper got as an argument. Gives its r0.
    ///
    /// # Errors
    /// [`HelperError::NotAFunction`]; [`HelperError::Callback`] when the function faults, which a helper
    /// hands on.
    pub fn call(&mut self, function: u64, args: [u64; 5]) -> Result<u64, HelperError> {
        let entry =
            self.running.code.function(function).ok_or(HelperError::NotAFunction(function))?;
        self.enter(entry, args).map_err(HelperError::Callback)
    }

    /// Runs the program from its beginning, and gives its r0.
    #[inline(always)]
    pub(super) fn start(&mut self) -> Result<u64, Box<Fault>> {
        self.enter(0, [self.context.buffer().ctx_addr(), 0, 0, 0, 0])
    }

    /// Runs a function of the running program until it returns, and gives its r0.
    #[inline(always)]
    fn enter(&mut self, entry: usize, args: [u64; 5]) -> Result<u64, Box<Fault>> {
        match &self.running.compiled {
            Some(compiled) => compiled.call(self, entry, args),
            // Of a copy that only this branch makes, so that the other one needs none in memory.
            None => self.interpret(entry, &{ args }),
        }
    }

    /// As [`Machine::enter`], in the interpreter.
    #[inline(never)]
    fn interpret(&mut self, entry: usize, args: &[u64; 5]) -> Result<u64, Box<Fault>> {
        let depth = self.frames.len();
        self.exec(entry, *args).inspect_err(|_| {
            while self.frames.len() > depth {
                self.pop();
            }
        })
    }

    /// Runs `with` while 4 bytes of the program's memory, at the address it gets, hold `number`.
    pub(crate) fn lend<T>(
        &mut self,
        number: u32,
        with: impl FnOnce(&mut Self, u64) -> Result<T, HelperError>,
    ) -> Result<T, HelperError> {
        let addr = self.stack.lend(number);
        let result = with(self, addr);
        self.stack.take_loan();
        result
    }
}

#[cold]
fn denied(addr: u64, size: usize, write: bool, reason: AccessReason) -> AccessError {
    AccessError { addr, size: size as u64, write, reason }.or_null()
}
