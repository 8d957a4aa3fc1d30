//! Text from files that nobody vouches for, fit for a terminal.

use std::fmt::{self, Display, Write};

/// Displays as what it holds, on one line: control characters are escaped.
pub(crate) struct Clean<T>(pub(crate) T);

impl<T: Display> Display for Clean<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.split_inclusive(char::is_control).try_for_each(|part| {
            match part.char_indices().next_back() {
                Some((at, char)) if char.is_control() => {
                    self.0.write_str(&part[..at])?;
                    write!(self.0, "{}", char.escape_default())
                }
                _ => self.0.write_str(part),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(Clean("a\n\x1b[31mé'\"\\").to_string(), "a\\n\\u{1b}[31mé'\"\\");
    }
}
