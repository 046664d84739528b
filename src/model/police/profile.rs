//! A recorded profile as policy.

use std::fmt::{self, Write as _};

use super::{CountedCall, CountedSet, PoliceMode};

/// Maximum length of a line.
const WIDTH: usize = 100;

/// What a workload did, as a container rule that allows exactly that. Its text is TOML.
#[derive(Debug, Clone)]
pub struct CallProfile<'a> {
    /// What was recorded: `container web`, `the command bpftool`.
    pub of: &'a str,
    /// What it did.
    pub calls: &'a [CountedCall],
    /// True if the kernel shows the instructions of programs, so that helpers and kernel functions were counted.
    pub has_functions: bool,
}

impl CallProfile<'_> {
    fn names(&self, set: CountedSet) -> Vec<&str> {
        let of_set = self.calls.iter().filter(|call| call.set == set && call.name != CountedCall::OTHERS);
        of_set.map(|call| call.name.as_str()).filter(|name| !is_number(name)).collect()
    }
}

/// The values that a rule cannot name.
fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for CallProfile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# bpf(2) of {}.", self.of)?;
        let sets = [
            CountedSet::Cmds,
            CountedSet::Maps,
            CountedSet::Progs,
            CountedSet::Attachs,
            CountedSet::Helpers,
            CountedSet::Kfuncs,
        ];
        let of = |set| self.calls.iter().filter(move |call| call.set == set);
        for set in sets {
            let counted: Vec<String> = of(set).map(|call| format!("{} {}", call.name, call.seen)).collect();
            comment(f, &format!("{set}:"), &counted)?;
        }
        let typed = |call: &&CountedCall| matches!(call.set, CountedSet::Maps | CountedSet::Progs | CountedSet::Helpers);
        let probed = self.calls.iter().filter(typed).filter(|call| call.is_only_probed());
        let probed: Vec<String> = probed.map(|call| format!("{} {}", call.set.noun(), call.name)).collect();
        comment(f, "Only in what libbpf loads to try the kernel, which may decide how it loads the rest:", &probed)?;
        let unnamed = |call: &&CountedCall| call.name == CountedCall::OTHERS || is_number(&call.name);
        let unnamed: Vec<String> =
            self.calls.iter().filter(unnamed).map(|call| format!("{} {}", call.set.noun(), call.name)).collect();
        comment(f, "Without a name, and therefore not allowed below:", &unnamed)?;
        if !self.has_functions {
            writeln!(f, "# Helpers and kernel functions were not recorded: this kernel has no LSM hook bpf_prog_load (6.9).")?;
        }
        writeln!(f, "[[container]]")?;
        writeln!(f, "match = {{ }}    # the container that it is for")?;
        writeln!(f, "[container.police]")?;
        writeln!(f, "mode = \"{}\"", PoliceMode::Enforce)?;
        for set in sets {
            let of_functions = matches!(set, CountedSet::Helpers | CountedSet::Kfuncs);
            if !of_functions || self.has_functions {
                array(f, set.word(), &self.names(set))?;
            }
        }
        Ok(())
    }
}

/// Items behind a heading, in lines that begin with `#`; nothing without items.
fn comment(f: &mut fmt::Formatter<'_>, heading: &str, items: &[String]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let mut line = format!("# {heading}");
    for (n, item) in items.iter().enumerate() {
        let end = if n + 1 < items.len() { "," } else { "" };
        if line.len() + item.len() + 2 > WIDTH {
            writeln!(f, "{line}")?;
            "#  ".clone_into(&mut line);
        }
        write!(line, " {item}{end}")?;
    }
    writeln!(f, "{line}")
}

fn array(f: &mut fmt::Formatter<'_>, key: &str, names: &[&str]) -> fmt::Result {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let line = format!("{key} = [{}]", quoted.join(", "));
    if line.len() <= WIDTH {
        return writeln!(f, "{line}");
    }
    writeln!(f, "{key} = [")?;
    let mut line = "   ".to_owned();
    for name in quoted {
        if line.len() + name.len() + 2 > WIDTH {
            writeln!(f, "{line}")?;
            "   ".clone_into(&mut line);
        }
        write!(line, " {name},")?;
    }
    writeln!(f, "{line}\n]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::Policy;

    fn call(set: CountedSet, name: &str, seen: u64, probes: u64) -> CountedCall {
        CountedCall { set, name: name.to_owned(), seen, refused: seen, probes }
    }

    #[test]
    fn a_profile_is_a_rule_that_allows_what_was_recorded() {
        use CountedSet::{Attachs, Cmds, Helpers, Kfuncs, Maps, Progs};
        let calls = [
            call(Cmds, "map_create", 7, 0),
            call(Cmds, "prog_load", 8, 0),
            call(Cmds, "60", 1, 0),
            call(Maps, "array", 3, 1),
            call(Progs, "socket_filter", 4, 4),
            call(Progs, "xdp", 1, 0),
            call(Progs, "syscall", 1, 0),
            call(Attachs, "xdp", 1, 0),
            call(Helpers, "map_lookup_elem", 2, 0),
            call(Kfuncs, "bpf_dynptr_slice", 1, 0),
            call(Kfuncs, "others", 1, 0),
        ];
        let text = CallProfile { of: "container web", calls: &calls, has_functions: true }.to_string();
        for line in [
            "# bpf(2) of container web.",
            "# cmds: map_create 7, prog_load 8, 60 1",
            "# Only in what libbpf loads to try the kernel, which may decide how it loads the rest:",
            "#   program type socket_filter",
            "# Without a name, and therefore not allowed below: bpf command 60, kernel function others",
            "cmds = [\"map_create\", \"prog_load\"]",
            "progs = [\"socket_filter\", \"xdp\", \"syscall\"]",
            "helpers = [\"map_lookup_elem\"]",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        let policy = Policy::parse(&[("/p.toml".into(), text)]).unwrap();
        let police = policy.containers[0].police.as_ref().unwrap();
        assert_eq!(police.mode, PoliceMode::Enforce);
        assert_eq!(police.calls.delegation.cmds, 1 | 1 << 5);
        assert_eq!(police.calls.delegation.progs, 1 << 1 | 1 << 6 | 1 << 31);
        assert_eq!(police.calls.helpers, Some([1].into()));
        assert_eq!(police.calls.kfuncs, Some(["bpf_dynptr_slice".to_owned()].into()));
    }

    #[test]
    fn functions_are_listed_only_if_they_were_counted() {
        let calls: Vec<_> =
            (0..30).map(|n| call(CountedSet::Cmds, if n % 2 == 0 { "prog_load" } else { "map_create" }, 1, 0)).collect();
        let text = CallProfile { of: "the command x", calls: &calls, has_functions: false }.to_string();
        assert!(text.contains("were not recorded") && !text.contains("helpers = "), "{text}");
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        let policy = Policy::parse(&[("/p.toml".into(), text)]).unwrap();
        assert!(!policy.containers[0].police.as_ref().unwrap().lists_functions());
    }
}
