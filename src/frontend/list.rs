//! `list`, `get` and `inspect`: what the store says, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::frontend::table::{Table, printable};
use crate::frontend::view::{LinkView, OwnerView, ProgramView};
use crate::model::bytecode::Verdict;
use crate::model::ids::OwnerNo;
use crate::model::record::{OwnerRecord, Phase};

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables and trees.
    Table,
    /// JSON, one document.
    Json,
    /// Ids alone, one a line.
    Quiet,
}

/// JSON as we print it: indented, with a final newline.
pub fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("views have string keys and no failing serializers");
    text.push('\n');
    text
}

/// `list programs`
pub fn programs(records: &[OwnerRecord], format: Format) -> String {
    let programs: Vec<ProgramView> = records.iter().flat_map(|r| OwnerView::new(r).programs).collect();
    match format {
        Format::Json => json(&programs),
        Format::Quiet => ids(programs.iter().filter_map(|p| p.id)),
        Format::Table => {
            let mut table = Table::new(&["PROGRAM ID", "NAME", "TYPE", "SCOPE", "LINKS", "OWNER", "IMAGE"]);
            for p in &programs {
                table.row([
                    id(p.id),
                    p.name.clone(),
                    p.kind.to_string(),
                    word(&p.scope),
                    p.links.len().to_string(),
                    owner_name(records, p.owner),
                    p.image.clone(),
                ]);
            }
            table.to_string()
        }
    }
}

/// `list links`
pub fn links(records: &[OwnerRecord], format: Format) -> String {
    let programs = records.iter().flat_map(|r| OwnerView::new(r).programs);
    let links: Vec<LinkView> = programs.flat_map(|p| p.links).collect();
    match format {
        Format::Json => json(&links),
        Format::Quiet => ids(links.iter().filter_map(|l| l.id)),
        Format::Table => {
            let mut table = Table::new(&["LINK ID", "TYPE", "ATTACHED TO", "PROGRAM ID", "PROGRAM", "OWNER"]);
            for l in &links {
                table.row([
                    id(l.id),
                    l.at.word().to_owned(),
                    l.at.to_string(),
                    id(l.program_id),
                    l.program.clone(),
                    owner_name(records, l.owner),
                ]);
            }
            table.to_string()
        }
    }
}

/// `list containers`: a tree for each container.
pub fn containers(records: &[OwnerRecord], format: Format) -> String {
    let views: Vec<OwnerView> = records.iter().map(OwnerView::new).collect();
    let shown = || views.iter().filter(|v| v.kind == "container");
    match format {
        Format::Json => json(&shown().collect::<Vec<_>>()),
        Format::Quiet => shown().map(|v| format!("{}\n", v.id)).collect(),
        Format::Table if shown().next().is_none() => "no container has programs or a bpffs of ours\n".to_owned(),
        Format::Table => shown().map(|view| tree(view, &views)).collect(),
    }
}

/// `inspect CONTAINER`: everything about the containers whose id begins with `prefix`; None where there is none.
pub fn inspect(records: &[OwnerRecord], prefix: &str, format: Format) -> Option<String> {
    let views: Vec<OwnerView> = records.iter().map(OwnerView::new).collect();
    let exact = views.iter().any(|v| v.kind == "container" && v.id == prefix);
    let matches = |v: &&OwnerView| v.kind == "container" && if exact { v.id == prefix } else { v.id.starts_with(prefix) };
    let found: Vec<&OwnerView> = views.iter().filter(matches).collect();
    let held: Vec<&OwnerView> = views.iter().filter(|v| found.iter().any(|f| f.holds.contains(&v.owner))).collect();
    if found.is_empty() {
        return None;
    }
    Some(match format {
        Format::Json => json(&found.iter().chain(&held).collect::<Vec<_>>()),
        Format::Quiet => found.iter().map(|v| format!("{}\n", v.id)).collect(),
        Format::Table => found.iter().map(|v| tree(v, &views)).collect(),
    })
}

/// `get program ID`; None where no owner has it.
pub fn program(records: &[OwnerRecord], wanted: u32, format: Format) -> Option<String> {
    let record = records.iter().find(|r| r.programs.iter().any(|p| p.id == Some(wanted)))?;
    let found = OwnerView::new(record).programs.into_iter().find(|p| p.id == Some(wanted))?;
    Some(match format {
        Format::Json => json(&found),
        Format::Quiet => format!("{wanted}\n"),
        Format::Table => {
            let mut text = format!("program {wanted}\n");
            let mut line = |key: &str, value: &str| _ = writeln!(text, "  {key:<9} {}", printable(value));
            line("name", &found.name);
            line("type", found.kind.word());
            line("scope", &word(&found.scope));
            line("owner", &owner_name(records, found.owner));
            line("image", &found.image);
            line("digest", &found.digest);
            line("signature", &verdict(&found.verdict));
            line("rule", &found.rule);
            for l in &found.links {
                line("link", &format!("{} {} on {}", id(l.id), l.at.word(), l.at));
            }
            text
        }
    })
}

/// `get link ID`; None where no owner has it.
pub fn link(records: &[OwnerRecord], wanted: u32, format: Format) -> Option<String> {
    let record = records.iter().find(|r| r.links.iter().any(|l| l.id == Some(wanted)))?;
    let links = OwnerView::new(record).programs.into_iter().flat_map(|p| p.links);
    let found = links.into_iter().find(|l| l.id == Some(wanted))?;
    Some(match format {
        Format::Json => json(&found),
        Format::Quiet => format!("{wanted}\n"),
        Format::Table => format!(
            "link {wanted}\n  type      {}\n  attached  {}\n  program   {} {}\n  owner     {}\n",
            found.at.word(),
            printable(&found.at.to_string()),
            id(found.program_id),
            printable(&found.program),
            owner_name(records, found.owner),
        ),
    })
}

/// One container with everything it has, as a tree.
fn tree(view: &OwnerView, all: &[OwnerView]) -> String {
    let mut text = format!("{}  {}", printable(&view.id), word(&view.state));
    if let Some(engine) = view.engine {
        _ = write!(text, "  {engine}");
    }
    if let (Some(namespace), Some(pod)) = (&view.namespace, &view.pod) {
        _ = write!(text, "  {}/{}", printable(namespace), printable(pod));
    }
    if let Some(pid) = view.pid {
        _ = write!(text, "  pid {pid}");
    }
    text.push('\n');
    let mut branches: Vec<(String, Vec<String>)> = Vec::new();
    if let Some(reason) = &view.reason {
        branches.push((format!("failed: {}", printable(reason)), Vec::new()));
    }
    branches.extend(view.leftovers.iter().map(|left| (format!("left behind: {}", printable(left)), Vec::new())));
    branches.extend(view.programs.iter().map(|p| program_branch(p, "")));
    for netns in all.iter().filter(|v| view.holds.contains(&v.owner)) {
        branches.extend(netns.programs.iter().map(|p| program_branch(p, " of the pod")));
    }
    branches.extend(view.maps.iter().filter(|m| m.shown_as.is_none()).map(|m| map_branch(m, None)));
    if let Some(bpffs) = &view.bpffs {
        let shown = view.maps.iter().filter_map(|m| m.shown_as.as_ref().map(|file| map_branch(m, Some(file)).0));
        let delegates = bpffs.delegates.iter().map(|(key, value)| format!("{key}={value}"));
        let kind = if bpffs.delegates.is_empty() { "private" } else { "delegated" };
        branches.push((format!("bpffs {} ({kind})", printable(&bpffs.path)), delegates.chain(shown).collect()));
    }
    let last = branches.len();
    for (n, (branch, leaves)) in branches.iter().enumerate() {
        let (elbow, trunk) = if n + 1 == last { ("└─", "  ") } else { ("├─", "│ ") };
        _ = writeln!(text, "{elbow} {branch}");
        for (m, leaf) in leaves.iter().enumerate() {
            let elbow = if m + 1 == leaves.len() { "└─" } else { "├─" };
            _ = writeln!(text, "{trunk} {elbow} {leaf}");
        }
    }
    text
}

fn program_branch(program: &ProgramView, whose: &str) -> (String, Vec<String>) {
    let kind = program.kind;
    let title = format!(
        "program {} {kind} {}{whose}  [{}, {}]",
        id(program.id),
        printable(&program.name),
        printable(&program.image),
        verdict(&program.verdict),
    );
    let links = program.links.iter().map(|l| format!("link {} on {}", id(l.id), printable(&l.at.to_string())));
    (title, links.collect())
}

fn map_branch(map: &crate::frontend::view::MapView, file: Option<&str>) -> (String, Vec<String>) {
    let mut text = format!("map {} {}", id(map.id), printable(&map.name));
    if let (Some(file), Some(access)) = (file, &map.access) {
        _ = write!(text, " as {} ({})", printable(file), word(access));
    }
    (text, Vec::new())
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Verified { by, .. } => format!("verified by {}", printable(by)),
        Verdict::Unsigned => "accepted unsigned".to_owned(),
    }
}

fn owner_name(records: &[OwnerRecord], no: u64) -> String {
    let record = records.iter().find(|r| r.no == OwnerNo(no));
    record.map_or_else(|| format!("owner {no}"), |r| crate::lifecycle::reconcile::describe(&r.owner))
}

fn id(id: Option<u32>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

fn ids(ids: impl Iterator<Item = u32>) -> String {
    ids.map(|id| format!("{id}\n")).collect()
}

/// The word that a value has in JSON.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// True where something in the listing needs a person: a failed request, or leftovers.
pub fn needs_attention(record: &OwnerRecord) -> bool {
    record.phase == Phase::Failed || !record.leftovers.is_empty()
}
