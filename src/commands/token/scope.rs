//! `token explain --scope`: for each program type, what it reaches on this kernel if it is loaded with a token.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Format;
use crate::kernel::{Feature, Kernel, LinuxKernel, Support};
use crate::lifecycle::token_reach;
use crate::model::attach_point::Scope;
use crate::model::delegation::Category;
use crate::model::reach::TokenReach;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::paths::Paths;

/// The table. Its JSON form is stable: keys are added, but never renamed.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ScopeTable {
    /// Ways to the kernel's memory that are open to every program type.
    memory: Vec<String>,
    /// The program types, in the order of the kernel's enum.
    types: Vec<Row>,
    /// What could not be determined.
    undecided: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    /// The kernel's name.
    #[serde(rename = "type")]
    name: &'static str,
    /// Its scope, independent of the container.
    scope: Scope,
    /// Why it is host scope: what it reaches, and by which function.
    because: Option<String>,
    /// Everything that it reaches, with the functions.
    reaches: BTreeMap<String, Vec<String>>,
}

/// Prints the table. The probes need root; the result is kept for the boot and then readable by every user.
pub fn print_scope(paths: &Paths, format: Format) -> Result<ExitCode, CommandError> {
    if LinuxKernel.probe(Feature::Token) == Support::No("BPF_TOKEN_CREATE is not known".to_owned()) {
        return Err(CommandError::new("explain the scope: this kernel has no BPF tokens; use Linux 6.9 or newer"));
    }
    let Some(reach) = token_reach::known(paths) else {
        let problem = "what a token reaches on this kernel is not known yet; run this as root once per boot";
        return Err(CommandError::new(format!("explain the scope: {problem}")));
    };
    let table = table(&reach);
    print(&match format {
        Format::Json => json(&table),
        Format::Table => text(&table),
    })
}

fn table(reach: &TokenReach) -> ScopeTable {
    let rows = (1..64).filter_map(|at| Some((at, Category::Progs.name(at)?)));
    let row = |(at, name)| {
        let beyond = reach.type_beyond(at);
        let scope = if beyond.is_some() { Scope::Host } else { Scope::Container };
        let because = match Category::Progs.value(name) {
            Err(never) => Some(never.to_string()),
            Ok(_) => beyond.map(|beyond| format!("{} ({})", beyond.what, beyond.by)),
        };
        Row { name, scope, because, reaches: reach.listing(at) }
    };
    ScopeTable {
        memory: reach.memory.iter().map(ToString::to_string).collect(),
        types: rows.map(row).collect(),
        undecided: reach.undecided.clone(),
    }
}

fn text(table: &ScopeTable) -> String {
    let mut text = format!("{:<24}{:<11}REACHES\n", "TYPE", "SCOPE");
    for row in &table.types {
        let scope = if row.scope == Scope::Host { "host" } else { "container" };
        let mut reached: Vec<String> =
            row.reaches.iter().map(|(what, functions)| format!("{what} ({})", functions.join(", "))).collect();
        if reached.is_empty() {
            reached.push(row.because.clone().unwrap_or_else(|| "nothing beyond the container".to_owned()));
        }
        let _ = writeln!(text, "{:<24}{scope:<11}{}", row.name, reached.join("; "));
    }
    for why in &table.undecided {
        let _ = writeln!(text, "not determined: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::{MemoryRead, TypeAnswer};

    #[test]
    fn every_program_type_has_a_line() {
        let offers = |names: &[&str]| TypeAnswer::Offers(names.iter().map(|name| (*name).to_owned()).collect());
        let mut reach = TokenReach::default();
        reach.types.insert(1, offers(&["bpf_loop"]));
        reach.types.insert(8, offers(&["bpf_sk_lookup_tcp", "bpf_sk_lookup_udp"]));
        let said = text(&table(&reach));
        let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert_eq!(line("socket_filter"), "socket_filter           container  nothing beyond the container");
        assert_eq!(
            line("cgroup_skb"),
            "cgroup_skb              host       sockets of other network namespaces (bpf_sk_lookup_tcp, bpf_sk_lookup_udp)"
        );
        assert_eq!(line("kprobe"), "kprobe                  host       the whole host (on every kernel)");
        assert!(line("syscall").ends_with("of the kernel") && line("syscall").contains("never delegated"), "{said}");
        reach.memory.push(MemoryRead::RdonlyCast);
        let json = serde_json::to_value(table(&reach)).unwrap();
        assert_eq!(json["types"][0]["scope"], "host");
        assert_eq!(json["types"][0]["reaches"]["kernel memory"][0], "bpf_rdonly_cast");
    }
}
