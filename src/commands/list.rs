//! `list`, `get` and `inspect`: what the store says, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::commands::get::OtherProgram;
use crate::lifecycle::health::{Health, Trouble};
use crate::model::ids::OwnerNo;
use crate::model::record::OwnerRecord;
use crate::output::table::{Table, printable};
use crate::output::view;
use crate::output::view::{LinkView, OwnerState, OwnerView, ProgramView, Stats};

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

/// One entry of `list programs`.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Ours(&'a ProgramView<'a>),
    Other(&'a OtherProgram),
}

/// What the kernel said about programs, by their ids; None where it was not asked.
pub type Answers = Option<BTreeMap<u32, Stats>>;

/// `list programs`; `others` are those that no record names.
pub fn programs(records: &[OwnerRecord], others: &[OtherProgram], format: Format, stats: &Answers, health: &Health) -> String {
    let mut programs: Vec<ProgramView> = records.iter().flat_map(view::programs).map(|p| p.with(health)).collect();
    for program in &mut programs {
        program.stats = program.id.and_then(|id| stats.as_ref()?.get(&id).copied());
    }
    match format {
        Format::Json => json(&programs.iter().map(Entry::Ours).chain(others.iter().map(Entry::Other)).collect::<Vec<_>>()),
        Format::Quiet => ids(programs.iter().filter_map(|p| p.id).chain(others.iter().map(|o| o.id))),
        Format::Table if stats.is_some() => {
            let mut table = Table::new(&["PROGRAM ID", "NAME", "TYPE", "RUNS", "RUN TIME", "MEMORY", "VERIFIED", "OWNER"]);
            for p in &programs {
                let said = |say: fn(&Stats) -> String| p.stats.as_ref().map_or_else(|| "-".to_owned(), say);
                table.row([
                    id(p.id),
                    name(p),
                    p.kind.to_string(),
                    said(|stats| stats.run_count.to_string()),
                    said(|stats| format!("{:?}", Duration::from_nanos(stats.run_time_ns))),
                    said(|stats| stats.memory_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string())),
                    said(|stats| stats.verified_instructions.to_string()),
                    owner_name(records, p.owner),
                ]);
            }
            for o in others {
                let unknown = || "-".to_owned();
                table.row([
                    o.id.to_string(),
                    o.name.clone(),
                    o.kind.clone(),
                    unknown(),
                    unknown(),
                    unknown(),
                    unknown(),
                    unknown(),
                ]);
            }
            table.to_string() + &remedies(records, health)
        }
        Format::Table => {
            let mut table = Table::new(&["PROGRAM ID", "NAME", "TYPE", "SCOPE", "LINKS", "OWNER", "IMAGE"]);
            for p in &programs {
                table.row([
                    id(p.id),
                    name(p),
                    p.kind.to_string(),
                    word(&p.scope),
                    p.links.len().to_string(),
                    owner_name(records, p.owner),
                    p.image.to_string(),
                ]);
            }
            for o in others {
                let unknown = || "-".to_owned();
                table.row([o.id.to_string(), o.name.clone(), o.kind.clone(), unknown(), unknown(), unknown(), unknown()]);
            }
            table.to_string() + &remedies(records, health)
        }
    }
}

/// `list links`
pub fn links(records: &[OwnerRecord], format: Format, health: &Health) -> String {
    let programs = records.iter().flat_map(view::programs).map(|program| program.with(health));
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
                    l.place(),
                    id(l.program_id),
                    l.program.to_string(),
                    owner_name(records, l.owner),
                ]);
            }
            table.to_string() + &remedies(records, health)
        }
    }
}

/// A program's name, and that the kernel does not have it.
fn name(program: &ProgramView) -> String {
    match program.gone {
        Some(loss) => format!("{} ({})", program.name, loss.words()),
        None => program.name.to_string(),
    }
}

/// What to do about what is lost, a line for each; nothing where nothing is.
fn remedies(records: &[OwnerRecord], health: &Health) -> String {
    let line = |trouble: Trouble| format!("{}: {}; {}\n", printable(&trouble.what), trouble.why, trouble.remedy);
    health.troubles(records).into_iter().map(line).collect()
}

/// `list containers`: a tree for each container.
pub fn containers(records: &[OwnerRecord], format: Format, health: &Health) -> String {
    let views: Vec<OwnerView> = records.iter().map(|record| OwnerView::new(record, health)).collect();
    let shown = || views.iter().filter(|v| v.kind == "container");
    match format {
        Format::Json => json(&shown().collect::<Vec<_>>()),
        Format::Quiet => shown().map(|v| format!("{}\n", v.id)).collect(),
        Format::Table if shown().next().is_none() => "no container has programs or a bpffs of ours\n".to_owned(),
        Format::Table => shown().map(|view| tree(view, &views, Detail::Brief)).collect::<String>() + &remedies(records, health),
    }
}

/// `inspect CONTAINER`: everything about the containers whose id begins with `prefix`; None where there is none.
pub fn inspect(records: &[OwnerRecord], prefix: &str, format: Format, health: &Health) -> Option<String> {
    let views: Vec<OwnerView> = records.iter().map(|record| OwnerView::new(record, health)).collect();
    let exact = views.iter().any(|v| v.kind == "container" && v.id == prefix);
    let matches = |v: &&OwnerView| v.kind == "container" && if exact { v.id == prefix } else { v.id.starts_with(prefix) };
    let found: Vec<&OwnerView> = views.iter().filter(matches).collect();
    let mut held: Vec<&OwnerView> = found.iter().flat_map(|view| held_by(view, &views)).collect();
    held.sort_by_key(|view| view.owner);
    held.dedup_by_key(|view| view.owner);
    if found.is_empty() {
        return None;
    }
    Some(match format {
        Format::Json => json(&found.iter().chain(&held).collect::<Vec<_>>()),
        Format::Quiet => found.iter().map(|v| format!("{}\n", v.id)).collect(),
        Format::Table => found.iter().map(|v| tree(v, &views, Detail::Whole)).collect(),
    })
}

/// The network namespaces whose programs a container holds, out of all owners in the order of their numbers.
fn held_by<'a>(view: &OwnerView, all: &'a [OwnerView<'a>]) -> impl Iterator<Item = &'a OwnerView<'a>> {
    let find = |no: &u64| all.binary_search_by_key(no, |v| v.owner).ok().and_then(|at| all.get(at));
    view.holds.iter().filter_map(find).collect::<Vec<_>>().into_iter()
}

/// How much of a container a tree shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// `list`: a line for each thing.
    Brief,
    /// `inspect`: the verifier's words too.
    Whole,
}

/// One container with everything it has, as a tree.
fn tree(view: &OwnerView, all: &[OwnerView], detail: Detail) -> String {
    let mut text = format!("{}  {}", printable(&view.id), word(&view.state));
    if let Some(engine) = view.engine {
        _ = write!(text, "  {engine}");
    }
    if let (Some(namespace), Some(pod)) = (&view.namespace, &view.pod) {
        _ = write!(text, "  {}/{}", printable(namespace), printable(pod));
        if let Some(container) = &view.container {
            _ = write!(text, "/{}", printable(container));
        }
    }
    if let Some(pid) = view.pid {
        _ = write!(text, "  pid {pid}");
    }
    text.push('\n');
    let mut branches: Vec<(String, Vec<String>)> = Vec::new();
    if let Some(reason) = &view.reason {
        let log = view.verifier_log.iter().filter(|_| detail == Detail::Whole).flat_map(|log| log.lines());
        let branch = match view.state {
            OwnerState::Dead => format!("dead: {}; `bpfman-hook gc` releases what it has", printable(reason)),
            _ => format!("failed: {}", printable(reason)),
        };
        branches.push((branch, log.map(printable).collect()));
    }
    branches.extend(view.leftovers.iter().map(|left| (format!("left behind: {}", printable(left)), Vec::new())));
    branches.extend(view.programs.iter().map(|p| program_branch(p, "")));
    for netns in held_by(view, all) {
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
        printable(&name(program)),
        printable(&program.image),
        verdict(program),
    );
    let links = program.links.iter().map(|l| format!("link {} on {}", id(l.id), printable(&l.place())));
    (title, links.collect())
}

fn map_branch(map: &crate::output::view::MapView, file: Option<&str>) -> (String, Vec<String>) {
    let mut text = format!("map {} {}", id(map.id), printable(&map.name));
    if let (Some(file), Some(access)) = (file, &map.access) {
        _ = write!(text, " as {} ({})", printable(file), word(access));
    }
    (text, Vec::new())
}

pub(super) fn verdict(program: &ProgramView) -> String {
    match &program.by {
        Some(by) => format!("verified by {}", printable(by)),
        None => "accepted unsigned".to_owned(),
    }
}

/// An owner in words. The store reads records in the order of their numbers.
pub(super) fn owner_name(records: &[OwnerRecord], no: u64) -> String {
    let found = records.binary_search_by_key(&OwnerNo(no), |r| r.no);
    let record = found.ok().and_then(|at| records.get(at));
    record.map_or_else(|| format!("owner {no}"), |r| crate::lifecycle::reconcile::describe(&r.owner))
}

pub(super) fn id(id: Option<u32>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

fn ids(ids: impl Iterator<Item = u32>) -> String {
    ids.map(|id| format!("{id}\n")).collect()
}

/// The word that a value has in JSON.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::commands::list_json;
    use crate::lifecycle::health::Loss;
    use crate::store::Store;
    use crate::sys::Errno;

    /// A container in a pod that has one of everything, its network namespace, and a failed one.
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
                "created": 1700, "changed": 1700, "init": null, "request": null, "engine": "containerd", "workload": null,
                "cgroup": null, "programs": [], "maps": [], "links": [], "bpffs": null, "images": [], "holds": [], "holders": [],
                "failure": null, "leftovers": [],
            });
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(record).unwrap()
        };
        let container = |id: &str| json!({"kind": "container", "id": id, "bundle": "/bundles/web", "runtime_user": 0});
        vec![
            record(json!({
                "no": 3, "owner": container("web"), "init": {"pid": 500, "start_time": 7}, "holds": [4],
                "workload": {"namespace": "shop", "pod": "front", "container": "web"},
                "images": [image(json!({"verdict": "verified", "by": "/etc/k\u{1b}.pub", "layout": "bundle"}))],
                "programs": [{"pin": "prog_0", "function": "out", "kind": "cgroup_skb", "scope": "container", "image": 0, "id": 71}],
                "links": [{"pin": "link_0", "program": "prog_0", "at": {"type": "cgroup", "attach": "egress"}, "id": 81}],
                "maps": [
                    {"pin": "map_0", "name": "packets", "image": 0, "id": 61, "shown": {"file_name": "pkts", "access": "ro"}},
                    {"pin": "map_1", "name": "state", "image": 0, "id": 62, "shown": null},
                ],
                "bpffs": {"path": "/sys/fs/bpf", "delegation": null},
                "leftovers": ["remove the pin link_9"],
            })),
            record(json!({
                "no": 4, "owner": {"kind": "netns", "cookie": 99, "sandbox": "box"}, "holders": [3],
                "images": [image(json!({"verdict": "unsigned"}))],
                "programs": [{"pin": "prog_0", "function": "count", "kind": "xdp", "scope": "container", "image": 0, "id": 72}],
                "links": [{"pin": "link_0", "program": "prog_0", "id": 82,
                    "at": {"type": "xdp", "iface": {"index": 2, "name": "eth0"}, "mode": "skb"}}],
            })),
            record(json!({
                "no": 9, "owner": container("bad"), "phase": "failed", "failure": "attach xdp\nto eth7: no such interface", "verifier_log": "R1 !read_ok",
            })),
        ]
    }

    #[test]
    fn a_container_is_a_tree() {
        let text = containers(&records(), Format::Table, &Health::default());
        let expected = "\
web  ready  containerd  shop/front/web  pid 500
├─ left behind: remove the pin link_9
├─ program 71 cgroup_skb out  [oci:/images/count:v1, verified by /etc/k?.pub]
│  └─ link 81 on egress
├─ program 72 xdp count of the pod  [oci:/images/count:v1, accepted unsigned]
│  └─ link 82 on eth0 in generic mode (skb)
├─ map 62 state
└─ bpffs /sys/fs/bpf (private)
   └─ map 61 packets as pkts (ro)
bad  failed  containerd
└─ failed: attach xdp?to eth7: no such interface
";
        assert_eq!(text, expected);
        let whole = inspect(&records(), "bad", Format::Table, &Health::default()).unwrap();
        assert!(whole.ends_with("no such interface\n   └─ R1 !read_ok\n"), "{whole}");
    }

    #[test]
    fn what_is_dead_or_lost_is_told_with_its_remedy() {
        let health = Health {
            dead: BTreeMap::from([(OwnerNo(3), "its init, process 500, is gone".to_owned())]),
            programs: BTreeMap::from([(71, Loss::Removed)]),
            links: BTreeMap::from([(81, Loss::Removed), (82, Loss::Interface)]),
        };
        let text = containers(&records(), Format::Table, &health);
        for line in [
            "web  dead  containerd",
            "├─ dead: its init, process 500, is gone; `bpfman-hook gc` releases what it has\n",
            "cgroup_skb out (gone: its pin was removed)",
            "link 82 on eth0 in generic mode (skb) (gone: its interface is gone)\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let end = "link 82 on eth0 of network namespace 99 of sandbox box: gone: its interface is gone; start the pod again\n";
        for text in [text, links(&records(), Format::Table, &health), programs(&records(), &[], Format::Table, &None, &health)]
        {
            assert!(text.ends_with(end), "{text}");
        }
        let json: Value = serde_json::from_str(&containers(&records(), Format::Json, &health)).unwrap();
        assert_eq!((&json[0]["state"], &json[0]["programs"][0]["gone"]), (&json!("dead"), &json!("removed")));
        require_documented(&json.to_string());
        let json: Value = serde_json::from_str(&links(&records(), Format::Json, &health)).unwrap();
        assert_eq!(json[1]["gone"], "interface");
    }

    #[test]
    fn json_of_many_is_the_json_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("stores"), "boot").unwrap();
        let listings = || {
            let asks = list_json::KernelLookup { program: |_| Ok(true), link: |_| Err(Errno::PERM) };
            let programs = store.read(|txn| list_json::programs(txn, &asks)).unwrap();
            let links = store.read(|txn| list_json::links(txn, &asks)).unwrap();
            assert!(programs.1.is_empty() && links.1.is_empty());
            (programs.0, links.0)
        };
        assert_eq!(listings(), ("[]\n".to_owned(), "[]\n".to_owned()));
        // More than one thread takes, and a number that is no multiple of what is written at once.
        let mut all = Vec::new();
        for copy in 0..401 {
            for mut record in records() {
                record.no.0 += copy * 10;
                record.images.iter_mut().for_each(|image| image.reference.push_str("\"\\\n\u{1f41d}"));
                all.push(record);
            }
        }
        store.write(|txn| all.iter().try_for_each(|record| txn.put(record))).unwrap();
        let (programs_text, links_text) = listings();
        assert_eq!(programs_text, programs(&all, &[], Format::Json, &None, &Health::default()));
        assert_eq!(links_text, links(&all, Format::Json, &Health::default()));
        assert_eq!(serde_json::from_str::<Vec<Value>>(&programs_text).unwrap().len(), 802);
    }

    #[test]
    fn what_the_kernel_says_is_there_where_it_was_asked() {
        let stats = Stats { run_time_ns: 1_500, run_count: 3, memory_bytes: Some(4096), verified_instructions: 17 };
        let answers = Some(BTreeMap::from([(71, stats)]));
        let json: Value = serde_json::from_str(&programs(&records(), &[], Format::Json, &answers, &Health::default())).unwrap();
        assert_eq!(
            json[0]["stats"],
            json!({"run_time_ns": 1500, "run_count": 3, "memory_bytes": 4096, "verified_instructions": 17})
        );
        assert!(json[1].get("stats").is_none(), "it was gone");
        let table = programs(&records(), &[], Format::Table, &answers, &Health::default());
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][..7], ["71", "out", "cgroup_skb", "3", "1.5µs", "4096", "17"], "{table}");
        assert_eq!(rows[2][..7], ["72", "count", "xdp", "-", "-", "-", "-"], "{table}");
    }

    #[test]
    fn ids_alone_are_one_a_line() {
        let all = records();
        assert_eq!(programs(&all, &[], Format::Quiet, &None, &Health::default()), "71\n72\n");
        assert_eq!(links(&all, Format::Quiet, &Health::default()), "81\n82\n");
        assert_eq!(containers(&all, Format::Quiet, &Health::default()), "web\nbad\n");
        assert_eq!(inspect(&all, "b", Format::Quiet, &Health::default()).unwrap(), "bad\n");
        assert!(inspect(&all, "99", Format::Table, &Health::default()).is_none(), "a network namespace is no container");
    }

    /// Every key of what `list` and `inspect` print with `-o json` is in docs/operations.md.
    #[test]
    fn json_keys_are_documented() {
        require_documented(&inspect(&records(), "", Format::Json, &Health::default()).unwrap());
        let stats = Stats { run_time_ns: 1, run_count: 1, memory_bytes: Some(1), verified_instructions: 1 };
        require_documented(&programs(&records(), &[], Format::Json, &Some(BTreeMap::from([(71, stats)])), &Health::default()));
    }

    /// Every key of a JSON document is in docs/operations.md.
    pub fn require_documented(text: &str) {
        fn keys(value: &Value, found: &mut std::collections::BTreeSet<String>) {
            match value {
                Value::Object(object) => {
                    for (key, value) in object {
                        found.insert(key.clone());
                        // Below these the keys are the user's.
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
            assert!(guide.contains(&format!("`{key}`")), "docs/operations.md does not speak of `{key}`");
        }
    }

    #[test]
    fn ten_thousand_records_are_listed_at_once() {
        let one = records().remove(0);
        let all: Vec<_> =
            (1..=10_000).map(|no| OwnerRecord { no: OwnerNo(no), holds: vec![OwnerNo(no / 2)], ..one.clone() }).collect();
        let before = std::time::Instant::now();
        programs(&all, &[], Format::Table, &None, &Health::default());
        containers(&all, Format::Table, &Health::default());
        // Without optimisation; looking through all owners for each of them takes some ten seconds.
        assert!(before.elapsed() < std::time::Duration::from_secs(4), "{:?}", before.elapsed());
    }
}
