//! Values as text on one line: `{packets: 17, name: "eth0", ports: [80, 443]}`.

use std::fmt;

use super::{Shape, Value};

/// Elements of an array that are shown; in a table, more say nothing to a reader.
const ITEMS_SHOWN: usize = 16;

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape() {
            Shape::Unsigned(number) => write!(f, "{number}"),
            Shape::Signed(number) => write!(f, "{number}"),
            Shape::Hex(number) => write!(f, "{number:#x}"),
            Shape::Bool(truth) => write!(f, "{truth}"),
            Shape::Char(char) => write!(f, "{char:?}"),
            Shape::Single(number) => write!(f, "{number:?}"),
            Shape::Double(number) => write!(f, "{number:?}"),
            Shape::Pointer(0) => f.write_str("NULL"),
            Shape::Pointer(addr) => write!(f, "{addr:#x}"),
            Shape::Enumerator(name) => f.write_str(name),
            Shape::Text(text) => write!(f, "{text:?}"),
            Shape::Fields(fields) => named(fields.iter(), f),
            Shape::Vars(vars) => named(vars.iter(), f),
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
