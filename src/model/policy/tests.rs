//! Policy files as a whole: their result, and the message for each mistake.

use std::collections::BTreeMap;

use super::*;
use crate::model::delegation::Preset;
use crate::model::police::{KFUNCS_MAX, PoliceMode, with_descriptors};
use crate::model::program_signing::KernelSigned;

const FULL: &str = r#"
[[image]]
name        = "acme-probes"
repository  = "ghcr.io/acme/*"
signed-by   = { identity = "https://github.com/acme/probes/.github/workflows/release.yml@refs/heads/main",
                issuer = "https://token.actions.githubusercontent.com", trusted-root = "/etc/bpfman-hook/trusted_root.json" }
scope       = "host"
digests     = []
globals     = ["rate", "ports"]
maps        = ["events:ro", "stats:rw", "plain"]
[[image]]
repository  = "quay.io/bpfman-bytecode/*"
signed-by   = [{ key = "/etc/bpfman-hook/keys/acme.pub" }, { key = "/etc/bpfman-hook/keys/b.pub" }]
[[image]]
repository  = "oci:/usr/share/bpfman-hook/demo"
unsigned    = true
digests     = ["sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"]

[[container]]
match       = { engine = "containerd", namespace = "monitoring" }
images      = ["acme-probes"]
programs    = ["xdp", "tcx", "cgroup_skb", "tracepoint"]
host-scope  = true
delegate    = ["networking", "tracing"]
on-failure  = ["stop", "continue"]
on-missed   = "kill"
grant       = true
pull-policy = "Never"
[[container]]
match       = { runtime-user = 1000, userns = true }
delegate    = { presets = ["maps"], progs = ["xdp", "BPFProgTypeSchedCls"], attachs = ["xdp"] }
[[container]]

[limits]
programs = 8
map-memory = "16MiB"
"#;

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(&[(PathBuf::from("/p.toml"), text.to_owned())])
}

fn facts(engine: Engine) -> ContainerFacts {
    ContainerFacts {
        engine,
        namespace: None,
        pod: None,
        container: None,
        labels: BTreeMap::new(),
        runtime_user: 0,
        userns: true,
    }
}

#[test]
fn the_documented_policy_has_the_documented_meaning() {
    let policy = parse(FULL).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<&str> = policy.images.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["acme-probes", "image-2", "image-3"]);
    let acme = &policy.images[0];
    assert_eq!((acme.scope, acme.unsigned, acme.keys().count()), (Scope::Host, false, 0));
    assert!(acme.globals.allow("rate") && !acme.globals.allow("other"));
    assert!(acme.maps.allow("events", MapAccess::ReadOnly) && !acme.maps.allow("events", MapAccess::ReadWrite));
    assert!(acme.maps.allow("stats", MapAccess::ReadWrite) && acme.maps.allow("stats", MapAccess::ReadOnly));
    assert!(acme.maps.allow("plain", MapAccess::ReadOnly) && !acme.maps.allow("plain", MapAccess::ReadWrite));
    assert_eq!(policy.images[1].keys().count(), 2);
    assert_eq!((&policy.images[1].globals, &policy.images[1].maps), (&NameSet::All, &MapNames::All));
    assert!(policy.images[2].unsigned);
    assert!(policy.images[2].allows_digest(&Digest::from_bytes([10; 32])));
    assert!(!policy.images[2].allows_digest(&Digest::from_bytes([11; 32])));

    let expected = ContainerRule {
        place: RuleLocation::Line { file: PathBuf::from("/p.toml"), line: 19 },
        matches: Match { engine: Some(Engine::Containerd), namespace: Some("monitoring".into()), ..Match::default() },
        images: Some(BTreeSet::from(["acme-probes".to_owned()])),
        programs: BTreeSet::from([ProgramKind::Xdp, ProgramKind::Tcx, ProgramKind::CgroupSkb, ProgramKind::Tracepoint]),
        host_scope: true,
        delegate: Preset::Networking.delegation().union(Preset::Tracing.delegation()),
        on_failure: vec![OnFailure::Stop, OnFailure::Continue],
        proxy: Default::default(),
        police: None,
        gate: None,
        on_missed: OnMissed::Kill,
        grant: true,
        pull_policy: Some(PullPolicy::Never),
    };
    assert_eq!(policy.containers[0], expected);
    let maps = Preset::Maps.delegation();
    let exact = Delegation { progs: maps.progs | 1 << 6 | 1 << 3, attachs: maps.attachs | 1 << 37, ..maps };
    assert_eq!(policy.containers[1].delegate, exact);
    let least = ContainerRule {
        place: RuleLocation::Line { file: PathBuf::from("/p.toml"), line: 32 },
        matches: Match::default(),
        images: None,
        programs: BTreeSet::new(),
        host_scope: false,
        delegate: Delegation::default(),
        on_failure: vec![OnFailure::Stop],
        proxy: Default::default(),
        police: None,
        gate: None,
        on_missed: OnMissed::Report,
        grant: false,
        pull_policy: None,
    };
    assert_eq!(policy.containers[2], least, "an absent key means the least");
    assert_eq!(policy.limits, ContainerLimits { programs: 8, map_memory: 16 << 20, ..ContainerLimits::default() });
    let files: Vec<_> = policy.trust_files().into_iter().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["/etc/bpfman-hook/keys/acme.pub", "/etc/bpfman-hook/keys/b.pub", "/etc/bpfman-hook/trusted_root.json"]);
}

#[test]
fn without_files_the_built_in_policy_applies() {
    let policy = Policy::parse(&[]).expect("legal");
    assert_eq!(policy, Policy::built_in([]));
    assert_eq!(parse("# nothing"), Ok(policy.clone()));
    let image = policy.built_in_images().expect("built in");
    assert_eq!((image.signed_by.len(), image.unsigned, image.scope), (0, false, Scope::Container));
    let rule = policy.container_rule(&facts(Engine::Podman)).expect("matches everything");
    assert!(rule.programs.contains(&ProgramKind::Xdp) && !rule.programs.contains(&ProgramKind::Tracepoint));
    assert!(rule.delegate.is_empty() && !rule.host_scope && !rule.grant && !rule.allows_on_failure(OnFailure::Continue));
    let host = Reference::parse("file:/x.o").expect("legal");
    assert_eq!(policy.image_rules(rule, &host), Vec::<&ImageRule>::new(), "no host path without a rule");
    let trusting = Policy::built_in([PathBuf::from("/k.pub")]);
    assert_eq!(trusting.trust_files().len(), 1);
    // A policy with its own rules does not trust the keys of the directory.
    let mut own = parse("[[image]]\nrepository = \"ghcr.io/a/b\"\nunsigned = true").expect("legal");
    own.trust([PathBuf::from("/k.pub")]);
    assert_eq!(own.trust_files().len(), 0);
}

#[test]
fn a_proxy_has_presets_names_and_lists_of_functions() {
    let parsed = |rule: &str| {
        let text = format!("[[container]]\n{rule}\n");
        Policy::parse(&[("/p.toml".into(), text)]).map(|policy| policy.containers[0].proxy.clone())
    };
    let presets = parsed("proxy = [\"sockets\"]").unwrap();
    assert_eq!(presets.delegation, Preset::Sockets.delegation());
    assert_eq!((&presets.helpers, &presets.kfuncs), (&None, &None));
    let table = parsed(
        "proxy = { presets = [\"probes\"], progs = [\"xdp\"], helpers = [\"ktime_get_ns\", \"bpf_map_lookup_elem\"], kfuncs = [\"bpf_dynptr_slice\"] }",
    )
    .unwrap();
    assert_eq!(table.delegation.progs, 1 << 1 | 1 << 6);
    assert_eq!(table.helpers, Some([1, 5].into()));
    assert_eq!(table.kfuncs, Some(["bpf_dynptr_slice".to_owned()].into()));
    let listed = "sha256:0000000000000000000000000000000000000000000000000000000000000007";
    let rule = format!("proxy = {{ instructions = [\"{listed}\", \"image:ghcr.io/acme/*\", \"image:oci:/srv/x:v1\"] }}");
    let table = parsed(&rule).unwrap();
    assert_eq!(table.instructions, Some([listed.parse().unwrap()].into()));
    assert_eq!(table.images.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ghcr.io/acme/*", "oci:/srv/x:v1"]);
    assert!(parsed("host-scope = true\nproxy = { presets = [\"tracing\"], kfuncs = [\"bpf_rdonly_cast\"] }").is_ok());
    for (rule, part) in [
        ("proxy = [\"network\"]", "\"network\" is not a preset"),
        ("proxy = [\"tracing\"]", "cannot be kept inside a container; add host-scope = true"),
        ("proxy = { progs = [\"any\"] }", "a limit must name its values"),
        ("proxy = { helpers = [\"map_lookup\"] }", "\"map_lookup\" is not a helper"),
        ("proxy = { kfuncs = [\"a b\"] }", "\"a b\" is not the name of a kernel function"),
        ("proxy = { kfuncs = [\"bpf_rdonly_cast\"] }", "bpf_rdonly_cast reaches kernel memory; add host-scope = true"),
        ("proxy = { instructions = [\"sha256:0\"] }", "\"sha256:0\" is not sha256: followed by 64 lower-case hex digits"),
        ("proxy = { instructions = [\"image:acme\"] }", "\"acme\" is not a repository: it must begin with a registry"),
        ("proxy = { links = [] }", "unknown field"),
        ("proxy = true", "a list of presets, or a table"),
    ] {
        let problem = parsed(rule).unwrap_err().to_string();
        assert!(problem.contains(part), "{rule}: {problem}");
    }
}

#[test]
fn policing_has_a_mode_and_the_names_of_the_proxy() {
    let parsed = |rule: &str| {
        let text = format!("[[container]]\n{rule}\n");
        Policy::parse(&[("/p.toml".into(), text)]).map(|policy| policy.containers[0].police.clone())
    };
    assert_eq!(parsed("").unwrap(), None);
    let mode = parsed("delegate = [\"maps\"]\nproxy = [\"probes\"]\npolice = \"warn\"").unwrap().unwrap();
    assert_eq!(mode.mode, PoliceMode::Warn);
    let both = Preset::Maps.delegation().union(Preset::Probes.delegation());
    assert_eq!(mode.calls.delegation, with_descriptors(both));
    let nothing = parsed("police = { mode = \"enforce\" }").unwrap().unwrap();
    assert_eq!(nothing, Police { mode: PoliceMode::Enforce, calls: CallCeiling::default() });
    let presets = parsed("police = { mode = \"enforce\", presets = [\"tracing\"], cmds = [\"obj_get\"] }").unwrap().unwrap();
    let tracing = with_descriptors(Preset::Tracing.delegation());
    assert_eq!(presets.calls.delegation, Delegation { cmds: tracing.cmds | 1 << 7, ..tracing });
    let exact = parsed(
        "police = { mode = \"enforce\", cmds = [\"map_create\", \"prog_detach\"], progs = [\"syscall\", \"xdp\"], helpers = [], \
         kfuncs = [\"bpf_rdonly_cast\"] }",
    )
    .unwrap()
    .unwrap();
    assert_eq!(exact.calls.delegation, Delegation { cmds: 1 | 1 << 9, progs: 1 << 31 | 1 << 6, ..Delegation::default() });
    assert_eq!(exact.calls.helpers, Some([].into()));
    assert_eq!(exact.calls.kfuncs, Some(["bpf_rdonly_cast".to_owned()].into()));
    let many = (0..=KFUNCS_MAX).map(|n| format!("\"bpf_{n}\"")).collect::<Vec<_>>().join(",");
    for (rule, part) in [
        ("police = \"log\"", "unknown variant `log`"),
        ("police = true", "\"warn\", \"enforce\", or a table of mode"),
        ("police = { presets = [\"maps\"] }", "missing field `mode`"),
        ("police = { mode = \"warn\", presets = [\"any\"] }", "is not a preset"),
        ("police = { mode = \"warn\", cmds = [\"any\"] }", "a limit must name its values"),
        ("police = { mode = \"warn\", helpers = [\"no_such\"] }", "\"no_such\" is not a helper"),
        ("police = { mode = \"warn\", links = [] }", "unknown field"),
        (&format!("police = {{ mode = \"warn\", kfuncs = [{many}] }}"), "more than 64 kernel functions"),
        ("delegate = { progs = [\"syscall\"] }", "never delegated"),
    ] {
        let problem = parsed(rule).unwrap_err().to_string();
        assert!(problem.contains(part), "{rule}: {problem}");
    }
}

#[test]
fn a_policy_without_a_proxy_keeps_its_identity() {
    let policy = Policy::parse(&[("/p.toml".into(), "[[container]]\ndelegate = [\"maps\"]\n".to_owned())]).unwrap();
    assert!(!policy.canonical().contains("proxy"), "{}", policy.canonical());
    assert!(!policy.canonical().contains("police"), "{}", policy.canonical());
}

#[test]
fn files_are_merged_in_order() {
    let one = "[[image]]\nname = \"a\"\nrepository = \"ghcr.io/a/b\"\nunsigned = true\n[limits]\nprograms = 1\nlinks = 7\nmap-memory = 4096";
    let two = "[[container]]\nimages = [\"a\"]\nmatch = { userns = true }\n[[image]]\nrepository = \"ghcr.io/c/d\"\nunsigned = true\n\
               [limits]\nprograms = 2";
    let files = [("/1.toml", one), ("/2.toml", two)].map(|(file, text)| (PathBuf::from(file), text.to_owned()));
    let policy = Policy::parse(&files).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(policy.images.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["a", "image-2"]);
    assert_eq!(policy.limits, ContainerLimits { programs: 2, links: 7, map_memory: 4096 });
    assert_eq!(policy.containers.len(), 1);
    let swapped = [files[1].clone(), files[0].clone()];
    assert_ne!(Policy::parse(&swapped).map(|policy| policy.canonical()), Ok(policy.canonical()));
    let error = Policy::parse(&[files[0].clone(), (PathBuf::from("/3.toml"), one.to_owned())]).expect_err("twice");
    assert_eq!(error.to_string(), "policy /3.toml, line 2: the name a is taken by the rule at /1.toml:2; choose another");
}

#[test]
fn the_canonical_form_depends_only_on_the_meaning() {
    let same = FULL.replace("\nname ", "\n# a comment\n\nname ").replace("\"acme-probes\"\n", "'acme-probes'\n");
    let (one, other) = (parse(FULL).expect("legal"), parse(&same).unwrap_or_else(|error| panic!("{error}")));
    assert_ne!(one.containers[0].place, other.containers[0].place);
    assert_eq!(one.canonical(), other.canonical());
    for (from, to) in
        [("acme/*", "acme/**"), ("true\npull", "false\npull"), ("\"rate\", ", ""), ("= 8", "= 9"), ("b.pub", "c.pub")]
    {
        let changed = parse(&FULL.replace(from, to)).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(changed.canonical(), one.canonical(), "{from}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let text = r#"
[[container]]
match = { engine = "containerd", namespace = "a", pod = "p", container = "c" }
[[container]]
match = { namespace = "a" }
[[container]]
match = { runtime-user = 7 }
[[container]]
match = { userns = false }
"#;
    let policy = parse(text).expect("legal");
    let pod = |engine, namespace: &str| ContainerFacts {
        namespace: Some(namespace.into()),
        pod: Some("p".into()),
        container: Some("c".into()),
        ..facts(engine)
    };
    let cases = [
        (pod(Engine::Containerd, "a"), Some(0)),
        (ContainerFacts { pod: None, ..pod(Engine::Containerd, "a") }, Some(1)),
        (pod(Engine::CriO, "a"), Some(1)),
        (pod(Engine::Containerd, "b"), None),
        // podman and plain runtimes have no namespaces, whatever the facts claim.
        (pod(Engine::Podman, "a"), None),
        (pod(Engine::Oci, "a"), None),
        (ContainerFacts { runtime_user: 7, ..facts(Engine::Oci) }, Some(2)),
        (ContainerFacts { userns: false, ..facts(Engine::Oci) }, Some(3)),
        (facts(Engine::Oci), None),
    ];
    for (facts, expected) in cases {
        let found = policy.container_rule(&facts);
        assert_eq!(found.and_then(|rule| policy.containers.iter().position(|other| other == rule)), expected, "{facts}");
    }
}

#[test]
fn labels_only_narrow_a_rule() {
    let text =
        "[[container]]\nmatch = { namespace = \"a\", labels = { tier = \"edge\", team = \"net\" } }\nprograms = [\"xdp\"]\n";
    let policy = parse(text).expect("legal");
    assert_eq!(policy.label_keys(), BTreeSet::from(["team", "tier"]));
    let known = |engine, labels: &[(&str, &str)]| ContainerFacts {
        namespace: Some("a".into()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..facts(engine)
    };
    let both = [("tier", "edge"), ("team", "net")];
    for (facts, matches) in [
        (known(Engine::Containerd, &both), true),
        (known(Engine::CriO, &[both[0], both[1], ("app", "web")]), true),
        (known(Engine::Containerd, &both[..1]), false),
        (known(Engine::Containerd, &[("tier", "edge"), ("team", "web")]), false),
        // Unknown: under the strict handler, CRI-O's hooks.d, podman.
        (known(Engine::Containerd, &[]), false),
        (known(Engine::Podman, &both), false),
        (ContainerFacts { namespace: Some("b".into()), ..known(Engine::Containerd, &both) }, false),
    ] {
        assert_eq!(policy.container_rule(&facts).is_some(), matches, "{facts}");
    }
    let error = parse("[[container]]\nmatch = { engine = \"containerd\", labels = { tier = \"edge\" } }\n").unwrap_err();
    assert!(error.to_string().contains("/p.toml, line 2: the creator of a pod chooses its labels"), "{error}");
}

#[test]
fn a_refusal_names_the_rule_whose_labels_are_unknown() {
    let text = "[[container]]\nmatch = { namespace = \"a\", labels = { tier = \"edge\" } }\nprograms = [\"xdp\"]\n\
                [[container]]\nmatch = { namespace = \"a\" }\n";
    let policy = parse(text).expect("legal");
    let wants = [("hook.bpfman.io/image", "registry.example/a"), ("hook.bpfman.io/programs", "xdp:x")];
    let wants = wants.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let request = crate::model::annotations::Request::parse(&wants, None).unwrap().unwrap();
    let pod = |labels: &[(&str, &str)]| ContainerFacts {
        namespace: Some("a".into()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..facts(Engine::CriO)
    };
    let refusal = |facts| crate::model::admission::admit(&policy, &facts, &request).unwrap_err().to_string();
    let unknown = refusal(pod(&[]));
    assert!(unknown.contains("allows no programs") && unknown.contains("it names labels"), "{unknown}");
    let other = refusal(pod(&[("tier", "back"), ("io.kubernetes.pod.uid", "7")]));
    assert!(!other.contains("labels"), "{other}");
    let shown = pod(&[("tier", "back"), ("io.kubernetes.pod.uid", "7")]).to_string();
    assert!(shown.contains("tier=back") && !shown.contains("io.kubernetes"), "the runtime's own labels are left out: {shown}");
}

#[test]
fn container_rules_narrow_the_image_rules() {
    let text = r#"
[[image]]
name = "a"
repository = "ghcr.io/**"
unsigned = true
[[image]]
name = "b"
repository = "ghcr.io/acme/*"
unsigned = true
[[container]]
match = { userns = true }
images = ["b"]
[[container]]
match = { runtime-user = 1 }
images = []
[[container]]
"#;
    let policy = parse(text).expect("legal");
    let reference = Reference::parse("ghcr.io/acme/x").expect("legal");
    let names = |at: usize| -> Vec<&str> {
        policy.image_rules(&policy.containers[at], &reference).into_iter().map(|rule| rule.name.as_str()).collect()
    };
    assert_eq!(names(0), ["b"]);
    assert_eq!(names(1), Vec::<&str>::new());
    assert_eq!(names(2), ["a", "b"]);
}

#[test]
fn mistakes_are_reported_with_their_line() {
    let image = "[[image]]\nrepository = \"ghcr.io/a/b\"\n";
    let unsigned = format!("{image}unsigned = true\n");
    let rules = [
        ("[[image]\n".to_owned(), 1, "unclosed array table, expected `]`"),
        ("[[image]]\n".to_owned(), 1, "missing field `repository`"),
        (
            "\n[[images]]\n".to_owned(),
            2,
            "unknown field `images`, expected one of `image`, `container`, `client`, `gate`, `limits`",
        ),
        (
            format!("{unsigned}sighned-by = 1"),
            4,
            "unknown field `sighned-by`, expected one of `name`, `repository`, `signed-by`, `unsigned`, `scope`, `kernel-signed`, `digests`, `globals`, `maps`",
        ),
        (image.to_owned(), 1, "a rule needs signed-by, or unsigned = true"),
        (format!("{image}unsigned = false"), 1, "a rule needs signed-by, or unsigned = true"),
        (format!("{unsigned}signed-by = {{ key = \"/k\" }}"), 4, "a rule has signed-by or unsigned = true, not both"),
        (format!("{image}signed-by = []"), 3, "signed-by is empty, so no image can satisfy it"),
        (
            format!("{image}signed-by = {{}}"),
            3,
            "a signer is { key } or { identity or identity-regexp, issuer or issuer-regexp, trusted-root }",
        ),
        (
            format!("{image}signed-by = [\n{{ key = \"/k\" }},\n{{ identity = \"x\" }}]"),
            5,
            "a signer is { key } or { identity or identity-regexp, issuer or issuer-regexp, trusted-root }",
        ),
        (
            format!("{image}signed-by = {{ key = \"/k\", issuer = \"x\" }}"),
            3,
            "a signer is { key } or { identity or identity-regexp, issuer or issuer-regexp, trusted-root }",
        ),
        (format!("{image}signed-by = {{ key = \"k.pub\" }}"), 3, "\"k.pub\" is not an absolute path without . and .. and //"),
        (
            format!("{image}signed-by = {{ kee = \"/k\" }}"),
            3,
            "unknown field `kee`, expected one of `key`, `identity`, `identity-regexp`, `issuer`, `issuer-regexp`, `trusted-root`",
        ),
        (format!("{image}signed-by = 3"), 3, "invalid type: integer `3`, expected a table or a list of tables"),
        (
            "[[image]]\nunsigned = true\nrepository = \"alpine\"".to_owned(),
            3,
            "\"alpine\" is not a repository: it must begin with a registry and a /, as in docker.io/library/",
        ),
        (format!("{unsigned}name = \"a b\""), 4, "the name \"a b\" is not 1 to 64 of A-Z a-z 0-9 _ . -"),
        (
            format!("{unsigned}name = \"built-in\""),
            4,
            "the name built-in is reserved for the rule that applies without policy files; choose another",
        ),
        (
            format!("{unsigned}name = \"image-2\"\n{unsigned}"),
            5,
            "the name image-2 is taken by the rule at /p.toml:4; choose another",
        ),
        (format!("{unsigned}scope = \"pod\""), 4, "unknown variant `pod`, expected `container` or `host`"),
        (
            format!("{unsigned}digests = [\n\"sha256:0\"]"),
            5,
            "digest \"sha256:0\" is not sha256: followed by 64 lower-case hex digits",
        ),
        (format!("{unsigned}globals = [\"a-b\"]"), 4, "\"a-b\" is not the name of a symbol"),
        (format!("{unsigned}maps = [\"a:wo\"]"), 4, "access to a map must be ro or rw, not \"wo\""),
        (
            format!("{unsigned}name = \"acme\"\n[[container]]\nimages = [\n\"acmee\"]"),
            7,
            "there is no image rule with the name \"acmee\"; the nearest is acme",
        ),
        ("[[container]]\nprograms = [\"xpd\"]".to_owned(), 2, "\"xpd\" is not a program type; the nearest is xdp"),
        (
            "[[container]]\nmatch = { engine = \"docker\" }".to_owned(),
            2,
            "unknown variant `docker`, expected one of `containerd`, `cri-o`, `podman`, `oci`",
        ),
        (
            "[[container]]\nmatch = { label = \"x\" }".to_owned(),
            2,
            "unknown field `label`, expected one of `engine`, `namespace`, `pod`, `container`, `labels`, `runtime-user`, `userns`",
        ),
        (
            "[[container]]\ndelegate = [\"network\"]".to_owned(),
            2,
            "\"network\" is not a preset; presets are maps, probes, networking, cgroup, sockets, tracing",
        ),
        (
            "[[container]]\ndelegate = [\"any\"]".to_owned(),
            2,
            "\"any\" is not a preset; a limit must name its values, so that a newer kernel does not extend it; presets are maps, probes, \
             networking, cgroup, sockets, tracing",
        ),
        (
            "[[container]]\ndelegate = { progs = [\"any\"] }".to_owned(),
            2,
            "unknown program type \"any\"; a limit must name its values, so that a newer kernel does not extend it",
        ),
        (
            "[[container]]\ndelegate = [\"tracing\"]".to_owned(),
            2,
            "kprobe, tracepoint, perf_event, raw_tracepoint, tracing cannot be kept inside a container; add host-scope = true, or leave them \
             out",
        ),
        (
            "[[container]]\nhost-scope = true\ndelegate = { progs = [\"syscall\"] }".to_owned(),
            3,
            "syscall programs are never delegated: loaded with a token, they can read the memory of any process and of the kernel",
        ),
        (
            "[[container]]\ndelegate = { maps = [\"struct_ops\"], cmds = [\"common_attrs\"] }".to_owned(),
            2,
            "common_attrs is a flag, not a command that can be delegated",
        ),
        (
            "[[container]]\ndelegate = \"maps\"".to_owned(),
            2,
            "invalid type: string \"maps\", expected a list of presets, or a table of presets, cmds, maps, progs and attachs",
        ),
        ("[[container]]\non-failure = [\"ignore\"]".to_owned(), 2, "unknown variant `ignore`, expected `stop` or `continue`"),
        (
            "[[container]]\npull-policy = \"never\"".to_owned(),
            2,
            "unknown variant `never`, expected one of `Always`, `IfNotPresent`, `Never`",
        ),
        (
            "[limits]\nmap-memory = \"64MB\"".to_owned(),
            2,
            "a size must be a number with B, KiB, MiB or GiB, such as \"64MiB\", or a number of bytes",
        ),
        (
            "[limits]\nmap-memory = \"99999999999GiB\"".to_owned(),
            2,
            "a size must be a number with B, KiB, MiB or GiB, such as \"64MiB\", or a number of bytes",
        ),
        ("[limits]\nmap-memory = -1".to_owned(), 2, "a size must not be negative"),
        ("[limits]\nprograms = -1".to_owned(), 2, "invalid value: integer `-1`, expected u32"),
    ];
    for (text, line, problem) in rules {
        let error = parse(&text).expect_err(&text);
        assert_eq!((error.line, error.problem.as_str()), (line, problem), "{text}");
        assert_eq!(error.to_string(), format!("policy /p.toml, line {line}: {problem}"));
    }
    let long = format!("# {}", "x".repeat(256 * 1024));
    assert_eq!(parse(&long).expect_err("long").problem, "the file has 262146 bytes, more than 262144");
    let many = "[[container]]\n".repeat(1025);
    let error = parse(&many).expect_err("many");
    assert_eq!((error.line, error.problem.as_str()), (1025, "there are more than 1024 container rules"));
}

#[test]
fn sizes() {
    for (text, expected) in
        [("\"64MiB\"", 64 << 20), ("\"1 GiB\"", 1 << 30), ("\"3KiB\"", 3072), ("\"5B\"", 5), ("\"7\"", 7), ("9", 9)]
    {
        assert_eq!(
            parse(&format!("[limits]\nmap-memory = {text}")).map(|policy| policy.limits.map_memory),
            Ok(expected),
            "{text}"
        );
    }
}

#[test]
fn warnings_name_the_rule() {
    let text = r#"
[[image]]
name = "k"
repository = "ghcr.io/a/b"
signed-by = { identity-regexp = "(", issuer = "j" }
[[container]]
match = { engine = "podman", namespace = "a" }
programs = ["xdp", "kprobe"]
[[container]]
[[container]]
programs = ["xdp"]
"#;
    let warnings = parse(text).expect("legal").warnings();
    let expected = [
        "image rule k allows nothing: \"(\" is not a regular expression: unclosed group",
        "the container rule at /p.toml:6 never matches: its engine does not report a namespace, pod or container",
        "the container rule at /p.toml:6 allows kprobe without effect: they need host-scope = true",
        "the container rule at /p.toml:9 allows no programs and delegates nothing",
        "the container rule at /p.toml:10 is never reached: the container rule at /p.toml:9 matches every container",
    ];
    assert_eq!(warnings, expected);
    assert_eq!(Policy::built_in([]).warnings(), Vec::<String>::new());
}

#[test]
fn cut_and_changed_files_never_panic() {
    let mut refused = 0;
    for cut in (0..FULL.len()).filter(|cut| FULL.is_char_boundary(*cut)) {
        refused += usize::from(parse(&FULL[..cut]).is_err());
        let mut changed = FULL.to_owned();
        changed.replace_range(cut..cut + 1, ["\"", "]", "\n", "\u{0}", "=", "{"][cut % 6]);
        if let Err(error) = parse(&changed) {
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(error.line <= changed.matches('\n').count() + 1, "{error}");
            refused += 1;
        }
    }
    assert!(refused > FULL.len(), "{refused} of {} were refused", 2 * FULL.len());
}

#[test]
fn every_reachable_rule_may_give_a_pod_a_token() {
    let maps = "delegate = [\"maps\"]\n";
    for (text, expected) in [
        (format!("[[container]]\n{maps}"), true),
        (format!("[[container]]\nhost-scope = true\n{maps}"), false),
        ("[[container]]\nprograms = [\"xdp\"]\n".to_owned(), false),
        (format!("[[container]]\nmatch = {{ container = \"main\" }}\n{maps}"), true),
        (format!("[[container]]\nmatch = {{ namespace = \"elsewhere\" }}\n{maps}"), false),
        (format!("[[container]]\nprograms = [\"xdp\"]\n[[container]]\nmatch = {{ container = \"main\" }}\n{maps}"), false),
        (format!("[[container]]\nmatch = {{ container = \"a\" }}\nhost-scope = true\n{maps}[[container]]\n{maps}"), true),
    ] {
        let policy = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let facts = ContainerFacts { namespace: Some("shop".to_owned()), ..facts(Engine::Containerd) };
        assert_eq!(policy.delegates_at_container_scope(&facts), expected, "{text}");
    }
}

#[test]
fn the_gate_lists_executables_of_the_host_and_of_containers() {
    let parse = |text: &str| Policy::parse(&[("/p.toml".into(), text.to_owned())]);
    let [one, two] = ["1", "2"].map(|digit| format!("sha256:{}", digit.repeat(64)));
    let image = "[[image]]\nname = \"probes\"\nrepository = \"ghcr.io/a/b\"\nunsigned = true\n";
    let files = [
        format!("{image}[gate]\nexecutables = [\"{one}\"]\n"),
        format!("[gate]\nexecutables = [\"{two}\"]\nimages = [\"probes\"]\n[[container]]\ngate = [\"{two}\", \"images\"]\n"),
    ];
    let both = Policy::parse(&files.clone().map(|text| (PathBuf::from("/p.toml"), text))).unwrap();
    let gate = both.gate.unwrap();
    assert_eq!(gate.executables.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(), [one.clone(), two.clone()]);
    assert_eq!((gate.images.len(), gate.kernel_signed), (1, KernelSigned::IfPossible));
    let container = both.containers[0].gate.clone().unwrap();
    assert_eq!((container.executables.len(), container.images), (1, true));
    assert!(both.containers[0].supervises());
    // Without a list, executables are not judged.
    let signed = parse("[gate]\nkernel-signed = \"required\"\n").unwrap().gate.unwrap();
    assert_eq!((signed.executables, signed.kernel_signed), (None, KernelSigned::Required));
    assert_eq!(parse("").unwrap().gate, None);
    for (text, part) in [
        ("[gate]\nexecutables = [\"/usr/bin/x\"]\n", "executable \"/usr/bin/x\" is not sha256: or fs-verity: followed by"),
        ("[gate]\nexecutables = [\"images\"]\n", "executable \"images\" is not"),
        ("[gate]\nimages = [\"no-such\"]\n", "there is no image rule with the name \"no-such\""),
        ("[gate]\nkernel-signed = \"always\"\n", "unknown variant"),
        ("[gate]\nlist = []\n", "unknown field"),
        ("[[container]]\ngate = \"images\"\n", "invalid type"),
    ] {
        let problem = parse(text).unwrap_err().to_string();
        assert!(problem.contains(part), "{text}: {problem}");
    }
}
