//! Tables.

use std::fmt::{self, Write as _};

/// Rows of text under a heading; each column is as wide as its widest cell.
#[derive(Debug, Clone)]
pub struct Table {
    /// The rows, one per line, with a tab after each cell; cells contain neither. One string, since there can be many
    /// rows.
    text: String,
    widths: Vec<usize>,
}

impl Table {
    /// A table with the given column names.
    pub fn new(heading: &[&str]) -> Self {
        let mut table = Self { text: String::new(), widths: vec![0; heading.len()] };
        table.row(heading.iter().map(|name| (*name).to_owned()));
        table
    }

    /// Adds a row; it has as many cells as the heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        for (cell, width) in cells.into_iter().zip(&mut self.widths) {
            *width = cell.chars().count().max(*width);
            self.text.extend(cell.chars().map(shown));
            self.text.push('\t');
        }
        self.text.push('\n');
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        for row in self.text.split_terminator('\n') {
            line.clear();
            for (cell, width) in row.split('\t').zip(&self.widths) {
                write!(line, "{cell:<width$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Untrusted text, made safe for a terminal: control characters become `?`.
pub fn printable(text: &str) -> String {
    text.chars().map(shown).collect()
}

fn shown(character: char) -> char {
    if character.is_control() { '?' } else { character }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_control_characters_are_replaced() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(["7".to_owned(), "a\u{1b}[31m".to_owned()]);
        table.row(["1234".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "ID    NAME\n7     a?[31m\n1234\n");
    }
}
