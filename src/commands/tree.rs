//! One container with everything that it has, as a tree: what `list containers` and `inspect` print.

use std::fmt::Write as _;

use crate::model::police::{CountedCall, PoliceMode, PoliceRecord, times};
use crate::output::format::{id, verdict, word};
use crate::output::style::Style;
use crate::output::table::printable;
use crate::output::view::{MapView, OwnerState, OwnerView, ProgramView, ProxyProcessView, short_id};

/// How much of a container the tree shows, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeDetail {
    /// `inspect`: where the container comes from, the verifier's log, digests, objects of the workload.
    pub whole: bool,
    /// Ids in full length.
    pub whole_ids: bool,
    /// Every name of a delegation.
    pub verbose: bool,
    /// Colours and width.
    pub style: Style,
    /// Seconds since 1970, for ages.
    pub now: u64,
}

/// A branch, and its leaves.
type Branch = (String, Vec<String>);

/// One container with everything it has; `pods` are the network namespaces that it holds.
pub fn tree<'a>(view: &OwnerView, pods: impl Iterator<Item = &'a OwnerView<'a>>, detail: TreeDetail) -> String {
    let mut branches: Vec<Branch> = Vec::new();
    if detail.whole {
        branches.extend(origin(view));
    }
    branches.extend(failure(view, detail));
    branches.extend(view.leftovers.iter().map(|left| (format!("left behind: {}", printable(left)), Vec::new())));
    branches.extend(view.programs.iter().map(|p| program_branch(p, "", detail)));
    for netns in pods {
        branches.extend(netns.programs.iter().map(|p| program_branch(p, " of the pod", detail)));
    }
    branches.extend(view.maps.iter().filter(|m| m.shown_as.is_none()).map(|m| (map_text(m, None), Vec::new())));
    branches.extend(bpffs_branch(view, detail));
    if let Some(proxy) = &view.proxy {
        let objects = proxy.objects.iter().filter(|_| detail.whole).map(|object| printable(&object.line()));
        let processes = proxy.processes.iter().filter(|process| detail.whole || process.lost).map(process_leaf);
        let branch = format!("proxy of bpf(2) ({} scope): {} loaded by the workload", word(&proxy.scope), proxy.objects.len());
        branches.push((branch, processes.chain(objects).collect()));
    }
    branches.extend(view.police.map(|police| police_branch(police, detail)));
    let mut text = format!("{}\n", title(view, detail));
    let last = branches.len();
    for (n, (branch, leaves)) in branches.iter().enumerate() {
        let (elbow, trunk) = if n + 1 == last { ("└─", "  ") } else { ("├─", "│ ") };
        line(&mut text, detail.style, [&format!("{elbow} "), &format!("{trunk} ")], branch);
        for (m, leaf) in leaves.iter().enumerate() {
            let (elbow, rest) = if m + 1 == leaves.len() { ("└─", "  ") } else { ("├─", "│ ") };
            line(&mut text, detail.style, [&format!("{trunk} {elbow} "), &format!("{trunk} {rest} ")], leaf);
        }
    }
    text
}

/// A line of the tree; where it is broken, the next line continues the trunk.
fn line(text: &mut String, style: Style, [first, others]: [&str; 2], content: &str) {
    let wrapped = style.wrapped(content, first.chars().count());
    for (n, part) in wrapped.lines().enumerate() {
        let (begin, part) = if n == 0 { (first, part) } else { (others, part.trim_start()) };
        _ = writeln!(text, "{begin}{part}");
    }
    if wrapped.is_empty() {
        _ = writeln!(text, "{}", first.trim_end());
    }
}

/// `3f9c1b7a42d0  web  ready  podman  pid 500  2m ago`
fn title(view: &OwnerView, detail: TreeDetail) -> String {
    let whole = &view.owner.id;
    let mut parts = vec![printable(if detail.whole_ids || detail.whole { whole } else { short_id(whole) })];
    parts.extend(full_name(view));
    let state = word(&view.state);
    parts.push(detail.style.state(&state, state.len()));
    parts.extend(view.engine.map(str::to_owned));
    parts.extend(view.pid.map(|pid| format!("pid {pid}")));
    parts.push(format!("{} ago", age(detail.now.saturating_sub(view.created_at))));
    parts.join("  ")
}

/// `NAMESPACE/POD/CONTAINER`, or the engine's name.
fn full_name(view: &OwnerView) -> Option<String> {
    match (&view.namespace, &view.pod) {
        (Some(namespace), Some(pod)) => {
            let container = view.container.iter().map(|container| format!("/{}", printable(container)));
            Some(format!("{}/{}{}", printable(namespace), printable(pod), container.collect::<String>()))
        }
        _ => view.owner.name.as_deref().map(printable),
    }
}

/// A duration in its largest unit: `5s`, `3m`, `2h`, `4d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Where the container comes from, and who allowed it.
fn origin(view: &OwnerView) -> Vec<Branch> {
    let facts = [
        ("created", Some(view.created.clone())),
        ("bundle", view.bundle.clone()),
        ("runtime user", view.runtime_user.map(|user| user.to_string())),
        ("cgroup", view.cgroup.clone()),
        ("allowed by", view.granted_by.clone()),
        ("record", Some(view.owner.no.to_string())),
    ];
    facts.into_iter().filter_map(|(what, value)| Some((format!("{what} {}", printable(&value?)), Vec::new()))).collect()
}

fn failure(view: &OwnerView, detail: TreeDetail) -> Option<Branch> {
    let reason = printable(view.reason.as_ref()?);
    let log = view.verifier_log.iter().filter(|_| detail.whole).flat_map(|log| log.lines());
    let branch = match view.state {
        OwnerState::Dead => format!("dead: {reason}; `bpfman-hook gc` releases what it holds"),
        _ => format!("failed: {reason}"),
    };
    Some((branch, log.map(printable).collect()))
}

fn bpffs_branch(view: &OwnerView, detail: TreeDetail) -> Option<Branch> {
    let bpffs = view.bpffs.as_ref()?;
    let shown = view.maps.iter().filter_map(|map| map.shown_as.as_ref().map(|file| map_text(map, Some(file))));
    let delegates: Vec<String> = match detail.verbose {
        true => bpffs.delegates.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        false => bpffs.summary.iter().cloned().collect(),
    };
    let kind = if bpffs.delegates.is_empty() { "private" } else { "delegated" };
    Some((format!("bpffs {} ({kind})", printable(&bpffs.path)), delegates.into_iter().chain(shown).collect()))
}

fn program_branch(program: &ProgramView, whose: &str, detail: TreeDetail) -> Branch {
    let title = format!("program {} {} {}{whose}", id(program.id), program.kind, printable(&program.shown_name()));
    let image = format!("{}, {}", printable(&program.image), verdict(program));
    let links = program.links.iter().map(|l| format!("link {} on {}", id(l.id), printable(&l.place())));
    let mut leaves: Vec<String> = Vec::new();
    let short = format!("{title}  [{image}]");
    // Six columns are the trunk.
    let fits = detail.style.width.is_none_or(|width| short.chars().count() + 3 <= width);
    let title = if fits && !detail.whole { short } else { title };
    if detail.whole {
        leaves.push(format!("from {image}"));
        leaves.push(format!("digest {}, {} scope", program.digest, word(&program.scope)));
        leaves.extend((!program.rule.is_empty()).then(|| format!("image rule {}", printable(&program.rule))));
    } else if !fits {
        leaves.push(format!("from {image}"));
    }
    leaves.extend(links);
    (title, leaves)
}

fn police_branch(police: &PoliceRecord, detail: TreeDetail) -> Branch {
    let verb = match police.mode {
        PoliceMode::Warn => "not allowed",
        PoliceMode::Enforce => "refused",
    };
    let refused =
        |call: &CountedCall| format!("{} {}: {verb}, {}", call.set.noun(), printable(&call.name), times(call.refused));
    let leaves = police.refused.iter().filter(|_| detail.whole).map(refused).collect();
    let kinds = match police.refused.len() {
        0 => "nothing".to_owned(),
        1 => "one name".to_owned(),
        n => format!("{n} names"),
    };
    (format!("policed ({}): {kinds} {verb}", police.mode), leaves)
}

fn process_leaf(process: &ProxyProcessView) -> String {
    let gone = if process.lost { "  gone: bpf(2) calls get ENOSYS" } else { "" };
    format!("process {} of the {}{gone}", process.pid, word(&process.of))
}

fn map_text(map: &MapView, file: Option<&String>) -> String {
    let mut text = format!("map {} {}", id(map.id), printable(&map.name));
    if let (Some(file), Some(access)) = (file, &map.access) {
        _ = write!(text, " as {} ({})", printable(file), word(access));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(seconds), text);
        }
    }
}
