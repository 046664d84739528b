//! Tables.

use std::fmt::{self, Write as _};

use crate::output::style::Style;

/// The shortest that a cell is cut to.
const LEAST: usize = 10;

/// Rows of text under a heading; each column is as wide as its widest cell.
#[derive(Debug, Clone)]
pub struct Table {
    /// The rows, one per line, with a tab after each cell; cells contain neither. One string, since there can be many
    /// rows.
    text: String,
    widths: Vec<usize>,
    style: Style,
    /// The columns whose cells are cut if the table is wider than the terminal, the first of them first.
    flexible: Vec<usize>,
    /// Those of them that keep their beginning; the others keep their end, which tells images and paths apart.
    names: Vec<usize>,
}

impl Table {
    /// A table with the given column names.
    pub fn new(heading: &[&str]) -> Self {
        let mut table = Self {
            text: String::new(),
            widths: vec![0; heading.len()],
            style: Style::default(),
            flexible: Vec::new(),
            names: Vec::new(),
        };
        table.row(heading.iter().map(|name| (*name).to_owned()));
        table
    }

    /// Gives the table colours for states, and the terminal's width: cells of the columns `flexible` are cut at the
    /// front to fit, and then those of `names` at the end.
    pub fn styled(mut self, style: Style, flexible: &[usize], names: &[usize]) -> Self {
        (self.style, self.flexible, self.names) = (style, [flexible, names].concat(), names.to_vec());
        self
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

    /// The widths of the columns on this terminal.
    fn fitted(&self) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let whole: usize = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut too_wide = self.style.width.map_or(0, |width| whole.saturating_sub(width));
        for column in &self.flexible {
            let Some(column) = widths.get_mut(*column) else { continue };
            let less = too_wide.min(column.saturating_sub(LEAST));
            *column -= less;
            too_wide -= less;
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.fitted();
        let mut line = String::new();
        for row in self.text.split_terminator('\n') {
            line.clear();
            for (column, (cell, width)) in row.split('\t').zip(&widths).enumerate() {
                let cell = if self.names.contains(&column) { cut_end(cell, *width) } else { cut(cell, *width) };
                write!(line, "{}  ", self.style.state(&cell, *width))?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The end of a text, which tells images and paths apart, in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end: String = text.chars().skip(length - width + 1).collect();
    format!("…{end}")
}

/// The beginning of a name in at most `width` columns.
fn cut_end(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_owned(),
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

    #[test]
    fn a_table_is_cut_to_the_width_of_a_terminal() {
        let table = |width| {
            let mut table = Table::new(&["ID", "IMAGE"]).styled(Style { colour: true, width }, &[1], &[0]);
            table.row(["dead".to_owned(), "registry.example/acme/probes/count:v1".to_owned()]);
            table.to_string()
        };
        assert!(table(None).contains("registry.example/"));
        assert!(table(Some(24)).ends_with("m  …e/probes/count:v1\n"), "{}", table(Some(24)));
        assert!(table(Some(3)).ends_with("…/count:v1\n"), "{}", table(Some(3)));
        assert!(table(None).contains("\u{1b}[31mdead\u{1b}[0m"));
    }
}
