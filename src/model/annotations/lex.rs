//! Splits a value into entries and words: entries end at `;` or a newline, words at blanks.

use crate::model::text::quoted;

/// Maximum size of one annotation value in bytes. Kubernetes allows 256 KiB for all annotations of an object together.
pub(super) const VALUE_MAX: usize = 64 * 1024;
/// Maximum number of entries in one value.
pub(super) const ENTRIES_MAX: usize = 256;

/// A position in a value as shown to users: entries from 1, characters from 1 within the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The entry.
    pub entry: usize,
    /// The character in it, not counting blanks before the entry.
    pub column: usize,
}

/// What is wrong with a value and, if there is one position, where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LexError {
    pub at: Option<Position>,
    pub problem: String,
}

impl LexError {
    /// An error about the value as a whole.
    pub(super) fn whole(problem: impl Into<String>) -> Self {
        Self { at: None, problem: problem.into() }
    }
}

/// A word without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub text: String,
    /// Where the quoted part begins in `text`; it extends to the end.
    pub quoted_from: Option<usize>,
    pub at: Position,
}

impl Word {
    /// An error at this word.
    pub(super) fn fault(&self, problem: impl Into<String>) -> LexError {
        LexError { at: Some(self.at), problem: problem.into() }
    }

    /// The word as `name=value`: the two parts and whether the value, or the whole word, was quoted.
    pub(super) fn option(&self) -> Option<(&str, &str, Quoting)> {
        let (name, value) = self.text.split_once('=')?;
        let quoting = if self.quoted_from.is_some() { Quoting::Quoted } else { Quoting::Bare };
        Some((name, value, quoting))
    }
}

/// Whether a word was written in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    Bare,
    Quoted,
}

/// One entry; it has at least one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListEntry {
    pub words: Vec<Word>,
}

/// Splits a value; the result is never empty.
pub(super) fn entries(value: &str) -> Result<Vec<ListEntry>, LexError> {
    let mut lexer = Lexer::default();
    if value.len() > VALUE_MAX {
        return Err(LexError::whole(format!("it has {} bytes, more than {VALUE_MAX}", value.len())));
    }
    for letter in value.chars() {
        lexer.take(letter)?;
    }
    lexer.end_entry()?;
    if lexer.entries.is_empty() { Err(LexError::whole("it is empty")) } else { Ok(lexer.entries) }
}

/// Parses a value that must be a single word.
pub(super) fn single(value: &str) -> Result<Word, LexError> {
    let mut words = entries(value)?.into_iter().flat_map(|entry| entry.words);
    let first = words.next().ok_or_else(|| LexError::whole("it is empty"))?;
    match words.next() {
        None => Ok(first),
        Some(second) => Err(second.fault(format!("the value must be one word, but {} follows it", quoted(&second.text)))),
    }
}

/// Parses a set: names separated by colons or blanks, in one entry.
pub(super) fn set(value: &str) -> Result<Vec<Word>, LexError> {
    let mut names = Vec::new();
    let mut all = entries(value)?.into_iter();
    let first = all.next().ok_or_else(|| LexError::whole("it is empty"))?;
    if let Some(word) = all.next().and_then(|entry| entry.words.into_iter().next()) {
        return Err(word.fault("the value must be one set; separate its names by : or blanks"));
    }
    for word in first.words {
        let mut column = word.at.column;
        for part in word.text.split(':') {
            if !part.is_empty() {
                let at = Position { column, ..word.at };
                names.push(Word { text: part.to_owned(), quoted_from: None, at });
            }
            column += part.chars().count() + 1;
        }
    }
    if names.is_empty() { Err(LexError::whole("it is empty")) } else { Ok(names) }
}

#[derive(Default)]
struct Lexer {
    entries: Vec<ListEntry>,
    words: Vec<Word>,
    word: Option<Word>,
    quote: Quote,
    /// Characters of this entry so far.
    column: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Quote {
    #[default]
    Outside,
    Inside,
    /// After a quote inside quotes: the end, or the first half of `''`.
    Closing,
}

impl Lexer {
    fn here(&self) -> Position {
        Position { entry: self.entries.len() + 1, column: self.column }
    }

    fn fault(&self, problem: impl Into<String>) -> LexError {
        LexError { at: Some(self.here()), problem: problem.into() }
    }

    fn take(&mut self, letter: char) -> Result<(), LexError> {
        let between_entries = self.words.is_empty() && self.word.is_none();
        if !(between_entries && letter.is_ascii_whitespace()) {
            self.column += 1;
        }
        match (self.quote, letter) {
            (Quote::Inside, '\'') => self.quote = Quote::Closing,
            (Quote::Closing, '\'') => {
                self.quote = Quote::Inside;
                self.push(letter);
            }
            (_, _) if letter.is_control() && !matches!(letter, '\n' | '\t' | '\r') => {
                return Err(self.fault(format!("the character {letter:?} is not allowed")));
            }
            (Quote::Inside, _) => self.push(letter),
            (_, ';' | '\n') => return self.end_entry(),
            (_, ' ' | '\t' | '\r') => self.end_word(),
            (Quote::Closing, _) => return Err(self.fault("a blank or the entry's end must follow the closing quote")),
            (Quote::Outside, '\'') => {
                if self.word.as_ref().is_some_and(|word| word.text.find('=') != Some(word.text.len() - 1)) {
                    return Err(self.fault("a quote is allowed only at the start of a word or directly after its ="));
                }
                self.quote = Quote::Inside;
                let at = self.here();
                let word = self.word.get_or_insert_with(|| Word { text: String::new(), quoted_from: None, at });
                word.quoted_from = Some(word.text.len());
            }
            (Quote::Outside, _) => self.push(letter),
        }
        Ok(())
    }

    fn push(&mut self, letter: char) {
        let at = self.here();
        self.word.get_or_insert_with(|| Word { text: String::new(), quoted_from: None, at }).text.push(letter);
    }

    fn end_word(&mut self) {
        self.quote = Quote::Outside;
        self.words.extend(self.word.take());
    }

    fn end_entry(&mut self) -> Result<(), LexError> {
        if self.quote == Quote::Inside {
            return Err(self.fault("a quote is not closed; write ' at its end"));
        }
        self.end_word();
        self.column = 0;
        if self.words.is_empty() {
            return Ok(());
        }
        if self.entries.len() == ENTRIES_MAX {
            return Err(LexError::whole(format!("it has more than {ENTRIES_MAX} entries")));
        }
        self.entries.push(ListEntry { words: std::mem::take(&mut self.words) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &str) -> Vec<Vec<String>> {
        let entries = entries(value).unwrap_or_else(|fault| panic!("{value:?}: {fault:?}"));
        entries.into_iter().map(|entry| entry.words.into_iter().map(|word| word.text).collect()).collect()
    }

    #[test]
    fn entries_and_words() {
        let cases: [(&str, &[&[&str]]); 9] = [
            ("a", &[&["a"]]),
            (" a  b\t;\n c ; ", &[&["a", "b"], &["c"]]),
            ("a\r\nb\r\n", &[&["a"], &["b"]]),
            ("'a b' c", &[&["a b", "c"]]),
            ("x='a;b'", &[&["x=a;b"]]),
            ("x='it''s'", &[&["x=it's"]]),
            ("x=''", &[&["x="]]),
            ("''''", &[&["'"]]),
            ("'a\nb'", &[&["a\nb"]]),
        ];
        for (value, expected) in cases {
            assert_eq!(texts(value), expected, "{value:?}");
        }
    }

    #[test]
    fn words_have_positions() {
        let entries = entries("ab  cd;\n  ö f='x'").expect("legal");
        let at = |entry: usize, word: usize| entries[entry].words[word].at;
        assert_eq!(at(0, 1), Position { entry: 1, column: 5 });
        assert_eq!(at(1, 0), Position { entry: 2, column: 1 });
        assert_eq!(at(1, 1), Position { entry: 2, column: 3 });
        let names: Vec<_> = set("a::bc d").expect("legal").into_iter().map(|word| (word.text, word.at.column)).collect();
        assert_eq!(names, [("a".to_owned(), 1), ("bc".to_owned(), 4), ("d".to_owned(), 7)]);
    }

    #[test]
    fn errors_have_positions() {
        let cases = [
            ("", None, "it is empty"),
            (" ; \n", None, "it is empty"),
            ("a 'b", Some((1, 4)), "a quote is not closed; write ' at its end"),
            ("a; b'c'", Some((2, 2)), "a quote is allowed only at the start of a word or directly after its ="),
            ("a=b='c'", Some((1, 5)), "a quote is allowed only at the start of a word or directly after its ="),
            ("'a'b", Some((1, 4)), "a blank or the entry's end must follow the closing quote"),
            ("a;b\0", Some((2, 2)), "the character '\\0' is not allowed"),
            ("'\u{1b}'", Some((1, 2)), "the character '\\u{1b}' is not allowed"),
        ];
        for (value, at, problem) in cases {
            let fault = entries(value).expect_err(value);
            let at = at.map(|(entry, column)| Position { entry, column });
            assert_eq!((fault.at, fault.problem.as_str()), (at, problem), "{value:?}");
        }
        assert_eq!(entries(&"a;".repeat(257)).expect_err("many").problem, "it has more than 256 entries");
        assert_eq!(entries(&"a;".repeat(256)).expect("enough").len(), 256);
        assert_eq!(entries(&"a".repeat(65537)).expect_err("long").problem, "it has 65537 bytes, more than 65536");
        assert_eq!(single("a b").expect_err("two").problem, "the value must be one word, but \"b\" follows it");
        assert_eq!(set("a;b").expect_err("two").at, Some(Position { entry: 2, column: 1 }));
        assert_eq!(set("::").expect_err("none").problem, "it is empty");
    }
}
