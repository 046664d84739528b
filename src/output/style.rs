//! How output looks on a terminal: colours for states, and lines that fit its width. In a file or a pipe there is no
//! colour, and nothing is cut or wrapped, unless COLUMNS is set.

use std::env;

use crate::sys::terminal;

/// Colours and width of one output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Whether states are coloured.
    pub colour: bool,
    /// The number of columns; None if lines may be of any length.
    pub width: Option<usize>,
}

impl Style {
    /// The style of standard output. `NO_COLOR` (no-color.org) and `TERM=dumb` switch colours off; `COLUMNS` replaces
    /// the terminal's width.
    pub fn of_stdout() -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let said = env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|columns| *columns > 0);
        let is_terminal = terminal::is_stdout();
        Self {
            colour: is_terminal && !set("NO_COLOR") && !dumb,
            width: said.or_else(|| terminal::columns().filter(|_| is_terminal)),
        }
    }

    /// A word that is a state or a result, padded to `width` columns and coloured by its meaning.
    pub fn state(self, word: &str, width: usize) -> String {
        let padded = format!("{word:<width$}");
        match colour_of(word).filter(|_| self.colour) {
            Some(colour) => format!("\u{1b}[{colour}m{padded}\u{1b}[0m"),
            None => padded,
        }
    }

    /// The text, broken between words where it is too long; each line but the first begins with `indent` spaces. The
    /// first line begins after `indent` columns that are already used.
    pub fn wrapped(self, text: &str, indent: usize) -> String {
        // A narrower column would have one word per line.
        const LEAST: usize = 24;
        let Some(room) = self.width.map(|width| width.saturating_sub(indent).max(LEAST)) else { return text.to_owned() };
        let (mut wrapped, mut used) = (String::new(), 0);
        for word in text.split(' ') {
            let length = word.chars().count();
            if used > 0 && used + 1 + length > room {
                wrapped.push('\n');
                wrapped.extend(std::iter::repeat_n(' ', indent));
                used = 0;
            } else if used > 0 {
                wrapped.push(' ');
                used += 1;
            }
            wrapped.push_str(word);
            used += length;
        }
        wrapped
    }
}

/// The SGR parameter of a state: green for what works, yellow for what needs attention, red for what failed.
fn colour_of(word: &str) -> Option<u8> {
    match word {
        "ok" | "ready" => Some(32),
        "warn" | "unknown" | "pending" | "releasing" => Some(33),
        "fail" | "failed" | "dead" | "denied" | "refused" => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_states_are_coloured_and_only_where_colours_are_wanted() {
        let coloured = Style { colour: true, width: None };
        assert_eq!(coloured.state("dead", 6), "\u{1b}[31mdead  \u{1b}[0m");
        assert_eq!(coloured.state("web", 4), "web ");
        assert_eq!(Style::default().state("dead", 6), "dead  ");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        let narrow = Style { colour: false, width: Some(34) };
        assert_eq!(narrow.wrapped("one two three four five six", 4), "one two three four five six");
        assert_eq!(
            narrow.wrapped("one two three four five six seven eight", 4),
            "one two three four five six\n    seven eight"
        );
        let word = "x".repeat(60);
        assert_eq!(narrow.wrapped(&format!("a {word} b"), 2), format!("a\n  {word}\n  b"));
        assert_eq!(Style::default().wrapped(&word, 2), word);
    }
}
