//! The grammar as a whole: defaults, contradictions and hostile values.

use super::*;
use crate::model::delegation::{Category, Delegation, Preset};

/// Annotation keys without our prefix, and their values.
type Written<'a> = &'a [(&'a str, &'a str)];

fn map(annotations: Written<'_>) -> BTreeMap<String, String> {
    annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
}

fn request(annotations: Written<'_>) -> Request {
    match Request::parse(&map(annotations), None) {
        Ok(Some(request)) => request,
        other => panic!("{annotations:?}: {other:?}"),
    }
}

fn refusal(annotations: Written<'_>) -> String {
    match Request::parse(&map(annotations), None) {
        Err(error) => error.to_string(),
        other => panic!("{annotations:?}: {other:?}"),
    }
}

#[test]
fn without_our_annotations_there_is_no_request() {
    assert_eq!(Request::parse(&BTreeMap::new(), None), Ok(None));
    let others = BTreeMap::from([("io.container.manager".to_owned(), "libpod".to_owned())]);
    assert_eq!(Request::parse(&others, Some("web")), Ok(None));
    assert_eq!(Request::parse_named(&map(&[("image", "ghcr.io/a/b")]), "init"), Ok(None));
}

#[test]
fn an_image_alone_requests_all_of_its_programs() {
    let all = request(&[("image", "docker://ghcr.io/acme/x:v1\n")]);
    let from = Reference::parse("ghcr.io/acme/x:v1").expect("legal");
    let expected = Request {
        programs: ProgramsRequest::All { from },
        programs_scope: KeyScope::Pod,
        globals: Vec::new(),
        maps: Vec::new(),
        pull_policy: None,
        bpffs: BpffsRequest::None,
        on_failure: OnFailure::Stop,
        proxy: None,
        map_sizes: Vec::new(),
        perhaps_globals: Vec::new(),
    };
    assert_eq!(all, expected);
    assert!(!all.is_empty());
}

#[test]
fn a_request_with_everything() {
    let full = request(&[
        ("image", "ghcr.io/acme/x"),
        ("programs", "xdp:count iface=lo; tcx:mark from=oci:/usr/share/x:v2 direction=egress"),
        ("globals", "rate=10"),
        ("maps", "events"),
        ("pull-policy", "Always"),
        ("bpffs-path", "/run/bpf"),
        ("delegate", "networking"),
        ("on-failure", "continue"),
    ]);
    let ProgramsRequest::Listed(programs) = &full.programs else { panic!("{:?}", full.programs) };
    assert_eq!(programs.len(), 2);
    assert_eq!(
        full.references().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["ghcr.io/acme/x:latest", "oci:/usr/share/x:v2"]
    );
    assert_eq!((full.globals.len(), full.maps.len()), (1, 1));
    assert_eq!((full.pull_policy, full.on_failure), (Some(PullPolicy::Always), OnFailure::Continue));
    let BpffsRequest::Token { path, delegation } = full.bpffs else { panic!("{:?}", full.bpffs) };
    assert_eq!(path, PathBuf::from("/run/bpf"));
    assert_eq!(delegation.named, Preset::Networking.delegation());
}

#[test]
fn the_default_bpffs_depends_on_the_other_keys() {
    let private = || BpffsRequest::Private { path: PathBuf::from("/sys/fs/bpf") };
    let image = ("image", "ghcr.io/acme/x");
    let cases: [(Written<'_>, BpffsRequest); 5] = [
        (&[image], BpffsRequest::None),
        (&[image, ("bpffs", "none")], BpffsRequest::None),
        (&[image, ("maps", "events")], private()),
        (&[("bpffs", "private")], private()),
        (&[("bpffs", "private"), ("bpffs-path", "/mnt/bpf")], BpffsRequest::Private { path: PathBuf::from("/mnt/bpf") }),
    ];
    for (annotations, expected) in cases {
        assert_eq!(request(annotations).bpffs, expected, "{annotations:?}");
    }
    for annotations in [
        &[("delegate", "maps")][..],
        &[("delegate", "maps"), ("bpffs", "token")],
        &[image, ("maps", "a"), ("delegate", "maps")],
    ] {
        assert!(matches!(request(annotations).bpffs, BpffsRequest::Token { .. }), "{annotations:?}");
    }
    assert!(request(&[("on-failure", "stop")]).is_empty());
}

#[test]
fn lists_replace_their_part_of_the_presets() {
    let token = |annotations: Written<'_>| match request(annotations).bpffs {
        BpffsRequest::Token { delegation, .. } => delegation,
        other => panic!("{other:?}"),
    };
    let networking = Preset::Networking.delegation();
    let both = token(&[("delegate", "networking:cgroup")]).named;
    assert_eq!(both, networking.union(Preset::Cgroup.delegation()));
    let narrowed = token(&[("delegate", "networking"), ("delegate-progs", "BPF_PROG_TYPE_XDP socket_filter")]).named;
    assert_eq!(narrowed, Delegation { progs: 1 << 6 | 1 << 1, ..networking });
    let exact = token(&[
        ("delegate-cmds", "BPFMapCreate:prog_load"),
        ("delegate-maps", "array hash"),
        ("delegate-progs", "xdp"),
        ("delegate-attachs", "xdp:cgroup_inet_ingress"),
    ]);
    assert_eq!(exact.named, Delegation { cmds: 0b100001, maps: 0b110, progs: 1 << 6, attachs: 1 << 37 | 1 });
    assert_eq!(exact.any, Default::default());
    let any = token(&[("delegate", "maps"), ("delegate-progs", "any"), ("delegate-attachs", "any:xdp")]);
    assert!(any.any.get(Category::Progs) && any.any.get(Category::Attachs) && !any.any.get(Category::Cmds));
    assert_eq!(any.named, Delegation { progs: 0, attachs: 1 << 37, ..Preset::Maps.delegation() });
}

#[test]
fn contradictions_name_the_key_to_change() {
    let image = ("image", "ghcr.io/acme/x");
    let no_programs = "it needs a program to apply to; add the annotation image or programs";
    let cases: [(Written<'_>, &str, &str); 22] = [
        (&[("globals", "a=1")], "globals", no_programs),
        (&[("maps", "a"), ("bpffs", "private")], "maps", no_programs),
        (
            &[("programs", "xdp:a")],
            "programs, entry 1, column 1",
            "there is no image for it; add from= to the entry, or the annotation image",
        ),
        (
            &[("delegate", "maps"), ("bpffs", "private")],
            "delegate",
            "it needs bpffs=token; remove the annotation bpffs or write token",
        ),
        (
            &[("delegate-progs", "any"), ("bpffs", "none")],
            "delegate-progs",
            "it needs bpffs=token; remove the annotation bpffs or write token",
        ),
        (
            &[image, ("maps", "a"), ("bpffs", "none")],
            "maps",
            "maps are shown in a bpffs, but the annotation says bpffs=none; remove it or write private",
        ),
        (
            &[image, ("bpffs-path", "/run/bpf")],
            "bpffs-path",
            "there is no bpffs to mount there; add bpffs=private, or the annotation delegate",
        ),
        (
            &[("bpffs", "token")],
            "bpffs",
            "it does not say what to delegate; add the annotation delegate, such as delegate=maps",
        ),
        (
            &[("bpffs", "tokn")],
            "bpffs, entry 1, column 1",
            "it must be none, private or token, not \"tokn\"; the nearest is token",
        ),
        (
            &[("bpffs", "private"), ("bpffs-path", "/sys")],
            "bpffs-path, entry 1, column 1",
            "\"/sys\" is neither /sys/fs/bpf nor below /run or /mnt",
        ),
        (
            &[("bpffs", "private"), ("bpffs-path", "/run")],
            "bpffs-path, entry 1, column 1",
            "\"/run\" is neither /sys/fs/bpf nor below /run or /mnt",
        ),
        (
            &[("bpffs", "private"), ("bpffs-path", "/run/../etc")],
            "bpffs-path, entry 1, column 1",
            "\"/run/../etc\" is not an absolute path without . and .. and //",
        ),
        (
            &[("bpffs", "private"), ("bpffs-path", "run/x")],
            "bpffs-path, entry 1, column 1",
            "\"run/x\" is not an absolute path without . and .. and //",
        ),
        (
            &[("delegate", "maps:net")],
            "delegate, entry 1, column 6",
            "\"net\" is not a preset; presets are maps, probes, networking, cgroup, sockets, tracing",
        ),
        (
            &[("delegate", "any")],
            "delegate, entry 1, column 1",
            "\"any\" is not a preset; presets are maps, probes, networking, cgroup, sockets, tracing",
        ),
        (
            &[("delegate-cmds", "prog_load map_creat")],
            "delegate-cmds, entry 1, column 11",
            "unknown bpf command \"map_creat\"; the nearest is map_create",
        ),
        (
            &[("delegate-cmds", "map_create,prog_load")],
            "delegate-cmds, entry 1, column 1",
            "unknown bpf command \"map_create,prog_load\"; names are separated by : or blanks",
        ),
        (
            &[("delegate-cmds", "common_attrs")],
            "delegate-cmds, entry 1, column 1",
            "common_attrs is a flag, not a command that can be delegated",
        ),
        (
            &[("delegate-progs", "xdp")],
            "delegate-progs",
            "program types without the command prog_load cannot be used; add it to delegate-cmds",
        ),
        (
            &[("pull-policy", "never")],
            "pull-policy, entry 1, column 1",
            "it must be IfNotPresent, Always or Never, not \"never\"; the nearest is Never",
        ),
        (&[("on-failure", "ignore")], "on-failure, entry 1, column 1", "it must be stop or continue, not \"ignore\""),
        (&[("image", "a b")], "image, entry 1, column 3", "the value must be one word, but \"b\" follows it"),
    ];
    for (annotations, place, problem) in cases {
        assert_eq!(refusal(annotations), format!("annotation {PREFIX}{place}: {problem}"));
    }
    assert_eq!(refusal(&[("programs", "")]), "annotation hook.bpfman.io/programs: it is empty");
}

#[test]
fn the_scope_of_the_keys_decides_who_owns_the_programs() {
    let mut annotations = map(&[("image", "ghcr.io/acme/x"), ("globals", "rate=1")]);
    annotations.insert("web.hook.bpfman.io/globals".to_owned(), "rate=2".to_owned());
    let pod = Request::parse(&annotations, Some("web")).expect("legal").expect("ours");
    assert_eq!(pod.programs_scope, KeyScope::Pod);
    assert_eq!(pod.globals[0].value, GlobalValue::Word("2".to_owned()));
    annotations.insert("web.hook.bpfman.io/programs".to_owned(), "xdp:count".to_owned());
    let own = Request::parse(&annotations, Some("web")).expect("legal").expect("ours");
    assert_eq!(own.programs_scope, KeyScope::Container);
    // Pod-wide keys do not apply to an init container, so its own entry has no image.
    let init = Request::parse_named(&annotations, "web").expect_err("no image").to_string();
    assert!(init.starts_with("annotation web.hook.bpfman.io/programs, entry 1, column 1: there is no image"), "{init}");
}

#[test]
fn equal_requests_have_equal_canonical_forms() {
    let spellings = [
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a  iface=eth0 ; "), ("delegate", "maps")]),
        request(&[
            ("image", "docker://GHCR.io/acme/x:latest"),
            ("programs", "\n xdp:a"),
            ("delegate", "maps maps"),
            ("bpffs", "token"),
        ]),
    ];
    assert_eq!(spellings[0], spellings[1]);
    assert_eq!(spellings[0].canonical(), spellings[1].canonical());
    let others = [
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a iface=lo"), ("delegate", "maps")]),
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a"), ("delegate", "networking")]),
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a")]),
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a"), ("globals", "a=1")]),
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a"), ("globals", "a='1'")]),
        request(&[("image", "ghcr.io/acme/x"), ("programs", "xdp:a"), ("on-failure", "continue")]),
    ];
    for (at, one) in others.iter().enumerate() {
        assert_ne!(one.canonical(), spellings[0].canonical());
        assert!(others.iter().skip(at + 1).all(|other| other.canonical() != one.canonical()), "{one:?}");
    }
}

/// A deterministic random number generator: xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).expect("small")).expect("small")
    }
}

#[test]
fn hostile_values_never_panic_and_errors_stay_on_one_line() {
    let seeds = [
        ("image", "docker://ghcr.io/acme/x:v1@sha256:00"),
        ("image", "oci:/usr/share/x:v1"),
        ("programs", "xdp:count iface=lo mode=skb; tcx:mark direction=egress from=oci:/x; tracepoint:f:sched/sched_switch"),
        ("programs", "cgroup_sock_addr:f attach=connect4\nkprobe:g:vfs_read priority=5 proceed-on=pass:drop"),
        ("globals", "rate=10; name='it''s'; ports=[1 2 3]; raw=hex:00ff"),
        ("maps", "events:ro as=x; stats:rw"),
        ("bpffs-path", "/run/bpf"),
        ("delegate", "maps:networking cgroup"),
        ("delegate-progs", "BPFProgTypeXdp:sched_cls any"),
        ("delegate-cmds", "BPF_MAP_CREATE prog_load"),
        ("pull-policy", "IfNotPresent"),
        ("on-failure", "continue"),
    ];
    let pieces = [
        "'",
        ";",
        "\n",
        ":",
        "=",
        "[",
        "]",
        "@",
        "/",
        "..",
        " ",
        "\t",
        "\0",
        "ä",
        "\u{202e}",
        "hex:",
        "from=",
        "*",
        ",",
        "\\",
        "\u{1F600}",
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let (key, seed) = seeds[numbers.below(seeds.len())];
        let mut value: Vec<char> = seed.chars().collect();
        for _ in 0..numbers.below(6) {
            let at = numbers.below(value.len() + 1);
            match numbers.below(4) {
                0 => value.truncate(at),
                1 if at < value.len() => drop(value.remove(at)),
                2 => value.extend_from_within(..at),
                _ => drop(value.splice(at..at, pieces[numbers.below(pieces.len())].chars())),
            }
        }
        let value: String = value.into_iter().collect();
        let mut annotations = map(&[(key, &value)]);
        annotations.entry(format!("{PREFIX}image")).or_insert_with(|| "ghcr.io/acme/x".to_owned());
        match Request::parse(&annotations, None) {
            Ok(request) => {
                accepted += 1;
                let request = request.expect("an image is there");
                assert!(!request.canonical().is_empty());
                for reference in request.references() {
                    assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(reference), "{value:?}");
                }
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(!text.contains(['\n', '\0', '\u{1b}']), "{text:?}");
                assert!(text.len() <= 400, "{text}");
            }
        }
    }
    assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused: the mutations say nothing");
}

#[test]
fn values_are_bounded() {
    let long = "x".repeat(lex::VALUE_MAX + 1);
    for key in [
        "image",
        "programs",
        "globals",
        "maps",
        "pull-policy",
        "bpffs",
        "bpffs-path",
        "delegate",
        "delegate-maps",
        "on-failure",
    ] {
        let text = refusal(&[(key, &long)]);
        assert!(text.ends_with("it has 65537 bytes, more than 65536"), "{text}");
    }
}

/// The annotations that podman 4.3.1 creates from `--annotation hook.bpfman.io/programs=tcx:a, iface=lo, tcx:b
/// direction=egress` and similar ones.
#[test]
fn a_value_that_was_cut_at_a_comma_is_refused() {
    let with = |others: &[&str]| {
        let mut all = map(&[("image", "ghcr.io/acme/x"), ("programs", "tcx:a"), ("globals", "rate=1")]);
        all.extend(others.iter().map(|key| ((*key).to_owned(), "lo".to_owned())));
        Request::parse(&all, None).map(|request| request.map(|request| request.perhaps_globals))
    };
    for cut in [&[" iface", " tcx:egress direction"][..], &["iface"], &["tcx:b direction"], &["xdp:count"], &["delegate"]] {
        let error = with(cut).expect_err(cut[0]).to_string();
        assert!(error.contains(&format!("{:?}", cut[0])) && error.contains("cut at a comma"), "{error}");
        assert!(error.len() < 250, "{error}");
    }
    // Whether these are variables is known only once the object is available.
    assert_eq!(with(&["team", "io.container.manager"]), Ok(Some(vec!["team".to_owned()])));
    // Without a bpfman-hook annotation they are ignored.
    let others = [" iface", "programs"].map(|key| (key.to_owned(), "x".to_owned()));
    assert_eq!(Request::parse(&BTreeMap::from(others), None), Ok(None));
}

#[test]
fn an_order_without_effect_is_reported() {
    let programs = "tcx:a priority=10; xdp:b proceed-on=pass; tcx:c";
    let told = request(&[("image", "ghcr.io/acme/x"), ("programs", programs)]).without_effect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("priority and proceed-on of tcx:a have no effect yet: classifiers run in the order"),
        "{told:?}"
    );
    assert!(told[1].contains("xdp:b") && told[1].ends_with("one XDP program"), "{told:?}");
}

#[test]
fn a_delegation_goes_through_a_token_or_the_proxy() {
    let parsed = |pairs: &[(&str, &str)]| {
        let annotations = pairs.iter().map(|(key, value)| (format!("hook.bpfman.io/{key}"), (*value).to_owned())).collect();
        Request::parse(&annotations, None).map(|request| request.unwrap()).map_err(|error| error.to_string())
    };
    let proxied = parsed(&[("delegate", "sockets"), ("delegate-via", "proxy")]).unwrap();
    assert_eq!(proxied.bpffs, BpffsRequest::None);
    assert_eq!(proxied.proxy.as_ref().unwrap().named, Preset::Sockets.delegation());
    assert!(!proxied.is_empty());
    let token = parsed(&[("delegate", "sockets"), ("delegate-via", "token")]).unwrap();
    assert_eq!(token, parsed(&[("delegate", "sockets")]).unwrap());
    assert!(!token.canonical().contains("proxy"), "requests of earlier versions keep their digests");
    let both = parsed(&[
        ("delegate-progs", "xdp"),
        ("delegate-attachs", "xdp"),
        ("delegate-cmds", "prog_load"),
        ("delegate-via", "proxy"),
        ("bpffs", "private"),
    ]);
    assert!(matches!(both.unwrap().bpffs, BpffsRequest::Private { .. }));
    for (pairs, part) in [
        (&[("delegate-via", "proxy")][..], "it does not say what to delegate; add the annotation delegate"),
        (&[("delegate", "maps"), ("delegate-via", "proxi")], "it must be token or proxy, not \"proxi\"; the nearest is proxy"),
        (
            &[("delegate", "maps"), ("delegate-via", "proxy"), ("bpffs", "token")],
            "a token is not needed with delegate-via=proxy",
        ),
        (&[("delegate", "maps"), ("delegate-via", "proxy"), ("bpffs-path", "/run/bpf")], "there is no bpffs to mount there"),
    ] {
        let problem = parsed(pairs).unwrap_err();
        assert!(problem.contains(part), "{problem}");
    }
}
