//! Requests against policies: what is allowed, and each refusal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::model::annotations::PREFIX;
use crate::model::delegation::Preset;
use crate::model::policy::Engine;
use crate::model::reach::{MemoryRead, TypeAnswer};

const POLICY: &str = r#"
[[image]]
name = "acme"
repository = "ghcr.io/acme/*"
signed-by = { key = "/k.pub" }
[[image]]
name = "acme-host"
repository = "ghcr.io/acme/host"
signed-by = { key = "/h.pub" }
scope = "host"
globals = ["rate"]
maps = ["events", "stats:rw"]
[[image]]
name = "keyless"
repository = "ghcr.io/keyless/*"
signed-by = { identity = "i", issuer = "j" }
[[image]]
name = "demo"
repository = "oci:/usr/share/demo"
unsigned = true
globals = []
maps = []
[[container]]
match = { runtime-user = 0 }
programs = ["xdp", "tcx", "tracepoint"]
host-scope = true
delegate = ["networking", "tracing"]
on-failure = ["continue"]
pull-policy = "Never"
grant = true
[[container]]
match = { runtime-user = 1 }
images = ["acme", "acme-host"]
programs = ["xdp", "tracepoint"]
delegate = { presets = ["maps", "probes"], progs = ["xdp"], attachs = ["xdp"] }
[[container]]
match = { runtime-user = 2 }
[limits]
programs = 2
"#;

/// Annotation keys without our prefix, and their values.
type Written<'a> = &'a [(&'a str, &'a str)];

fn facts(runtime_user: u32) -> ContainerFacts {
    ContainerFacts {
        engine: Engine::Podman,
        namespace: None,
        pod: None,
        container: None,
        labels: Default::default(),
        runtime_user,
        userns: true,
    }
}

fn policy() -> Policy {
    Policy::parse(&[(PathBuf::from("/p.toml"), POLICY.to_owned())]).unwrap_or_else(|error| panic!("{error}"))
}

fn request(annotations: Written<'_>) -> Request {
    let annotations: BTreeMap<String, String> =
        annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect();
    Request::parse(&annotations, None).unwrap_or_else(|error| panic!("{error}")).expect("ours")
}

#[test]
fn a_missing_key_is_named_without_rules_and_keys() {
    let request = request(&[("image", "ghcr.io/acme/x:v1")]);
    let refusal = admit(&Policy::built_in([]), &facts(0), &request).expect_err("nothing could verify it").to_string();
    assert!(refusal.contains("ghcr.io/acme/x") && refusal.contains("put public keys into /etc/bpfman-hook/keys"), "{refusal}");
    assert!(admit(&Policy::built_in([PathBuf::from("/k.pub")]), &facts(0), &request).is_ok());
}

/// The names of the candidates, or the refusal as text.
fn decide(user: u32, annotations: Written<'_>) -> Result<Vec<Vec<String>>, String> {
    let (policy, request) = (policy(), request(annotations));
    let admission = admit(&policy, &facts(user), &request).map_err(|refusal| refusal.to_string())?;
    let names = |rules: &[&ImageRule]| rules.iter().map(|rule| rule.name.clone()).collect();
    Ok(admission.images.iter().map(|(_, rules)| names(rules)).collect())
}

#[test]
fn candidates_are_the_rules_that_can_still_allow_a_request() {
    let host = ("image", "ghcr.io/acme/host");
    let cases: [(u32, Written<'_>, &[&[&str]]); 11] = [
        (0, &[("image", "ghcr.io/acme/x"), ("programs", "xdp:a")], &[&["acme"]]),
        (0, &[host, ("programs", "xdp:a")], &[&["acme", "acme-host"]]),
        (0, &[host, ("programs", "xdp:a; tracepoint:b")], &[&["acme-host"]]),
        // If only the object tells the kinds, the rule that allows more comes first.
        (0, &[host], &[&["acme-host", "acme"]]),
        (1, &[host], &[&["acme", "acme-host"]]),
        (0, &[host, ("programs", "xdp:a"), ("globals", "rate=1")], &[&["acme", "acme-host"]]),
        (0, &[host, ("programs", "xdp:a"), ("globals", "other=1")], &[&["acme"]]),
        (0, &[host, ("programs", "tracepoint:a"), ("globals", "rate=1"), ("maps", "events; stats:rw")], &[&["acme-host"]]),
        (0, &[("image", "oci:/usr/share/demo:v1")], &[&["demo"]]),
        (0, &[("delegate", "maps")], &[]),
        // Two objects: which of them declares the name is known later, so no rule is dropped and the more permissive
        // one is first.
        (
            0,
            &[("programs", "xdp:a from=oci:/usr/share/demo; tcx:b from=ghcr.io/acme/host"), ("globals", "other=1")],
            &[&["demo"], &["acme", "acme-host"]],
        ),
    ];
    for (user, annotations, expected) in cases {
        let decided = decide(user, annotations).unwrap_or_else(|refusal| panic!("{annotations:?}: {refusal}"));
        assert_eq!(decided, expected, "{annotations:?}");
    }
}

#[test]
fn refusals_name_the_rule_and_what_would_allow_it() {
    let acme = ("image", "ghcr.io/acme/x");
    let [zero, one, two] = ["/p.toml:23", "/p.toml:31", "/p.toml:36"].map(|at| format!("the container rule at {at}"));
    let cases: [(u32, Written<'_>, String); 19] = [
        (
            3,
            &[acme],
            "no container rule of the policy matches this container (engine podman, runtime user 3, with a user namespace); see \
             bpfman-hook policy explain"
                .to_owned(),
        ),
        (
            0,
            &[("image", "ghcr.io/other/x:v1")],
            format!("no image rule under {zero} names ghcr.io/other/x; add an [[image]] with this repository and signed-by"),
        ),
        (
            0,
            &[("image", "file:/etc/shadow")],
            format!(
                "file:/etc/shadow is a path on the host, and no image rule under {zero} names it or a directory above it; add an \
                 [[image]] that does"
            ),
        ),
        (
            1,
            &[("image", "oci:/usr/share/demo")],
            format!(
                "oci:/usr/share/demo is a path on the host, and no image rule under {one} names it or a directory above it; add \
                 an [[image]] that does"
            ),
        ),
        (2, &[acme], format!("{two} allows no programs; write programs = [ … ] in it")),
        (
            0,
            &[acme, ("programs", "cgroup_skb:a")],
            format!("program a: {zero} does not allow cgroup_skb programs; add \"cgroup_skb\" to its programs"),
        ),
        (
            1,
            &[acme, ("programs", "tracepoint:a")],
            format!("program a: tracepoint programs see the whole host, and {one} has no host-scope = true"),
        ),
        (
            0,
            &[acme, ("programs", "tracepoint:a")],
            "program a: tracepoint programs see the whole host, and no image rule for ghcr.io/acme/x has scope = \"host\" (acme does not)"
                .to_owned(),
        ),
        (
            0,
            &[("image", "ghcr.io/acme/host"), ("programs", "tracepoint:a"), ("globals", "other=1")],
            "no image rule for ghcr.io/acme/host allows a request to set other; add it to globals of the rule".to_owned(),
        ),
        (
            0,
            &[("image", "ghcr.io/acme/host"), ("programs", "tracepoint:a"), ("maps", "events:rw")],
            "no image rule for ghcr.io/acme/host allows the map events to be shown rw; add \"events:rw\" to maps of the rule".to_owned(),
        ),
        (
            0,
            &[("image", "oci:/usr/share/demo"), ("maps", "events")],
            "no image rule for oci:/usr/share/demo allows the map events to be shown ro; add \"events:ro\" to maps of the rule".to_owned(),
        ),
        (2, &[("delegate", "maps")], format!("{two} delegates nothing; add delegate = [ … ] to a [[container]] rule")),
        (2, &[("delegate-cmds", "any")], format!("{two} delegates nothing; add delegate = [ … ] to a [[container]] rule")),
        (
            1,
            &[("delegate", "networking")],
            format!(
                "{one} does not delegate progs lwt_xmit, sk_reuseport and 3 more; maps devmap, xskmap and 1 more; \
                 attachs flow_dissector, sk_lookup and 3 more; request less, or add the preset \"networking\" to its \
                 delegate"
            ),
        ),
        (
            1,
            &[("delegate", "maps"), ("delegate-cmds", "map_create:prog_load:link_create")],
            format!("{one} does not delegate cmds link_create; request less, or add them to its delegate"),
        ),
        (
            0,
            &[("delegate", "maps"), ("delegate-progs", "any"), ("delegate-cmds", "map_create")],
            format!(
                "the part of this request that {zero} delegates has no effect: program types without the command prog_load cannot be used; add it \
                 to delegate-cmds"
            ),
        ),
        (
            1,
            &[acme, ("on-failure", "continue")],
            format!("{one} does not allow on-failure=continue; remove the annotation, or write on-failure = [\"continue\"] in a [[container]] rule"),
        ),
        (
            0,
            &[acme, ("programs", "xdp:a; tcx:b; tcx:c")],
            "the request has 3 programs, and a container may have 2; raise programs under [limits] of the policy".to_owned(),
        ),
        (
            0,
            &[("programs", "xdp:a from=oci:/usr/share/demo; tcx:b from=ghcr.io/acme/host"), ("maps", "x:rw"), ("globals", "rate=1")],
            "".to_owned(),
        ),
    ];
    for (user, annotations, sentence) in cases {
        match decide(user, annotations) {
            Ok(_) => assert_eq!(sentence, "", "{annotations:?} was admitted"),
            Err(refusal) => assert_eq!(refusal, sentence, "{annotations:?}"),
        }
    }
}

#[test]
fn delegation_is_the_request_within_the_ceiling() {
    let policy = policy();
    let delegation = |user, annotations: Written<'_>| {
        let request = request(annotations);
        admit(&policy, &facts(user), &request).map(|admission| admission.delegation)
    };
    let maps = Preset::Maps.delegation();
    let probes = maps.union(Preset::Probes.delegation());
    let ceiling = policy.containers[1].delegate;
    assert_eq!(delegation(0, &[("delegate", "networking")]), Ok(Some(Preset::Networking.delegation())));
    assert_eq!(delegation(1, &[("delegate", "maps")]), Ok(Some(maps)));
    let any = [("delegate-cmds", "any"), ("delegate-maps", "any"), ("delegate-progs", "any"), ("delegate-attachs", "any")];
    assert_eq!(delegation(1, &any), Ok(Some(ceiling)));
    let some = [("delegate", "maps:probes"), ("delegate-progs", "any"), ("delegate-attachs", "xdp")];
    assert_eq!(delegation(1, &some), Ok(Some(Delegation { progs: ceiling.progs, attachs: 1 << 37, ..probes })));
    assert_eq!(delegation(0, &[("bpffs", "private")]), Ok(None));
}

#[test]
fn a_ceiling_beyond_the_container_needs_host_scope() {
    let mut policy = policy();
    policy.containers[1].delegate = Preset::Tracing.delegation();
    let request = request(&[("delegate", "tracing")]);
    let refusal = admit(&policy, &facts(1), &request).expect_err("host scope").to_string();
    assert!(refusal.starts_with("progs kprobe, tracepoint and 3 more cannot be kept inside a container"), "{refusal}");
}

#[test]
fn a_delegation_that_reaches_beyond_the_container_needs_host_scope() {
    let offers = |names: &[&str]| TypeAnswer::Offers(names.iter().map(|name| (*name).to_owned()).collect());
    let types = |of: &[(u32, &[&str])]| of.iter().map(|(at, names)| (*at, offers(names))).collect();
    let quiet: &[(u32, &[&str])] = &[(1, &[]), (12, &[]), (21, &[]), (22, &[]), (30, &[]), (32, &[])];
    let closed = TokenReach { types: types(&[quiet, &[(6, &["bpf_skc_lookup_tcp"])]].concat()), ..TokenReach::default() };
    let open = TokenReach { memory: vec![MemoryRead::RdonlyCast], ..closed.clone() };
    let sockets = "reaches sockets of other network namespaces and, with a sockmap, their TCP data on this kernel";
    type Case<'c> = (u32, &'c TokenReach, Written<'c>, Option<(&'c str, &'c str)>);
    let cases: [Case<'_>; 7] = [
        (1, &closed, &[("delegate", "probes")], None),
        (1, &closed, &[("delegate", "maps:probes"), ("delegate-progs", "xdp")], Some((sockets, "maps"))),
        (1, &closed, &[("delegate", "maps:probes"), ("delegate-progs", "xdp socket_filter")], Some((sockets, "probes"))),
        (1, &open, &[("delegate", "probes")], Some(("reaches kernel memory on this kernel (bpf_rdonly_cast)", "maps"))),
        (1, &open, &[("delegate", "maps")], None),
        (1, &TokenReach::default(), &[("delegate", "probes")], Some(("something that the probes could not determine", "maps"))),
        (0, &open, &[("delegate", "probes")], None),
    ];
    for (user, reach, annotations, refused) in cases {
        let (policy, request) = (policy(), request(annotations));
        let admission = admit(&policy, &facts(user), &request).unwrap_or_else(|refusal| panic!("{refusal}"));
        let asked = std::cell::Cell::new(false);
        let found = || {
            asked.set(true);
            reach.clone()
        };
        let sentence = admission.check_token_reach(found).map_err(|refusal| refusal.to_string());
        assert_eq!(asked.get(), admission.needs_token_reach(), "{annotations:?}");
        match (sentence, refused) {
            (Ok(()), None) => {}
            (Err(sentence), Some((what, smaller))) => {
                let end = format!("no host-scope = true: add it, or request delegate={smaller}");
                assert!(sentence.contains(what) && sentence.ends_with(&end), "{sentence}");
                assert!(sentence.len() < 285, "{}: {sentence}", sentence.len());
            }
            (found, wanted) => panic!("{annotations:?}: {found:?}, not {wanted:?}"),
        }
    }
}

#[test]
fn other_settings_come_from_request_and_rule() {
    let policy = policy();
    let plain = request(&[("image", "ghcr.io/acme/x")]);
    let admission = admit(&policy, &facts(0), &plain).expect("allowed");
    assert_eq!((admission.pull, admission.grant, admission.host_scope), (PullPolicy::Never, true, true));
    assert_eq!((admission.limits.programs, admission.on_failure), (2, OnFailure::Stop));
    let wordy = request(&[("image", "ghcr.io/acme/x"), ("pull-policy", "Always"), ("on-failure", "continue")]);
    let admission = admit(&policy, &facts(0), &wordy).expect("allowed");
    assert_eq!((admission.pull, admission.on_failure), (PullPolicy::Always, OnFailure::Continue));
    let other = request(&[("image", "ghcr.io/acme/x")]);
    assert_eq!(admit(&policy, &facts(1), &other).expect("allowed").pull, PullPolicy::IfNotPresent);
    assert_eq!(on_failure(&policy, &facts(0), &wordy), OnFailure::Continue);
    assert_eq!(on_failure(&policy, &facts(1), &wordy), OnFailure::Stop);
    assert_eq!(on_failure(&policy, &facts(9), &wordy), OnFailure::Stop);
}

#[test]
fn program_kinds_from_the_object_are_checked_afterwards() {
    let policy = policy();
    let request = request(&[("image", "ghcr.io/acme/host")]);
    let admission = admit(&policy, &facts(0), &request).expect("allowed");
    let reference = admission.images[0].0;
    let host = admission.image_rule(reference, "acme-host").expect("candidate");
    let plain = admission.image_rule(reference, "acme").expect("candidate");
    assert_eq!(admission.image_rule(reference, "demo"), None);
    assert_eq!(admission.check_program(reference, host, "a", ProgramKind::Tracepoint), Ok(()));
    assert!(matches!(
        admission.check_program(reference, plain, "a", ProgramKind::Tracepoint),
        Err(Refusal::HostScopeImage { .. })
    ));
    assert!(matches!(admission.check_program(reference, host, "a", ProgramKind::SockOps), Err(Refusal::Kind { .. })));
    assert_eq!(admission.check_global(reference, host, "rate"), Ok(()));
    assert!(admission.check_global(reference, host, "other").is_err());
    assert_eq!(admission.check_map(reference, host, "stats", MapAccess::ReadWrite), Ok(()));
    assert!(admission.check_map(reference, host, "events", MapAccess::ReadWrite).is_err());
    assert_eq!(admission.check_map(reference, plain, "anything", MapAccess::ReadWrite), Ok(()));
}

#[test]
fn a_token_with_a_capability_that_reads_kernel_memory_is_host_scope() {
    let policy = policy();
    let token = request(&[("delegate", "probes")]);
    let maps_only = request(&[("delegate-cmds", "map_create"), ("delegate-maps", "array")]);
    let private = request(&[("bpffs", "private")]);
    let cases = [
        (1, &token, &["CAP_BPF", "CAP_NET_ADMIN"][..], None),
        (1, &token, &["CAP_BPF", "CAP_PERFMON"], Some("CAP_PERFMON")),
        (1, &token, &["CAP_SYS_ADMIN", "CAP_BPF"], Some("CAP_SYS_ADMIN")),
        (1, &maps_only, &["CAP_BPF", "CAP_PERFMON"], None),
        (1, &private, &["CAP_SYS_ADMIN"], None),
        (0, &token, &["CAP_BPF", "CAP_PERFMON"], None),
    ];
    for (user, request, capabilities, refused) in cases {
        let admission = admit(&policy, &facts(user), request).unwrap_or_else(|refusal| panic!("{refusal}"));
        let result = admission.check_capabilities(capabilities.iter().copied());
        let expected = refused.map(|capability| {
            format!(
                "a BPF token and {capability} together give access to all kernel memory, and the container rule at /p.toml:31 has no \
                 host-scope = true; run the container without {capability}"
            )
        });
        assert_eq!(result.err().map(|refusal| refusal.to_string()), expected, "{user} {capabilities:?}");
    }
}

#[test]
fn the_built_in_policy_allows_only_container_scope() {
    let policy = Policy::built_in([PathBuf::from("/k.pub")]);
    let allowed = [
        &[("image", "ghcr.io/a/b")][..],
        &[("image", "ghcr.io/a/b"), ("programs", "xdp:a"), ("maps", "m:rw"), ("globals", "g=1")],
    ];
    for annotations in allowed {
        assert!(admit(&policy, &facts(0), &request(annotations)).is_ok(), "{annotations:?}");
    }
    let refused = [
        &[("image", "ghcr.io/a/b"), ("programs", "tracepoint:a")][..],
        &[("image", "file:/x.o")],
        &[("delegate", "maps")],
        &[("image", "ghcr.io/a/b"), ("on-failure", "continue")],
    ];
    for annotations in refused {
        assert!(admit(&policy, &facts(0), &request(annotations)).is_err(), "{annotations:?}");
    }
}

#[test]
fn examine_finds_every_refusal() {
    let policy = policy();
    let request = request(&[
        ("image", "ghcr.io/other/x"),
        ("programs", "xdp:a; tracepoint:b; tcx:c"),
        ("delegate", "tracing"),
        ("on-failure", "continue"),
    ]);
    let (_, refusals) = examine(&policy, &policy.containers[1], &request);
    let names: Vec<String> =
        refusals.iter().map(|r| format!("{r:?}").split([' ', '{']).next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        names,
        ["TooManyPrograms", "HostScopeContainer", "Kind", "NoImageRule", "Delegation", "HostScopeDelegation", "OnFailure"]
    );
}

#[test]
fn the_proxy_has_a_ceiling_of_its_own() {
    let with = |rule: &str, annotations: Written<'_>| {
        let text = format!("[[container]]\n{rule}\n[limits]\nprograms = 3\n");
        let policy = Policy::parse(&[(PathBuf::from("/p.toml"), text)]).unwrap_or_else(|error| panic!("{error}"));
        let request = request(annotations);
        let admitted = admit(&policy, &facts(0), &request).map(|admission| (admission.delegation, admission.proxy));
        admitted.map_err(|refusal| refusal.to_string())
    };
    let sockets: Written<'_> = &[("delegate", "sockets"), ("delegate-via", "proxy")];
    let (token, grant) =
        with("proxy = { presets = [\"sockets\"], helpers = [\"redirect\"] }", sockets).expect("within the ceiling");
    let grant = grant.expect("requested");
    assert_eq!((token, grant.delegation, grant.host_scope), (None, Preset::Sockets.delegation(), false));
    assert_eq!((grant.helpers, grant.kfuncs, grant.limits.programs), (Some([23].into()), None, 3));
    let host = "host-scope = true\nproxy = [\"tracing\"]";
    assert!(
        with(host, &[("delegate", "tracing"), ("delegate-via", "proxy")])
            .is_ok_and(|(_, grant)| { grant.is_some_and(|grant| grant.host_scope) })
    );
    for (rule, annotations, part) in [
        ("delegate = [\"sockets\"]", sockets, "allows nothing with delegate-via=proxy; add proxy = [ … ]"),
        ("proxy = [\"sockets\"]", &[("delegate", "sockets")][..], "delegates nothing; add delegate = [ … ]"),
        ("proxy = [\"maps\"]", sockets, "add the preset \"sockets\" to its proxy"),
        (
            "proxy = [\"maps\"]",
            &[("delegate-cmds", "any"), ("delegate-progs", "any"), ("delegate-via", "proxy"), ("delegate-maps", "xskmap")],
            "does not delegate maps xskmap",
        ),
    ] {
        let refused = with(rule, annotations).expect_err("above the ceiling");
        assert!(refused.contains(part), "{refused}");
    }
}
