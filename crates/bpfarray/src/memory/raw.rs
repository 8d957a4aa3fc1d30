//! Atomic accesses through raw pointers, in the largest pieces that alignment allows.
//!
//! **Invariant.** The functions here only load from and store to bytes that their caller promises
//! to be mapped, and every atomic object they make is aligned to its size and gone when they
//! return.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Bytes of the largest piece, and the alignment of every block of memory.
pub(super) const UNIT: usize = 8;

/// # Safety
/// `size` bytes at `at` must be inside of a `Memory`, and `at` a multiple of `size`.
#[inline(always)]
pub(super) unsafe fn load_aligned(at: *mut u8, size: usize, order: Ordering) -> Option<u64> {
    // SAFETY: in each arm the pointer is valid and aligned, as the caller promises.
    unsafe {
        match size {
            1 => Some(u64::from(AtomicU8::from_ptr(at).load(order))),
            2 => Some(u64::from(AtomicU16::from_ptr(at.cast()).load(order))),
            4 => Some(u64::from(AtomicU32::from_ptr(at.cast()).load(order))),
            8 => Some(AtomicU64::from_ptr(at.cast()).load(order)),
            _ => None,
        }
    }
}

/// # Safety
/// `size` bytes at `at` must be inside of a `Memory`, and `at` a multiple of `size`.
#[inline(always)]
pub(super) unsafe fn store_aligned(
    at: *mut u8,
    size: usize,
    value: u64,
    order: Ordering,
) -> Option<()> {
    // SAFETY: in each arm the pointer is valid and aligned, as the caller promises.
    unsafe {
        match size {
            1 => AtomicU8::from_ptr(at).store(value as u8, order),
            2 => AtomicU16::from_ptr(at.cast()).store(value as u16, order),
            4 => AtomicU32::from_ptr(at.cast()).store(value as u32, order),
            8 => AtomicU64::from_ptr(at.cast()).store(value, order),
            _ => return None,
        }
    }
    Some(())
}

/// # Safety
/// `size` bytes at `at` must be inside of a `Memory`.
#[inline(always)]
pub(super) unsafe fn load(at: *mut u8, size: usize) -> Option<u64> {
    // SAFETY: as tested, and as the caller promises.
    unsafe {
        if is_aligned(at, size) {
            load_aligned(at, size, Ordering::Relaxed)
        } else {
            load_misaligned(at, size)
        }
    }
}

/// # Safety
/// `size` bytes at `at` must be inside of a `Memory`.
#[inline(always)]
pub(super) unsafe fn store(at: *mut u8, size: usize, value: u64) -> Option<()> {
    // SAFETY: as tested, and as the caller promises.
    unsafe {
        if is_aligned(at, size) {
            store_aligned(at, size, value, Ordering::Relaxed)
        } else {
            store_misaligned(at, size, value)
        }
    }
}

/// # Safety
/// As for [`load`].
#[inline(never)]
unsafe fn load_misaligned(at: *mut u8, size: usize) -> Option<u64> {
    low_bytes(size)?;
    let step = piece(at, size);
    let mut value = 0;
    for done in (0..size).step_by(step) {
        // SAFETY: a multiple of `step` from `at`, which is a multiple of it, and so is `size`.
        let part = unsafe { load_aligned(at.add(done), step, Ordering::Relaxed) }?;
        value |= part << part_shift(size, done, step);
    }
    Some(value)
}

/// # Safety
/// As for [`store`].
#[inline(never)]
unsafe fn store_misaligned(at: *mut u8, size: usize, value: u64) -> Option<()> {
    low_bytes(size)?;
    let step = piece(at, size);
    for done in (0..size).step_by(step) {
        let part = value >> part_shift(size, done, step);
        // SAFETY: a multiple of `step` from `at`, which is a multiple of it, and so is `size`.
        unsafe { store_aligned(at.add(done), step, part, Ordering::Relaxed) }?;
    }
    Some(())
}

/// # Safety
/// `at..at + buf.len()` must be inside of a `Memory`.
#[inline(always)]
pub(super) unsafe fn copy_out(mut at: *mut u8, mut buf: &mut [u8]) {
    if !is_aligned(at, UNIT) {
        let (head, rest) = buf.split_at_mut(at.align_offset(UNIT).min(buf.len()));
        // SAFETY: the head is inside by the caller's promise, and so is where it ends.
        at = unsafe {
            copy_out_head(at, head);
            at.add(head.len())
        };
        buf = rest;
    }
    let (units, mut tail) = buf.as_chunks_mut::<UNIT>();
    for unit in units {
        // SAFETY: these bytes are inside, too; and `at` is aligned, or nothing is left.
        unsafe {
            *unit = AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
            at = at.add(UNIT);
        }
    }
    for size in [4, 2, 1] {
        if let Some(piece) = tail.split_off_mut(..size) {
            // SAFETY: nor does the tail reach past the end; and its pieces shrink, so that `at`
            // is a multiple of each one's size.
            unsafe {
                copy_out_piece(at, piece);
                at = at.add(size);
            }
        }
    }
}

/// # Safety
/// `at..at + bytes.len()` must be inside of a `Memory`.
#[inline(always)]
pub(super) unsafe fn copy_in(mut at: *mut u8, mut bytes: &[u8]) {
    if !is_aligned(at, UNIT) {
        let (head, rest) = bytes.split_at(at.align_offset(UNIT).min(bytes.len()));
        // SAFETY: the head is inside by the caller's promise, and so is where it ends.
        at = unsafe {
            copy_in_head(at, head);
            at.add(head.len())
        };
        bytes = rest;
    }
    let (units, mut tail) = bytes.as_chunks::<UNIT>();
    for unit in units {
        // SAFETY: these bytes are inside, too; and `at` is aligned, or nothing is left.
        unsafe {
            AtomicU64::from_ptr(at.cast()).store(u64::from_ne_bytes(*unit), Ordering::Relaxed);
            at = at.add(UNIT);
        }
    }
    for size in [4, 2, 1] {
        if let Some(piece) = tail.split_off(..size) {
            // SAFETY: nor does the tail reach past the end; and its pieces shrink, so that `at`
            // is a multiple of each one's size.
            unsafe {
                copy_in_piece(at, piece);
                at = at.add(size);
            }
        }
    }
}

/// Copies bytes that don't reach over the end of a unit, from any address.
///
/// # Safety
/// As for [`copy_out`].
#[inline(never)]
unsafe fn copy_out_head(mut at: *mut u8, mut buf: &mut [u8]) {
    while !buf.is_empty() {
        let (now, rest) = buf.split_at_mut(piece(at, buf.len()));
        // SAFETY: so many bytes are left, and `piece` chose a size that `at` is a multiple of.
        unsafe {
            copy_out_piece(at, now);
            at = at.add(now.len());
        }
        buf = rest;
    }
}

/// Copies bytes that don't reach over the end of a unit, to any address.
///
/// # Safety
/// As for [`copy_in`].
#[inline(never)]
unsafe fn copy_in_head(mut at: *mut u8, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (now, rest) = bytes.split_at(piece(at, bytes.len()));
        // SAFETY: so many bytes are left, and `piece` chose a size that `at` is a multiple of.
        unsafe {
            copy_in_piece(at, now);
            at = at.add(now.len());
        }
        bytes = rest;
    }
}

/// # Safety
/// As for [`load_aligned`].
#[inline(always)]
unsafe fn copy_out_piece(at: *mut u8, piece: &mut [u8]) {
    // SAFETY: the caller's promise.
    let value = unsafe { load_aligned(at, piece.len(), Ordering::Relaxed) };
    if let (Some(value), Some(low)) = (value, low_bytes(piece.len())) {
        piece.copy_from_slice(&value.to_ne_bytes()[low]);
    }
}

/// # Safety
/// As for [`store_aligned`].
#[inline(always)]
unsafe fn copy_in_piece(at: *mut u8, piece: &[u8]) {
    let mut unit = [0; UNIT];
    if let Some(low) = low_bytes(piece.len()) {
        unit[low].copy_from_slice(piece);
        // SAFETY: the caller's promise.
        unsafe { store_aligned(at, piece.len(), u64::from_ne_bytes(unit), Ordering::Relaxed) };
    }
}

#[inline(always)]
fn is_aligned(at: *mut u8, size: usize) -> bool {
    at.addr() & size.wrapping_sub(1) == 0
}

/// The largest piece that a copy of `len` more bytes can move at once from `at`.
fn piece(at: *mut u8, len: usize) -> usize {
    1 << (at.addr() | UNIT).trailing_zeros().min(len.ilog2())
}

/// How far up in a number of `size` bytes the `step` bytes after the first `done` ones are.
fn part_shift(size: usize, done: usize, step: usize) -> usize {
    8 * if cfg!(target_endian = "big") { size - done - step } else { done }
}

/// Where the low `size` bytes of a `u64` are in memory; `None` for a size that no access has.
fn low_bytes(size: usize) -> Option<Range<usize>> {
    match size {
        1 | 2 | 4 | 8 if cfg!(target_endian = "big") => Some(UNIT - size..UNIT),
        1 | 2 | 4 | 8 => Some(0..size),
        _ => None,
    }
}
