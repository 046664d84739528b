//! A program's place among others on one interface, in bpfman's words.

use serde::{Deserialize, Serialize};

use super::ProgramKind;
use crate::model::text::quoted;

/// `priority` and `proceed-on`. They are checked, recorded and shown; an interface takes only one XDP program until chains come,
/// and classifiers run in the order in which they were attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Order {
    /// 1 to 1000; lower ones run first.
    pub priority: u16,
    /// Verdicts after which the next program runs, as the kernel numbers them (and 30 and 31 for bpfman's dispatchers).
    pub proceed_on: Vec<i32>,
}

/// Why an order is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No number from 1 to 1000.
    #[error("priority must be a number from 1 to 1000, not {}", quoted(.0))]
    Priority(String),
    /// No verdict of the kind.
    #[error("{} is not a verdict; it is one of {known}", quoted(.word))]
    Verdict {
        /// What was written.
        word: String,
        /// The verdicts that there are.
        known: String,
    },
}

/// `enum xdp_action`, and what bpfman's dispatcher returns by itself.
const XDP: [(&str, i32); 6] = [("aborted", 0), ("drop", 1), ("pass", 2), ("tx", 3), ("redirect", 4), ("dispatcher_return", 31)];
/// `TC_ACT_*` of uapi/linux/pkt_cls.h, and what bpfman's dispatcher returns by itself.
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
    /// What bpfman takes where nothing is said.
    pub const DEFAULT_PRIORITY: u16 = 50;

    /// The order that a program has where nothing is said of it.
    pub fn default_of(kind: ProgramKind) -> Self {
        let proceed_on = match kind {
            ProgramKind::Xdp => vec![2, 31],
            ProgramKind::Tc => vec![0, 3, 30],
            _ => Vec::new(),
        };
        Self { priority: Self::DEFAULT_PRIORITY, proceed_on }
    }

    /// Reads a priority.
    pub fn priority(text: &str) -> Result<u16, OrderError> {
        match text.parse() {
            Ok(priority @ 1..=1000) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(priority),
            _ => Err(OrderError::Priority(text.to_owned())),
        }
    }

    /// Reads one word of `proceed-on`.
    pub fn verdict(kind: ProgramKind, word: &str) -> Result<i32, OrderError> {
        let verdicts = Self::verdicts(kind);
        verdicts.iter().find(|(known, _)| *known == word).map(|(_, number)| *number).ok_or_else(|| OrderError::Verdict {
            word: word.to_owned(),
            known: verdicts.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "),
        })
    }

    /// The word for a verdict's number; None where the kind has no such verdict.
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
    fn verdicts_have_words_and_numbers() {
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
