//! `token profile`: runs a command, or watches a container that uses the proxy, and prints what the calls of bpf(2) need,
//! with a token and with the proxy.

use std::collections::BTreeMap;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use serde::Serialize;

use super::ended;
use super::object_needs::host_scope;
use crate::cli::Format;
use crate::cli::token_profile::{ProfiledWay, TokenProfileArgs};
use crate::commands::records;
use crate::lifecycle::token_reach::known;
use crate::lifecycle::{self, running, runtime_states};
use crate::model::delegation::{Category, NeededCapability, NeededName, Spelling};
use crate::model::reach::TokenReach;
use crate::model::recording::{RecordedNeeds, Recording};
use crate::model::text::listed;
use crate::output;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::table::{Table, printable};
use crate::paths::Paths;
use crate::proxy::{self, Recorded};
use crate::sys::SysError;
use crate::sys::context::ProcessContext;
use crate::sys::pid;

/// The answer. Its JSON form is stable: keys are added, but never renamed.
#[derive(Debug, Serialize)]
struct Profile {
    /// The number of calls by command.
    calls: BTreeMap<String, u64>,
    /// Calls outside of the containers that the command started, which are not counted.
    left_out: u64,
    /// With a token.
    token: WayProfile,
    /// With the proxy.
    proxy: WayProfile,
    /// What libraries tested that the workload does not need.
    probes: Vec<&'static str>,
    /// Calls that the kernel refused.
    failed: Vec<String>,
    /// What the proxy refused; empty for a command, of which nothing is judged.
    refused: Vec<String>,
    /// Calls that are not in it, because they came too fast.
    missed: u64,
    /// True if there were more things than are kept.
    shortened: bool,
}

/// What one way needs.
#[derive(Debug, Serialize)]
struct WayProfile {
    /// Each name, with what needs it.
    names: Vec<NeededName>,
    /// The capabilities of the container; none with the proxy.
    capabilities: Vec<NeededCapability>,
    /// Why a container rule needs `host-scope = true`; empty if it does not.
    host_scope: Vec<String>,
    /// What this way cannot give, one sentence each.
    problems: Vec<String>,
    /// What to paste, by spelling.
    text: BTreeMap<&'static str, String>,
}

/// Runs the command. The exit status is that of what it runs.
pub fn profile(paths: &Paths, args: &TokenProfileArgs) -> Result<ExitCode, CommandError> {
    pid::require_initial_user_namespace()?;
    if pid::own_uid() != 0 {
        return Err(CommandError::new("record a command: only root can make its calls; run this with sudo"));
    }
    let spelling = args.spelling.zip(args.via);
    if let Some((Spelling::Systemd | Spelling::Incus | Spelling::Lxd | Spelling::Mount, ProfiledWay::Proxy)) = spelling {
        return Err(CommandError::bad_input("record a command: --via proxy is written --as annotations or --as policy"));
    }
    let Recorded { recording, left_out, status } = match &args.container {
        Some(prefix) if args.command.is_empty() => watched(paths, prefix, args)?,
        Some(prefix) => proxy::record(&args.command, Some(context(prefix, args.state.as_deref())?))?,
        None => proxy::record(&args.command, None)?,
    };
    let profile = made(&recording, left_out, || known(paths));
    let text = match (spelling, args.format.output) {
        (Some((spelling, way)), _) => profile.written(spelling, way),
        (None, Format::Json) => json(&profile),
        (None, Format::Table) => profile.table(),
    };
    match &args.to {
        Some(path) => {
            let shown = path.display().to_string();
            std::fs::write(path, text).map_err(SysError::io("write", shown))?;
        }
        None => drop(output::print(&text)?),
    }
    Ok(ended(status))
}

/// What a running container has: its namespaces, users and capabilities.
fn context(prefix: &str, state: Option<&Path>) -> Result<ProcessContext, CommandError> {
    let read = match state {
        Some(directory) => runtime_states::recorded_in(directory, Path::new("/")),
        None => runtime_states::recorded(Path::new("/")),
    };
    let doing = || CommandError::doing("record a container");
    let containers = read.map_err(CommandError::doing("read the states of running containers"))?;
    let found = running::by_id(containers, prefix).map_err(doing())?;
    let init = running::hold(&found).map_err(doing())?;
    ProcessContext::of(&init).map_err(CommandError::doing("record a container"))
}

/// What a running container asks the proxy for from now on.
fn watched(paths: &Paths, prefix: &str, args: &TokenProfileArgs) -> Result<Recorded, CommandError> {
    const REMEDY: &str = "no seccomp filter can be put on a process that runs: name a command to run in the container behind --, \
        or start the container with delegate-via=proxy";
    let failed = CommandError::doing::<CommandError>("record a container");
    let found = records::of_container(paths, prefix).and_then(|record| {
        let id = record.owner.container().map(|container| container.id.clone());
        let id = id.ok_or_else(|| CommandError::new("it is no container"))?;
        Ok((lifecycle::proxy::find(paths, &id)?, id))
    });
    let (container, id) = found.map_err(CommandError::with_remedy(REMEDY)).map_err(failed)?;
    let recording = proxy::watch(paths, &id, &container, args.time.map(Duration::from_secs), || {
        let _ = writeln!(io::stderr(), "recording container {id}; Ctrl-C ends it");
    })?;
    Ok(Recorded { recording, left_out: 0, status: ExitStatus::default() })
}

fn made(recording: &Recording, left_out: u64, reach: impl FnOnce() -> Option<TokenReach>) -> Profile {
    let needs = RecordedNeeds::of(recording);
    let (delegation, proxy) = (needs.token.delegation, needs.proxy);
    let token_scope = host_scope(&delegation, reach);
    let written = |(spelling, word): (Spelling, _)| (word, spelling.write(&delegation, token_scope.is_some()));
    let name = |command: u32| Category::Cmds.name(command).map_or_else(|| command.to_string(), str::to_owned);
    Profile {
        calls: recording.calls.iter().map(|(command, calls)| (name(*command), *calls)).collect(),
        left_out,
        token: WayProfile {
            names: needs.token.names,
            capabilities: needs.token.capabilities,
            problems: needs.token.problems,
            text: Spelling::ALL.map(written).into(),
            host_scope: token_scope.into_iter().collect(),
        },
        proxy: WayProfile {
            text: [("annotations", proxy.annotations()), ("policy", proxy.policy())].into(),
            names: proxy.names,
            capabilities: Vec::new(),
            host_scope: proxy.host_scope,
            problems: proxy.problems,
        },
        probes: needs.probes,
        failed: needs.failed,
        refused: recording.refused.clone(),
        missed: recording.missed,
        shortened: recording.shortened,
    }
}

impl Profile {
    fn written(&self, spelling: Spelling, way: ProfiledWay) -> String {
        let way = match way {
            ProfiledWay::Token => &self.token,
            ProfiledWay::Proxy => &self.proxy,
        };
        let word = Spelling::ALL.into_iter().find(|(known, _)| *known == spelling).map_or("", |(_, word)| word);
        way.text.get(word).cloned().unwrap_or_default()
    }

    fn table(&self) -> String {
        let calls: Vec<_> = self.calls.iter().map(|(name, calls)| format!("{calls} {name}")).collect();
        if calls.is_empty() {
            return "There were no calls of bpf(2) that create or attach.\n".to_owned();
        }
        let mut text = format!("Recorded calls: {}\n", calls.join(", "));
        if self.left_out > 0 {
            text.push_str(&format!("{} calls outside of its containers, of engine and runtime, are left out\n", self.left_out));
        }
        text.push_str(&format!("\n{}", self.names()));
        if !self.token.capabilities.is_empty() {
            let mut capabilities = Table::new(&["CAPABILITY FOR THE TOKEN", "FOR"]);
            for needed in &self.token.capabilities {
                capabilities.row([needed.name.to_owned(), reasons(&needed.reasons)]);
            }
            text.push_str(&format!("\n{capabilities}"));
        }
        if !self.probes.is_empty() {
            text.push_str(&format!("\nThe library tested, and can do without: {}\n", self.probes.join(", ")));
        }
        for failed in &self.failed {
            text.push_str(&format!("the kernel refused {}\n", printable(failed)));
        }
        for refused in &self.refused {
            text.push_str(&format!("the proxy refused: {}\n", printable(refused)));
        }
        if self.missed > 0 {
            text.push_str(&format!("{} calls came too fast and are missing\n", self.missed));
        }
        if self.shortened {
            text.push_str("there were more things than are kept: the answer is not complete\n");
        }
        text.push_str(&way("With a token", &self.token));
        text.push_str(&way("With the proxy", &self.proxy));
        text
    }

    fn names(&self) -> Table {
        let mut names = Table::new(&["SET", "NAME", "WAY", "FOR"]);
        let of_proxy = self.proxy.names.iter();
        let of_token = |needed: &NeededName| {
            let found = self.token.names.iter().find(|other| (other.set, &other.name) == (needed.set, &needed.name));
            found.map(|found| found.reasons.as_slice())
        };
        for needed in of_proxy {
            let (word, mut all) = match of_token(needed) {
                Some(reasons) => ("both", reasons.to_vec()),
                None => ("proxy", Vec::new()),
            };
            for reason in &needed.reasons {
                if !all.contains(reason) {
                    all.push(reason.clone());
                }
            }
            names.row([needed.set.to_owned(), needed.name.clone(), word.to_owned(), reasons(&all)]);
        }
        names
    }
}

fn reasons(reasons: &[String]) -> String {
    printable(&listed(reasons.iter().map(String::as_str), 3))
}

fn way(title: &str, way: &WayProfile) -> String {
    let mut text = format!("\n{title}\n");
    for problem in &way.problems {
        text.push_str(&format!("problem: {}\n", printable(problem)));
    }
    if way.names.is_empty() {
        text.push_str("nothing is needed\n");
        return text;
    }
    for word in ["annotations", "policy"] {
        text.push_str(way.text.get(word).map_or("", String::as_str));
    }
    for why in &way.host_scope {
        text.push_str(&format!("# host-scope: {}\n", printable(why)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::recording::{CallEnd, ProxyLimits, RecordedAttachment, RecordedProgram};

    #[test]
    fn the_text_has_both_ways() {
        let limits = ProxyLimits { host_scope: Some("program f\u{1b} calls x".into()), not_passed_on: None };
        let recording = Recording {
            calls: [(5, 2), (28, 1)].into(),
            programs: vec![RecordedProgram {
                name: "count".into(),
                program_type: 6,
                attach_type: 37,
                helpers: [1].into(),
                kfuncs: Default::default(),
                probe: None,
                end: CallEnd::Done,
                limits,
            }],
            attachments: vec![RecordedAttachment {
                program: "old".into(),
                program_type: 3,
                attach_type: Some(46),
                end: CallEnd::Done,
                limits: ProxyLimits::default(),
            }],
            ..Recording::default()
        };
        let profile = made(&recording, 3, || None);
        let text = profile.table();
        for line in [
            "Recorded calls: 1 link_create, 2 prog_load",
            "3 calls outside of its containers, of engine and runtime, are left out",
            "progs    xdp              both   count (xdp)",
            "progs    sched_cls        proxy  attaching old (sched_cls)",
            "helpers  map_lookup_elem  proxy  count (xdp)",
            "hook.bpfman.io/delegate-via: proxy",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("# host-scope: program f") && !text.contains('\u{1b}'), "{text}");
        let policy = profile.written(Spelling::Policy, ProfiledWay::Proxy);
        assert!(policy.starts_with("[[container]]\nhost-scope = true\nproxy = { cmds"), "{policy}");
        assert!(profile.written(Spelling::Systemd, ProfiledWay::Token).contains("BPFProgTypeXdp"));
        let none = made(&Recording::default(), 0, || None);
        assert!(none.table().contains("no calls"));
    }
}
