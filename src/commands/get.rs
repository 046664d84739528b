//! `get program` and `get link`: everything that bpfman-hook and the kernel know about one of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::kernel::inspect::LinkInfo;
use crate::kernel::pins;
use crate::lifecycle::health::remedy;
use crate::lifecycle::manual::map_users;
use crate::model::attach_point::{Order, ProgramKind, kernel_type_word};
use crate::model::manual::KernelProgram;
use crate::model::record::{HostOwner, LinkRecord, Owner, OwnerRecord};
use crate::output::format::{ListFormat, id, json, verdict, word};
use crate::output::table::printable;
use crate::output::view;
use crate::output::view::{LinkView, ProgramView};

/// One program.
#[derive(Debug, Clone, Serialize)]
struct ProgramDetail<'a> {
    #[serde(flatten)]
    program: ProgramView<'a>,
    /// The metadata given to a manual load.
    metadata: BTreeMap<String, String>,
    /// The variables that a manual load set, in hexadecimal digits.
    globals: BTreeMap<String, String>,
    /// Where its maps are pinned; for manual loads, by the maps' names.
    map_pin_path: PathBuf,
    /// The program whose maps it shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    map_owner_id: Option<u32>,
    /// The programs that share these maps.
    map_used_by: Vec<u32>,
    /// The kernel's data; absent if the program is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<KernelProgram>,
    /// The remedy if it is gone.
    #[serde(skip)]
    remedy: String,
}

/// A program that only the kernel knows.
#[derive(Debug, Clone, Serialize)]
pub struct OtherProgram {
    /// Kernel id.
    pub id: u32,
    /// The kernel's name for it.
    pub name: String,
    /// The kernel's type, in bpfman's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kernel's data.
    pub kernel: KernelProgram,
}

impl OtherProgram {
    /// Builds the view from the kernel's data.
    pub fn new(kernel: KernelProgram) -> Self {
        Self { id: kernel.id, name: kernel.name.clone(), kind: kernel_type_word(kernel.program_type), kernel }
    }
}

/// One link.
#[derive(Debug, Clone, Serialize)]
struct LinkDetail<'a> {
    #[serde(flatten)]
    link: LinkView<'a>,
    /// The metadata given to a manual attach.
    metadata: BTreeMap<String, String>,
    /// The file that named the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    /// Its priority among the programs on one interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    /// The return values after which the next program runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proceed_on: Vec<&'static str>,
    /// The kernel's data; absent if the link is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<KernelLink>,
    /// The remedy if it or its attach point is gone.
    #[serde(skip)]
    remedy: String,
}

/// The kernel's data about a link.
#[derive(Debug, Clone, Serialize)]
struct KernelLink {
    /// `enum bpf_link_type`, in the kernel's words, or `filter`: a traffic control filter is not a link.
    link_type: String,
    /// Kernel id of the program.
    program_id: u32,
    /// The interface's index in its namespace; 0 once the interface is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<u32>,
    /// The cgroup's id; 0 once the cgroup is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_id: Option<u64>,
}

impl KernelLink {
    fn new(info: &LinkInfo) -> Self {
        const WORDS: [&str; 14] = [
            "filter",
            "raw_tracepoint",
            "tracing",
            "cgroup",
            "iter",
            "netns",
            "xdp",
            "perf_event",
            "kprobe_multi",
            "struct_ops",
            "netfilter",
            "tcx",
            "uprobe_multi",
            "netkit",
        ];
        let word = usize::try_from(info.link_type).ok().and_then(|number| WORDS.get(number));
        Self {
            link_type: word.map_or_else(|| info.link_type.to_string(), |word| (*word).to_owned()),
            program_id: info.program,
            interface: info.interface,
            cgroup_id: info.cgroup,
        }
    }
}

/// `get program ID`; None if neither an owner nor the kernel has it. `fs` is our bpffs.
pub fn program(
    records: &[OwnerRecord],
    wanted: u32,
    kernel: Option<KernelProgram>,
    fs: &Path,
    format: ListFormat,
) -> Option<String> {
    let record = records.iter().find(|r| r.programs.iter().any(|p| p.id() == Some(wanted)));
    let found = record.and_then(|r| view::programs(r).find(|p| p.id == Some(wanted)));
    let (Some(record), Some(found)) = (record, found) else {
        let other = OtherProgram::new(kernel?);
        return Some(match format {
            ListFormat::Json => json(&other),
            ListFormat::Quiet => format!("{wanted}\n"),
            ListFormat::Table => {
                let mut text = format!("program {wanted}, not loaded by bpfman-hook\n");
                kernel_lines(&mut text, &other.kernel);
                text
            }
        });
    };
    let directory = fs.join(record.no.directory());
    let mut detail = ProgramDetail {
        program: found,
        metadata: BTreeMap::new(),
        globals: BTreeMap::new(),
        map_pin_path: directory.clone(),
        map_owner_id: None,
        map_used_by: map_users(records, record),
        kernel,
        remedy: remedy(record, "unload", wanted),
    };
    if let Owner::Host(HostOwner { loaded, .. }) = &record.owner {
        detail.metadata.clone_from(&loaded.metadata);
        detail.globals = loaded.globals.iter().map(|(name, bytes)| (name.clone(), hex::encode(bytes))).collect();
        detail.map_pin_path = directory.join(pins::NAMES);
        detail.map_owner_id = loaded.shares.map(|shares| shares.program);
    }
    Some(match format {
        ListFormat::Json => json(&detail),
        ListFormat::Quiet => format!("{wanted}\n"),
        ListFormat::Table => program_text(&detail, &record.owner.to_string()),
    })
}

fn program_text(detail: &ProgramDetail<'_>, owner: &str) -> String {
    let program = &detail.program;
    let mut text = format!("program {}\n", id(program.id));
    line(&mut text, "name", &program.name);
    line(&mut text, "type", program.kind.word());
    line(&mut text, "scope", &word(&program.scope));
    line(&mut text, "owner", owner);
    line(&mut text, "image", &program.image);
    line(&mut text, "digest", &program.digest);
    // A manually loaded file is decided by root or by the client's `paths`, not by an image rule.
    if !program.rule.is_empty() {
        line(&mut text, "signature", &verdict(program));
        line(&mut text, "rule", &program.rule);
    }
    for (key, value) in &detail.metadata {
        line(&mut text, "metadata", &format!("{key}={value}"));
    }
    for (name, value) in &detail.globals {
        line(&mut text, "global", &format!("{name}={value}"));
    }
    line(&mut text, "maps", &detail.map_pin_path.display().to_string());
    if let Some(owner) = detail.map_owner_id {
        line(&mut text, "maps of", &owner.to_string());
    }
    line(&mut text, "maps used by", &numbers(&detail.map_used_by));
    for l in &program.links {
        line(&mut text, "link", &format!("{} {} on {}", id(l.id), l.at.word(), l.at));
    }
    match &detail.kernel {
        Some(kernel) => kernel_lines(&mut text, kernel),
        None => line(&mut text, "kernel", &format!("no program with this id exists any more; {}", detail.remedy)),
    }
    text
}

fn kernel_lines(text: &mut String, kernel: &KernelProgram) {
    line(text, "kernel name", &kernel.name);
    line(text, "kernel type", &kernel_type_word(kernel.program_type));
    line(text, "loaded at", &kernel.loaded_at);
    line(text, "tag", &kernel.tag);
    line(text, "licence", if kernel.gpl_compatible { "GPL compatible" } else { "not GPL compatible" });
    line(text, "map ids", &numbers(&kernel.map_ids));
    line(text, "btf id", &if kernel.btf_id == 0 { "none".to_owned() } else { kernel.btf_id.to_string() });
    line(text, "translated", &format!("{} bytes", kernel.bytes_xlated));
    line(text, "jited", &format!("{} bytes", kernel.bytes_jited));
    line(text, "memory", &format!("{} bytes", kernel.bytes_memlock));
    line(text, "verified", &format!("{} instructions", kernel.verified_insns));
}

/// The link with this id, and its owner.
pub fn find_link(records: &[OwnerRecord], wanted: u32) -> Option<(&OwnerRecord, &LinkRecord)> {
    records.iter().find_map(|record| Some((record, record.links.iter().find(|link| link.id() == Some(wanted))?)))
}

/// `get link ID`; None if no owner has it.
pub fn link(records: &[OwnerRecord], wanted: u32, kernel: Option<&LinkInfo>, format: ListFormat) -> Option<String> {
    let (record, kept) = find_link(records, wanted)?;
    let found = view::programs(record).flat_map(|p| p.links).find(|l| l.id == Some(wanted))?;
    let kind = record.programs.iter().find(|p| p.pin == kept.program).map(|p| p.kind);
    let detail = LinkDetail {
        link: found,
        metadata: kept.metadata.clone(),
        netns: kept.netns.as_ref().and_then(|netns| netns.path.clone()),
        priority: kept.order.as_ref().map(|order| order.priority),
        kernel: kernel.map(KernelLink::new),
        remedy: remedy(record, "detach", wanted),
        proceed_on: kept.order.as_ref().zip(kind).map(|(order, kind)| verdicts(kind, order)).unwrap_or_default(),
    };
    Some(match format {
        ListFormat::Json => json(&detail),
        ListFormat::Quiet => format!("{wanted}\n"),
        ListFormat::Table => link_text(&detail, &record.owner.to_string()),
    })
}

fn verdicts(kind: ProgramKind, order: &Order) -> Vec<&'static str> {
    order.proceed_on.iter().filter_map(|number| Order::verdict_word(kind, *number)).collect()
}

fn link_text(detail: &LinkDetail<'_>, owner: &str) -> String {
    let link = &detail.link;
    let mut text = format!("link {}\n", id(link.id));
    line(&mut text, "type", link.at.word());
    line(&mut text, "attached", &link.place());
    if let Some(netns) = &detail.netns {
        line(&mut text, "netns", &netns.display().to_string());
    }
    if let Some(priority) = detail.priority {
        // A traffic control filter has no link in the kernel; its priority orders it.
        let ordered = detail.kernel.as_ref().is_some_and(|kernel| kernel.link_type == "filter");
        let effect = if ordered || priority == Order::DEFAULT_PRIORITY { "" } else { " (recorded; has no effect yet)" };
        line(&mut text, "priority", &format!("{priority}{effect}"));
    }
    if !detail.proceed_on.is_empty() {
        line(&mut text, "proceed on", &detail.proceed_on.join(", "));
    }
    line(&mut text, "program", &format!("{} {}", id(link.program_id), link.program));
    line(&mut text, "owner", owner);
    for (key, value) in &detail.metadata {
        line(&mut text, "metadata", &format!("{key}={value}"));
    }
    let Some(kernel) = &detail.kernel else {
        line(&mut text, "kernel", &format!("its pin is gone; {}", detail.remedy));
        return text;
    };
    line(&mut text, "kernel type", &kernel.link_type);
    let places = [("interface", kernel.interface.map(u64::from)), ("cgroup", kernel.cgroup_id)];
    for (what, id) in places.into_iter().filter_map(|(what, id)| Some((what, id?))) {
        line(&mut text, what, &if id == 0 { format!("gone; {}", detail.remedy) } else { id.to_string() });
    }
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    _ = writeln!(text, "  {key:<12} {}", printable(value));
}

fn numbers(ids: &[u32]) -> String {
    let words: Vec<_> = ids.iter().map(u32::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::list::tests::{records, require_documented};

    /// A manual load that shares the maps of an owner that is gone, and another one that shares the same maps.
    fn manual() -> Vec<OwnerRecord> {
        let digest = format!("sha256:{}", "01".repeat(32));
        let record = |no: u64, program: u32| {
            let loaded = json!({
                "caller": "uid 7", "reference": null, "globals": {"step": [5, 0, 0, 0]}, "metadata": {"team": "a"},
                "shares": {"program": 70, "set": 1}, "map_memory": 8,
            });
            let record = json!({
                "no": no, "owner": {"kind": "host", "application": "shop", "loaded": loaded}, "phase": "ready",
                "actor": {"process": {"pid": 400, "start_time": 1}, "deadline": 9}, "created": 1700, "changed": 1700,
                "programs": [{"pin": "prog_1", "function": "count", "kind": "xdp", "scope": "host", "image": 0, "state": {"loaded": program}}],
                "maps": [], "failure": null, "leftovers": [],
                "links": [{"pin": "link_1", "program": "prog_1", "state": {"attached": 80 + no}, "metadata": {"site": "b"},
                    "at": {"type": "xdp", "iface": {"index": 2, "name": "eth0"}, "mode": null},
                    "order": {"priority": 55, "proceed_on": [2]}, "netns": {"cookie": 9, "path": "/run/netns/blue"}}],
                "images": [{"reference": "file:/x.o", "digest": digest, "object": digest, "rule": "", "verdict": {"verdict": "unsigned"}}],
            });
            serde_json::from_value(record).unwrap()
        };
        vec![record(5, 75), record(6, 76)]
    }

    fn kernel() -> KernelProgram {
        KernelProgram {
            id: 75,
            name: "count".to_owned(),
            program_type: 6,
            loaded_at: "2026-01-01T00:00:00Z".to_owned(),
            tag: "0011223344556677".to_owned(),
            gpl_compatible: true,
            map_ids: vec![3, 4],
            btf_id: 0,
            bytes_xlated: 96,
            bytes_jited: 120,
            bytes_memlock: 4096,
            verified_insns: 12,
        }
    }

    #[test]
    fn a_program_is_shown_with_all_known_data() {
        let text = program(&manual(), 75, Some(kernel()), Path::new("/fs"), ListFormat::Table).unwrap();
        for line in [
            "  metadata     team=a\n",
            "  global       step=05000000\n",
            "  maps         /fs/owner_5/maps\n",
            "  maps of      70\n",
            "  maps used by 75, 76\n",
            "  link         85 xdp on eth0\n",
            "  btf id       none\n",
            "  map ids      3, 4\n",
        ] {
            assert!(text.contains(line), "missing: {line}\n{text}");
        }
        require_documented(&program(&manual(), 75, Some(kernel()), Path::new("/fs"), ListFormat::Json).unwrap());
        let gone = program(&manual(), 75, None, Path::new("/fs"), ListFormat::Table).unwrap();
        assert!(gone.contains("no program with this id exists any more"), "{gone}");
        let other = program(&records(), 75, Some(kernel()), Path::new("/fs"), ListFormat::Table).unwrap();
        assert!(
            other.starts_with("program 75, not loaded by bpfman-hook\n  kernel name  count\n  kernel type  xdp\n"),
            "{other}"
        );
        assert!(program(&records(), 1, None, Path::new("/fs"), ListFormat::Table).is_none());
    }

    #[test]
    fn a_link_is_shown_with_all_known_data() {
        let info = LinkInfo { id: 85, link_type: 6, program: 75, interface: Some(0), cgroup: Some(3) };
        let text = link(&manual(), 85, Some(&info), ListFormat::Table).unwrap();
        assert!(
            text.ends_with(
                "  kernel type  xdp\n  interface    gone; remove it with `bpfman-hook detach 85`\n  cgroup       3\n"
            ),
            "{text}"
        );
        for line in [
            "  netns        /run/netns/blue\n",
            "  priority     55 (recorded; has no effect yet)\n",
            "  proceed on   pass\n",
            "  metadata     site=b\n",
        ] {
            assert!(text.contains(line), "missing: {line}\n{text}");
        }
        require_documented(&link(&manual(), 85, Some(&info), ListFormat::Json).unwrap());
        let shown = link(&records(), 82, None, ListFormat::Table).unwrap();
        assert!(shown.contains("network namespace 99 of sandbox box") && shown.contains("72 count"), "{shown}");
        assert!(shown.contains("its pin is gone") && link(&records(), 1, None, ListFormat::Table).is_none());
    }
}
