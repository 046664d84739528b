//! What a BPF token can be used for on one kernel: the result of trying each command and type.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a row of the matrix is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixSet {
    /// A command of bpf(2).
    Cmds,
    /// Creating a map.
    Maps,
    /// Loading a program.
    Progs,
    /// Loading a program with an attach type, and attaching it.
    Attachs,
    /// Creating a link of a type.
    Links,
}

impl MatrixSet {
    /// All of them, in the order of the table, with their heading.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Cmds, "command"),
        (Self::Maps, "map type"),
        (Self::Progs, "program type"),
        (Self::Attachs, "attach type"),
        (Self::Links, "link type"),
    ];
}

/// The outcome of one operation, tried with more and more capabilities in the token's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatrixOutcome {
    /// It succeeds with these capabilities, and not with fewer.
    Needs(Vec<String>),
    /// It fails with every capability of the user namespace.
    Fails {
        /// The errno.
        errno: i32,
        /// Its name: `EPERM`.
        error: String,
    },
    /// It was not tried: why.
    NotTried(String),
}

impl MatrixOutcome {
    /// True if it succeeds with some capabilities.
    pub fn works(&self) -> bool {
        matches!(self, Self::Needs(_))
    }
}

impl fmt::Display for MatrixOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Needs(capabilities) if capabilities.is_empty() => f.write_str("no capability"),
            Self::Needs(capabilities) => f.write_str(&capabilities.join(" ")),
            Self::Fails { error, .. } => write!(f, "{error}"),
            Self::NotTried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// One command or type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixRow {
    /// What it is.
    pub set: MatrixSet,
    /// The kernel's name.
    pub name: String,
    /// The program type that was used; None if the call takes no program.
    pub program: Option<String>,
    /// Whether the token makes it possible: true if it fails without the token with every capability, false if it works
    /// without a token too. None if it fails.
    pub token: Option<bool>,
    /// The operation: the command, creating the map, loading the program, creating the link.
    pub outcome: MatrixOutcome,
    /// Attaching the program; None where nothing is attached.
    pub attach: Option<MatrixOutcome>,
}

impl MatrixRow {
    /// Why it does not work, as far as that is known; None if it works.
    pub fn reason(&self) -> Option<String> {
        let failed = [Some(&self.outcome), self.attach.as_ref()].into_iter().flatten().find(|outcome| !outcome.works())?;
        Some(match failed {
            MatrixOutcome::NotTried(why) => why.clone(),
            MatrixOutcome::Fails { error, .. } => known_reason(self.set, &self.name, error).to_owned(),
            MatrixOutcome::Needs(_) => return None,
        })
    }
}

/// The explanation of a failure.
fn known_reason(set: MatrixSet, name: &str, error: &str) -> &'static str {
    match (set, name, error) {
        (MatrixSet::Cmds, "token_create", "EPERM") => "a token is created with CAP_BPF in the user namespace of the bpffs",
        (MatrixSet::Cmds, name, "EPERM") if name.ends_with("_get_next_id") || name.ends_with("_get_fd_by_id") => {
            "ids are those of the whole host: CAP_SYS_ADMIN outside the user namespace, which no token stands in for"
        }
        (MatrixSet::Cmds, "prog_query", "EPERM") => "CAP_NET_ADMIN outside the user namespace, which no token stands in for",
        (MatrixSet::Cmds, "task_fd_query", "EPERM") => "CAP_SYS_ADMIN outside the user namespace, which no token stands in for",
        (MatrixSet::Cmds, "enable_stats", "EPERM") => {
            "it changes the whole host: CAP_SYS_ADMIN outside the user namespace, which no token stands in for"
        }
        (_, _, "EPERM") => {
            "although the token allows it: this kernel does not have it, or lockdown, a security module or a check outside the user namespace refuses it"
        }
        (_, _, "EACCES") => "perf_event_open(2) looks at capabilities outside the user namespace (kernel.perf_event_paranoid)",
        (_, _, "EINVAL") => "this kernel does not have it, or not in this form",
        (_, _, "EOPNOTSUPP") => "not configured in this kernel",
        (_, _, "ENOENT" | "ENODEV") => "what it needs is not there in the test's namespaces",
        _ => "see the errno",
    }
}

/// The matrix of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMatrix {
    /// The kernel's release.
    pub kernel: String,
    /// One row per command and type.
    pub rows: Vec<MatrixRow>,
}

impl TokenMatrix {
    /// The rows about one thing.
    pub fn of(&self, set: MatrixSet) -> impl Iterator<Item = &MatrixRow> {
        self.rows.iter().filter(move |row| row.set == set)
    }
}

/// The types of the running kernel that the test programs refer to, by what they are for. The test process cannot read
/// BTF itself: it has only the system calls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MatrixTypes {
    /// The ids in the kernel's BTF, by name.
    pub ids: BTreeMap<String, u32>,
    /// Size in bytes of the value of a struct_ops map.
    pub struct_ops_size: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(set: MatrixSet, name: &str, outcome: MatrixOutcome, attach: Option<MatrixOutcome>) -> MatrixRow {
        MatrixRow { set, name: name.into(), program: None, token: None, outcome, attach }
    }

    #[test]
    fn failures_are_explained() {
        let fails = |error: &str| MatrixOutcome::Fails { errno: 1, error: error.into() };
        let works = || MatrixOutcome::Needs(vec!["CAP_BPF".into()]);
        let cases = [
            (row(MatrixSet::Cmds, "prog_get_next_id", fails("EPERM"), None), Some("of the whole host")),
            (row(MatrixSet::Attachs, "perf_event", works(), Some(fails("EACCES"))), Some("perf_event_paranoid")),
            (row(MatrixSet::Maps, "rhash", fails("EINVAL"), None), Some("does not have it")),
            (row(MatrixSet::Progs, "lsm", fails("EPERM"), None), Some("lockdown")),
            (row(MatrixSet::Links, "netkit", works(), Some(MatrixOutcome::NotTried("no device".into()))), Some("no device")),
            (row(MatrixSet::Maps, "hash", works(), None), None),
        ];
        for (row, words) in cases {
            let said = row.reason();
            assert_eq!(said.is_some(), words.is_some(), "{row:?}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()), "{row:?}");
        }
        assert_eq!(works().to_string(), "CAP_BPF");
        assert_eq!(MatrixOutcome::Needs(Vec::new()).to_string(), "no capability");
    }
}
