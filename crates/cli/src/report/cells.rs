//! How a value is spread over the cells of a row.

use std::fmt;

use super::MapView;
use crate::value::{Column, Shape, Value, columns};

/// A struct with more members is text in a single cell.
const MAX_MEMBERS: usize = 12;

/// Bytes of a value without a type that are shown.
const RAW_BYTES_SHOWN: usize = 32;

/// The columns for the values of a map: one for each member of a struct, or one for the whole.
pub(super) struct Cells<'a> {
    view: &'a MapView<'a>,
    /// Empty for values without a type.
    members: Vec<Column>,
}

impl<'a> Cells<'a> {
    pub(super) fn new(view: &'a MapView<'a>) -> Self {
        let members = view.value.map_or(Vec::new(), |ty| {
            let members = columns(ty.btf, ty.id);
            if members.len() > MAX_MEMBERS { vec![Column::whole(ty.btf, ty.id)] } else { members }
        });
        Self { view, members }
    }

    /// How many cells a value takes.
    pub(super) fn count(&self) -> usize {
        self.members.len().max(1)
    }

    /// Headings of the columns, and whether they hold numbers.
    pub(super) fn headings(&self) -> impl Iterator<Item = (&str, bool)> {
        let raw = self.members.is_empty();
        let raw = raw.then(|| ("value", is_number(self.view.map.value_size() as usize)));
        let members = self.members.iter().map(|member| match member.name.as_str() {
            "" => ("value", member.is_number),
            name => (name, member.is_number),
        });
        raw.into_iter().chain(members)
    }

    /// The cell with this index of a value.
    pub(super) fn cell<'b>(&'b self, index: usize, value: &'b [u8]) -> Cell<'b> {
        match (self.view.value, self.members.get(index)) {
            (Some(ty), Some(member)) => {
                Cell::Member { value: member.of(&ty.value(value)), is_number: member.is_number }
            }
            _ => Cell::Raw(value),
        }
    }

    /// All cells of a value.
    pub(super) fn of<'b>(&'b self, value: &'b [u8]) -> impl Iterator<Item = Cell<'b>> {
        (0..self.count()).map(|index| self.cell(index, value))
    }
}

/// What stands in a cell.
pub(super) enum Cell<'a> {
    Member {
        value: Value<'a>,
        is_number: bool,
    },
    /// Without a type: a number, if there are as many bytes as one has, or else the bytes.
    Raw(&'a [u8]),
}

impl Cell<'_> {
    /// The number, if those of several CPUs can be added.
    pub(super) fn number(&self) -> Option<i128> {
        match self {
            Self::Member { is_number: false, .. } => None,
            Self::Member { value, .. } => match value.shape() {
                Shape::Unsigned(number) => Some(number.into()),
                Shape::Signed(number) => Some(number.into()),
                _ => None,
            },
            Self::Raw(bytes) if is_number(bytes.len()) => Some(little_endian(bytes)),
            Self::Raw(_) => None,
        }
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { value, .. } => value.fmt(f),
            Self::Raw(bytes) if is_number(bytes.len()) => write!(f, "{}", little_endian(bytes)),
            Self::Raw(bytes) => {
                for (at, byte) in bytes.iter().take(RAW_BYTES_SHOWN).enumerate() {
                    write!(f, "{}{byte:02x}", if at == 0 { "" } else { " " })?;
                }
                f.write_str(if bytes.len() > RAW_BYTES_SHOWN { " …" } else { "" })
            }
        }
    }
}

fn is_number(size: usize) -> bool {
    matches!(size, 1 | 2 | 4 | 8)
}

fn little_endian(bytes: &[u8]) -> i128 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | i128::from(*byte))
}
