//! Values as text on one line: `{packets: 17, name: "eth0", ports: [80, 443]}`.

use std::fmt;

use super::{Shape, Value};

/// Elements of an array that are shown; in a table, more say nothing to a reader.
const ITEMS_SHOWN: usize = 16;

/// Bytes of a string that are shown.
const STRING_SHOWN: usize = 256;

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape() {
            Shape::Unsigned(number) => write!(f, "{number}"),
            Shape::Signed(number) => write!(f, "{number}"),
            Shape::BitField { number, .. } => write!(f, "{number}"),
            Shape::Wide(number) => write!(f, "{number:#x}"),
            Shape::Bool(truth) => write!(f, "{truth}"),
            Shape::Char(char) => write!(f, "{char:?}"),
            Shape::Single(number) => write!(f, "{number:?}"),
            Shape::Double(number) => write!(f, "{number:?}"),
            Shape::Pointer(0) => f.write_str("NULL"),
            Shape::Pointer(addr) => write!(f, "{addr:#x}"),
            Shape::Enumerator(name) => f.write_str(name),
            Shape::Text(text) => quoted(text.as_bytes(), f),
            Shape::Fields(fields) => named(fields.iter(), f),
            Shape::Vars(vars) => named(vars.iter(), f),
            Shape::Items(items) if let Some(chars) = items.chars() => {
                let end = chars.iter().position(|char| *char == 0).unwrap_or(chars.len());
                quoted(&chars[..end], f)
            }
            Shape::Items(items) => {
                let items = items.iter();
                let hidden = items.len().saturating_sub(ITEMS_SHOWN);
                f.write_str("[")?;
                for (at, item) in items.take(ITEMS_SHOWN).enumerate() {
                    write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
                }
                if hidden > 0 {
                    write!(f, ", … {hidden} more")?;
                }
                f.write_str("]")
            }
            Shape::Unknown => f.write_str("?"),
        }
    }
}

fn named<'a>(
    members: impl Iterator<Item = (&'a str, Value<'a>)>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.write_str("{")?;
    for (at, (name, value)) in members.enumerate() {
        f.write_str(if at == 0 { "" } else { ", " })?;
        match name {
            "" => write!(f, "{value}")?,
            name => write!(f, "{name}: {value}")?,
        }
    }
    f.write_str("}")
}

/// A string as in a program's source, with escapes for what is no text.
fn quoted(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let shown = &bytes[..bytes.len().min(STRING_SHOWN)];
    f.write_str("\"")?;
    for chunk in shown.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\'' => f.write_str("'")?,
                char => write!(f, "{}", char.escape_debug())?,
            }
        }
        write!(f, "{}", chunk.invalid().escape_ascii())?;
    }
    f.write_str(if shown.len() < bytes.len() { "…\"" } else { "\"" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_one_line_whatever_is_in_them() {
        let text = |bytes: &[u8]| fmt::from_fn(|f| quoted(bytes, f)).to_string();
        assert_eq!(text(b"eth0"), r#""eth0""#);
        assert_eq!(
            text("it's \"grün\"\n\u{1b}[0m\\".as_bytes()),
            r#""it's \"grün\"\n\u{1b}[0m\\""#
        );
        assert_eq!(text(&[b'a', 0xff, 0xc3, b'b']), r#""a\xff\xc3b""#);
        assert_eq!(text(&[b'x'; 300]), format!("\"{}…\"", "x".repeat(256)));
    }
}
