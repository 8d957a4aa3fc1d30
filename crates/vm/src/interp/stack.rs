//! A program's stack, which is kept from run to run.

use std::cell::RefCell;
use std::mem::offset_of;
use std::ops::Range;

use bpfarray::Memory;
use bpfarray_core::Errno;

use crate::fault::AccessReason;

/// Bytes of a function's stack frame.
///
/// # Kernel
/// `MAX_BPF_STACK`
pub(crate) const FRAME_SIZE: usize = 512;
/// Frames of functions that called each other, the program's own included.
///
/// # Kernel
/// `MAX_CALL_FRAMES`
pub(crate) const MAX_FRAMES: usize = 8;
/// Bytes of all frames. The first function's is the topmost.
pub(crate) const STACK_SIZE: usize = FRAME_SIZE * MAX_FRAMES;
/// Where the memory that helpers lend to functions they call back begins: at some distance, so that no
/// frame runs into it.
const LOANS: usize = 2 * STACK_SIZE;
/// Bytes from one loan to the next.
const LOAN_SIZE: usize = 8;

thread_local! {
    /// Stacks of contexts that are no more.
    #[expect(clippy::vec_box, reason = "moving one in and out is what contexts do")]
    static POOL: RefCell<Vec<Box<Stack>>> = const { RefCell::new(Vec::new()) };
}

/// The stack of runs with one context, of which there is one at a time. There is none before the first, nor during a run.
#[derive(Default, Debug)]
pub(crate) struct KeptStack(Option<Box<Stack>>);

impl KeptStack {
    /// A stack without frames.
    ///
    /// # Errors
    /// `ENOMEM`
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Result<Box<Stack>, Errno> {
        #[cold]
        fn first() -> Result<Box<Stack>, Errno> {
            POOL.with_borrow_mut(Vec::pop).map_or_else(Stack::new, Ok)
        }
        self.0.take().map_or_else(first, Ok)
    }

    /// Keeps the stack for the next run, which finds nothing in it.
    #[inline]
    pub(crate) fn put_back(&mut self, mut stack: Box<Stack>) {
        stack.reset();
        self.0 = Some(stack);
    }
}

impl Drop for KeptStack {
    fn drop(&mut self) {
        if let Some(stack) = self.0.take() {
            // A thread that ends may have no pool any more.
            let _ = POOL.try_with(|pool| pool.borrow_mut().push(stack));
        }
    }
}

/// The stack of one run.
#[derive(Debug)]
pub(crate) struct Stack {
    memory: Memory,
    /// Its address.
    base: u64,
    /// Where the frames in use begin. They end with [`STACK_SIZE`].
    low: usize,
    /// Below this, all bytes of frames are zero. In a stack that no run uses all are.
    dirty: usize,
    loans: usize,
}

impl Stack {
    pub(crate) const BASE: usize = offset_of!(Self, base);
    pub(crate) const LOW: usize = offset_of!(Self, low);
    pub(crate) const DIRTY: usize = offset_of!(Self, dirty);

    fn new() -> Result<Box<Self>, Errno> {
        let memory = Memory::anonymous(LOANS + MAX_FRAMES * LOAN_SIZE)?;
        let base = memory.addr();
        Ok(Box::new(Self { memory, base, low: STACK_SIZE, dirty: STACK_SIZE, loans: 0 }))
    }

    /// Takes all frames out of use, and leaves only zeroes there.
    #[inline]
    fn reset(&mut self) {
        self.low = STACK_SIZE;
        if self.dirty < STACK_SIZE {
            // Inside the memory, whose frames end with `STACK_SIZE`.
            let _ = self.memory.fill(self.dirty, STACK_SIZE - self.dirty, 0);
            self.dirty = STACK_SIZE;
        }
        self.loans = 0;
    }

    /// Takes a frame of zeroes into use. There must be one left.
    #[inline]
    pub(crate) fn push(&mut self) {
        self.low -= FRAME_SIZE;
        self.clean();
    }

    /// Makes the last frame all zeroes.
    #[inline]
    pub(crate) fn clean(&mut self) {
        let top = self.low + FRAME_SIZE;
        if self.dirty < top {
            let from = self.dirty.max(self.low);
            // Inside the memory, whose frames end with `STACK_SIZE`.
            let _ = self.memory.fill(from, top - from, 0);
        }
        if self.dirty >= self.low {
            self.dirty = top;
        }
    }

    /// Takes the last frame out of use.
    #[inline]
    pub(crate) fn pop(&mut self) {
        self.low += FRAME_SIZE;
    }

    /// Takes a frame into use that its function will clean; `None` if there is none left.
    pub(crate) fn reserve(&mut self) -> Option<()> {
        self.low = self.low.checked_sub(FRAME_SIZE)?;
        Some(())
    }

    /// How much of the stack is not in use, to go back to with [`Stack::unwind`].
    pub(crate) fn mark(&self) -> usize {
        self.low
    }

    /// Takes all frames out of use that were taken into use since.
    pub(crate) fn unwind(&mut self, mark: usize) {
        self.low = mark;
    }

    /// Address behind the last frame: its function's r10.
    #[inline]
    pub(crate) fn top(&self) -> u64 {
        self.base + (self.low + FRAME_SIZE) as u64
    }

    /// Loads a number if all of it is in the frames in use.
    #[inline(always)]
    pub(crate) fn load<const SIZE: usize>(&self, addr: u64) -> Option<u64> {
        let at = addr.wrapping_sub(self.base) as usize;
        if at < self.low || at > STACK_SIZE - SIZE {
            return None;
        }
        self.memory.load(at, SIZE).ok()
    }

    /// Stores a number if all of it is in the frames in use.
    #[inline(always)]
    pub(crate) fn store<const SIZE: usize>(&mut self, addr: u64, number: u64) -> Option<()> {
        let at = addr.wrapping_sub(self.base) as usize;
        if at < self.low || at > STACK_SIZE - SIZE {
            return None;
        }
        self.dirty = self.dirty.min(at);
        self.memory.store(at, SIZE, number).ok()
    }

    /// The memory and the offset in it of an access, `None` for an address that is not here.
    #[inline]
    pub(crate) fn locate(
        &mut self,
        addr: u64,
        size: usize,
        write: bool,
    ) -> Option<Result<(&Memory, usize), AccessReason>> {
        let at = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        let is_in = |range: Range<usize>| range.contains(&at) && size <= range.end - at;
        if !is_in(self.low..STACK_SIZE) {
            if at >= self.memory.len() {
                return None;
            }
            if !is_in(LOANS..LOANS + self.loans * LOAN_SIZE) {
                return Some(Err(AccessReason::Stack));
            }
        }
        if write {
            self.dirty = self.dirty.min(at);
        }
        Some(Ok((&self.memory, at)))
    }

    /// Puts a number where programs can read it, until [`Stack::take_loan`]. Gives its address.
    ///
    /// There are no more loans at a time than frames, as each is for a function that is called.
    pub(crate) fn lend(&mut self, number: u32) -> u64 {
        let at = LOANS + self.loans * LOAN_SIZE;
        let _ = self.memory.store(at, size_of::<u32>(), number.into());
        self.loans += 1;
        self.memory.addr() + at as u64
    }

    /// Ends the last loan.
    pub(crate) fn take_loan(&mut self) {
        self.loans -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_zero_whatever_ran_before() {
        let mut kept = KeptStack::default();
        for round in 0..3 {
            let mut stack = kept.take().unwrap();
            for depth in 0..MAX_FRAMES {
                stack.push();
                let top = stack.top();
                for at in (8..=FRAME_SIZE as u64).step_by(8) {
                    assert_eq!(stack.load::<8>(top - at), Some(0), "round {round}, frame {depth}");
                }
                for at in [8, 200 + 8 * round, 512] {
                    assert_eq!(stack.store::<8>(top - at, u64::MAX), Some(()));
                }
            }
            for _ in 0..round + 1 {
                stack.pop();
            }
            stack.push();
            assert_eq!(stack.load::<8>(stack.top() - 512), Some(0));
            let (memory, at) = stack.locate(stack.top() - 64, 64, true).unwrap().unwrap();
            memory.fill(at, 64, 0xff).unwrap();
            kept.put_back(stack);
        }
    }

    #[test]
    fn only_frames_in_use_and_loans_can_be_touched() {
        let mut stack = Stack::new().unwrap();
        stack.push();
        let top = stack.top();
        let mut reason = |addr, size| stack.locate(addr, size, false).map(|found| found.err());
        assert_eq!(reason(top - 512, 512), Some(None));
        assert_eq!(reason(top - 513, 1), Some(Some(AccessReason::Stack)));
        assert_eq!(reason(top - 4, 8), Some(Some(AccessReason::Stack)));
        assert_eq!(reason(top, 1), Some(Some(AccessReason::Stack)));
        assert_eq!(reason(0, 1), None);
        assert_eq!((stack.load::<8>(top - 4), stack.load::<8>(top - 520)), (None, None));
        let loan = stack.lend(7);
        assert!(stack.locate(loan, 4, false).unwrap().is_ok());
        stack.take_loan();
        assert!(stack.locate(loan, 4, false).unwrap().is_err());
    }
}
