//! `policy check` and `policy explain` on an installation in a temporary directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bpfman_hook::commands::policy::{check, explain};
use bpfman_hook::model::annotations::Request;
use bpfman_hook::model::attach_point::ProgramKind;
use bpfman_hook::model::delegation::Preset;
use bpfman_hook::model::policy::{ContainerFacts, Engine, Policy};
use bpfman_hook::paths::Paths;

const KEY: &str = include_str!("data/signatures/keys/cosign-v2.pub");

struct Installation {
    _directory: tempfile::TempDir,
    paths: Paths,
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

impl Installation {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let paths = Paths::below(directory.path());
        fs::create_dir_all(paths.keys()).expect("create");
        for path in paths.keys().ancestors().take_while(|path| path.starts_with(directory.path())) {
            mode(path, 0o755);
        }
        Self { _directory: directory, paths }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.paths.etc.join(name);
        fs::write(&path, text).expect("write");
        mode(&path, 0o644);
    }
}

fn podman() -> ContainerFacts {
    ContainerFacts {
        engine: Engine::Podman,
        namespace: None,
        pod: None,
        container: None,
        labels: Default::default(),
        runtime_user: 0,
        userns: true,
    }
}

fn annotations(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn an_empty_host_allows_no_image_and_warns() {
    let host = Installation::new();
    let report = check(&host.paths, None).expect("legal");
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].starts_with("no image is allowed"), "{report}");
    assert!(report.id.as_ref().is_some_and(|id| id.starts_with("sha256:")));
    let answer = explain(&host.paths, &podman(), &annotations(&[("delegate", "maps")])).expect("legal").expect("ours");
    assert!(!answer.allowed);
    assert_eq!(answer.refused, ["the built-in container rule delegates nothing; add delegate = [ … ] to a [[container]] rule"]);
}

#[test]
fn a_key_makes_the_built_in_rule_work() {
    let host = Installation::new();
    host.write("keys/acme.pub", KEY);
    assert_eq!(check(&host.paths, None).map(|report| report.warnings).ok(), Some(Vec::new()));
    // The key is the same with and without our prefix.
    for key in ["image", "hook.bpfman.io/image"] {
        let answer = explain(&host.paths, &podman(), &annotations(&[(key, "ghcr.io/acme/x")])).expect("legal").expect("ours");
        assert!(answer.allowed, "{answer}");
        assert_eq!(answer.images[0].rules[0].signed_by, [host.paths.keys().join("acme.pub").display().to_string()]);
    }
    let foreign = explain(&host.paths, &podman(), &annotations(&[("example.org/image", "x")])).expect("legal");
    assert_eq!(foreign, None);
}

#[test]
fn a_broken_policy_explains_nothing() {
    let host = Installation::new();
    host.write("policy.toml", "[[image]]\nrepository = \"ghcr.io/a/b\"\n");
    let error = explain(&host.paths, &podman(), &annotations(&[("image", "ghcr.io/a/b")])).expect_err("broken").to_string();
    assert!(error.ends_with("policy.toml, line 1: a rule needs signed-by, or unsigned = true"), "{error}");
    assert_eq!(check(&host.paths, None).map_err(|error| error.to_string()), Err(error));
}

#[test]
fn a_draft_is_checked_with_the_installed_keys() {
    let host = Installation::new();
    host.write("policy.toml", "broken");
    let draft = host.paths.etc.join("draft");
    let key = host.paths.keys().join("acme.pub");
    let text = format!(
        "[[image]]\nname = \"a\"\nrepository = \"ghcr.io/a/*\"\nsigned-by = {{ key = \"{}\" }}\nscope = \"host\"\n[[container]]\n\
         match = {{ engine = \"podman\" }}\nprograms = [\"xdp\"]\ndelegate = {{ cmds = [\"map_create\"], maps = [\"array\"] }}\n",
        key.display()
    );
    fs::write(&draft, text).expect("write");
    let report = check(&host.paths, Some(&draft)).expect("legal");
    assert_eq!(report.warnings, [format!("load the policy: read {}: it does not exist", key.display())]);
    host.write("keys/acme.pub", KEY);
    let report = check(&host.paths, Some(&draft)).expect("legal");
    let expected = format!(
        "image       a: ghcr.io/a/*, signed by {}, host scope\n\
         container   the container rule at {}:6: engine podman: xdp; delegates cmds map_create, maps array\n\
         limits      64 programs, 256 links, 67108864 bytes of maps\n",
        key.display(),
        draft.display()
    );
    assert_eq!(report.to_string(), expected);
    let json = serde_json::to_value(&report).expect("plain data");
    assert_eq!((&json["images"][0]["scope"], &json["containers"][0]["programs"][0]), (&"host".into(), &"xdp".into()));
}

/// The code blocks of one language in a document.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    document.split(opening.as_str()).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

#[test]
fn the_documented_policies_are_valid() {
    let documents =
        [("docs/policy.md", include_str!("../docs/policy.md")), ("docs/signing.md", include_str!("../docs/signing.md"))];
    for (name, document) in documents {
        let policies = blocks(document, "toml");
        assert!(!policies.is_empty(), "{name}");
        for text in policies {
            let parsed = Policy::parse(&[(PathBuf::from(name), text.to_owned())]);
            let warnings = parsed.as_ref().map(Policy::warnings);
            assert!(
                warnings.as_ref().is_ok_and(|warnings| name == "docs/policy.md" || warnings.is_empty()),
                "{text}\n{warnings:?}"
            );
        }
    }
}

#[test]
fn the_documented_requests_are_valid_and_every_key_is_documented() {
    let document = include_str!("../docs/annotations.md");
    let requests = blocks(document, "annotations");
    assert!(requests.len() >= 3);
    for text in requests {
        let mut annotations = BTreeMap::new();
        for line in text.lines() {
            let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            annotations.insert(key.to_owned(), value.to_owned());
        }
        let parsed = Request::parse(&annotations, Some("web"));
        assert!(matches!(parsed, Ok(Some(_))), "{text}\n{parsed:?}");
    }
    // The error for an unknown key lists the known ones.
    let unknown = BTreeMap::from([("hook.bpfman.io/x".to_owned(), String::new())]);
    let error = Request::parse(&unknown, None).expect_err("unknown").to_string();
    let (_, known) = error.split_once("known keys: ").expect("the list");
    for key in known.split(", ") {
        assert!(document.contains(&format!("| `{key}` |")), "{key} is not in the table of docs/annotations.md");
    }
    for (kind, word) in ProgramKind::ALL {
        assert!(document.contains(&format!("`{word}`")), "{kind} is not in docs/annotations.md");
    }
    for (_, word) in Preset::ALL {
        assert!(document.contains(&format!("| `{word}` |")), "{word} is not in docs/annotations.md");
    }
}

/// Public keys in PEM that a rule may name but the verifier cannot use: made by `openssl ecparam -name secp521r1`,
/// `openssl genrsa 1024`, `openssl genpkey -algorithm x25519`, and a file that is not a key.
const UNUSABLE: [(&str, &str); 4] = [
    ("p521", include_str!("data/signatures/openssl/p521.pub")),
    ("rsa1024", include_str!("data/signatures/openssl/rsa1024.pub")),
    ("x25519", include_str!("data/signatures/openssl/x25519.pub")),
    ("junk", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
];

#[test]
fn an_unusable_key_is_reported_by_check() {
    for (name, pem) in UNUSABLE {
        // Among the keys of the built-in rule, beside a good one, and named by a rule.
        let host = Installation::new();
        host.write("keys/good.pub", KEY);
        host.write("keys/bad.pub", pem);
        let problems = check(&host.paths, None).expect("legal").problems;
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert!(problems[0].starts_with("key ") && problems[0].contains("keys/bad.pub cannot be used: "), "{problems:?}");
        let rule = |key: &str| {
            let key = host.paths.keys().join(key);
            format!("[[image]]\nrepository = \"ghcr.io/a/*\"\nsigned-by = {{ key = \"{}\" }}\n", key.display())
        };
        host.write("policy.toml", &rule("good.pub"));
        assert_eq!(check(&host.paths, None).expect("legal").problems, Vec::<String>::new(), "{name}: no rule names it");
        host.write("policy.toml", &format!("{}{}", rule("bad.pub"), rule("bad.pub")));
        let report = check(&host.paths, None).expect("legal");
        assert_eq!(report.problems.len(), 1, "each file once: {report}");
        assert!(report.to_string().contains("error       key "), "{report}");
        // A draft is checked with the same keys.
        let draft = host.paths.etc.join("draft");
        fs::write(&draft, rule("bad.pub")).expect("write");
        assert_eq!(check(&host.paths, Some(&draft)).expect("legal").problems.len(), 1, "{name}");
    }
}

#[test]
fn an_unusable_trusted_root_is_reported_by_check() {
    let host = Installation::new();
    host.write("root.json", "{\"mediaType\": 7}");
    let root = host.paths.etc.join("root.json");
    host.write(
        "policy.toml",
        &format!(
            "[[image]]\nrepository = \"ghcr.io/a/*\"\nsigned-by = {{ identity = \"a@b\", issuer = \"https://c\", trusted-root = \"{}\" }}\n",
            root.display()
        ),
    );
    let problems = check(&host.paths, None).expect("legal").problems;
    assert!(
        matches!(problems.as_slice(), [one] if one.starts_with("trusted root ") && one.contains("cannot be used")),
        "{problems:?}"
    );
}
