//! Internet checksums.

use bpfarray_core::{Errno, helper_id};

use super::Builtin;
use super::skb::{load, store};
use crate::fault::HelperError;
use crate::interp::Machine;

const L3_CSUM_REPLACE: u32 = 10;
const L4_CSUM_REPLACE: u32 = 11;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::CSUM_DIFF, csum_diff),
    (L3_CSUM_REPLACE, l3_csum_replace),
    (L4_CSUM_REPLACE, l4_csum_replace),
    (helper_id::CSUM_UPDATE, csum_update),
    (helper_id::CSUM_LEVEL, csum_level),
];

/// Bits of the flags that hold the width of the changed field.
const HDR_FIELD_MASK: u64 = 0xf;
const PSEUDO_HDR: u64 = 0x10;
const MARK_MANGLED_0: u64 = 0x20;
const MARK_ENFORCE: u64 = 0x40;
const IPV6: u64 = 0x80;

const CSUM_LEVEL_QUERY: u64 = 0;
const CSUM_LEVEL_INC: u64 = 1;
const CSUM_LEVEL_DEC: u64 = 2;
const CSUM_LEVEL_RESET: u64 = 3;
const MAX_CSUM_LEVEL: u8 = 3;

/// What a UDP checksum of 0 is sent as, 0 being no checksum.
const CSUM_MANGLED_0: u16 = 0xffff;

fn csum_add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u32::from(carry)
}

/// The ones' complement sum of bytes, in the host's order. An odd last byte counts as a pair with 0.
///
/// # Kernel
/// `csum_partial`
fn csum_partial(bytes: &[u8], seed: u32) -> u32 {
    bytes.chunks(4).fold(seed, |sum, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        csum_add(sum, u32::from_ne_bytes(word))
    })
}

/// The 16-bit sum that a 32-bit one stands for.
///
/// # Kernel
/// `csum_from32to16`
fn csum_from32to16(sum: u32) -> u16 {
    let (sum, carry) = (sum as u16).overflowing_add((sum >> 16) as u16);
    sum + u16::from(carry)
}

fn csum_fold(sum: u32) -> u16 {
    !csum_from32to16(sum)
}

/// What replacing `from` by `to` adds to a sum that begins with `seed`.
fn csum_diff(
    machine: &mut Machine<'_>,
    [from, from_size, to, to_size, seed]: [u64; 5],
) -> Result<u64, HelperError> {
    let (from_size, to_size, seed) = (from_size as u32, to_size as u32, seed as u32);
    let mut bytes = |addr, size: u32| match size {
        0 => Ok(Vec::new()),
        size => machine.read_vec(addr, size.into()),
    };
    let (from, to) = (bytes(from, from_size)?, bytes(to, to_size)?);
    let sum = match (from_size, to_size) {
        (0, 0) => return Ok(seed.into()),
        (0, _) => csum_partial(&to, seed),
        (_, 0) => !csum_partial(&from, !seed),
        _ => csum_add(csum_partial(&to, seed), !csum_partial(&from, 0)),
    };
    Ok(csum_from32to16(sum).into())
}

/// A checksum after its packet changed; `None` for a width that there is not.
fn replaced(sum: u16, from: u64, to: u64, width: u64) -> Option<u16> {
    let (from, to) = match width {
        0 if from == 0 => (0, to as u32),
        2 => (u32::from(from as u16), u32::from(to as u16)),
        4 => (from as u32, to as u32),
        _ => return None,
    };
    let without = match width {
        0 => !u32::from(sum),
        _ => csum_add(!u32::from(sum), !from),
    };
    Some(csum_fold(csum_add(without, to)))
}

fn replace(
    machine: &mut Machine<'_>,
    [ctx, offset, from, to, flags]: [u64; 5],
    known_flags: u64,
) -> Result<Result<(), Errno>, HelperError> {
    let offset = offset as u32;
    if flags & !known_flags != 0 {
        return Ok(Err(Errno::EINVAL));
    }
    if offset > 0xffff || !offset.is_multiple_of(2) {
        return Ok(Err(Errno::EFAULT));
    }
    let bytes = load(machine, ctx, offset, 2)?;
    let Some(&[low, high]) = bytes.as_deref() else { return Ok(Err(Errno::EFAULT)) };
    let old = u16::from_ne_bytes([low, high]);
    if flags & MARK_MANGLED_0 != 0 && flags & MARK_ENFORCE == 0 && old == 0 {
        return Ok(Ok(()));
    }
    let Some(mut new) = replaced(old, from, to, flags & HDR_FIELD_MASK) else {
        return Ok(Err(Errno::EINVAL));
    };
    if flags & MARK_MANGLED_0 != 0 && new == 0 {
        new = CSUM_MANGLED_0;
    }
    store(machine, ctx, offset, &new.to_ne_bytes())?;
    Ok(Ok(()))
}

fn l3_csum_replace(machine: &mut Machine<'_>, args: [u64; 5]) -> Result<u64, HelperError> {
    let result = replace(machine, args, HDR_FIELD_MASK)?;
    Ok(result.map_or_else(Errno::to_return, |()| 0))
}

fn l4_csum_replace(machine: &mut Machine<'_>, args: [u64; 5]) -> Result<u64, HelperError> {
    let known = HDR_FIELD_MASK | PSEUDO_HDR | MARK_MANGLED_0 | MARK_ENFORCE | IPV6;
    let result = replace(machine, args, known)?;
    Ok(result.map_or_else(Errno::to_return, |()| 0))
}

/// Adds to the sum that a device computed over the packet, of which there is none here.
fn csum_update(machine: &mut Machine<'_>, [ctx, ..]: [u64; 5]) -> Result<u64, HelperError> {
    machine.context(ctx)?.classifier().ok_or(HelperError::WrongContext)?;
    Ok(Errno::ENOTSUPP.to_return())
}

/// Changes how many checksums are taken for right, or tells it.
///
/// # Kernel
/// `bpf_csum_level`
fn csum_level(
    machine: &mut Machine<'_>,
    [ctx, operation, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let (skb, _) = machine.context(ctx)?.classifier().ok_or(HelperError::WrongContext)?;
    skb.csum_level = match operation {
        CSUM_LEVEL_QUERY => return Ok(skb.csum_level.map_or(Errno::EACCES.to_return(), u64::from)),
        CSUM_LEVEL_INC => Some(skb.csum_level.map_or(0, |level| MAX_CSUM_LEVEL.min(level + 1))),
        CSUM_LEVEL_DEC => skb.csum_level.and_then(|level| level.checked_sub(1)),
        CSUM_LEVEL_RESET => None,
        _ => return Ok(Errno::EINVAL.to_return()),
    };
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results are those of Linux 6.18 for the same bytes.
    #[test]
    fn sums_are_the_kernels() {
        let word = |i: u32| 0x0102_0304 * i;
        let bytes = |from: u32, words: u32| -> Vec<u8> {
            (0..words).flat_map(|i| word(4 * i + from).to_le_bytes()).collect()
        };
        let (from, to) = (bytes(1, 8), bytes(33, 8));
        let diff = |from: &[u8], to: &[u8], seed: u32| {
            csum_from32to16(csum_add(csum_partial(to, seed), !csum_partial(from, 0)))
        };
        assert_eq!(diff(&from[..4], &to[..4], 0), 0x80c0);
        assert_eq!(diff(&from[..8], &to[..4], 0), 0x6ca2);
        assert_eq!(diff(&from[..4], &to[..8], 0x1234), 0x27d3);
        assert_eq!(diff(&from[..16], &to[..16], u32::MAX), 0x302);
        assert_eq!(diff(&from[..4], &to[..3], 0), 0x5fc0);
        assert_eq!(csum_from32to16(csum_partial(&to[..3], 0)), 0x63c6);
        assert_eq!(csum_from32to16(!csum_partial(&from[..4], !0)), 0xfbf9);
    }

    #[test]
    fn replacing_a_field_changes_the_sum_as_in_the_kernel() {
        let bytes = |sum: [u8; 2], from, to, width| {
            replaced(u16::from_le_bytes(sum), from, to, width).map(u16::to_le_bytes)
        };
        assert_eq!(bytes([0, 0], 0, 0x1234, 2), Some([0xcb, 0xed]));
        assert_eq!(bytes([0, 0], 0x32, 0x33, 2), Some([0xfe, 0xff]));
        assert_eq!(bytes([0, 0], 0, 0x1234_5678, 4), Some([0x53, 0x97]));
        assert_eq!(bytes([0, 0], 0x1111_1111, 0x2222_2222, 4), Some([0xdd, 0xdd]));
        assert_eq!(bytes([0, 0], 0, 2, 0), Some([0xfd, 0xff]));
        assert_eq!(bytes([6, 7], 0, 0x1234, 2), Some([0xd1, 0xf4]));
        assert_eq!(bytes([6, 7], 0, 2, 0), Some([0x04, 0x07]));
        assert_eq!(bytes([6, 7], 1, 2, 0), None);
        assert_eq!(bytes([6, 7], 1, 2, 3), None);
    }
}
