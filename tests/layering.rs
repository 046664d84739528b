//! The rules of the source tree: which module may use which, where system calls and `unsafe` are allowed, how long a
//! file may be, and that the shipped files are the ones that the program itself would write.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bpfman_hook::cli::HookStage;
use bpfman_hook::hooks::stage;
use bpfman_hook::model::container::asks;
use bpfman_hook::model::policy::Engine;
use bpfman_hook::setup::hook_files;
use bpfman_hook::setup::hook_files::{Engines, Invocation};
use bpfman_hook::setup::units::gate;
use bpfman_hook::setup::units::gc;
use bpfman_hook::setup::units::guard;
use bpfman_hook::setup::units::keyring;
use bpfman_hook::setup::units::nri;
use bpfman_hook::setup::units::proxy;
use bpfman_hook::setup::units::service;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A source file without its unit tests, comments and string literals.
struct Source {
    path: PathBuf,
    layer: String,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut todo = vec![root().join("src")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root().join("src")).unwrap().to_owned();
                let first = path.iter().next().unwrap().to_str().unwrap();
                let layer = first.trim_end_matches(".rs").to_owned();
                let body = without_tests(&text);
                found.push(Source { layer, code: bare(body), lines: body.lines().count(), path });
            }
        }
    }
    assert!(found.len() > 10, "{}", found.len());
    // A file or folder that contains only tests is declared as `#[cfg(test)] mod tests;`.
    found.retain(|source| source.path.iter().all(|part| part != "tests" && part != "tests.rs"));
    found
}

fn without_tests(text: &str) -> &str {
    const MARK: &str = "\n#[cfg(test)]\nmod ";
    // A module in another file, `mod tests;`, is not the end of the code.
    let inline = |at: &usize| text[at + MARK.len()..].lines().next().is_some_and(|line| line.ends_with('{'));
    text.match_indices(MARK).map(|(at, _)| at).find(inline).map_or(text, |at| &text[..at])
}

/// Only the code: comments and the contents of string and character literals are blanked.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        if rest.starts_with(&['/', '/']) {
            at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        } else if rest.starts_with(&['r', '"']) || rest.starts_with(&['r', '#']) {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) == Some(&'"') {
                let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                let body = 2 + hashes;
                let length = rest[body..].windows(end.len()).position(|w| w == end).unwrap();
                at += body + length + end.len();
            } else {
                out.push('r');
                at += 1;
            }
        } else if rest[0] == '"' {
            at += 1;
            while chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if rest.starts_with(&['\'', '"', '\'']) {
            at += 3;
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

/// The first path segments after `prefix` (`crate::`), including groups in braces.
fn uses(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut begin = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => begin = true,
                    _ if begin && depth == 0 && !c.is_whitespace() => {
                        found.insert(word(&group[i..]));
                        begin = false;
                    }
                    _ => {}
                }
            }
        } else {
            found.insert(word(rest));
        }
    }
    found
}

/// What each layer may use besides itself. The entry points use all of [`BELOW`]. The layers in the middle never use
/// each other.
fn allowed(layer: &str) -> Option<Vec<&'static str>> {
    const BELOW: [&str; 8] = ["lifecycle", "image", "kernel", "store", "sys", "model", "paths", "cli"];
    let entry = |others: &[&'static str]| [&BELOW, others].concat();
    Some(match layer {
        "paths" | "model" => Vec::new(),
        "cli" => vec!["model"],
        "sys" => vec!["model", "paths"],
        "image" | "kernel" | "store" => vec!["sys", "model", "paths"],
        "lifecycle" => vec!["image", "kernel", "store", "sys", "model", "paths"],
        "output" => entry(&[]),
        "hooks" => entry(&["output", "proxy"]),
        "commands" => entry(&["hooks", "output", "proxy"]),
        "setup" => entry(&["commands", "hooks", "output", "proxy"]),
        "proxy" => entry(&["output"]),
        "nri" => entry(&["setup", "hooks", "output"]),
        "doctor" => entry(&["nri", "setup", "commands", "output"]),
        "grpc" => entry(&["commands", "output"]),
        "metrics" => entry(&["nri", "output"]),
        _ => return None,
    })
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for source in sources() {
        if matches!(source.layer.as_str(), "main" | "lib") {
            continue;
        }
        let Some(allowed) = allowed(&source.layer) else {
            wrong.push(format!("{}: belongs to no known layer", source.path.display()));
            continue;
        };
        for used in uses(&source.code, "crate::") {
            if used != source.layer && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_crate_has_its_layer() {
    // The crate, and where it may be used: a layer, a folder or a file.
    let owners: &[(&str, &[&str])] = &[
        ("rustix", &["sys"]),
        ("caps", &["sys"]),
        ("libc", &["sys"]),
        ("sd_notify", &["sys/activation.rs"]),
        ("object", &["kernel/elf.rs", "kernel/user_elf.rs"]),
        ("aya", &[]),
        ("aya_obj", &["sys/bpf"]),
        ("heed", &["store"]),
        // For what we write: what others wrote is read by image/oci/document.rs.
        ("oci_spec", &["image/oci/written.rs", "image/transfer", "image/cache/write.rs", "image/verify/signature.rs"]),
        ("aws_lc_rs", &["image"]),
        ("reqwest", &["image"]),
        ("rustls", &["image"]),
        ("sigstore_verify", &["image"]),
        ("sigstore_crypto", &["image"]),
        ("sigstore_trust_root", &["image"]),
        ("sigstore_types", &["image"]),
        ("tokio", &["image", "nri", "grpc"]),
        ("tonic", &["grpc"]),
        ("tonic_health", &["grpc"]),
        ("tonic_reflection", &["grpc"]),
        ("http_body", &["grpc"]),
        ("prost", &["grpc"]),
        ("x509_cert", &["grpc"]),
        ("ttrpc", &["nri"]),
        ("protobuf", &["nri"]),
        ("futures_util", &["nri", "grpc"]),
        ("clap", &["cli", "commands/complete.rs", "commands/man.rs"]),
        ("clap_mangen", &["commands/man.rs"]),
    ];
    let mut wrong = Vec::new();
    for source in sources() {
        let at_home = |homes: &[&str]| homes.iter().any(|home| *home == source.layer || source.path.starts_with(home));
        for (name, homes) in owners {
            let prefix = format!("{name}::");
            let path = source.code.match_indices(&prefix).any(|(at, _)| {
                // One of our modules can have a crate's name: crate::sys::caps::.
                !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                    && !local(&source.code, name)
            });
            if path && !at_home(homes) {
                wrong.push(format!("{} uses {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// True if a name is a module that the file imports from our own crate.
fn local(code: &str, name: &str) -> bool {
    code.split(';')
        .filter(|item| item.contains("use crate::") || item.contains("use super::"))
        .any(|item| item.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name))
}

/// What the model must not do. `std::net` also has pure types, for addresses.
const EFFECTS: [&str; 9] =
    ["std::fs", "std::env", "std::process", "std::io", "std::thread", "SystemTime", "Instant", "ToSocketAddrs", "tracing::"];

#[test]
fn the_model_is_pure_and_unsafe_has_its_places() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.layer == "model" {
            for effect in EFFECTS {
                if source.code.contains(effect) {
                    wrong.push(format!("{} uses {effect}", source.path.display()));
                }
            }
        }
        let words: Vec<_> = source.code.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        if words.contains(&"unsafe") && !matches!(source.layer.as_str(), "sys" | "store") {
            wrong.push(format!("{} has unsafe code", source.path.display()));
        }
        if source.layer != "main" && words.contains(&"panic") && source.code.contains("panic!(") {
            wrong.push(format!("{} panics", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The modules that a file uses: paths that begin with `crate`, `super` or `self`, as far as they name a file.
/// Re-exports of a mod.rs do not count as use, and neither does what it calls in its own children by relative paths: it is
/// the front of its folder.
fn modules_of(source: &Source, all: &BTreeSet<String>) -> BTreeSet<String> {
    let own = module(&source.path);
    let re_exports = source.path.file_name().unwrap() == "mod.rs";
    let code: String = source
        .code
        .split_inclusive(';')
        .filter(|item| !(re_exports && item.trim_start().starts_with("pub") && item.contains(" use ")))
        .collect();
    let mut found = BTreeSet::new();
    for path in paths(&code) {
        let mut parts: Vec<&str> = path.split("::").collect();
        let mut base: Vec<&str> = own.split("::").filter(|part| !part.is_empty()).collect();
        match parts.remove(0) {
            "crate" => base.clear(),
            "super" => {
                base.pop();
                while parts.first() == Some(&"super") {
                    parts.remove(0);
                    base.pop();
                }
            }
            _ => {}
        }
        base.extend(parts);
        let longest = (1..=base.len()).rev().map(|length| base[..length].join("::")).find(|name| all.contains(name));
        found.extend(longest.filter(|name| *name != own));
    }
    found
}

/// `a/b.rs` and `a/b/mod.rs` as `a::b`.
fn module(path: &Path) -> String {
    let name = path.with_extension("").to_str().unwrap().replace('/', "::");
    name.strip_suffix("::mod").unwrap_or(&name).to_owned()
}

/// Every path in some code that begins with `crate::`, `super::` or `self::`, with groups in braces expanded.
fn paths(code: &str) -> Vec<String> {
    fn take(prefix: &str, text: &str, found: &mut Vec<String>) -> usize {
        let length = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let (word, rest) = text.split_at(length);
        let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}::{word}") };
        let Some(after) = rest.strip_prefix("::") else {
            found.push(path);
            return length;
        };
        let Some(group) = after.strip_prefix('{') else { return length + 2 + take(&path, after, found) };
        let mut at = 0;
        while !group[at..].starts_with('}') {
            let skipped = group[at..].len() - group[at..].trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
            at += skipped;
            if group[at..].starts_with('}') {
                break;
            }
            at += take(&path, &group[at..], found).max(1);
        }
        length + 3 + at + 1
    }
    let mut found = Vec::new();
    for first in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(first) {
            if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                take("", &code[at..], &mut found);
            }
        }
    }
    found
}

/// The folders in which files must not use each other in a cycle.
const ACYCLIC: [&str; 15] = [
    "commands",
    "doctor",
    "grpc",
    "hooks",
    "image",
    "kernel",
    "lifecycle",
    "metrics",
    "model",
    "nri",
    "output",
    "proxy",
    "setup",
    "store",
    "sys",
];

#[test]
fn no_files_depend_on_each_other_in_a_cycle() {
    let sources: Vec<_> = sources().into_iter().filter(|source| ACYCLIC.contains(&source.layer.as_str())).collect();
    let all: BTreeSet<_> = sources.iter().map(|source| module(&source.path)).collect();
    let mut uses: BTreeMap<_, _> = sources.iter().map(|source| (module(&source.path), modules_of(source, &all))).collect();
    assert!(uses["hooks::create_runtime"].contains("hooks::stage"), "{uses:#?}");
    // A file that uses none of the remaining files is not in a cycle.
    loop {
        let left: BTreeSet<_> = uses.keys().cloned().collect();
        let before = uses.len();
        uses.retain(|_, used| used.iter().any(|used| left.contains(used)));
        if uses.len() == before {
            break;
        }
    }
    assert!(uses.is_empty(), "in a cycle, or using one: {uses:#?}");
}

/// A name that two types have cannot be searched for. What is private to a function, and types that a trait asks for, do not count.
#[test]
fn each_type_name_exists_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        for line in source.code.lines() {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            let first = words.by_ref().find(|word| !matches!(*word, "pub" | "crate" | "super" | "in" | "self"));
            let declares = matches!(first, Some("struct" | "enum" | "trait" | "type" | "union")) && !line.starts_with(' ');
            if let Some(name) = words.next().filter(|_| declares) {
                places.entry(name.to_owned()).or_default().push(source.path.display().to_string());
            }
        }
    }
    assert!(places.len() > 300, "{}", places.len());
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

/// Functions that only tests call, and why they stay.
const TEST_SEAMS: [(&str, &str); 1] = [("with_worker", "a test has no binary to start as a child, so it fetches in a thread")];

/// The compiler does not see that a public function of the library has no caller. Names that another item also has are
/// not found.
#[test]
fn each_public_function_has_a_caller() {
    let sources = sources();
    let words = |source: &Source| -> Vec<String> {
        let words = source.code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let mut count = BTreeMap::<String, usize>::new();
    let mut public = BTreeMap::<String, Vec<String>>::new();
    for source in &sources {
        let words = words(source);
        for word in &words {
            *count.entry(word.clone()).or_default() += 1;
        }
        for line in source.code.lines().filter(|line| line.trim_start().starts_with("pub")) {
            let name = line.split_once("fn ").and_then(|(_, rest)| rest.split(['(', '<']).next());
            if let Some(name) = name {
                public.entry(name.to_owned()).or_default().push(source.path.display().to_string());
            }
        }
    }
    assert!(public.len() > 500 && count["with_worker"] == 1, "{}", public.len());
    public.retain(|name, places| count[name] == places.len() && !TEST_SEAMS.iter().any(|(seam, _)| seam == name));
    assert!(public.is_empty(), "nothing but tests calls {public:#?}");
}

#[test]
fn files_have_one_subject() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.lines > 800)
        .map(|source| format!("{}: {} lines", source.path.display(), source.lines))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_checks_of_this_file_find_what_they_look_for() {
    let code = bare("use crate::{image::{a, b}, sys};\nlet x = crate::store::y(); // crate::kernel\nlet s = \"crate::hooks\";");
    let found: Vec<_> = uses(&code, "crate::").into_iter().collect();
    assert_eq!(found, ["image", "store", "sys"]);
    assert_eq!(bare("a r#\"x \" // y\"# b '\"' c \"\\\"\" d"), "a  b  c  d");
    assert!(uses("my_crate::x", "crate::").is_empty());
    let mut found = paths("use crate::{a::{b, C}, d};\nlet x = super::e::f(); mycrate::x();");
    found.sort();
    assert_eq!(found, ["crate::a::C", "crate::a::b", "crate::d", "super::e::f"]);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\n"), "a");
    let declared = "a\n#[cfg(test)]\nmod tests;\nb";
    assert_eq!(without_tests(declared), declared);
    assert!(local("use crate::sys::{caps, netns};", "caps") && !local("use caps::x;", "caps"));
}

/// Shipped files, and what the program would write. `BLESS=1` writes them.
fn shipped() -> Vec<(PathBuf, String)> {
    let invocation =
        Invocation { binary: "/usr/local/bin/bpfman-hook".into(), engines: Engines([Engine::Podman].into()), root: None };
    let hooks = [HookStage::CreateRuntime, HookStage::Poststop, HookStage::Precreate]
        .map(|stage| (Path::new("hooks.d").join(hook_files::file_name(stage)), hook_files::hook(stage, &invocation)));
    let packaging = [
        (format!("packaging/systemd/{}", hook_files::MOUNT_UNIT), hook_files::mount_unit()),
        ("packaging/tmpfiles.d/bpfman-hook.conf".to_owned(), hook_files::tmpfiles()),
        ("packaging/containers.conf.d/50-bpfman-hook.conf".to_owned(), hook_files::drop_in(&[hook_files::HOOKS_DIR.into()])),
    ];
    let units = [
        (service::SERVICE_UNIT, service::service_unit(Path::new("/usr/local/bin/bpfman-hook"))),
        (service::SOCKET_UNIT, service::socket_unit(false)),
        (nri::UNIT, nri::text(Path::new("/usr/local/bin/bpfman-hook"), true)),
        (proxy::SERVICE_UNIT, proxy::service_unit(Path::new("/usr/local/bin/bpfman-hook"))),
        (proxy::SOCKET_UNIT, proxy::socket_unit().to_owned()),
        (guard::SERVICE_UNIT, guard::service_unit(Path::new("/usr/local/bin/bpfman-hook"), false)),
        (gate::SERVICE_UNIT, gate::service_unit(Path::new("/usr/local/bin/bpfman-hook"), false)),
        (keyring::SERVICE_UNIT, keyring::service_unit(Path::new("/usr/local/bin/bpfman-hook"))),
        (gc::SERVICE_UNIT, gc::service_unit(Path::new("/usr/local/bin/bpfman-hook"))),
        (gc::TIMER_UNIT, gc::timer_unit().to_owned()),
    ]
    .map(|(name, text)| (Path::new("packaging/systemd").join(name), text));
    hooks.into_iter().chain(packaging.map(|(path, text)| (path.into(), text))).chain(units).collect()
}

/// oci-hooks(5) calls the patterns POSIX extended regular expressions, and podman and CRI-O parse them with Go's
/// regexp; this one means the same in both.
#[test]
fn the_pattern_matches_our_annotations() {
    let matches = |key: &str| {
        let mut grep = std::process::Command::new("grep");
        grep.args(["-qE", "--", hook_files::PATTERN]).stdin(std::process::Stdio::piped());
        let mut grep = grep.spawn().unwrap();
        std::io::Write::write_all(&mut grep.stdin.take().unwrap(), key.as_bytes()).unwrap();
        grep.wait().unwrap().success()
    };
    for (key, expected) in [
        ("hook.bpfman.io/image", true),
        ("web.hook.bpfman.io/image", true),
        ("a-1.hook.bpfman.io/nonsense", true),
        ("hook.bpfman.io.programs", true),
        ("hook.bpfman.io /programs", true),
        (" hook.bpfman.io/programs", true),
        ("Hook.Bpfman.IO/programs", true),
        ("hooks.bpfman.io/programs", true),
        ("hook-bpfman-io/programs", true),
        ("hook_bpfman/programs", true),
        ("hookbpfman.io/programs", true),
        ("hook..bpfman.io/programs", true),
        ("hook.bpfman.iox/image", true),
        ("web-hook.bpfman.io/programs", true),
        ("example.com/hook.bpfman.io/image", true),
        ("hook.hook.bpfman.io/image", true),
        ("hookxbpfman.io/image", false),
        ("webhook.bpfman.io/image", false),
        ("bpfman.io/programs", false),
        ("hook/bpfman", false),
        ("bpfman-hook", false),
        ("io.kubernetes.cri.container-name", false),
        ("hook", false),
    ] {
        assert_eq!(matches(key), expected, "{key}");
        assert_eq!(asks([&key.to_owned()]), expected, "{key}");
    }
}

#[test]
fn the_hook_times_out_before_the_runtime_kills_it() {
    assert!(stage::FETCH < stage::DEADLINE);
    assert!((stage::DEADLINE + stage::UNDOING).as_secs() < hook_files::TIMEOUT);
}

#[test]
fn shipped_files_match_the_program() {
    let bless = std::env::var_os("BLESS").is_some();
    for (path, text) in shipped() {
        let full = root().join(&path);
        if bless {
            fs::write(&full, &text).unwrap();
        }
        let present = fs::read_to_string(&full).unwrap_or_default();
        assert_eq!(present, text, "{} differs: run the test with BLESS=1", path.display());
    }
    let hooks: BTreeSet<_> = fs::read_dir(root().join("hooks.d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(hooks.len(), 3, "{hooks:?}");
}

#[test]
fn decisions_are_numbered_and_listed() {
    let list = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut names: Vec<_> = fs::read_dir(root().join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for (at, name) in (1..).zip(&names) {
        let (number, _) = name.split_once('-').unwrap();
        assert_eq!(number, format!("{at:04}"), "{name}: numbers have no gaps");
        assert!(list.contains(&format!("[{number}](decisions/{name})")), "docs/architecture.md does not list {name}");
        let text = fs::read_to_string(root().join("docs/decisions").join(name)).unwrap();
        assert!(text.starts_with(&format!("# {number}: ")), "{name}: {:?}", text.lines().next());
    }
}
