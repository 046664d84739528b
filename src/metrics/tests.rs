//! Checks the whole page against the rules of `promtool check metrics`; tests/e2e/prometheus.rs runs promtool and
//! Prometheus themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::metrics::gather::{GatheredMetrics, ProgramStat, gather};
use crate::metrics::text::Exposition;
use crate::model::metrics_table;
use crate::model::metrics_table::{EventKind, Outcome, Stage};
use crate::model::public_owner::{ProxiedCounts, PublicImage, PublicLink, PublicOwner, PublicProgram};
use crate::sys::export::Export;

fn owner_file(no: u64) -> PublicOwner {
    let word = |text: &str| text.to_owned();
    PublicOwner {
        no,
        kind: word("container"),
        id: format!("c{no}\"\\\n"),
        created: 1_795_574_700,
        engine: word("podman"),
        namespace: String::new(),
        pod: String::new(),
        container: String::new(),
        delegated: no == 1,
        proxied: (no == 1).then_some(ProxiedCounts { programs: 1, maps: 2, btf: 1, links: 0 }),
        maps: 2,
        images: vec![PublicImage { reference: word("oci:/a:b"), digest: word("sha256:00") }],
        // These programs do not exist: if the kernel can be queried, it reports so, and they are skipped.
        programs: vec![PublicProgram {
            id: u32::MAX - 1,
            name: word("count"),
            kind: word("xdp"),
            scope: word("container"),
            image: 0,
        }],
        links: vec![PublicLink { id: 4, program: u32::MAX - 1, kind: word("xdp") }],
        police: None,
    }
}

fn gathered(dir: &Path) -> GatheredMetrics {
    let export = Export::open(dir).unwrap();
    for no in [1, 2] {
        export.put_owner_file(no, &serde_json::to_vec(&owner_file(no)).unwrap());
    }
    export.put_owner_file(3, b"{\"no\":3");
    export.put_owner_file(4, &serde_json::to_vec(&owner_file(5)).unwrap());
    export.count(metrics_table::event(EventKind::Acquired), 2);
    export.observe(metrics_table::run(Stage::CreateRuntime, Outcome::Done), Duration::from_millis(12));
    export.put_programs(
        &serde_json::to_vec(&[ProgramStat {
            id: u32::MAX - 1,
            run_time: 1_500_000_000,
            runs: 3,
            memory: Some(4096),
            verified: 17,
            loaded: 5_000_000_000,
        }])
        .unwrap(),
    );
    gather(dir)
}

#[test]
fn the_page_follows_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let gathered = gathered(&dir.path().join("export"));
    let page = gathered.page(Exposition::OpenMetrics);
    assert!(page.ends_with("# EOF\n"));
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut helped, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut current = "";
    for line in page.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{name} is repeated");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(name == current && help.ends_with('.'), "{line}");
            helped.insert(name);
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(name == current && name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (what, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert!(series.insert(what), "{what} is repeated");
            let name = what.split('{').next().unwrap();
            let suffix = name.strip_prefix(current).unwrap_or_else(|| panic!("{line} does not belong to {current}"));
            let expected: &[&str] = match types[current] {
                "counter" => &["_total"],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(expected.contains(&suffix), "{line}");
        }
    }
    for (name, kind) in &types {
        assert!(helped.contains(name), "{name} has no HELP");
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(name.starts_with("bpfman_hook_") && name.bytes().all(legal), "{name}");
        for bad in ["_total", "_info", "_count", "_sum", "_bucket", "_milliseconds", "_ms", "_kb", "gauge", "counter"] {
            assert!(!name.ends_with(bad), "{name}: {kind}");
        }
    }
    for line in [
        "bpfman_hook_events_total{type=\"acquired\"} 2",
        "bpfman_hook_owners{kind=\"container\"} 2",
        "bpfman_hook_delegated_bpffs 1",
        "bpfman_hook_image_programs{image=\"oci:/a:b\",digest=\"sha256:00\"} 2",
        "bpfman_hook_run_duration_seconds_sum{stage=\"createRuntime\",outcome=\"done\"} 0.012",
        "id=\"c1\\\"\\\\\\n\"",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

/// Every metric name in the alert rules and the dashboard is exported.
#[test]
fn rules_and_dashboard_use_exported_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let source = [include_str!("gather.rs"), include_str!("../model/metrics_table.rs")].concat();
    for file in ["prometheus/bpfman-hook.rules.yml", "grafana/bpfman-hook.json"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let mut found = 0;
        for (at, _) in text.match_indices("bpfman_hook_") {
            let name: String =
                text[at + 12..].chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
            let family =
                ["_total", "_info", "_bucket", "_count"].iter().fold(name.as_str(), |n, s| n.strip_suffix(s).unwrap_or(n));
            assert!(source.contains(&format!("\"{family}\"")), "{file}: {name} is not exported");
            found += 1;
        }
        assert!(found > 5, "{file}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("grafana/bpfman-hook.json")).unwrap()).unwrap();
    assert!(json["panels"].as_array().is_some_and(|panels| panels.len() > 5));
}
