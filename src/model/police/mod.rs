//! Policing: which of its own bpf(2) calls a container may make, and what it made. An LSM program on the container's
//! cgroup judges each call (src/bpf/police.bpf.c); it also covers containers that have CAP_BPF.

mod compiled;
mod counts;
mod profile;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::delegation::{Category, Delegation};
use crate::model::proxy::CallCeiling;
use crate::model::reach;

pub use compiled::CompiledSets;
pub use counts::{CountError, CountedCall, CountedSet, KFUNC_VALUE_SIZE, counted_calls, counted_kfunc};
pub use profile::CallProfile;

/// Maximum number of kernel functions that a rule lists. The map of the program has 256 places, and those that are not
/// listed need some, too.
pub const KFUNCS_MAX: usize = 64;

/// What happens to a call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoliceMode {
    /// It is counted.
    Warn,
    /// It is counted, and fails with EPERM.
    Enforce,
}

impl fmt::Display for PoliceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warn => "warn",
            Self::Enforce => "enforce",
        })
    }
}

/// `police` of a container rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Police {
    /// What happens to other calls.
    pub mode: PoliceMode,
    /// The allowed calls. Every command counts here, also those that a delegation or the proxy do not judge.
    pub calls: CallCeiling,
}

/// The policing of one container, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliceRecord {
    /// What happens to calls that are not allowed.
    pub mode: PoliceMode,
    /// The calls that were not allowed, as of the last reading of the counters: with `enforce` they failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<CountedCall>,
}

/// `enum bpf_cmd`: map_lookup_elem, map_update_elem, map_delete_elem, map_get_next_key, obj_pin, prog_test_run,
/// obj_get_info_by_fd, map_lookup_and_delete_elem, map_freeze, the four batches, link_update, iter_create,
/// prog_bind_map, token_create, prog_stream_read_by_fd.
const ON_DESCRIPTORS: u64 =
    0b1_1110 | 1 << 6 | 1 << 10 | 1 << 15 | 1 << 21 | 1 << 22 | 0b1111 << 24 | 1 << 29 | 1 << 33 | 1 << 35 | 1 << 36 | 1 << 37;
/// prog_attach, raw_tracepoint_open, link_create: for a delegation and the proxy they go with prog_load.
const ATTACHING: u64 = 1 << 8 | 1 << 17 | 1 << 28;

/// A delegation with the commands that its holder needs in addition to those that a token or the proxy judge: on
/// descriptors that the caller has, and to attach what it may load. obj_get, prog_detach, link_detach and the commands
/// that find objects of others by their ids are not among them.
pub fn with_descriptors(delegation: Delegation) -> Delegation {
    let attaching = if delegation.loads_programs() { ATTACHING } else { 0 };
    Delegation { cmds: delegation.cmds | ON_DESCRIPTORS | attaching, ..delegation }
}

impl Police {
    /// `police = "warn"` or `"enforce"`: what the rule allows by delegation and by proxy.
    pub fn of_ceiling(mode: PoliceMode, calls: CallCeiling) -> Self {
        let delegation = if calls.is_empty() { calls.delegation } else { with_descriptors(calls.delegation) };
        Self { mode, calls: CallCeiling { delegation, instructions: None, images: Default::default(), ..calls } }
    }

    /// True if programs are judged by the functions that they call, for which the kernel needs the LSM hook
    /// `bpf_prog_load`.
    pub fn lists_functions(&self) -> bool {
        self.calls.helpers.is_some() || self.calls.kfuncs.is_some()
    }

    /// The allowed names by the policy's key. A key that is absent limits nothing: only `helpers` and `kfuncs` can be.
    pub fn allowed(&self) -> BTreeMap<&'static str, Vec<String>> {
        let delegation = &self.calls.delegation;
        let mut allowed: BTreeMap<_, _> = Category::ALL.into_iter().map(|at| (at.word(), delegation.names(at))).collect();
        if let Some(numbers) = &self.calls.helpers {
            let name =
                |number: &u32| reach::helper(*number).map_or_else(|| number.to_string(), |helper| helper.name.to_owned());
            allowed.insert(CountedSet::Helpers.word(), numbers.iter().map(name).collect());
        }
        if let Some(names) = &self.calls.kfuncs {
            allowed.insert(CountedSet::Kfuncs.word(), names.iter().cloned().collect());
        }
        allowed
    }
}

impl fmt::Display for Police {
    /// `enforce, allows cmds prog_load, progs xdp, helpers map_lookup_elem`; `enforce, allows nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, allows {}", self.mode, self.calls.delegation)?;
        for (word, names) in self.allowed().iter().filter(|(word, _)| ["helpers", "kfuncs"].contains(*word)) {
            let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
            write!(f, ", {word} {names}")?;
        }
        Ok(())
    }
}

/// How often something happened, for the end of a sentence: `once`, `3 times`.
pub fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::{Category, Preset};

    #[test]
    fn a_preset_brings_the_commands_on_descriptors() {
        let names = |delegation: Delegation| with_descriptors(delegation).names(Category::Cmds).join(" ");
        let maps = "map_create map_lookup_elem map_update_elem map_delete_elem map_get_next_key obj_pin prog_test_run \
                    obj_get_info_by_fd map_lookup_and_delete_elem map_freeze map_lookup_batch map_lookup_and_delete_batch \
                    map_update_batch map_delete_batch link_update iter_create prog_bind_map token_create \
                    prog_stream_read_by_fd";
        assert_eq!(names(Preset::Maps.delegation()), maps);
        let probes = names(Preset::Probes.delegation());
        for attaching in ["prog_load", "prog_attach", "raw_tracepoint_open", "link_create"] {
            assert!(probes.split(' ').any(|name| name == attaching), "{attaching}");
        }
        // What undoes policing, and what reaches objects of others (also what newer kernels add).
        for (preset, _) in Preset::ALL {
            let cmds = with_descriptors(preset.delegation()).cmds;
            for denied in [7, 9, 11, 12, 13, 14, 16, 19, 20, 23, 30, 31, 32, 34, 38, 40, 63] {
                assert_eq!(cmds >> denied & 1, 0, "{preset:?} {denied}");
            }
        }
    }

    #[test]
    fn a_mode_alone_allows_what_the_rule_delegates() {
        let nothing = Police::of_ceiling(PoliceMode::Enforce, CallCeiling::default());
        assert!(nothing.calls.delegation.is_empty() && !nothing.lists_functions());
        let calls = CallCeiling { delegation: Preset::Maps.delegation(), helpers: Some([1].into()), ..CallCeiling::default() };
        let maps = Police::of_ceiling(PoliceMode::Warn, calls);
        assert_eq!(maps.calls.delegation, with_descriptors(Preset::Maps.delegation()));
        assert!(maps.lists_functions());
        assert_eq!(nothing.to_string(), "enforce, allows nothing");
        let said = maps.to_string();
        assert!(said.starts_with("warn, allows cmds map_create") && said.ends_with(", helpers map_lookup_elem"), "{said}");
        assert_eq!(maps.allowed().len(), 5, "kfuncs are not limited");
    }
}
