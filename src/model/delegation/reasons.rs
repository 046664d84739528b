//! The names of a delegation and the capabilities that something needs, each with what needs it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Category, Delegation};

/// A name to delegate, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeededName {
    /// `cmds`, `maps`, `progs` or `attachs`; in a rule for the proxy also `helpers` or `kfuncs`.
    pub set: &'static str,
    /// The kernel's name; a number if it is newer than our tables.
    pub name: String,
    /// What needs it, one phrase each.
    #[serde(rename = "for")]
    pub reasons: Vec<String>,
}

/// A capability in the token's user namespace, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeededCapability {
    /// `CAP_BPF`
    pub name: &'static str,
    /// What needs it, one phrase each.
    #[serde(rename = "for")]
    pub reasons: Vec<String>,
}

/// Reasons by what they are for, in the order in which they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NeedReasons {
    names: BTreeMap<(Category, u32), Vec<String>>,
    capabilities: BTreeMap<usize, Vec<String>>,
}

/// In the order of the list that is printed.
const CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"];
const BPF: usize = 0;
const NET_ADMIN: usize = 1;
const PERFMON: usize = 2;

impl NeedReasons {
    /// A name is needed.
    pub fn name(&mut self, category: Category, value: u32, reason: impl Into<String>) {
        add_reason(self.names.entry((category, value)).or_default(), reason.into());
    }

    /// CAP_BPF is needed.
    pub fn bpf(&mut self, reason: impl Into<String>) {
        add_reason(self.capabilities.entry(BPF).or_default(), reason.into());
    }

    /// CAP_NET_ADMIN is needed.
    pub fn net_admin(&mut self, reason: impl Into<String>) {
        add_reason(self.capabilities.entry(NET_ADMIN).or_default(), reason.into());
    }

    /// CAP_PERFMON is needed.
    pub fn perfmon(&mut self, reason: impl Into<String>) {
        add_reason(self.capabilities.entry(PERFMON).or_default(), reason.into());
    }

    /// All names as a delegation, without values that a delegation cannot have.
    pub fn delegation(&self) -> Delegation {
        let mut delegation = Delegation::default();
        for (category, value) in self.names.keys().filter(|(_, value)| *value < u64::BITS) {
            *delegation.mask_mut(*category) |= 1 << value;
        }
        delegation
    }

    /// Each name and each capability, in the order of the kernel's enums, and CAP_BPF first.
    pub fn into_lists(self) -> (Vec<NeededName>, Vec<NeededCapability>) {
        let names = self.names.into_iter().map(|((category, value), reasons)| {
            let name = category.name(value).map_or_else(|| value.to_string(), str::to_owned);
            NeededName { set: category.word(), name, reasons }
        });
        let capabilities = self.capabilities.into_iter().filter_map(|(at, reasons)| {
            let name = CAPABILITIES.get(at).copied()?;
            Some(NeededCapability { name, reasons })
        });
        (names.collect(), capabilities.collect())
    }
}

/// Adds a reason that is not in the list yet.
pub fn add_reason(reasons: &mut Vec<String>, reason: String) {
    if !reasons.contains(&reason) {
        reasons.push(reason);
    }
}
