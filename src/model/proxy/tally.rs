//! What is reported of the calls of a container, which can make as many as it likes: each different one at its first
//! time and whenever its number has grown tenfold, and no more different ones than a fixed number.

use std::collections::BTreeMap;

/// Different texts that are counted one by one. The texts contain names that the workload chooses.
const DIFFERENT_MAX: usize = 64;

/// Numbers of occurrences by text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    counts: BTreeMap<String, TallyCount>,
    /// All texts beyond [`DIFFERENT_MAX`].
    others: TallyCount,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TallyCount {
    seen: u64,
    reported: u64,
}

impl TallyCount {
    /// Counts one, and returns the number if it is to be reported.
    fn add(&mut self) -> Option<u64> {
        self.seen = self.seen.saturating_add(1);
        if self.seen < self.reported.saturating_mul(10) {
            return None;
        }
        self.reported = self.seen;
        Some(self.seen)
    }
}

/// One text that is to be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tallied {
    /// The text; None stands for all texts that were too many.
    pub text: Option<String>,
    /// How often it occurred so far.
    pub count: u64,
}

impl Tally {
    /// Counts an occurrence. Some if it is to be reported now.
    pub fn add(&mut self, text: &str) -> Option<Tallied> {
        if self.counts.len() >= DIFFERENT_MAX && !self.counts.contains_key(text) {
            return self.others.add().map(|count| Tallied { text: None, count });
        }
        let count = self.counts.entry(text.to_owned()).or_default().add()?;
        Some(Tallied { text: Some(text.to_owned()), count })
    }

    /// At the end: the texts whose numbers have grown since they were reported.
    pub fn rest(&self) -> impl Iterator<Item = Tallied> {
        let others = Some((None, self.others)).into_iter();
        let all = self.counts.iter().map(|(text, count)| (Some(text), *count)).chain(others);
        all.filter(|(_, count)| count.seen > count.reported)
            .map(|(text, count)| Tallied { text: text.cloned(), count: count.seen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_reported_when_its_number_has_grown_tenfold() {
        let mut tally = Tally::default();
        let reported: Vec<_> = (0..1234).filter_map(|_| tally.add("a")).map(|tallied| tallied.count).collect();
        assert_eq!(reported, [1, 10, 100, 1000]);
        assert_eq!(tally.add("b"), Some(Tallied { text: Some("b".to_owned()), count: 1 }));
        assert_eq!(tally.rest().collect::<Vec<_>>(), [Tallied { text: Some("a".to_owned()), count: 1234 }]);
    }

    #[test]
    fn the_number_of_reports_is_bounded_whatever_the_texts_are() {
        let mut tally = Tally::default();
        let reports = (0..1_000_000).filter(|n| tally.add(&n.to_string()).is_some()).count();
        assert!(reports <= DIFFERENT_MAX + 7, "{reports}");
        assert_eq!(tally.add("7"), None, "it was reported at its first time");
        let rest: Vec<_> = tally.rest().collect();
        assert_eq!(rest.len(), 2, "{rest:?}");
        assert!(rest.contains(&Tallied { text: None, count: 999_936 }), "{rest:?}");
    }
}
