//! Untrusted text: how it is shown in a message, which known word was probably meant, which characters are allowed.

/// Formats untrusted text for a message: quoted, control characters escaped, truncated after 48 characters.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 48;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
    }
}

/// Names for a message: `a, b, c`, or `none`.
pub fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<_> = names.collect();
    match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

/// The known word that is most similar to `word`, if at most a third of the letters differ.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The comparison is quadratic, and no known word is that long.
    if word.len() > 64 {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; the nearest is x`, or nothing.
pub fn nearest_hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|candidate| format!("; the nearest is {candidate}")).unwrap_or_default()
}

/// Maximum length of the name of a function, map or variable. The kernel's own symbols have at most 512 bytes, but
/// annotations do not need names that long.
pub const SYMBOL_MAX: usize = 128;

/// True for a name that a symbol of an ELF object may have: C identifiers, and the dots and dollars of Rust and of data sections.
pub fn is_symbol(name: &str) -> bool {
    (1..=SYMBOL_MAX).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$'))
}

/// True for an absolute path without `.`, `..`, empty components, a trailing slash or control characters, of 1 to 1024
/// bytes, and not the root itself.
pub fn is_normal_path(path: &str) -> bool {
    path.len() <= 1024
        && path.len() > 1
        && !path.chars().any(char::is_control)
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255))
}

/// At most `shown` words, separated by commas, and the number of omitted ones.
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>, shown: usize) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    match words.len().checked_sub(shown) {
        None | Some(0) => words.join(", "),
        Some(rest) => format!("{} and {rest} more", words[..shown].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_short_line() {
        assert_eq!(quoted("a\nb\"c"), r#""a\nb\"c""#);
        assert_eq!(quoted(&"ä".repeat(49)), format!("\"{}\"…", "ä".repeat(48)));
    }

    #[test]
    fn only_similar_words_are_near() {
        assert_eq!(nearest("xpd", ["tcx", "xdp"]), Some("xdp"));
        assert_eq!(nearest("", ["tcx", "xdp"]), None);
        assert_eq!(nearest("banana", ["tcx", "xdp"]), None);
        assert_eq!(nearest(&"x".repeat(65), ["x"]), None);
    }

    #[test]
    fn paths_are_normal_or_refused() {
        for good in ["/a", "/usr/share/x.o", "/a/..b", "/a b"] {
            assert!(is_normal_path(good), "{good}");
        }
        for bad in ["", "/", "a", "//a", "/a/", "/a//b", "/./a", "/a/..", "/a\n", "/a\0b", &format!("/{}", "x".repeat(256))] {
            assert!(!is_normal_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn symbols_are_ascii_and_bounded() {
        for good in ["count", ".rodata", "_ZN3foo17h0E", "f.cold", "a$b"] {
            assert!(is_symbol(good), "{good}");
        }
        for bad in ["", "1a", "a-b", "a b", "a,b", "ä", &"x".repeat(129)] {
            assert!(!is_symbol(bad), "{bad}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(["a", "b"], 2), "a, b");
        assert_eq!(listed(["a", "b", "c"], 2), "a, b and 1 more");
    }
}
