//! `list`, `get` and `inspect`: print what the store says, for humans and for programs.

use std::io::Write;
use std::time::Duration;

use serde::ser::{SerializeSeq as _, Serializer as _};

use crate::commands::get::OtherProgram;
use crate::commands::tree::{TreeDetail, tree};
use crate::lifecycle::health::{Health, OwnerProblem};
use crate::model::ids::OwnerNo;
use crate::model::proxy::usage::UsedKind;
use crate::model::record::{Owner, OwnerRecord};
use crate::output::Cut;
use crate::output::format::{ListFormat, id, json, word};
use crate::output::style::Style;
use crate::output::table::{Table, printable};
use crate::output::view;
use crate::output::view::{LinkView, OwnerName, OwnerView, ProgramView, Stats, WorkloadObjectView};

/// A record, and the health of its owner when it was read.
#[derive(Debug, Clone)]
pub struct SeenOwner {
    /// The record.
    pub record: OwnerRecord,
    /// What the owner has lost.
    pub health: Health,
    /// The engine's name for it.
    pub name: Option<String>,
}

/// How a listing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListLook {
    /// The form.
    pub format: ListFormat,
    /// For tables and trees: ids in full length, every name, colours and width.
    pub detail: TreeDetail,
}

impl ListLook {
    /// Colours, and the columns of the terminal unless nothing is to be cut.
    fn style(self) -> Style {
        let style = self.detail.style;
        if self.detail.whole_ids { Style { width: None, ..style } } else { style }
    }
}

impl SeenOwner {
    /// What the container's workload loaded itself.
    fn by_workload(&self, kind: UsedKind) -> impl Iterator<Item = WorkloadObjectView<'_>> {
        view::by_workload(&self.record, kind).map(|mut object| {
            object.owner.name.clone_from(&self.name);
            object
        })
    }

    fn programs(&self) -> impl Iterator<Item = ProgramView<'_>> {
        view::programs(&self.record).map(|program| program.with(&self.health).named(self.name.as_ref()))
    }

    /// The owner with everything it has.
    pub fn view(&self) -> OwnerView<'_> {
        OwnerView::new(&self.record, &self.health).named(self.name.as_ref())
    }

    /// The owner for a column of a table.
    fn owner(&self, look: ListLook) -> String {
        match (look.detail.whole_ids, &self.record.owner) {
            (true, owner) => owner.to_string(),
            (false, Owner::Netns(netns)) => match &netns.workload.pod {
                Some(pod) => format!("pod {pod}"),
                None => format!("netns {}", netns.cookie),
            },
            (false, _) => OwnerName { name: self.name.clone(), ..OwnerName::of(&self.record) }.short(),
        }
    }

    /// The remedies for lost objects, one per line; empty if nothing is lost.
    fn remedies(&self) -> String {
        let line = |problem: OwnerProblem| format!("{}: {}; {}\n", printable(&problem.what), problem.why, problem.remedy);
        self.health.problems(std::slice::from_ref(&self.record)).into_iter().map(line).collect()
    }
}

/// Stands in a table for the image of a program, and behind the attach point of a link.
const BY_WORKLOAD: &str = "(loaded by the workload)";

/// Queries the kernel's statistics of a program; None if the program is gone.
pub type AskStats = fn(u32) -> Result<Option<Stats>, Cut>;

/// `list programs`; `others` returns the programs that no record names, and is called after all records.
pub fn programs(
    seen: impl Iterator<Item = Result<SeenOwner, Cut>>,
    others: impl FnOnce() -> Result<Vec<OtherProgram>, Cut>,
    look: ListLook,
    stats: Option<AskStats>,
    out: &mut dyn Write,
) -> Result<(), Cut> {
    let ask = |program: &mut ProgramView<'_>| {
        if let (Some(ask), Some(id)) = (stats, program.id) {
            program.stats = ask(id)?;
        }
        Ok::<_, Cut>(())
    };
    match look.format {
        ListFormat::Json => {
            let mut json = serde_json::Serializer::pretty(&mut *out);
            let mut array = json.serialize_seq(None)?;
            for seen in seen {
                let seen = seen?;
                for mut program in seen.programs() {
                    ask(&mut program)?;
                    array.serialize_element(&program)?;
                }
                for mut program in seen.by_workload(UsedKind::Program) {
                    program.stats = stats.map_or(Ok(None), |ask| ask(program.object.id))?;
                    array.serialize_element(&program)?;
                }
            }
            others()?.iter().try_for_each(|other| array.serialize_element(other))?;
            array.end()?;
            writeln!(out)?;
        }
        ListFormat::Quiet => {
            for seen in seen {
                let seen = seen?;
                let by_workload = seen.by_workload(UsedKind::Program).map(|program| program.object.id);
                let ids = seen.programs().filter_map(|program| program.id).chain(by_workload);
                ids.into_iter().try_for_each(|id| writeln!(out, "{id}"))?;
            }
            others()?.iter().try_for_each(|other| writeln!(out, "{}", other.id))?;
        }
        ListFormat::Table => {
            let mut table = match stats {
                Some(_) => Table::new(&["ID", "NAME", "TYPE", "RUNS", "RUN TIME", "MEMORY", "VERIFIED", "OWNER"]).styled(
                    look.style(),
                    &[7],
                    &[1],
                ),
                None => {
                    Table::new(&["ID", "NAME", "TYPE", "SCOPE", "LINKS", "OWNER", "IMAGE"]).styled(look.style(), &[6, 5], &[1])
                }
            };
            let mut remedies = String::new();
            for seen in seen {
                let seen = seen?;
                let owner = seen.owner(look);
                for mut program in seen.programs() {
                    ask(&mut program)?;
                    // The reason is below the table.
                    let gone = if program.gone.is_some() { "gone: " } else { "" };
                    let cells = [id(program.id), format!("{gone}{}", program.name), program.kind.to_string()];
                    table.row(cells.into_iter().chain(match stats {
                        Some(_) => stats_cells(program.stats.as_ref(), &owner),
                        None => place_cells(&program, &owner, look),
                    }));
                }
                for program in seen.by_workload(UsedKind::Program) {
                    let object = &program.object;
                    let cells = [object.id.to_string(), object.name.unwrap_or("-").to_owned(), object.type_word().to_owned()];
                    table.row(cells.into_iter().chain(match stats {
                        Some(ask) => stats_cells(ask(object.id)?.as_ref(), &owner),
                        None => vec![word(&program.scope), "-".to_owned(), owner.clone(), BY_WORKLOAD.to_owned()],
                    }));
                }
                remedies.push_str(&seen.remedies());
            }
            let unknown = if stats.is_some() { 5 } else { 4 };
            for other in others()? {
                let cells = [other.id.to_string(), other.name, other.kind];
                table.row(cells.into_iter().chain(std::iter::repeat_n("-".to_owned(), unknown)));
            }
            write!(out, "{table}{remedies}")?;
        }
    }
    Ok(())
}

/// The kernel's statistics about a program, from its runs to its owner.
fn stats_cells(stats: Option<&Stats>, owner: &str) -> Vec<String> {
    let said = |say: fn(&Stats) -> String| stats.map_or_else(|| "-".to_owned(), say);
    vec![
        said(|stats| stats.run_count.to_string()),
        said(|stats| format!("{:?}", Duration::from_nanos(stats.run_time_ns))),
        said(|stats| stats.memory_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string())),
        said(|stats| stats.verified_instructions.to_string()),
        owner.to_owned(),
    ]
}

/// Scope and origin of a program, from its scope to its image.
fn place_cells(program: &ProgramView, owner: &str, look: ListLook) -> Vec<String> {
    /// How many links a cell names.
    const LINKS_NAMED: usize = 2;
    let mut links: Vec<String> = program.links.iter().map(|link| id(link.id)).collect();
    let more = links.len().saturating_sub(LINKS_NAMED);
    if more > 0 && !look.detail.whole_ids {
        links.truncate(LINKS_NAMED);
        links.push(format!("+{more}"));
    }
    let links = if links.is_empty() { "-".to_owned() } else { links.join(",") };
    vec![word(&program.scope), links, owner.to_owned(), program.image.to_string()]
}

/// `list links`
pub fn links(seen: impl Iterator<Item = Result<SeenOwner, Cut>>, look: ListLook, out: &mut dyn Write) -> Result<(), Cut> {
    match look.format {
        ListFormat::Json => {
            let mut json = serde_json::Serializer::pretty(&mut *out);
            let mut array = json.serialize_seq(None)?;
            for seen in seen {
                let seen = seen?;
                seen.programs().flat_map(|program| program.links).try_for_each(|link| array.serialize_element(&link))?;
                seen.by_workload(UsedKind::Link).try_for_each(|link| array.serialize_element(&link))?;
            }
            array.end()?;
            writeln!(out)?;
        }
        ListFormat::Quiet => {
            for seen in seen {
                let seen = seen?;
                let by_workload = seen.by_workload(UsedKind::Link).map(|link| link.object.id);
                let ids = seen.programs().flat_map(|program| program.links).filter_map(|link| link.id).chain(by_workload);
                ids.into_iter().try_for_each(|id| writeln!(out, "{id}"))?;
            }
        }
        ListFormat::Table => {
            let heading = ["ID", "TYPE", "ATTACHED TO", "PROGRAM", "NAME", "OWNER"];
            let mut table = Table::new(&heading).styled(look.style(), &[2, 5], &[4]);
            let mut remedies = String::new();
            for seen in seen {
                let seen = seen?;
                for link in seen.programs().flat_map(|program| program.links) {
                    table.row(link_cells(&link, seen.owner(look)));
                }
                for link in seen.by_workload(UsedKind::Link) {
                    let (id, kind) = (link.object.id.to_string(), link.object.type_word().to_owned());
                    let unknown = || "-".to_owned();
                    let place = link.object.attached_to.map(|place| format!("{} {BY_WORKLOAD}", printable(place)));
                    table.row([
                        id,
                        kind,
                        place.unwrap_or_else(|| BY_WORKLOAD.to_owned()),
                        unknown(),
                        unknown(),
                        seen.owner(look),
                    ]);
                }
                remedies.push_str(&seen.remedies());
            }
            write!(out, "{table}{remedies}")?;
        }
    }
    Ok(())
}

fn link_cells(link: &LinkView, owner: String) -> [String; 6] {
    [id(link.id), link.at.word().to_owned(), link.place(), id(link.program_id), link.program.to_string(), owner]
}

/// `list containers`: a tree for each container. `held` finds the network namespace with a number.
pub fn containers(
    seen: impl Iterator<Item = Result<SeenOwner, Cut>>,
    held: impl Fn(OwnerNo) -> Option<SeenOwner>,
    look: ListLook,
    out: &mut dyn Write,
) -> Result<(), Cut> {
    let is_container = |seen: &SeenOwner| matches!(seen.record.owner, Owner::Container(_));
    match look.format {
        ListFormat::Json => {
            let mut json = serde_json::Serializer::pretty(&mut *out);
            let mut array = json.serialize_seq(None)?;
            for seen in seen {
                let seen = seen?;
                if is_container(&seen) {
                    array.serialize_element(&seen.view())?;
                }
            }
            array.end()?;
            writeln!(out)?;
        }
        ListFormat::Quiet => {
            for seen in seen {
                if let Owner::Container(container) = &seen?.record.owner {
                    writeln!(out, "{}", container.id)?;
                }
            }
        }
        ListFormat::Table => {
            let (mut none, mut remedies) = (true, String::new());
            for seen in seen {
                let seen = seen?;
                if is_container(&seen) {
                    none = false;
                    let held: Vec<SeenOwner> = seen.record.owner.holds().iter().filter_map(|no| held(*no)).collect();
                    let pods: Vec<_> = held.iter().map(SeenOwner::view).collect();
                    out.write_all(tree(&seen.view(), pods.iter(), look.detail).as_bytes())?;
                }
                remedies.push_str(&seen.remedies());
            }
            match none {
                true => writeln!(out, "no container has programs or a bpffs from bpfman-hook")?,
                false => out.write_all(remedies.as_bytes())?,
            }
        }
    }
    Ok(())
}

/// `inspect CONTAINER`: everything about the containers that `wanted` accepts; None if there are none. `seen` contains
/// them and the network namespaces that they hold, in the order of the numbers.
pub fn inspect(seen: &[SeenOwner], wanted: impl Fn(&SeenOwner) -> bool, look: ListLook) -> Option<String> {
    let views: Vec<OwnerView> = seen.iter().map(SeenOwner::view).collect();
    let found: Vec<&OwnerView> = views.iter().zip(seen).filter(|(_, seen)| wanted(seen)).map(|(view, _)| view).collect();
    let mut held: Vec<&OwnerView> = found.iter().flat_map(|view| held_by(view, &views)).collect();
    held.sort_by_key(|view| view.owner.no);
    held.dedup_by_key(|view| view.owner.no);
    if found.is_empty() {
        return None;
    }
    let whole = TreeDetail { whole: true, ..look.detail };
    Some(match look.format {
        ListFormat::Json => json(&found.iter().chain(&held).collect::<Vec<_>>()),
        ListFormat::Quiet => found.iter().map(|v| format!("{}\n", v.owner.id)).collect(),
        ListFormat::Table => found.iter().map(|v| tree(v, held_by(v, &views), whole)).collect(),
    })
}

/// The network namespaces whose programs a container holds, from all owners in the order of their numbers.
fn held_by<'a>(view: &OwnerView, all: &'a [OwnerView<'a>]) -> impl Iterator<Item = &'a OwnerView<'a>> {
    let find = |no: &u64| all.binary_search_by_key(no, |v| v.owner.no).ok().and_then(|at| all.get(at));
    view.holds.iter().filter_map(find).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::lifecycle::health::LostObject;
    use crate::output::error::CommandError;
    use crate::output::format::json;

    /// A container in a pod that has one of everything, its network namespace, and a failed container.
    pub fn records() -> Vec<OwnerRecord> {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let image = |verdict: Value| {
            let mut image =
                json!({"reference": "oci:/images/count:v1", "digest": digest(1), "object": digest(2), "rule": "all"});
            image.as_object_mut().unwrap().extend(verdict.as_object().unwrap().clone());
            image["verdict"] = verdict;
            image
        };
        let record = |more: Value| {
            let mut record = json!({
                "no": 0, "owner": null, "phase": "ready", "actor": {"process": {"pid": 400, "start_time": 1}, "deadline": 9},
                "created": 1700, "changed": 1700, "programs": [], "maps": [], "links": [], "images": [], "failure": null,
                "leftovers": [],
            });
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(record).unwrap()
        };
        let workload = |[namespace, pod, container]: [Option<&str>; 3]| json!({"namespace": namespace, "pod": pod, "container": container});
        let unknown = || workload([None; 3]);
        let container = |id: &str, more: Value| {
            let mut container = json!({
                "kind": "container", "id": id, "bundle": "/bundles/web", "runtime_user": 0, "engine": "containerd",
                "workload": unknown(), "init": null, "request": null, "cgroup": null, "bpffs": null, "holds": [],
            });
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        vec![
            record(json!({
                "no": 3,
                "owner": container("web", json!({
                    "init": {"pid": 500, "start_time": 7}, "holds": [4],
                    "workload": workload([Some("shop"), Some("front"), Some("web")]),
                    "bpffs": {"path": "/sys/fs/bpf", "delegation": null},
                    "police": {"mode": "enforce", "refused": [{"set": "progs", "name": "kprobe", "seen": 3, "refused": 3, "probes": 1}]},
                })),
                "images": [image(json!({"verdict": "verified", "by": "/etc/k\u{1b}.pub", "layout": "bundle"}))],
                "programs": [{"pin": "prog_0", "function": "out", "kind": "cgroup_skb", "scope": "container", "image": 0, "state": {"loaded": 71}}],
                "links": [{"pin": "link_0", "program": "prog_0", "at": {"type": "cgroup", "attach": "egress"}, "state": {"attached": 81}}],
                "maps": [
                    {"pin": "map_0", "name": "packets", "image": 0, "state": {"created": 61}, "shown": {"file_name": "pkts", "access": "ro"}},
                    {"pin": "map_1", "name": "state", "image": 0, "state": {"created": 62}, "shown": null},
                ],
                "leftovers": ["remove the pin link_9"],
            })),
            record(json!({
                "no": 4,
                "owner": {"kind": "netns", "cookie": 99, "sandbox": "box", "engine": "containerd", "workload": unknown(),
                    "request": digest(3), "holders": [3]},
                "images": [image(json!({"verdict": "unsigned"}))],
                "programs": [{"pin": "prog_0", "function": "count", "kind": "xdp", "scope": "container", "image": 0, "state": {"loaded": 72}}],
                "links": [{"pin": "link_0", "program": "prog_0", "state": {"attached": 82},
                    "at": {"type": "xdp", "iface": {"index": 2, "name": "eth0"}, "mode": "skb"}}],
            })),
            record(json!({
                "no": 9, "owner": container("bad", json!({})), "phase": "failed", "failure": "attach xdp\nto eth7: no such interface", "verifier_log": "R1 !read_ok",
            })),
        ]
    }

    /// These records, all with this health.
    fn seen(health: &Health) -> Vec<SeenOwner> {
        let seen = |record| SeenOwner { record, health: health.clone(), name: None };
        records().into_iter().map(seen).collect()
    }

    /// The output of a listing.
    fn text(list: impl FnOnce(&mut dyn Write) -> Result<(), Cut>) -> String {
        let mut out = Vec::new();
        list(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A minute after the records were created, in a pipe.
    fn look(format: ListFormat) -> ListLook {
        ListLook { format, detail: TreeDetail { now: 1760, ..TreeDetail::default() } }
    }

    /// `inspect` of the containers whose id begins with the text.
    fn inspected(seen: &[SeenOwner], prefix: &str, format: ListFormat) -> Option<String> {
        let wanted =
            |seen: &SeenOwner| seen.record.owner.container().is_some_and(|container| container.id.as_str().starts_with(prefix));
        inspect(seen, wanted, look(format))
    }

    fn containers_text(format: ListFormat, health: &Health) -> String {
        let held = |no| seen(health).into_iter().find(|seen| seen.record.no == no);
        text(|out| containers(seen(health).into_iter().map(Ok), held, look(format), out))
    }

    fn programs_text(format: ListFormat, stats: Option<AskStats>, health: &Health) -> String {
        text(|out| programs(seen(health).into_iter().map(Ok), || Ok(Vec::new()), look(format), stats, out))
    }

    fn links_text(format: ListFormat, health: &Health) -> String {
        text(|out| links(seen(health).into_iter().map(Ok), look(format), out))
    }

    #[test]
    fn a_container_is_a_tree() {
        let text = containers_text(ListFormat::Table, &Health::default());
        let expected = "\
web  shop/front/web  ready  containerd  pid 500  1m ago
├─ left behind: remove the pin link_9
├─ program 71 cgroup_skb out  [oci:/images/count:v1, verified by /etc/k?.pub]
│  └─ link 81 on egress
├─ program 72 xdp count of the pod  [oci:/images/count:v1, accepted unsigned]
│  └─ link 82 on eth0 in generic mode (skb)
├─ map 62 state
├─ bpffs /sys/fs/bpf (private)
│  └─ map 61 packets as pkts (ro)
└─ policed (enforce): one name refused
bad  failed  containerd  1m ago
└─ failed: attach xdp?to eth7: no such interface
";
        assert_eq!(text, expected);
        let web = inspected(&seen(&Health::default()), "web", ListFormat::Table).unwrap();
        assert!(web.ends_with("refused\n   └─ program type kprobe: refused, 3 times\n"), "{web}");
        let whole = inspected(&seen(&Health::default()), "bad", ListFormat::Table).unwrap();
        assert!(whole.ends_with("no such interface\n   └─ R1 !read_ok\n"), "{whole}");
        assert!(whole.contains("├─ bundle /bundles/web\n") && whole.contains("├─ created 1970-01-01T00:28:20Z\n"), "{whole}");
    }

    #[test]
    fn dead_owners_and_lost_objects_are_shown_with_a_remedy() {
        let health = Health {
            dead: BTreeMap::from([(OwnerNo(3), "its init, process 500, is gone".to_owned())]),
            programs: BTreeMap::from([(71, LostObject::Removed)]),
            links: BTreeMap::from([(81, LostObject::Removed), (82, LostObject::Interface)]),
            proxies: BTreeMap::new(),
        };
        let text = containers_text(ListFormat::Table, &health);
        for line in [
            "web  shop/front/web  dead  containerd",
            "├─ dead: its init, process 500, is gone; `bpfman-hook gc` releases what it holds\n",
            "cgroup_skb out (gone: its pin was removed)",
            "link 82 on eth0 in generic mode (skb) (gone: its interface is gone)\n",
        ] {
            assert!(text.contains(line), "missing: {line}\n{text}");
        }
        let end = "link 82 on eth0 of network namespace 99 of sandbox box: gone: its interface is gone; start the pod again\n";
        for text in [text, links_text(ListFormat::Table, &health), programs_text(ListFormat::Table, None, &health)] {
            assert!(text.ends_with(end), "{text}");
        }
        let json: Value = serde_json::from_str(&containers_text(ListFormat::Json, &health)).unwrap();
        assert_eq!((&json[0]["state"], &json[0]["programs"][0]["gone"]), (&json!("dead"), &json!("removed")));
        require_documented(&json.to_string());
        let json: Value = serde_json::from_str(&links_text(ListFormat::Json, &health)).unwrap();
        assert_eq!(json[1]["gone"], "interface");
    }

    #[test]
    fn streamed_json_equals_the_whole_array() {
        for health in [Health::default(), Health { programs: BTreeMap::from([(71, LostObject::Removed)]), ..Health::default() }]
        {
            let all = seen(&health);
            let views: Vec<_> = all.iter().flat_map(SeenOwner::programs).collect();
            assert_eq!(programs_text(ListFormat::Json, None, &health), json(&views));
            assert_eq!(links_text(ListFormat::Json, &health), json(&views.iter().flat_map(|p| &p.links).collect::<Vec<_>>()));
            let shown = all.iter().map(SeenOwner::view).filter(|view| view.owner.kind == "container");
            assert_eq!(containers_text(ListFormat::Json, &health), json(&shown.collect::<Vec<_>>()));
        }
        assert_eq!(text(|out| links(std::iter::empty(), look(ListFormat::Json), out)), "[]\n");
    }

    #[test]
    fn a_listing_stops_at_an_unreadable_record_or_a_failed_write() {
        let damaged = || CommandError::new("it is damaged");
        let broken = || seen(&Health::default()).into_iter().map(Ok).chain([Err(Cut::Unknown(damaged()))]);
        let none = |_| None;
        for format in [ListFormat::Json, ListFormat::Table, ListFormat::Quiet] {
            let mut out = Vec::new();
            for cut in [
                programs(broken(), || Ok(Vec::new()), look(format), None, &mut out),
                links(broken(), look(format), &mut out),
                containers(broken(), none, look(format), &mut out),
            ] {
                assert!(matches!(&cut, Err(Cut::Unknown(why)) if *why == damaged()), "{format:?}: {cut:?}");
            }
            let mut full = &mut [0_u8; 3][..];
            let cut = links(seen(&Health::default()).into_iter().map(Ok), look(format), &mut full);
            assert!(matches!(cut, Err(Cut::Unwritten(_))), "{format:?}: {cut:?}");
        }
    }

    #[test]
    fn kernel_statistics_appear_only_where_requested() {
        const STATS: Stats = Stats { run_time_ns: 1_500, run_count: 3, memory_bytes: Some(4096), verified_instructions: 17 };
        let answers: Option<AskStats> = Some(|id| Ok((id == 71).then_some(STATS)));
        let json: Value = serde_json::from_str(&programs_text(ListFormat::Json, answers, &Health::default())).unwrap();
        assert_eq!(
            json[0]["stats"],
            json!({"run_time_ns": 1500, "run_count": 3, "memory_bytes": 4096, "verified_instructions": 17})
        );
        assert!(json[1].get("stats").is_none(), "it was gone");
        let table = programs_text(ListFormat::Table, answers, &Health::default());
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][..7], ["71", "out", "cgroup_skb", "3", "1.5µs", "4096", "17"], "{table}");
        assert_eq!(rows[2][..7], ["72", "count", "xdp", "-", "-", "-", "-"], "{table}");
    }

    #[test]
    fn quiet_listings_are_one_id_per_line() {
        let healthy = Health::default();
        assert_eq!(programs_text(ListFormat::Quiet, None, &healthy), "71\n72\n");
        assert_eq!(links_text(ListFormat::Quiet, &healthy), "81\n82\n");
        assert_eq!(containers_text(ListFormat::Quiet, &healthy), "web\nbad\n");
        assert_eq!(inspected(&seen(&healthy), "b", ListFormat::Quiet).unwrap(), "bad\n");
        assert!(inspected(&seen(&healthy), "99", ListFormat::Table).is_none(), "a network namespace is not a container");
    }

    /// Every key that `list` and `inspect` print with `-o json` is in docs/operations.md.
    #[test]
    fn json_keys_are_documented() {
        require_documented(&inspected(&seen(&Health::default()), "", ListFormat::Json).unwrap());
        let stats = |_| Ok(Some(Stats { run_time_ns: 1, run_count: 1, memory_bytes: Some(1), verified_instructions: 1 }));
        require_documented(&programs_text(ListFormat::Json, Some(stats), &Health::default()));
    }

    /// Every key of a JSON document is in docs/operations.md.
    pub fn require_documented(text: &str) {
        fn keys(value: &Value, found: &mut std::collections::BTreeSet<String>) {
            match value {
                Value::Object(object) => {
                    for (key, value) in object {
                        found.insert(key.clone());
                        // Below these, the user chooses the keys.
                        if !["metadata", "globals"].contains(&key.as_str()) {
                            keys(value, found);
                        }
                    }
                }
                Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
                _ => {}
            }
        }
        let mut printed = std::collections::BTreeSet::new();
        keys(&serde_json::from_str(text).unwrap(), &mut printed);
        let guide = include_str!("../../docs/operations.md");
        for key in printed {
            assert!(guide.contains(&format!("`{key}`")), "docs/operations.md does not document `{key}`");
        }
    }
}
