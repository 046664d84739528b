//! What the program counted: the layout of its counters, and their names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::delegation::Category;
use crate::model::reach;

/// What a counter is about. The words are those of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountedSet {
    /// Commands.
    Cmds,
    /// Map types of map_create.
    Maps,
    /// Program types of prog_load.
    Progs,
    /// Attach types of prog_load, link_create and prog_attach.
    Attachs,
    /// Helpers that loaded programs call.
    Helpers,
    /// Kernel functions that loaded programs call.
    Kfuncs,
}

impl CountedSet {
    /// The order of the array of police.h: the sets, with the number of values that have a counter of their own. After
    /// them each set has one for all other values. Kernel functions are counted in a map; the array has those that found
    /// no place there.
    const IN_ARRAY: [(Self, usize); 6] =
        [(Self::Cmds, 64), (Self::Maps, 64), (Self::Progs, 64), (Self::Attachs, 128), (Self::Helpers, 256), (Self::Kfuncs, 0)];

    /// The key in the policy.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cmds => "cmds",
            Self::Maps => "maps",
            Self::Progs => "progs",
            Self::Attachs => "attachs",
            Self::Helpers => "helpers",
            Self::Kfuncs => "kfuncs",
        }
    }

    /// The term for one of its values in a message.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Cmds => Category::Cmds.noun(),
            Self::Maps => Category::Maps.noun(),
            Self::Progs => Category::Progs.noun(),
            Self::Attachs => Category::Attachs.noun(),
            Self::Helpers => "helper",
            Self::Kfuncs => "kernel function",
        }
    }

    /// The kernel's name of a value; its number if it is newer than our tables.
    fn name(self, value: usize) -> String {
        let number = u32::try_from(value).unwrap_or(u32::MAX);
        let known = match self {
            Self::Cmds => Category::Cmds.name(number),
            Self::Maps => Category::Maps.name(number),
            Self::Progs => Category::Progs.name(number),
            Self::Attachs => Category::Attachs.name(number),
            Self::Helpers => reach::helper(number).map(|helper| helper.name),
            Self::Kfuncs => None,
        };
        known.map_or_else(|| value.to_string(), str::to_owned)
    }
}

impl fmt::Display for CountedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How often a container used one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedCall {
    /// What it is.
    pub set: CountedSet,
    /// The kernel's name, a number, or [`CountedCall::OTHERS`].
    pub name: String,
    /// How often it was used, whether or not that was allowed.
    pub seen: u64,
    /// How often it was not allowed.
    pub refused: u64,
    /// How often it had a name that libbpf gives to what it only tries.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probes: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl CountedCall {
    /// The name of all values that have no counter of their own.
    pub const OTHERS: &'static str = "others";

    /// True if every use looks like one of libbpf's probes.
    pub fn is_only_probed(&self) -> bool {
        self.probes == self.seen
    }
}

/// The counters do not have the expected size: another version of the program wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the counters have {found} bytes instead of {expected}: another version of bpfman-hook attached the program")]
pub struct CountError {
    /// The size that was found.
    pub found: usize,
    /// The size that this version writes.
    pub expected: usize,
}

/// `struct count` of police.h.
const COUNT_SIZE: usize = 24;

/// `struct kfunc` of police.bpf.c.
pub const KFUNC_VALUE_SIZE: usize = COUNT_SIZE + 8;

/// The counters of all values that occurred, from the content of `.bss`.
///
/// # Errors
/// If the content does not have the size of this version.
pub fn counted_calls(bss: &[u8]) -> Result<Vec<CountedCall>, CountError> {
    let counters: usize = CountedSet::IN_ARRAY.iter().map(|(_, values)| values + 1).sum();
    let expected = counters * COUNT_SIZE;
    if bss.len() != expected {
        return Err(CountError { found: bss.len(), expected });
    }
    let mut array = bss.chunks_exact(COUNT_SIZE);
    let mut calls = Vec::new();
    for (set, values) in CountedSet::IN_ARRAY {
        for value in 0..=values {
            let name = || if value == values { CountedCall::OTHERS.to_owned() } else { set.name(value) };
            calls.extend(array.next().and_then(|count| call(set, name, count)));
        }
    }
    Ok(calls)
}

/// The counter of one kernel function, from its value in the map; None if no program called it.
pub fn counted_kfunc(name: impl FnOnce() -> String, value: &[u8]) -> Option<CountedCall> {
    call(CountedSet::Kfuncs, name, value)
}

fn call(set: CountedSet, name: impl FnOnce() -> String, count: &[u8]) -> Option<CountedCall> {
    let word = |at: usize| count.get(at * 8..)?.first_chunk().copied().map(u64::from_ne_bytes);
    let (seen, refused, probes) = (word(0)?, word(1)?, word(2)?);
    (seen != 0 || refused != 0).then(|| CountedCall { set, name: name(), seen, refused, probes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_place() {
        let mut bss = vec![0; 582 * COUNT_SIZE];
        let mut set = |at: usize, words: [u64; 3]| {
            for (n, word) in words.into_iter().enumerate() {
                bss[at * COUNT_SIZE + n * 8..][..8].copy_from_slice(&word.to_ne_bytes());
            }
        };
        set(5, [7, 0, 2]);
        set(64, [1, 1, 0]);
        set(65 + 2, [3, 0, 3]);
        set(130 + 63, [1, 1, 0]);
        set(195 + 37, [1, 0, 0]);
        set(195 + 128, [1, 1, 0]);
        set(324 + 113, [9, 9, 0]);
        set(324 + 256, [2, 2, 0]);
        set(581, [4, 4, 0]);
        let call = |set, name: &str, seen, refused, probes| CountedCall { set, name: name.to_owned(), seen, refused, probes };
        assert_eq!(
            counted_calls(&bss).unwrap(),
            [
                call(CountedSet::Cmds, "prog_load", 7, 0, 2),
                call(CountedSet::Cmds, "others", 1, 1, 0),
                call(CountedSet::Maps, "array", 3, 0, 3),
                call(CountedSet::Progs, "63", 1, 1, 0),
                call(CountedSet::Attachs, "xdp", 1, 0, 0),
                call(CountedSet::Attachs, "others", 1, 1, 0),
                call(CountedSet::Helpers, "probe_read_kernel", 9, 9, 0),
                call(CountedSet::Helpers, "others", 2, 2, 0),
                call(CountedSet::Kfuncs, "others", 4, 4, 0),
            ]
        );
        assert!(counted_calls(&vec![0; 582 * COUNT_SIZE]).unwrap().is_empty());
        for size in [0, 581 * COUNT_SIZE, 583 * COUNT_SIZE] {
            let error = counted_calls(&vec![0; size]).unwrap_err().to_string();
            assert!(error.contains("another version"), "{error}");
        }
    }

    #[test]
    fn a_kernel_function_that_only_the_policy_names_is_not_counted() {
        let mut value = [0; KFUNC_VALUE_SIZE];
        value[24] = 1;
        assert_eq!(counted_kfunc(|| "bpf_x".to_owned(), &value), None);
        value[0] = 3;
        let found = counted_kfunc(|| "bpf_x".to_owned(), &value).unwrap();
        assert_eq!((found.name.as_str(), found.seen, found.refused), ("bpf_x", 3, 0));
    }
}
