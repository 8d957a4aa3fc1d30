//! Atomic read-modify-writes, and loads and stores that order others.
//!
//! **Invariant.** An atomic object is only made where [`Memory::at_aligned`] found that it is inside
//! the memory and at a multiple of its size, and it is gone when the operation returns.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Memory, OutOfBounds, raw};

/// Why an atomic operation cannot be done. The variants stand in the order in which they are
/// checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AtomicError {
    /// Not inside the memory, or of a size that has no such operation.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The address is no multiple of the size.
    #[error("an atomic operation on {size} bytes at the misaligned address {addr:#x}")]
    Misaligned {
        /// Address of the access.
        addr: u64,
        /// Bytes accessed.
        size: usize,
    },
}

/// One atomic operation for 4 and for 8 bytes.
macro_rules! fetch_op {
    ($(#[$doc:meta])* $name:ident, $atomic_op:ident) => {
        $(#[$doc])*
        ///
        /// `size` is 4 or 8 bytes; the old value is returned, zero-extended.
        ///
        /// # Errors
        /// The variants of [`AtomicError`] in their order.
        #[inline]
        pub fn $name(&self, offset: usize, size: usize, operand: u64) -> Result<u64, AtomicError> {
            let at = self.at_aligned(offset, size)?.as_ptr();
            match size {
                4 => {
                    // SAFETY: `at` is inside this memory and aligned to `size`, says `at_aligned`.
                    let atomic = unsafe { AtomicU32::from_ptr(at.cast()) };
                    Ok(u64::from(atomic.$atomic_op(operand as u32, Ordering::SeqCst)))
                }
                8 => {
                    // SAFETY: as above.
                    let atomic = unsafe { AtomicU64::from_ptr(at.cast()) };
                    Ok(atomic.$atomic_op(operand, Ordering::SeqCst))
                }
                _ => Err(self.out_of_bounds(offset, size).into()),
            }
        }
    };
}

impl Memory {
    #[inline(always)]
    fn at_aligned(&self, offset: usize, size: usize) -> Result<NonNull<u8>, AtomicError> {
        let at = self.at(offset, size)?;
        if size.is_power_of_two() && !at.as_ptr().addr().is_multiple_of(size) {
            return Err(AtomicError::Misaligned { addr: at.as_ptr().addr() as u64, size });
        }
        Ok(at)
    }

    fetch_op! {
        /// Adds to a number, wrapping around.
        fetch_add, fetch_add
    }
    fetch_op! {
        /// Sets bits of a number.
        fetch_or, fetch_or
    }
    fetch_op! {
        /// Clears the bits of a number that `operand` does not have.
        fetch_and, fetch_and
    }
    fetch_op! {
        /// Flips bits of a number.
        fetch_xor, fetch_xor
    }
    fetch_op! {
        /// Replaces a number.
        exchange, swap
    }

    /// Replaces a number if it is `expected`.
    ///
    /// `size` is 4 or 8 bytes; the old value is returned, zero-extended, whether it was replaced or
    /// not.
    ///
    /// # Errors
    /// The variants of [`AtomicError`] in their order.
    #[inline]
    pub fn compare_exchange(
        &self,
        offset: usize,
        size: usize,
        expected: u64,
        new: u64,
    ) -> Result<u64, AtomicError> {
        const SEQ_CST: Ordering = Ordering::SeqCst;
        let at = self.at_aligned(offset, size)?;
        match size {
            4 => {
                // SAFETY: `at` is inside this memory and aligned to `size`, says `at_aligned`.
                let atomic = unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) };
                let old = atomic.compare_exchange(expected as u32, new as u32, SEQ_CST, SEQ_CST);
                Ok(u64::from(old.unwrap_or_else(|old| old)))
            }
            8 => {
                // SAFETY: as above.
                let atomic = unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) };
                let old = atomic.compare_exchange(expected, new, SEQ_CST, SEQ_CST);
                Ok(old.unwrap_or_else(|old| old))
            }
            _ => Err(self.out_of_bounds(offset, size).into()),
        }
    }

    /// Loads an aligned number of 1, 2, 4 or 8 bytes; no later access of this thread moves before
    /// it.
    ///
    /// # Errors
    /// The variants of [`AtomicError`] in their order.
    #[inline]
    pub fn load_acquire(&self, offset: usize, size: usize) -> Result<u64, AtomicError> {
        let at = self.at_aligned(offset, size)?.as_ptr();
        // SAFETY: `at` is inside this memory and aligned to `size`, says `at_aligned`.
        unsafe { raw::load_aligned(at, size, Ordering::Acquire) }
            .ok_or_else(|| self.out_of_bounds(offset, size).into())
    }

    /// Stores an aligned number of 1, 2, 4 or 8 bytes; no earlier access of this thread moves
    /// behind it.
    ///
    /// # Errors
    /// The variants of [`AtomicError`] in their order.
    #[inline]
    pub fn store_release(&self, offset: usize, size: usize, value: u64) -> Result<(), AtomicError> {
        let at = self.at_aligned(offset, size)?.as_ptr();
        // SAFETY: `at` is inside this memory and aligned to `size`, says `at_aligned`.
        unsafe { raw::store_aligned(at, size, value, Ordering::Release) }
            .ok_or_else(|| self.out_of_bounds(offset, size).into())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn memory(len: usize) -> Memory {
        Memory::anonymous(len).unwrap()
    }

    #[test]
    fn atomic_operations_give_the_old_value_and_keep_to_their_size() {
        let memory = memory(32);
        memory.store(8, 8, 0xffff_ffff_ffff_fff0).unwrap();
        assert_eq!(memory.fetch_add(8, 4, 0x11), Ok(0xffff_fff0));
        assert_eq!(memory.fetch_or(8, 4, 0xff00), Ok(1));
        assert_eq!(memory.fetch_and(8, 4, 0x0f0f), Ok(0xff01));
        assert_eq!(memory.fetch_xor(8, 4, 0xf), Ok(0x0f01));
        assert_eq!(memory.exchange(8, 4, u64::MAX), Ok(0x0f0e));
        assert_eq!(memory.compare_exchange(8, 4, u64::MAX, 5), Ok(0xffff_ffff));
        assert_eq!(memory.compare_exchange(8, 4, 6, 7), Ok(5));
        assert_eq!(
            memory.load(8, 8),
            Ok(0xffff_ffff_0000_0005_u64.rotate_left(if cfg!(target_endian = "big") {
                32
            } else {
                0
            }))
        );

        memory.store(8, 8, 1).unwrap();
        assert_eq!(memory.fetch_add(8, 8, u64::MAX), Ok(1));
        assert_eq!(memory.fetch_or(8, 8, 6), Ok(0));
        assert_eq!(memory.fetch_and(8, 8, 3), Ok(6));
        assert_eq!(memory.fetch_xor(8, 8, 1 << 63), Ok(2));
        assert_eq!(memory.exchange(8, 8, 9), Ok(2 | 1 << 63));
        assert_eq!(memory.compare_exchange(8, 8, 9, 10), Ok(9));
        assert_eq!(memory.store_release(8, 8, 77), Ok(()));
        assert_eq!(memory.load_acquire(8, 8), Ok(77));
    }

    #[test]
    fn a_misaligned_atomic_operation_is_refused() {
        let memory = memory(32);
        let misaligned = AtomicError::Misaligned { addr: memory.addr() + 4, size: 8 };
        assert_eq!(memory.fetch_add(4, 8, 1), Err(misaligned));
        assert_eq!(memory.compare_exchange(4, 8, 0, 1), Err(misaligned));
        assert_eq!(memory.load_acquire(4, 8), Err(misaligned));
        assert_eq!(memory.store_release(4, 8, 1), Err(misaligned));
        assert!(memory.fetch_add(2, 4, 1).is_err());
        assert!(memory.load_acquire(1, 2).is_err());
        assert_eq!(memory.fetch_add(4, 4, 1), Ok(0));
    }

    #[test]
    fn odd_sizes_have_no_atomic_operations() {
        let memory = memory(64);
        for size in [0, 3, 5, 6, 7, 9, 16, usize::MAX] {
            assert!(memory.load_acquire(0, size).is_err(), "load_acquire {size}");
            assert!(memory.store_release(0, size, 0).is_err(), "store_release {size}");
        }
        for size in [0, 1, 2, 3, 5, 9, 16, usize::MAX] {
            assert!(memory.fetch_add(0, size, 0).is_err(), "fetch_add {size}");
            assert!(memory.compare_exchange(0, size, 0, 1).is_err(), "compare_exchange {size}");
        }
    }
}
