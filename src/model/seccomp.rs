//! Evaluates a container's seccomp profile for the system calls that BPF needs.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// A system call that a container may need to use BPF itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Syscall {
    /// bpf(2): everything that uses a token, and reading a map.
    Bpf,
    /// perf_event_open(2): tracepoints and perf events.
    PerfEventOpen,
}

impl Syscall {
    /// The name in seccomp profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::PerfEventOpen => "perf_event_open",
        }
    }
}

/// Whether something is allowed, as far as the configuration shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It depends on something outside the configuration: arguments, a listener, a tracer, file capabilities.
    Unknown,
}

/// `linux.seccomp` of config.json, reduced to the rules about [`Syscall`]s.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    #[serde(default)]
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u64>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
}

/// A rule for bpf(2) that compares the command, the first argument, under a mask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BpfRule {
    /// `SCMP_ACT_*`
    pub action: String,
    /// The mask.
    pub mask: u64,
    /// The command.
    pub command: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: SyscallNames,
    action: String,
    #[serde(default)]
    errno_ret: Option<u64>,
    #[serde(default)]
    args: Option<Vec<ComparedArgument>>,
}

/// The members of [`Syscall`] in a rule's `names`; podman's profiles contain hundreds of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct SyscallNames {
    bpf: bool,
    perf_event_open: bool,
    /// The first name that no system call has: runtimes could read it as another than this program does.
    odd: Option<String>,
}

/// An entry of `args`: its presence makes the rule conditional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ComparedArgument {
    index: u64,
    value: u64,
    value_two: u64,
    op: String,
}

impl<'de> Deserialize<'de> for SyscallNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeenRules;
        impl<'de> Visitor<'de> for SeenRules {
            type Value = SyscallNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of system call names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<SyscallNames, A::Error> {
                let mut seen = SyscallNames::default();
                while let Some(name) = names.next_element::<std::borrow::Cow<'_, str>>()? {
                    seen.bpf |= name == Syscall::Bpf.name();
                    seen.perf_event_open |= name == Syscall::PerfEventOpen.name();
                    if seen.odd.is_none() && !is_plain(&name) {
                        seen.odd = Some(name.into_owned());
                    }
                }
                Ok(seen)
            }
        }
        deserializer.deserialize_seq(SeenRules)
    }
}

/// True if a name has the form of all system calls: lower-case letters, digits and `_`.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

impl Seccomp {
    /// The first name in the rules that no system call has.
    pub fn odd_name(&self) -> Option<&str> {
        self.syscalls.iter().flatten().find_map(|rule| rule.names.odd.as_deref())
    }

    /// Where the runtime passes the filter's listener to; None without one.
    pub fn listener_path(&self) -> Option<&str> {
        self.listener_path.as_deref().filter(|path| !path.is_empty())
    }

    /// What the runtime passes with it.
    pub fn listener_metadata(&self) -> &str {
        self.listener_metadata.as_deref().unwrap_or_default()
    }

    /// Every rule that names bpf(2); None for one that does something else than comparing the command under a mask.
    pub fn bpf_rules(&self) -> Vec<Option<BpfRule>> {
        let of_bpf = self.syscalls.iter().flatten().filter(|rule| rule.names.bpf);
        let parsed = of_bpf.map(|rule| match rule.args.as_deref() {
            Some([ComparedArgument { index: 0, value, value_two, op }]) if op == "SCMP_CMP_MASKED_EQ" => {
                Some(BpfRule { action: rule.action.clone(), mask: *value, command: *value_two })
            }
            _ => None,
        });
        parsed.collect()
    }

    /// The action of each rule that names perf_event_open(2); None for one that depends on arguments.
    pub fn perf_event_rules(&self) -> Vec<Option<&str>> {
        let named = self.syscalls.iter().flatten().filter(|rule| rule.names.perf_event_open);
        let conditional = |rule: &Rule| rule.args.as_ref().is_some_and(|args| !args.is_empty());
        named.map(|rule| (!conditional(rule)).then_some(rule.action.as_str())).collect()
    }

    /// Decides whether the filter allows a system call, whatever its arguments.
    ///
    /// runc (libcontainer/seccomp) and crun (seccomp.c) omit rules that repeat the default action. Of the others, rules
    /// with different actions for one call and rules with conditions give Unknown. The list of architectures does not
    /// matter: libseccomp applies names to each of them, including the native one.
    pub fn allows(&self, call: Syscall) -> Allowed {
        let default = verdict(&self.default_action);
        let mut found: Option<Allowed> = None;
        for rule in self.syscalls.iter().flatten() {
            let named = match call {
                Syscall::Bpf => rule.names.bpf,
                Syscall::PerfEventOpen => rule.names.perf_event_open,
            };
            if !named || (rule.action == self.default_action && rule.errno_ret == self.default_errno_ret) {
                continue;
            }
            let conditional = rule.args.as_ref().is_some_and(|args| !args.is_empty());
            let says = if conditional && verdict(&rule.action) != default { Allowed::Unknown } else { verdict(&rule.action) };
            match found {
                Some(before) if before != says => return Allowed::Unknown,
                _ => found = Some(says),
            }
        }
        found.unwrap_or(default)
    }
}

/// runtime-spec, config-linux.md, "Seccomp": SCMP_ACT_LOG allows the call, a tracer or listener may allow it.
fn verdict(action: &str) -> Allowed {
    match action {
        "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" => Allowed::Yes,
        "SCMP_ACT_TRACE" | "SCMP_ACT_NOTIFY" => Allowed::Unknown,
        _ => Allowed::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_with_conditions_are_unknown() {
        use Allowed::{No, Unknown, Yes};
        let rule = |action: &str, args: &str| format!(r#"{{"names":["read","bpf"],"action":"{action}","args":{args}}}"#);
        let allow = rule("SCMP_ACT_ALLOW", "null");
        let deny = rule("SCMP_ACT_ERRNO", "[]");
        let if_0 = rule("SCMP_ACT_ALLOW", r#"[{"index":0,"value":5,"op":"SCMP_CMP_EQ"}]"#);
        for (default, rules, bpf) in [
            ("SCMP_ACT_ERRNO", vec![], No),
            ("SCMP_ACT_ALLOW", vec![], Yes),
            ("SCMP_ACT_LOG", vec![], Yes),
            ("SCMP_ACT_KILL_PROCESS", vec![], No),
            ("SCMP_ACT_ERRNO", vec![&allow], Yes),
            ("SCMP_ACT_ALLOW", vec![&deny], No),
            ("SCMP_ACT_ERRNO", vec![&deny], No),
            ("SCMP_ACT_ERRNO", vec![&deny, &allow], Yes),
            ("SCMP_ACT_ERRNO", vec![&if_0], Unknown),
            ("SCMP_ACT_ERRNO", vec![&if_0, &allow], Unknown),
            ("SCMP_ACT_KILL", vec![&deny, &allow], Unknown),
            ("SCMP_ACT_NOTIFY", vec![], Unknown),
        ] {
            let text = format!(
                r#"{{"defaultAction":"{default}","syscalls":[{}]}}"#,
                rules.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(",")
            );
            let seccomp: Seccomp = serde_json::from_str(&text).unwrap();
            assert_eq!(seccomp.allows(Syscall::Bpf), bpf, "{text}");
        }
    }

    #[test]
    fn names_that_no_system_call_has_are_found() {
        for (names, odd) in [
            (r#"["read","bpf","_llseek","pread64"]"#, None),
            (r#"["read","bpf\u0000","BPF"]"#, Some("bpf\0")),
            (r#"["BPF"]"#, Some("BPF")),
            (r#"[" bpf"]"#, Some(" bpf")),
            (r#"["-1"]"#, Some("-1")),
            (r#"[""]"#, Some("")),
        ] {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW"}},{{"names":{names},"action":"SCMP_ACT_ALLOW"}}]}}"#
            );
            let seccomp: Seccomp = serde_json::from_str(&text).unwrap();
            assert_eq!(seccomp.odd_name(), odd, "{names}");
        }
    }

    #[test]
    fn a_rule_of_the_default_action_with_another_errno_counts() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ERRNO","errnoRet":1},{"names":["bpf"],"action":"SCMP_ACT_ALLOW"}]}"#;
        let seccomp: Seccomp = serde_json::from_str(text).unwrap();
        assert_eq!(seccomp.allows(Syscall::Bpf), Allowed::Unknown);
        assert_eq!(seccomp.allows(Syscall::PerfEventOpen), Allowed::No);
    }
}
