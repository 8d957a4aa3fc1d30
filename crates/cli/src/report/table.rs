//! Columns of text: names to the left, numbers to the right.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::{CellAlignment, presets};

use crate::clean::Clean;

/// Rows of cells without lines between them, each column as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: comfy_table::Table,
    columns: usize,
    /// The cells of a row that is not full yet.
    row: Vec<String>,
}

impl Table {
    /// A table without rows; columns have a heading and hold numbers or not.
    pub(crate) fn new<T: Display>(headings: impl IntoIterator<Item = (T, bool)>) -> Self {
        let (headings, numbers): (Vec<_>, Vec<_>) =
            headings.into_iter().map(|(heading, is_number)| (text(heading), is_number)).unzip();
        let mut rows = comfy_table::Table::new();
        rows.load_preset(presets::NOTHING).set_header(headings);
        for (column, is_number) in rows.column_iter_mut().zip(&numbers) {
            column.set_padding((2, 0));
            if *is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { rows, columns: numbers.len(), row: Vec::new() }
    }

    /// Adds a cell to the last row, or begins a new one when that is full.
    pub(crate) fn push(&mut self, cell: impl Display) {
        self.row.push(text(cell));
        if self.row.len() == self.columns {
            self.rows.add_row(self.row.drain(..));
        }
    }

    /// Whether there are no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes heading and rows, indented.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.rows.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
    }
}

fn text(cell: impl Display) -> String {
    Clean(cell).to_string()
}

/// A number of things: `1 element`, `2 elements`.
pub(crate) fn plural(count: impl Into<u64>, thing: &str) -> String {
    match count.into() {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_on_the_left_and_numbers_on_the_right() {
        let mut table = Table::new([("name", false), ("n", true), ("note", false)]);
        assert!(table.is_empty());
        for cell in ["a", "1000", "x", "länger", "7", ""] {
            table.push(cell);
        }
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        let expected = "  name       n  note\n  a       1000  x\n  länger     7\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let mut table = Table::new([("name", false)]);
        table.push("two\nlines");
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        assert_eq!(text, b"  name\n  two\\nlines\n");
    }
}
