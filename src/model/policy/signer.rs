//! Required signers: keys, and identities in certificates.

use std::fmt;
use std::path::{Path, PathBuf};

use regex::{Regex, RegexBuilder};
use serde::Serialize;

/// The trusted root for identities that do not name one.
pub const TRUSTED_ROOT: &str = "/etc/bpfman-hook/trusted_root.json";
/// Maximum length of an identity, issuer or pattern.
pub(super) const LENGTH_MAX: usize = 1024;
/// Maximum memory of one compiled pattern.
const COMPILED_MAX: usize = 1 << 20;

/// A signer whose signature satisfies a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Signer {
    /// A cosign public key, PEM, at this path.
    Key(PathBuf),
    /// A keyless identity. Both parts must match: the same name at another issuer is another identity.
    Identity {
        /// The certificate's subject alternative name.
        identity: Words,
        /// The OIDC issuer that vouched for it.
        issuer: Words,
        /// The trusted certificate authorities and logs.
        trusted_root: PathBuf,
    },
}

/// A text, or a regular expression that must match the whole value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Words {
    /// This text.
    Exact(String),
    /// Every text that this expression matches as a whole.
    Regexp(String),
}

/// [`Words`], compiled.
#[derive(Debug)]
pub enum Matcher {
    /// This text.
    Exact(String),
    /// What this expression matches.
    Regexp(Regex),
}

impl Signer {
    /// The file needed to check its signatures.
    pub fn file(&self) -> &Path {
        match self {
            Self::Key(path) => path,
            Self::Identity { trusted_root, .. } => trusted_root,
        }
    }

    /// Effects of a rule with this signer that are probably not intended; each is the rest of a sentence.
    pub(super) fn doubts(&self) -> Vec<String> {
        let Self::Identity { identity, issuer, .. } = self else { return Vec::new() };
        let doubt = |words: &Words, everything: &str| match (words.matcher(), words) {
            (Err(problem), _) => Some(format!("allows nothing: {problem}")),
            // Two texts that have nothing in common.
            (Ok(matcher), Words::Regexp(_)) if matcher.fits("a") && matcher.fits("https://b/?c=%d e") => {
                Some(everything.to_owned())
            }
            (Ok(_), Words::Exact(text)) if looks_like_a_pattern(text) => {
                Some(format!("compares {text:?} literally; write a pattern as identity-regexp or issuer-regexp"))
            }
            (Ok(_), _) => None,
        };
        let any_identity = "accepts every identity that the issuer vouches for: its identity-regexp matches every text";
        let any_issuer = "accepts every issuer: its issuer-regexp matches every text";
        [doubt(identity, any_identity), doubt(issuer, any_issuer)].into_iter().flatten().collect()
    }
}

/// True if no e-mail address and no URI of an identity looks like this.
fn looks_like_a_pattern(text: &str) -> bool {
    text.starts_with('^') || text.ends_with('$') || [".*", ".+", "\\."].iter().any(|part| text.contains(part))
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(path) => path.display().fmt(f),
            Self::Identity { identity, issuer, .. } => write!(f, "{identity} ({issuer})"),
        }
    }
}

impl Words {
    /// Compiles it. Compiling a pattern is too expensive to do it at every start.
    ///
    /// # Errors
    /// Why it is not a regular expression.
    pub fn matcher(&self) -> Result<Matcher, String> {
        let pattern = match self {
            Self::Exact(text) => return Ok(Matcher::Exact(text.clone())),
            Self::Regexp(pattern) => pattern,
        };
        let build = |pattern: &str| RegexBuilder::new(pattern).size_limit(COMPILED_MAX).build();
        // First on its own: `a)|(b` would escape from the anchors.
        build(pattern).and_then(|_| build(&format!(r"\A(?:{pattern})\z"))).map(Matcher::Regexp).map_err(|err| {
            let last = err.to_string();
            let last = last.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("{pattern:?} is not a regular expression: {last}")
        })
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regexp(pattern) => write!(f, "/{pattern}/"),
        }
    }
}

impl Matcher {
    /// True if the value equals this text, or matches as a whole.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Regexp(regex) => regex.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_whole_text() {
        for (pattern, text, fits) in [
            ("https://github.com/acme/.*", "https://github.com/acme/x", true),
            ("https://github.com/acme/.*", "https://evil/https://github.com/acme/x", false),
            ("acme", "acme.example", false),
            ("a|ab", "ab", true),
            ("a|b", "ax", false),
            ("a$", "a\nb", false),
            ("(?m)^a$", "a\nb", false),
        ] {
            let matcher = Words::Regexp(pattern.to_owned()).matcher().unwrap();
            assert_eq!(matcher.fits(text), fits, "{pattern} {text:?}");
        }
        assert!(!Words::Exact("a.c".to_owned()).matcher().unwrap().fits("abc"));
    }

    #[test]
    fn probable_mistakes_are_reported() {
        let signer = |identity: Words, issuer: Words| Signer::Identity { identity, issuer, trusted_root: TRUSTED_ROOT.into() };
        let (exact, regexp) = (|text: &str| Words::Exact(text.into()), |text: &str| Words::Regexp(text.into()));
        let good = exact("https://token.example");
        for (identity, issuer, expected) in [
            (exact("dev@example.org"), good.clone(), &[][..]),
            (regexp("https://forge\\.example/.*"), good.clone(), &[]),
            (exact("https://forge.example/a?b=c*"), good.clone(), &[]),
            (regexp(".*"), good.clone(), &["accepts every identity"]),
            (regexp(".+|x"), regexp("(?s).*"), &["accepts every identity", "accepts every issuer"]),
            (
                exact("https://forge.example/.*"),
                exact("^x"),
                &["compares \"https://forge.example/.*\" literally", "compares \"^x\" literally"],
            ),
            (regexp("("), good.clone(), &["allows nothing: \"(\" is not a regular expression"]),
        ] {
            let doubts = signer(identity, issuer).doubts();
            assert_eq!(doubts.len(), expected.len(), "{doubts:?}");
            assert!(doubts.iter().zip(expected).all(|(doubt, words)| doubt.starts_with(words)), "{doubts:?}");
        }
    }

    #[test]
    fn invalid_and_too_large_patterns_are_refused() {
        for pattern in ["a)|(b", "(", "(?x)a #", r"\w{1000}{1000}"] {
            let why = Words::Regexp(pattern.to_owned()).matcher().unwrap_err();
            assert!(why.contains("is not a regular expression: "), "{why}");
        }
    }
}
