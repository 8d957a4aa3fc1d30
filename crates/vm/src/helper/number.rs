//! Numbers out of strings.

use bpfarray_core::Errno;
use bpfarray_core::helper_id;

use super::Builtin;
use crate::fault::HelperError;
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::STRTOL, |machine, args| convert(machine, args, to_signed)),
    (helper_id::STRTOUL, |machine, args| convert(machine, args, to_unsigned)),
];

/// The digits after the sign that are looked at.
const MAX_DIGITS: usize = 63;

/// Writes what the first bytes of a string mean, 0 if they mean nothing. Gives how many bytes those were.
fn convert(
    machine: &mut Machine<'_>,
    [text, len, base, to, _]: [u64; 5],
    to_number: fn(bool, u64) -> Result<u64, Errno>,
) -> Result<u64, HelperError> {
    let text = machine.read_vec(text, len as u32 as u64)?;
    let parsed = parse(&text, base).and_then(|parsed| {
        Ok((to_number(parsed.is_negative, parsed.magnitude)?, parsed.len as u64))
    });
    machine.write(to, &parsed.map_or(0, |(number, _)| number).to_ne_bytes())?;
    Ok(parsed.map_or_else(Errno::to_return, |(_, len)| len))
}

fn to_signed(is_negative: bool, magnitude: u64) -> Result<u64, Errno> {
    let magnitude = i128::from(magnitude);
    let number = i64::try_from(if is_negative { -magnitude } else { magnitude });
    number.map(i64::cast_unsigned).map_err(|_| Errno::ERANGE)
}

fn to_unsigned(is_negative: bool, magnitude: u64) -> Result<u64, Errno> {
    if is_negative { Err(Errno::EINVAL) } else { Ok(magnitude) }
}

/// A number as it is written.
struct Parsed {
    is_negative: bool,
    magnitude: u64,
    /// Bytes it takes, with white space in front.
    len: usize,
}

/// # Kernel
/// `__bpf_strtoull`
fn parse(text: &[u8], base: u64) -> Result<Parsed, Errno> {
    if !matches!(base, 0 | 8 | 10 | 16) {
        return Err(Errno::EINVAL);
    }
    let is_space = |byte: &u8| matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0);
    let spaces = text.iter().take_while(|byte| is_space(byte)).count();
    let is_negative = text.get(spaces) == Some(&b'-');
    let start = spaces + usize::from(is_negative);
    let digits = text.get(start..).unwrap_or_default();
    let digits = &digits[..digits.len().min(MAX_DIGITS)];
    let (base, prefix) = match (base, digits) {
        (0, [b'0', b'x' | b'X', digit, ..]) if digit.is_ascii_hexdigit() => (16, 2),
        (0, [b'0', ..]) => (8, 0),
        (0, _) => (10, 0),
        (16, [b'0', b'x' | b'X', ..]) => (16, 2),
        (base, _) => (base as u32, 0),
    };
    let values = digits[prefix..].iter().map_while(|digit| char::from(*digit).to_digit(base));
    let (mut magnitude, mut count) = (Some(0_u64), 0);
    for value in values {
        let next = |number: u64| number.checked_mul(base.into())?.checked_add(value.into());
        magnitude = magnitude.and_then(next);
        count += 1;
    }
    match magnitude {
        _ if count == 0 => Err(Errno::EINVAL),
        None => Err(Errno::ERANGE),
        Some(magnitude) => Ok(Parsed { is_negative, magnitude, len: start + prefix + count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results are those of Linux 6.18 for the same bytes.
    #[test]
    fn strings_become_the_kernels_numbers() {
        let signed = |text: &str, base| {
            let parsed = parse(text.as_bytes(), base)?;
            Ok((to_signed(parsed.is_negative, parsed.magnitude)? as i64, parsed.len))
        };
        for (text, base, expected) in [
            ("123", 0, Ok((123, 3))),
            (" 42x", 0, Ok((42, 3))),
            ("-42", 0, Ok((-42, 3))),
            ("- 42", 0, Err(Errno::EINVAL)),
            ("0x1f", 0, Ok((31, 4))),
            ("0X1F", 16, Ok((31, 4))),
            ("1f", 16, Ok((31, 2))),
            ("077", 0, Ok((63, 3))),
            ("077", 8, Ok((63, 3))),
            ("077", 10, Ok((77, 3))),
            ("12", 7, Err(Errno::EINVAL)),
            ("12", 1 << 32, Err(Errno::EINVAL)),
            ("x", 0, Err(Errno::EINVAL)),
            ("-", 0, Err(Errno::EINVAL)),
            ("+5", 0, Err(Errno::EINVAL)),
            ("9223372036854775808", 0, Err(Errno::ERANGE)),
            ("-9223372036854775808", 0, Ok((i64::MIN, 20))),
            ("-9223372036854775809", 0, Err(Errno::ERANGE)),
            ("18446744073709551616", 10, Err(Errno::ERANGE)),
            ("0x", 0, Ok((0, 1))),
            ("0x", 16, Err(Errno::EINVAL)),
            ("0xg", 16, Err(Errno::EINVAL)),
            ("08", 0, Ok((0, 1))),
            ("\t\n 7", 0, Ok((7, 4))),
            ("4\08", 0, Ok((4, 1))),
        ] {
            assert_eq!(signed(text, base), expected, "{text:?} {base}");
        }
        let unsigned = |text: &str| {
            let parsed = parse(text.as_bytes(), 0)?;
            to_unsigned(parsed.is_negative, parsed.magnitude)
        };
        assert_eq!(unsigned("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(unsigned("-42"), Err(Errno::EINVAL));
    }
}
