//! What a workload asked of bpf(2), recorded call by call: the source of `token profile`.
//!
//! Each distinct thing is kept once. [`RecordedNeeds`] derives from it what a container needs in which the same workload
//! runs, with a token or with the proxy.

mod needs;
mod probes;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use needs::{ProxyNeeds, RecordedNeeds};
pub use probes::{LibraryProbe, SubmittedProgram, marks_library};

/// Entries of each list that are kept.
const ENTRIES_MAX: usize = 4096;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallEnd {
    /// The kernel did what was asked.
    Done,
    /// The kernel refused it with this errno.
    Failed(i32),
    /// The caller's own call was passed to the kernel, and its result is not known.
    Unknown,
}

/// Everything that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recording {
    /// The number of calls by command, `enum bpf_cmd`.
    pub calls: BTreeMap<u32, u64>,
    /// Calls of perf_event_open(2).
    pub perf_events: u64,
    /// What BPF_PROG_LOAD was called with.
    pub programs: Vec<RecordedProgram>,
    /// What BPF_MAP_CREATE was called with.
    pub maps: Vec<RecordedMap>,
    /// How the calls of BPF_BTF_LOAD ended.
    pub types: Vec<RecordedTypes>,
    /// Where programs were attached.
    pub attachments: Vec<RecordedAttachment>,
    /// What the proxy refused, one sentence each; empty if nothing was judged.
    #[serde(default)]
    pub refused: Vec<String>,
    /// Calls that are not in it, because they came too fast.
    #[serde(default)]
    pub missed: u64,
    /// True if a list had more than the entries that are kept.
    pub shortened: bool,
}

/// A program that was loaded, or that was to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedProgram {
    /// Its name, which may be empty.
    pub name: String,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`: `expected_attach_type`.
    pub attach_type: u32,
    /// The helpers that it calls, `enum bpf_func_id`.
    pub helpers: BTreeSet<u32>,
    /// The functions of the kernel that it calls, by name; those of modules by a number.
    pub kfuncs: BTreeSet<String>,
    /// A library's probe of the kernel, if it is one.
    pub probe: Option<LibraryProbe>,
    /// How the call ended.
    pub end: CallEnd,
    /// Why the proxy would not load it at container scope, or not at all.
    pub limits: ProxyLimits,
}

/// A map that was created, or was to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedMap {
    /// Its name, which may be empty.
    pub name: String,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// How the call ended.
    pub end: CallEnd,
    /// See [`RecordedProgram::limits`].
    pub limits: ProxyLimits,
}

/// Types (BTF) that were loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedTypes {
    /// True for a library's probe of a kind of type.
    pub probe: bool,
    /// How the call ended.
    pub end: CallEnd,
}

/// A program that was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedAttachment {
    /// The program's name.
    pub program: String,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`; None for BPF_RAW_TRACEPOINT_OPEN, which has none.
    pub attach_type: Option<u32>,
    /// How the call ended.
    pub end: CallEnd,
    /// See [`RecordedProgram::limits`].
    pub limits: ProxyLimits,
}

/// What the proxy would say to a call that is granted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxyLimits {
    /// Why it needs `host-scope = true`, a sentence.
    pub host_scope: Option<String>,
    /// Why it is not passed on at any scope, a sentence.
    pub not_passed_on: Option<String>,
}

impl Recording {
    /// Counts a call.
    pub fn count(&mut self, command: u32) {
        let calls = self.calls.entry(command).or_default();
        *calls = calls.saturating_add(1);
    }

    /// Adds a sentence of the proxy.
    pub fn refuse(&mut self, sentence: &str) {
        self.shortened |= !add(&mut self.refused, sentence.to_owned());
    }

    /// Adds what was recorded elsewhere.
    pub fn merge(&mut self, other: Self) {
        let Self { calls, perf_events, programs, maps, types, attachments, refused, missed, shortened } = other;
        for (command, count) in calls {
            let calls = self.calls.entry(command).or_default();
            *calls = calls.saturating_add(count);
        }
        programs.into_iter().for_each(|program| self.program(program));
        maps.into_iter().for_each(|map| self.map(map));
        types.into_iter().for_each(|types| self.types(types));
        attachments.into_iter().for_each(|attachment| self.attachment(attachment));
        refused.iter().for_each(|sentence| self.refuse(sentence));
        self.perf_events = self.perf_events.saturating_add(perf_events);
        self.missed = self.missed.saturating_add(missed);
        self.shortened |= shortened;
    }

    /// Adds a program.
    pub fn program(&mut self, program: RecordedProgram) {
        self.shortened |= !add(&mut self.programs, program);
    }

    /// Adds a map.
    pub fn map(&mut self, map: RecordedMap) {
        self.shortened |= !add(&mut self.maps, map);
    }

    /// Adds types.
    pub fn types(&mut self, types: RecordedTypes) {
        self.shortened |= !add(&mut self.types, types);
    }

    /// Adds an attachment.
    pub fn attachment(&mut self, attachment: RecordedAttachment) {
        self.shortened |= !add(&mut self.attachments, attachment);
    }
}

/// False if there is no room.
fn add<T: PartialEq>(list: &mut Vec<T>, entry: T) -> bool {
    if list.contains(&entry) {
        return true;
    }
    let has_room = list.len() < ENTRIES_MAX;
    if has_room {
        list.push(entry);
    }
    has_room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_kept_once_and_not_too_many() {
        let mut recording = Recording::default();
        let map =
            |n: usize| RecordedMap { name: n.to_string(), map_type: 1, end: CallEnd::Done, limits: ProxyLimits::default() };
        for n in [0, 1, 0] {
            recording.count(0);
            recording.map(map(n));
        }
        assert_eq!((recording.calls.get(&0), recording.maps.len(), recording.shortened), (Some(&3), 2, false));
        (0..ENTRIES_MAX).for_each(|n| recording.map(map(n)));
        assert!(!recording.shortened);
        recording.map(map(ENTRIES_MAX));
        assert_eq!((recording.maps.len(), recording.shortened), (ENTRIES_MAX, true));
    }

    #[test]
    fn recordings_of_single_calls_are_joined() {
        let map = RecordedMap { name: "m".into(), map_type: 1, end: CallEnd::Done, limits: ProxyLimits::default() };
        let mut call = Recording { missed: 2, perf_events: 1, ..Recording::default() };
        call.count(0);
        call.map(map);
        call.refuse("no");
        let mut all = Recording::default();
        all.merge(call.clone());
        all.merge(call.clone());
        let expected = Recording { calls: [(0, 2)].into(), missed: 4, perf_events: 2, ..call };
        assert_eq!(all, expected);
    }
}
