//! `token explain --object`: the smallest delegation and the capabilities with which objects load through a token.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Format, TokenExplainArgs};
use crate::kernel::{KERNEL_BTF, object_use};
use crate::lifecycle::token_reach::known;
use crate::model::delegation::{Delegation, NeededCapability, NeededName, ObjectLoader, ObjectUse, Spelling, TokenNeeds};
use crate::model::reach::TokenReach;
use crate::model::text::listed;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::Table;
use crate::paths::Paths;

/// The answer. Its JSON form is stable: keys are added, but never renamed.
#[derive(Debug, Serialize)]
struct ExplainedObjects {
    /// Who loads the objects.
    loader: ObjectLoader,
    /// The names to delegate, with what needs them.
    names: Vec<NeededName>,
    /// The capabilities in the container's user namespace.
    capabilities: Vec<NeededCapability>,
    /// What a token cannot give, one sentence each.
    problems: Vec<String>,
    /// Why a container rule needs `host-scope = true`; None if it does not.
    host_scope: Option<String>,
    /// The delegation by spelling.
    text: BTreeMap<&'static str, String>,
}

/// Size of the largest object in bytes: as for images.
const MAX_OBJECT: u64 = 16 << 20;

/// Explains the objects of the command line.
pub fn explain(paths: &Paths, args: &TokenExplainArgs) -> Result<ExitCode, CommandError> {
    let objects = args.objects.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let needs = TokenNeeds::of(&objects, args.loader);
    let host_scope = host_scope(&needs.delegation, || known(paths));
    if let Some(spelling) = args.spelling {
        // Beside the output, which is to be pasted.
        for problem in &needs.problems {
            let _ = CommandError::new(problem.as_str()).print();
        }
        return print(&spelling.write(&needs.delegation, host_scope.is_some()));
    }
    let written = |(spelling, word): (Spelling, _)| (word, spelling.write(&needs.delegation, host_scope.is_some()));
    let explained = ExplainedObjects {
        loader: args.loader,
        text: Spelling::ALL.map(written).into(),
        names: needs.names,
        capabilities: needs.capabilities,
        problems: needs.problems,
        host_scope,
    };
    print(&match args.format.output {
        Format::Json => json(&explained),
        Format::Table => table(&explained),
    })
}

fn read(path: &Path) -> Result<ObjectUse, CommandError> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_OBJECT + 1).read_to_end(&mut bytes));
    read.map_err(CommandError::doing(format!("read the object {shown}")))?;
    let kernel = || std::fs::read(KERNEL_BTF).ok();
    object_use(&bytes, kernel).map_err(CommandError::doing(shown))
}

/// Why a rule for this delegation needs host scope, on every kernel or on this one.
pub fn host_scope(delegation: &Delegation, reach: impl FnOnce() -> Option<TokenReach>) -> Option<String> {
    let always = delegation.host_scope();
    if !always.is_empty() {
        return Some(format!("{always}: host scope on every kernel"));
    }
    if !delegation.loads_programs() {
        return None;
    }
    match reach() {
        Some(reach) => reach.delegation_beyond(delegation).map(|beyond| beyond.to_string()),
        None => Some("what programs reach on this kernel is not known yet: run this as root once per boot".to_owned()),
    }
}

fn table(explained: &ExplainedObjects) -> String {
    let mut names = Table::new(&["SET", "NAME", "FOR"]);
    let reasons = |reasons: &[String]| listed(reasons.iter().map(String::as_str), 3);
    for needed in &explained.names {
        names.row([needed.set.to_owned(), needed.name.clone(), reasons(&needed.reasons)]);
    }
    let mut capabilities = Table::new(&["CAPABILITY", "FOR"]);
    for needed in &explained.capabilities {
        capabilities.row([needed.name.to_owned(), reasons(&needed.reasons)]);
    }
    let loader = match explained.loader {
        ObjectLoader::Libbpf => "libbpf, as version 1.5 does it (bpftool, libbpf-rs); for others: --loader other",
        ObjectLoader::Other => {
            "a loader that probes nothing and sends all types (cilium/ebpf, own calls); for libbpf: --loader libbpf"
        }
    };
    let mut text = format!("Loaded by {loader}.\n\n{names}\n{capabilities}");
    if !explained.problems.is_empty() {
        text.push('\n');
    }
    for problem in &explained.problems {
        text.push_str(&format!("problem: {problem}\n"));
    }
    let part = |word: &str| explained.text.get(word).map_or("", String::as_str);
    text.push_str(&format!(
        "\nAnnotations\n{}\nPolicy, in a rule whose match names the container\n{}",
        part("annotations"),
        part("policy")
    ));
    if let Some(why) = &explained.host_scope {
        text.push_str(&format!("# host-scope: {why}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::{MapUse, ProgramUse, section_load};

    #[test]
    fn the_text_can_be_pasted() {
        let object = ObjectUse {
            programs: vec![ProgramUse {
                function: "count".into(),
                section: "xdp".into(),
                load: section_load("xdp"),
                perfmon_helper: None,
                member: None,
            }],
            maps: vec![MapUse { name: "packets".into(), types: vec![2], data_section: false }],
            btf: true,
            needs_btf: Vec::new(),
        };
        let needs = TokenNeeds::of(&[object], ObjectLoader::Libbpf);
        let host_scope = host_scope(&needs.delegation, || None);
        assert!(host_scope.as_ref().is_some_and(|why| why.contains("not known yet")));
        let explained = ExplainedObjects {
            loader: ObjectLoader::Libbpf,
            text: Spelling::ALL.map(|(spelling, word)| (word, spelling.write(&needs.delegation, true))).into(),
            names: needs.names,
            capabilities: needs.capabilities,
            problems: Vec::new(),
            host_scope,
        };
        let text = table(&explained);
        for line in [
            "progs    xdp                  count (xdp)",
            "CAP_NET_ADMIN  count (xdp)",
            "hook.bpfman.io/delegate-progs: xdp",
            "host-scope = true",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn maps_alone_are_container_scope() {
        let maps = Delegation { cmds: 1, maps: 4, ..Delegation::default() };
        assert_eq!(host_scope(&maps, || unreachable!("no program is loaded")), None);
        let tracing = Delegation { cmds: 1 << 5, progs: 1 << 17, attachs: 1, ..Delegation::default() };
        assert!(host_scope(&tracing, || None).is_some_and(|why| why.contains("raw_tracepoint")));
    }
}
