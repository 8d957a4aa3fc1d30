//! The formats of `bpf_trace_printk` and its relatives.

use bpfarray_core::Errno;

use crate::fault::HelperError;
use crate::interp::Machine;

/// Most arguments of the helpers that take them from memory.
const MAX_ARGS: u32 = 12;

/// Longest string that `%s` prints.
const MAX_STRING: usize = 512;

/// Arguments that are an array of `data_len` bytes.
pub(super) fn read_args(
    machine: &mut Machine<'_>,
    data: u64,
    data_len: u32,
) -> Result<Result<Vec<u64>, Errno>, HelperError> {
    if !data_len.is_multiple_of(8) || data_len > MAX_ARGS * 8 || data_len != 0 && data == 0 {
        return Ok(Err(Errno::EINVAL));
    }
    if data_len == 0 {
        return Ok(Ok(Vec::new()));
    }
    let bytes = machine.read_vec(data, data_len.into())?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect()))
}

/// How a conversion is to be laid out.
#[derive(Copy, Clone, Default)]
struct Layout {
    left: bool,
    zeroes: bool,
    plus: bool,
    space: bool,
    width: usize,
}

impl Layout {
    /// Takes flags and width off the front of a format.
    fn parse(fmt: &mut &[u8]) -> Self {
        let mut layout = Self::default();
        while let [flag, rest @ ..] = *fmt {
            match flag {
                b'-' => layout.left = true,
                b'0' => layout.zeroes = true,
                b'+' => layout.plus = true,
                b' ' => layout.space = true,
                _ => break,
            }
            *fmt = rest;
        }
        while let [digit @ b'0'..=b'9', rest @ ..] = *fmt {
            layout.width = layout.width.saturating_mul(10).saturating_add((digit - b'0').into());
            *fmt = rest;
        }
        layout.width = layout.width.min(i16::MAX as usize);
        layout
    }

    fn text(self, out: &mut Vec<u8>, text: &[u8]) {
        let padding = self.width.saturating_sub(text.len());
        if !self.left {
            out.resize(out.len() + padding, b' ');
        }
        out.extend_from_slice(text);
        if self.left {
            out.resize(out.len() + padding, b' ');
        }
    }

    fn number(self, out: &mut Vec<u8>, sign: &str, digits: &str) {
        let zeroes = match self.zeroes && !self.left {
            true => self.width.saturating_sub(sign.len() + digits.len()),
            false => 0,
        };
        self.text(out, format!("{sign}{}{digits}", "0".repeat(zeroes)).as_bytes());
    }

    fn signed(self, out: &mut Vec<u8>, number: i64) {
        let sign = match number {
            ..0 => "-",
            _ if self.plus => "+",
            _ if self.space => " ",
            _ => "",
        };
        self.number(out, sign, &number.unsigned_abs().to_string());
    }
}

/// What a format makes of its arguments. A format that the kernel does not know, or that needs more
/// arguments than there are, is EINVAL.
///
/// # Kernel
/// `bpf_bprintf_prepare`
#[doc(alias = "bpf_bprintf_prepare")]
pub(super) fn format(
    machine: &mut Machine<'_>,
    fmt: &[u8],
    args: &[u64],
) -> Result<Result<Vec<u8>, Errno>, HelperError> {
    let mut formatter = Formatter { machine, fmt, out: Vec::new() };
    let is_known = formatter.run(args)?.is_some();
    Ok(if is_known { Ok(formatter.out) } else { Err(Errno::EINVAL) })
}

/// As [`format`], for a format in `fmt_size` bytes at `fmt`, which must end there.
pub(super) fn format_at(
    machine: &mut Machine<'_>,
    fmt: u64,
    fmt_size: u64,
    args: &[u64],
) -> Result<Result<Vec<u8>, Errno>, HelperError> {
    let fmt = machine.read_vec(fmt, fmt_size as u32 as u64)?;
    match fmt.iter().position(|byte| *byte == 0) {
        Some(end) => format(machine, &fmt[..end], args),
        None => Ok(Err(Errno::EINVAL)),
    }
}

/// Printable or white space in Latin-1, as the kernel's `ctype` has it.
fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x09..=0x0d | 0x20..=0x7e | 0xa0..)
}

struct Formatter<'f, 'm, 'e> {
    machine: &'m mut Machine<'e>,
    /// What is left of the format.
    fmt: &'f [u8],
    out: Vec<u8>,
}

/// `None` for a format that there is not.
type Converted = Result<Option<()>, HelperError>;

impl Formatter<'_, '_, '_> {
    fn run(&mut self, args: &[u64]) -> Converted {
        let mut args = args.iter().copied();
        while let [byte, rest @ ..] = self.fmt {
            self.fmt = rest;
            match (byte, rest) {
                (b'%', [b'%', rest @ ..]) => {
                    self.out.push(b'%');
                    self.fmt = rest;
                }
                (b'%', _) => {
                    let layout = Layout::parse(&mut self.fmt);
                    let Some(arg) = args.next() else { return Ok(None) };
                    if self.convert(layout, arg)?.is_none() {
                        return Ok(None);
                    }
                }
                (byte, _) if is_printable(*byte) => self.out.push(*byte),
                _ => return Ok(None),
            }
        }
        Ok(Some(()))
    }

    /// Appends one argument.
    fn convert(&mut self, layout: Layout, arg: u64) -> Converted {
        let (conversion, rest) = match self.fmt {
            [b'p', rest @ ..] => {
                self.fmt = rest;
                return self.convert_pointer(layout, arg);
            }
            [b's', rest @ ..] => {
                self.fmt = rest;
                layout.text(&mut self.out, &string(self.machine, arg)?);
                return Ok(Some(()));
            }
            [b'c', rest @ ..] => {
                self.fmt = rest;
                layout.text(&mut self.out, &[arg as u8]);
                return Ok(Some(()));
            }
            [b'l', b'l', conversion, rest @ ..] | [b'l', conversion, rest @ ..] => {
                ((*conversion, true), rest)
            }
            [conversion, rest @ ..] => ((*conversion, false), rest),
            [] => return Ok(None),
        };
        self.fmt = rest;
        let (conversion, wide) = conversion;
        let unsigned = if wide { arg } else { arg as u32 as u64 };
        let signed = if wide { arg as i64 } else { arg as i32 as i64 };
        let out = &mut self.out;
        match conversion {
            b'd' | b'i' => layout.signed(out, signed),
            b'u' => layout.number(out, "", &unsigned.to_string()),
            b'x' => layout.number(out, "", &format!("{unsigned:x}")),
            b'X' => layout.number(out, "", &format!("{unsigned:X}")),
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    /// Appends a pointer, or what it points to. Addresses are not hashed here: they are the program's own.
    fn convert_pointer(&mut self, layout: Layout, arg: u64) -> Converted {
        let machine = &mut *self.machine;
        let (text, rest) = match self.fmt {
            [b'k' | b'u', b's', rest @ ..] => (string(machine, arg)?, rest),
            [b's' | b'S' | b'B', rest @ ..] => (format!("{arg:#x}").into_bytes(), rest),
            [b'K' | b'x', rest @ ..] => (format!("{arg:016x}").into_bytes(), rest),
            [kind @ (b'i' | b'I'), b'4', rest @ ..] => {
                (ipv4(bytes(machine, arg)?, *kind == b'i').into_bytes(), rest)
            }
            [kind @ (b'i' | b'I'), b'6', rest @ ..] => {
                let separator = if *kind == b'I' { ":" } else { "" };
                (ipv6(bytes(machine, arg)?, separator).into_bytes(), rest)
            }
            [] => (format!("{arg:016x}").into_bytes(), self.fmt),
            [next, ..] if next.is_ascii_whitespace() || next.is_ascii_punctuation() => {
                (format!("{arg:016x}").into_bytes(), self.fmt)
            }
            _ => return Ok(None),
        };
        self.fmt = rest;
        layout.text(&mut self.out, &text);
        Ok(Some(()))
    }
}

/// A string of the program. One that cannot be read is empty, as in the kernel.
fn string(machine: &mut Machine<'_>, addr: u64) -> Result<Vec<u8>, HelperError> {
    or_default(machine.read_str(addr, MAX_STRING))
}

/// Bytes of the program. What cannot be read is zero, as in the kernel.
fn bytes<const N: usize>(machine: &mut Machine<'_>, addr: u64) -> Result<[u8; N], HelperError> {
    let mut bytes = [0; N];
    or_default(machine.read(addr, &mut bytes))?;
    Ok(bytes)
}

fn or_default<T: Default>(result: Result<T, HelperError>) -> Result<T, HelperError> {
    match result {
        Err(HelperError::Access(_)) => Ok(T::default()),
        result => result,
    }
}

fn ipv4(address: [u8; 4], leading_zeroes: bool) -> String {
    let width = if leading_zeroes { 3 } else { 1 };
    address.map(|byte| format!("{byte:0width$}")).join(".")
}

fn ipv6(address: [u8; 16], separator: &str) -> String {
    let (groups, _) = address.as_chunks::<2>();
    let groups: Vec<String> =
        groups.iter().map(|group| format!("{:04x}", u16::from_be_bytes(*group))).collect();
    groups.join(separator)
}
