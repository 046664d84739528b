//! The order of a program among others on one interface, in bpfman's terms.

use serde::{Deserialize, Serialize};

use super::ProgramKind;
use crate::model::text::quoted;

/// `priority` and `proceed-on`. They are checked, recorded and shown, but have no effect: one interface takes only one
/// XDP program, and classifiers run in the order in which they were attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Order {
    /// 1 to 1000; lower values run first.
    pub priority: u16,
    /// Verdicts after which the next program runs, by the kernel's number (30 and 31 are those of bpfman's
    /// dispatchers).
    pub proceed_on: Vec<i32>,
}

/// Why an order is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Not a number from 1 to 1000.
    #[error("priority must be a number from 1 to 1000, not {}", quoted(.0))]
    Priority(String),
    /// Not a verdict of the kind.
    #[error("{} is not a verdict; it is one of {known}", quoted(.word))]
    Verdict {
        /// The given word.
        word: String,
        /// The verdicts of the kind.
        known: String,
    },
}

/// `enum xdp_action`, and the value that bpfman's dispatcher itself returns.
const XDP: [(&str, i32); 6] = [("aborted", 0), ("drop", 1), ("pass", 2), ("tx", 3), ("redirect", 4), ("dispatcher_return", 31)];
/// `TC_ACT_*` of uapi/linux/pkt_cls.h, and the value that bpfman's dispatcher itself returns.
const TC: [(&str, i32); 11] = [
    ("unspec", -1),
    ("ok", 0),
    ("reclassify", 1),
    ("shot", 2),
    ("pipe", 3),
    ("stolen", 4),
    ("queued", 5),
    ("repeat", 6),
    ("redirect", 7),
    ("trap", 8),
    ("dispatcher_return", 30),
];

impl Order {
    /// bpfman's default.
    pub const DEFAULT_PRIORITY: u16 = 50;

    /// The order of a program for which none is specified.
    pub fn default_of(kind: ProgramKind) -> Self {
        let proceed_on = match kind {
            ProgramKind::Xdp => vec![2, 31],
            ProgramKind::Tc => vec![0, 3, 30],
            _ => Vec::new(),
        };
        Self { priority: Self::DEFAULT_PRIORITY, proceed_on }
    }

    /// Parses a priority.
    pub fn priority(text: &str) -> Result<u16, OrderError> {
        match text.parse() {
            Ok(priority @ 1..=1000) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(priority),
            _ => Err(OrderError::Priority(text.to_owned())),
        }
    }

    /// Parses one verdict of `proceed-on`.
    pub fn verdict(kind: ProgramKind, word: &str) -> Result<i32, OrderError> {
        let verdicts = Self::verdicts(kind);
        verdicts
            .iter()
            .find(|(known, _)| *known == word)
            .map(|(_, number)| *number)
            .ok_or_else(|| OrderError::Verdict { word: word.to_owned(), known: Self::verdict_words(kind).join(", ") })
    }

    /// The names of all verdicts of a kind.
    pub fn verdict_words(kind: ProgramKind) -> Vec<&'static str> {
        Self::verdicts(kind).iter().map(|(word, _)| *word).collect()
    }

    /// The name of a verdict; None if the kind does not have it.
    pub fn verdict_word(kind: ProgramKind, number: i32) -> Option<&'static str> {
        Self::verdicts(kind).iter().find(|(_, known)| *known == number).map(|(word, _)| *word)
    }

    fn verdicts(kind: ProgramKind) -> &'static [(&'static str, i32)] {
        if kind == ProgramKind::Xdp { &XDP } else { &TC }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_have_names_and_numbers() {
        for (kind, word, number) in [
            (ProgramKind::Xdp, "pass", 2),
            (ProgramKind::Xdp, "dispatcher_return", 31),
            (ProgramKind::Tc, "unspec", -1),
            (ProgramKind::Tc, "dispatcher_return", 30),
        ] {
            assert_eq!(Order::verdict(kind, word), Ok(number));
            assert_eq!(Order::verdict_word(kind, number), Some(word));
        }
        assert!(Order::verdict(ProgramKind::Xdp, "ok").is_err() && Order::verdict_word(ProgramKind::Xdp, 30).is_none());
        for kind in [ProgramKind::Xdp, ProgramKind::Tc] {
            for number in Order::default_of(kind).proceed_on {
                assert!(Order::verdict_word(kind, number).is_some(), "{kind} {number}");
            }
        }
    }

    #[test]
    fn priorities_are_bounded() {
        assert_eq!((Order::priority("1"), Order::priority("1000")), (Ok(1), Ok(1000)));
        for bad in ["0", "1001", "+5", "", "x", "-1"] {
            assert!(Order::priority(bad).is_err(), "{bad:?}");
        }
    }
}
