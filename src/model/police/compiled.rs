//! The allowed calls in the form in which the kernel's program reads them.

use std::collections::BTreeSet;

use super::{Police, PoliceMode};

/// `probe_read` and `probe_read_str` read the memory of the kernel and of the process; since Linux 5.5 each has a helper
/// for one of them, and libraries replace one by the other if the kernel does not take it: the number that reads both,
/// the one for the process, the one for the kernel.
const READS: [[u32; 3]; 2] = [[4, 112, 113], [45, 114, 115]];

/// The sets of one container: a bit for each value that is allowed. A value beyond a set is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledSets {
    cmds: u64,
    maps: u64,
    progs: u64,
    attachs: [u64; 2],
    helpers: [u64; 4],
    enforce: bool,
    lists_helpers: bool,
    lists_kfuncs: bool,
}

impl CompiledSets {
    /// The sets of a rule.
    pub fn new(police: &Police) -> Self {
        let calls = &police.calls;
        let mut helpers = [0; 4];
        for number in calls.helpers.iter().flat_map(with_aliases) {
            if let Some(word) = helpers.get_mut(number as usize / 64) {
                *word |= 1 << (number % 64);
            }
        }
        Self {
            cmds: calls.delegation.cmds,
            maps: calls.delegation.maps,
            progs: calls.delegation.progs,
            attachs: [calls.delegation.attachs, 0],
            helpers,
            enforce: police.mode == PoliceMode::Enforce,
            lists_helpers: calls.helpers.is_some(),
            lists_kfuncs: calls.kfuncs.is_some(),
        }
    }

    /// `struct police_sets` of police.h, in the byte order of this machine.
    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.cmds, self.maps, self.progs].into_iter().chain(self.attachs).chain(self.helpers);
        let flags = [self.enforce, self.lists_helpers, self.lists_kfuncs, false].map(u32::from);
        words.flat_map(u64::to_ne_bytes).chain(flags.into_iter().flat_map(u32::to_ne_bytes)).collect()
    }
}

/// The helpers that may be called if these are listed. The one that reads both kinds of memory is allowed exactly if both
/// others are: otherwise a helper that is not listed would come back under its number.
fn with_aliases(listed: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut allowed = listed.clone();
    for [both, process, kernel] in READS {
        if allowed.contains(&both) || allowed.contains(&process) && allowed.contains(&kernel) {
            allowed.extend([both, process, kernel]);
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Delegation;
    use crate::model::proxy::CallCeiling;

    fn police(helpers: Option<&[u32]>, mode: PoliceMode) -> Police {
        let delegation = Delegation { cmds: 1 << 5, maps: 1 << 2, progs: 1 << 6, attachs: 1 << 37 };
        let helpers = helpers.map(|numbers| numbers.iter().copied().collect());
        Police { mode, calls: CallCeiling { delegation, helpers, ..CallCeiling::default() } }
    }

    #[test]
    fn the_layout_is_that_of_police_h() {
        let bytes = CompiledSets::new(&police(Some(&[1, 64, 211]), PoliceMode::Enforce)).bytes();
        let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        let words: Vec<u64> = (0..bytes.len() / 8).map(word).collect();
        let flags = |low: u64, high: u64| low | high << 32;
        assert_eq!(words, [1 << 5, 1 << 2, 1 << 6, 1 << 37, 0, 1 << 1, 1, 0, 1 << (211 - 192), flags(1, 1), flags(0, 0)]);
        let warn = CompiledSets::new(&police(None, PoliceMode::Warn)).bytes();
        assert!(warn[72..].iter().all(|byte| *byte == 0), "{warn:?}");
    }

    #[test]
    fn a_helper_that_is_not_listed_does_not_come_back_under_another_number() {
        for (listed, allowed) in [
            (&[113][..], &[113][..]),
            (&[112], &[112]),
            (&[112, 113], &[4, 112, 113]),
            (&[4], &[4, 112, 113]),
            (&[114], &[114]),
            (&[115, 114], &[45, 114, 115]),
            (&[45], &[45, 114, 115]),
            (&[112, 115], &[112, 115]),
            (&[], &[]),
        ] {
            let found: Vec<u32> = with_aliases(&listed.iter().copied().collect()).into_iter().collect();
            assert_eq!(found, allowed, "{listed:?}");
        }
    }

    #[test]
    fn a_helper_beyond_the_set_is_not_allowed() {
        let sets = CompiledSets::new(&police(Some(&[256, 100_000]), PoliceMode::Enforce));
        assert_eq!(sets.helpers, [0; 4]);
        assert!(sets.lists_helpers);
    }
}
