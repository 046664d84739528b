//! The program as its callers see it: help, JSON, exit statuses, and stderr.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bpfman_hook::cli::{self, Cli};
use clap::{CommandFactory as _, Parser as _};
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn run_with(args: &[&str], input: &[u8]) -> Output {
    let mut child = program().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that does not read its input is checked only by its output.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// Asserts that a failure prints exactly one line of ours.
fn assert_one_line(output: &Output) {
    let line = text(&output.stderr);
    assert!(line.starts_with("bpfman-hook: ") && line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
    assert!(line.len() <= 300, "{} bytes: {line}", line.len());
}

fn data(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

/// Every command, with the words that lead to it.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, path: &[String], found: &mut Vec<Vec<String>>) {
        found.push(path.to_vec());
        for sub in command.get_subcommands() {
            let path: Vec<_> = path.iter().cloned().chain([sub.get_name().to_owned()]).collect();
            walk(sub, &path, found);
        }
    }
    let mut found = Vec::new();
    walk(&Cli::command(), &[], &mut found);
    assert!(found.len() > 20);
    found
}

#[test]
fn the_types_of_the_command_line_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_fits_a_screen_and_explains_every_option() {
    for path in commands() {
        let mut args: Vec<_> = path.iter().map(String::as_str).collect();
        args.push("-h");
        let output = run(&args);
        let help = text(&output.stdout);
        assert_eq!(status(&output), 0, "{args:?}");
        // The list of all commands has five headings; each engine and unit that can be installed has options.
        let limit = match path.first().map(String::as_str) {
            None => 42,
            Some("install" | "uninstall") => 47,
            Some("image") => 38,
            Some(_) => 35,
        };
        let (options, examples) = help.split_once("\nExamples:\n").unwrap_or((help, ""));
        assert!(options.lines().count() <= limit, "{args:?}: {} lines", options.lines().count());
        assert!(examples.lines().count() <= 4, "{args:?}: {examples}");
        // What a user looks for comes first.
        let mut last = options.lines().skip_while(|line| !line.contains("--root <DIR>")).skip(1).map(str::trim_start);
        assert!(last.all(|line| !line.starts_with('-') || line.starts_with("-h, ") || line.starts_with("-V, ")), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert!(help.contains("--root"), "{args:?} has no --root");
        assert!(output.stderr.is_empty());
    }
    fn documented(command: &clap::Command) {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        assert!(command.get_about().is_some(), "{}", command.get_name());
        command.get_subcommands().for_each(documented);
    }
    documented(&Cli::command());
}

#[test]
fn help_shows_the_commands_in_groups() {
    let output = run(&["--help"]);
    let help = text(&output.stdout);
    for group in ["Load programs without a container:\n  load ", "\nInstall and maintain:\n  install ", "\nOptions:\n"] {
        assert!(help.contains(group), "{group}\n{help}");
    }
    // Without a command, the help is the explanation of the error.
    let output = run(&[]);
    assert_eq!((status(&output), text(&output.stderr)), (2, help));
}

#[test]
fn version_and_help_have_their_usual_names() {
    let version = run(&["version"]);
    for args in [&["--version"][..], &["-V"]] {
        let output = run(args);
        assert_eq!(
            (status(&output), text(&output.stdout)),
            (0, concat!("bpfman-hook ", env!("CARGO_PKG_VERSION"), "\n")),
            "{args:?}"
        );
        assert!(text(&version.stdout).starts_with(text(&output.stdout).trim_end()));
    }
    assert_eq!(text(&run(&["help"]).stdout), text(&run(&["--help"]).stdout));
    assert_eq!(text(&run(&["help", "list", "links"]).stdout), text(&run(&["list", "links", "--help"]).stdout));
    assert!(!text(&run(&["--help"]).stdout).contains("__complete"));
    let uninstall = run(&["uninstall", "--help"]);
    for option in ["--metrics-textfile", "--policy", "--base-spec", "--no-docs"] {
        assert!(!text(&uninstall.stdout).contains(option), "{option}");
    }
    let output = run(&["attach", "1", "xdp", "-h"]);
    assert!(text(&output.stdout).contains("dispatcher_return"), "{output:?}");
}

#[test]
fn a_typing_error_gets_a_sentence_and_the_nearest_word() {
    for (args, said) in [
        (&["attach", "1", "xpd"][..], "'xdp'"),
        (&["atach", "1", "xdp"], "'attach'"),
        (&["list", "program s"], "programs"),
        (&["attach", "abc", "xdp", "-i", "lo"], "it is not a kernel id; write the number"),
        (&["detach", "x"], "it is not a kernel id"),
        (&["attach", "1", "xdp", "-i", "lo", "--proceed-on", "pas"], "'pass'"),
        (&["attach", "1", "tc", "-i", "lo", "-d", "ingres"], "'ingress'"),
        (&["pull", "--pull-policy", "never", "x"], "[possible values: Always, IfNotPresent, Never]"),
        (&["list", "programs", "-t", "xpd"], "the nearest is xdp"),
        (&["load", "file", "-p", "x.o", "--programs", "xpd:count"], "the nearest is xdp"),
        (&["policy", "explain", "-a", "delegate=maps", "--engine", "pod"], "[possible values: containerd, cri-o, podman, oci]"),
        (&["doctor", "-o", "jsn"], "'json'"),
        (&["token", "explain", "--pid", "one"], "it is not the number of a process"),
    ] {
        let output = run(args);
        assert_eq!(status(&output), 2, "{args:?}");
        assert!(text(&output.stderr).contains(said), "{args:?}: {output:?}");
    }
}

#[test]
fn bpfmans_words_are_accepted_or_answered() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    for args in [
        &["program", "list"][..],
        &["program", "list", "-o", "text"],
        &["link", "list"],
        &["program"],
        &["list", "programs", "--type", "xdp"],
    ] {
        let output = run(&[&["--root", root], args].concat());
        assert_eq!((status(&output), text(&output.stderr)), (0, ""), "{args:?}");
    }
    let output = run(&["--root", root, "image", "pull", "--image-url", "registry.invalid/acme/x:v1"]);
    assert!(text(&output.stderr).contains("registry.invalid/acme/x:v1"), "{output:?}");
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/pass.bpfel.o");
    let object = object.to_str().unwrap();
    let theirs = ["image", "generate-build-args", "--bytecode", object];
    assert_eq!(text(&run(&theirs).stdout), text(&run(&["image", "generate-build-args", object]).stdout));
    assert!(text(&run(&theirs).stdout).starts_with("BYTECODE_FILE="));
    // No Containerfile is needed.
    let (theirs, ours) = (format!("oci:{root}/theirs:v1"), format!("oci:{root}/ours:v1"));
    let built = run(&["--root", root, "image", "build", "-f", "Containerfile.bytecode", "-t", &theirs, "-b", object]);
    assert_eq!(status(&built), 0, "{built:?}");
    assert_eq!(built.stdout, run(&["--root", root, "image", "build", &ours, object]).stdout);
    let output = run(&["program", "delete", "7"]);
    assert_eq!(status(&output), 2);
    assert!(text(&output.stderr).contains("write `bpfman-hook unload PROGRAM_ID…`"), "{output:?}");
}

#[test]
fn a_user_is_told_to_become_root_and_never_to_remove_something() {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = root.path().join("bpfman-hook");
    fs::copy(env!("CARGO_BIN_EXE_bpfman-hook"), &program).unwrap();
    let store = root.path().join("run/bpfman-hook/store");
    fs::create_dir_all(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    let as_root = std::os::unix::fs::MetadataExt::uid(&fs::metadata(root.path()).unwrap()) == 0;
    let as_user = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).stdin(Stdio::null());
        if as_root {
            std::os::unix::process::CommandExt::uid(&mut command, 65534);
            command.args(["--root", root.path().to_str().unwrap()]);
        }
        command.output().unwrap()
    };
    for args in [
        &["gc"][..],
        &["unload", "5"],
        &["detach", "5"],
        &["attach", "5", "xdp", "-i", "lo"],
        &["load", "file", "-p", "x.o", "--programs", "xdp:a"],
        &["guard", "status"],
        &["token", "create", "--pid", "1", "--delegate", "maps"],
    ] {
        let output = as_user(args);
        assert_one_line(&output);
        assert!(text(&output.stderr).ends_with(": only root can do that; run this as root\n"), "{args:?}: {output:?}");
    }
    for args in [&["list", "programs"][..], &["list", "links"], &["list", "containers"], &["inspect", "x"], &["graph", "x"]] {
        let output = as_user(args);
        // A user's own directories are read.
        let said = text(&output.stderr);
        assert!(!as_root || said.ends_with(": only root can read the records; run this as root\n"), "{args:?}: {output:?}");
    }
    let doctor = as_user(&["doctor"]);
    let (said, first) = (text(&doctor.stdout), text(&doctor.stdout).lines().take(2).collect::<String>());
    assert!(first.starts_with("unknown  user ") && first.ends_with("-> run this as root"), "{said}");
    assert!(!said.contains("-> stop the annotated containers") && !said.contains("refuses the program type to root"), "{said}");
}

/// Each line of bpfman's that docs/coming-from-bpfman.md promises is one that we parse.
#[test]
fn the_page_about_bpfman_keeps_its_promises() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coming-from-bpfman.md")).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("bpfman ")).collect();
    assert!(lines.len() > 35, "{}", lines.len());
    for line in lines {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        cli::try_parse(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn a_command_whose_output_cannot_be_written_fails() {
    let root = tempfile::tempdir().unwrap();
    for args in [&["version"][..], &["pull", "-o", "json", "file:/none.o"], &["list", "programs", "-o", "json"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let child = program().args(["--root"]).arg(root.path()).args(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(status(&output), 1, "{args:?}");
        assert!(text(&output.stderr).contains("bpfman-hook: write to standard output: "), "{args:?}: {output:?}");
    }
}

#[test]
fn bad_usage_exits_with_2_and_prints_nothing_on_stdout() {
    for args in [
        &[][..],
        &["nonsense"],
        &["hook"],
        &["hook", "prestart"],
        &["hook", "CreateRuntime"],
        &["hook", "createRuntime", "--engine", "docker"],
        &["hook", "createRuntime", "--engine"],
        &["hook", "createRuntime", "--root", "relative"],
        &["hook", "createRuntime", "--engine", "oci", "--engine", "oci"],
        &["--root", "relative", "gc"],
        &["list"],
        &["list", "programs", "-q", "-o", "json"],
        &["get", "program", "x"],
        &["get", "program", "-1"],
        &["inspect"],
        &["pull"],
        &["token", "create", "--pid", "1"],
        &["token", "create", "--delegate", "maps"],
        &["token", "create", "--pid", "1", "--container", "x", "--delegate", "maps"],
        &["token", "create", "--delegate", "maps", "--exec"],
        &["token", "create", "--delegate", "maps", "--pid", "1", "--", "true"],
        &["token", "probe", "relative"],
        &["token", "probe", "--markdown"],
        &["token", "explain", "--object", "x.o", "--scope"],
        &["token", "explain", "--object", "x.o", "--loader", "aya"],
        &["token", "explain", "--request", "delegate=maps", "--as", "flatpak"],
        &["token", "explain", "--request", "delegate=everything"],
        &["policy", "explain"],
        &["policy", "explain", "-a", "novalue"],
        &["install", "--check", "--dry-run"],
        &["install", "--destdir", "relative"],
        &["completions", "tcsh"],
        &["doctor", "-o", "yaml"],
    ] {
        let output = run(args);
        assert_eq!(status(&output), 2, "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn without_a_policy_and_keys_pull_says_what_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let output = run(&["--root", root.path().to_str().unwrap(), "pull", "registry.invalid/acme/x:v1"]);
    assert_eq!(status(&output), 1);
    assert_one_line(&output);
    assert!(text(&output.stderr).contains("no key to verify it with"), "{output:?}");
}

#[test]
fn the_fast_path_parses_like_clap() {
    let parse = |args: &[&str]| {
        let all = ["bpfman-hook"].iter().chain(args);
        match Cli::try_parse_from(all).ok()? {
            Cli { root, command: cli::Command::Hook(hook) } => Some(cli::HookArgs { root, ..hook }),
            other => panic!("{other:?}"),
        }
    };
    let taken = [
        &["hook", "createRuntime"][..],
        &["hook", "poststop", "--engine", "podman"],
        &["hook", "precreate", "--engine", "podman", "--root", "/srv/r"],
        &["hook", "createRuntime", "--root", "/srv/r", "--engine", "cri-o"],
    ];
    for args in taken {
        let fast = cli::hook_fast_path(args);
        assert!(fast.is_some(), "{args:?}");
        assert_eq!(fast, parse(args), "{args:?}");
    }
    // What the fast path leaves alone, clap accepts or explains.
    for (args, clap_takes) in [
        (&["hook"][..], false),
        (&["hook", "createruntime"], false),
        (&["hook", "createRuntime", "--engine=podman"], true),
        (&["hook", "--engine", "podman", "createRuntime"], true),
        (&["--root", "/srv/r", "hook", "createRuntime"], true),
        (&["hook", "createRuntime", "--engine"], false),
        (&["hook", "createRuntime", "--engine", "runc"], false),
        (&["hook", "createRuntime", "--root", "r"], false),
        (&["hook", "createRuntime", "--root", "/a", "--root", "/b"], false),
        (&["hook", "createRuntime", "more"], false),
        (&["gc"], false),
    ] {
        assert_eq!(cli::hook_fast_path(args), None, "{args:?}");
        if args[0] != "gc" {
            assert_eq!(parse(args).is_some(), clap_takes, "{args:?}");
        }
    }
    let args: Vec<OsString> = ["bpfman-hook", "hook", "poststop", "--root", "/srv/r"].map(OsString::from).into();
    assert_eq!(cli::parse(&args).root.as_deref(), Some(Path::new("/srv/r")));
}

#[test]
fn hook_refuses_an_invalid_state() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    for stage in ["createRuntime", "poststop"] {
        for input in ["", "{", "[]", "{}", r#"{"id":"a/b","bundle":"/b"}"#, r#"{"id":"a","bundle":"relative"}"#, "\u{0}"] {
            let output = run_with(&["hook", stage, "--root", root], input.as_bytes());
            assert_eq!(status(&output), 2, "{stage} {input:?}: {output:?}");
            assert_one_line(&output);
            assert!(output.stdout.is_empty());
        }
        let long = format!(r#"{{"id":"{}","bundle":"/b"}}"#, "x".repeat(5000));
        assert_one_line(&run_with(&["hook", stage, "--root", root], long.as_bytes()));
    }
}

#[test]
fn a_container_without_our_annotations_opens_nothing() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let state = br#"{"ociVersion":"1.0.2","id":"web","pid":1,"bundle":"/none","status":"creating","annotations":{"a":"b"}}"#;
    for stage in ["createRuntime", "poststop"] {
        let output = run_with(&["hook", stage, "--engine", "oci", "--root", path], state);
        assert_eq!((status(&output), output.stdout, output.stderr), (0, vec![], vec![]), "{stage}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "something was opened");
}

#[test]
fn precreate_returns_its_input() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let podman = data("config/podman-4.3.1_hostnet.json");
    for input in [&podman[..], &data("config/crun-1.8.1_spec.json"), b"", b"{", b"\xff\xfe", b" { \"root\" : {} } \n"] {
        let output = run_with(&["hook", "precreate", "--engine", "podman", "--root", path], input);
        assert_eq!((status(&output), output.stdout, output.stderr), (0, input.to_vec(), vec![]));
    }

    let etc = root.path().join("etc/bpfman-hook");
    fs::create_dir_all(&etc).unwrap();
    let rule = "[[container]]\nmatch = { engine = \"podman\" }\nprograms = []\ndelegate = [\"networking\"]\ngrant = true\n";
    fs::write(etc.join("policy.toml"), rule).unwrap();
    let text = text(&podman).replace(r#""hook.bpfman.io/bpffs":"token""#, r#""hook.bpfman.io/delegate":"networking""#);
    assert!(text.contains("delegate"));
    let output = run_with(&["hook", "precreate", "--engine", "podman", "--root", path], text.as_bytes());
    assert_eq!((status(&output), output.stderr.len()), (0, 0), "{output:?}");
    let spec: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert!(bounding.contains(&"CAP_BPF".into()) && bounding.contains(&"CAP_NET_ADMIN".into()), "{bounding:?}");

    fs::write(etc.join("policy.toml"), rule.replace("true", "false")).unwrap();
    let output = run_with(&["hook", "precreate", "--engine", "podman", "--root", path], text.as_bytes());
    assert_eq!((status(&output), output.stdout), (0, text.into_bytes()));
}

#[test]
fn empty_listings_create_nothing() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    for what in ["programs", "links", "containers", "images"] {
        let output = run(&["list", what, "-o", "json", "--root", path]);
        assert_eq!(status(&output), 0, "{what}: {output:?}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), Value::Array(vec![]), "{what}");
        let output = run(&["list", what, "-q", "--root", path]);
        assert_eq!((status(&output), text(&output.stdout)), (0, ""), "{what}");
        assert_eq!(status(&run(&["list", what, "--root", path])), 0);
    }
    for args in [&["get", "program", "7"][..], &["get", "link", "7"], &["inspect", "web"]] {
        let args: Vec<_> = args.iter().copied().chain(["--root", path]).collect();
        let output = run(&args);
        assert_eq!(status(&output), 1, "{args:?}");
        assert_one_line(&output);
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "a read-only command created something");
}

#[test]
fn doctor_has_a_remedy_for_every_problem() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let output = run(&["doctor", "-o", "json", "--root", path]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert!(output.stderr.is_empty());
    let of = |check: &str| findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check}"));
    for check in [
        "kernel: BPF tokens",
        "lockdown",
        "unprivileged bpf",
        "bpffs",
        "cgroup2",
        "policy",
        "records",
        "containers",
        "space: records",
    ] {
        of(check);
    }
    for finding in &findings {
        let status = finding["status"].as_str().unwrap();
        assert!(["ok", "absent", "warn", "unknown", "fail"].contains(&status), "{finding}");
        assert_eq!(finding.get("remedy").is_some(), !["ok", "absent"].contains(&status), "{finding}");
        assert!(!finding["detail"].as_str().unwrap().is_empty(), "{finding}");
    }
    let fails = findings.iter().any(|f| f["status"] == "fail");
    assert_eq!(status(&output), i32::from(fails));
    assert_eq!(of("records")["detail"], "none");

    // A policy that does not parse is a failure, whatever else is found.
    let etc = root.path().join("etc/bpfman-hook");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("policy.toml"), "[[image]]\n").unwrap();
    let output = run(&["doctor", "-q", "--root", path]);
    assert_eq!(status(&output), 1);
    let table = text(&output.stdout);
    assert!(table.lines().any(|line| line.starts_with("fail") && line.contains("policy.toml")), "{table}");
    assert!(!table.lines().any(|line| line.starts_with("ok")), "{table}");
}

#[test]
fn install_check_and_uninstall_agree() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let call = |args: &[&str]| run(&args.iter().copied().chain(["--destdir", path]).collect::<Vec<_>>());
    let as_root = fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);

    assert_eq!(status(&call(&["install", "--check"])), 1);
    let dry = call(&["install", "--dry-run", "-o", "json"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    let done = call(&["install", "-o", "json"]);
    assert_eq!((status(&done), &done.stdout), (0, &dry.stdout));
    let steps: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
    assert!(steps[0]["object"].as_str().unwrap().ends_with("/usr/local/bin/bpfman-hook"), "{steps:?}");

    let check = call(&["install", "--check", "-o", "json"]);
    let findings: Vec<Value> = serde_json::from_slice(&check.stdout).unwrap();
    // Files of other users are findings: the binary must be owned by root.
    let wrong: Vec<_> = findings.iter().filter(|f| f["status"] != "ok" && (as_root || f["check"] != "binary")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // The installed binary runs, and is the same program.
    let installed = Command::new(root.path().join("usr/local/bin/bpfman-hook")).arg("version").output().unwrap();
    assert_eq!(installed.stdout, run(&["version"]).stdout);

    assert_eq!(status(&call(&["uninstall"])), 0);
    assert_eq!(status(&call(&["install", "--check"])), 1);
    let mut left = Command::new("find");
    assert!(left.arg(path).args(["-type", "f"]).output().unwrap().stdout.is_empty());
}

#[test]
fn policy_commands_distinguish_invalid_from_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let file = root.path().join("draft.toml");
    let draft = file.to_str().unwrap();
    fs::write(&file, "[[image]]\nrepository = \"oci:/srv/demo\"\nunsigned = true\n").unwrap();
    let output = run(&["policy", "check", draft, "-o", "json", "--root", path]);
    assert_eq!(status(&output), 0, "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["images"].as_array().map(Vec::len), Some(1), "{report}");

    fs::write(&file, "[[image]]\nrepository = \"oci:/srv/demo\"\nunsigned = true\nrepo = 1\n").unwrap();
    let output = run(&["policy", "check", draft, "--root", path]);
    assert_eq!((status(&output), output.stdout.len()), (2, 0));
    assert_one_line(&output);
    assert!(text(&output.stderr).contains("draft.toml"), "{output:?}");

    // Errors in the other files that make a start fail are reported too.
    let etc = root.path().join("etc/bpfman-hook");
    fs::create_dir_all(&etc).unwrap();
    for directory in etc.ancestors().take(3) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(etc.join("registries.toml"), "[[registry]]\nhost = 7\n").unwrap();
    let output = run(&["policy", "check", "--root", path]);
    assert_eq!(status(&output), 2, "{output:?}");
    assert!(text(&output.stdout).contains("error       ") && text(&output.stdout).contains("registries.toml"), "{output:?}");
    fs::remove_file(etc.join("registries.toml")).unwrap();

    let explain = |annotation: &str| run(&["policy", "explain", "-a", annotation, "--root", path]);
    assert_eq!(status(&explain("bpffs=private")), 0);
    let refused = explain("delegate=networking");
    assert_eq!(status(&refused), 1);
    assert!(text(&refused.stdout).contains("refused"), "{refused:?}");
    let foreign = explain("example.com/a=b");
    assert_eq!(status(&foreign), 2, "bad usage");
    assert_one_line(&foreign);
    // Policing needs no annotation.
    let none = run(&["policy", "explain", "--root", path]);
    assert_eq!(status(&none), 2, "no rule polices it");
    assert_one_line(&none);
    let rule = "[[container]]\npolice = { mode = \"warn\", cmds = [\"map_create\"], maps = [\"array\"], kfuncs = [] }\n";
    fs::write(etc.join("policy.toml"), rule).unwrap();
    let explained = run(&["policy", "explain", "--root", path]);
    assert_eq!(status(&explained), 0, "{explained:?}");
    assert!(text(&explained.stdout).contains("police      warn\nallows      cmds map_create\n"), "{explained:?}");
    let checked = run(&["policy", "check", "--root", path]);
    let polices = "; polices: warn, allows cmds map_create, maps array, kfuncs none\n";
    assert!(text(&checked.stdout).contains(polices), "{checked:?}");
}

#[test]
fn documents_are_generated_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(status(&output), 0);
        assert!(text(&output.stdout).contains("bpfman-hook"), "{shell}");
    }
    assert_eq!(status(&run(&["man", directory.path().to_str().unwrap()])), 0);
    assert!(directory.path().join("bpfman-hook-hook.1").exists());
    let output = run(&["man", "/none/such"]);
    assert_eq!(status(&output), 1);
    assert_one_line(&output);
    let output = run(&["token", "explain"]);
    assert!(text(&output.stdout).contains("BPF_TOKEN_CREATE"));
    let version: Value = serde_json::from_slice(&run(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn token_explain_prints_what_an_object_needs() {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/tcx.bpf.o");
    let output = run(&["token", "explain", "--object", object, "--as", "incus"]);
    assert_eq!(status(&output), 0, "{output:?}");
    let expected = "security.bpffs.delegate_cmds=map_create,prog_load\nsecurity.bpffs.delegate_maps=array\n\
                    security.bpffs.delegate_progs=sched_cls\n\
                    security.bpffs.delegate_attachs=cgroup_inet_ingress,tcx_ingress\n";
    assert_eq!(text(&output.stdout), expected);
    // What is printed for systemd is a request that can be explained.
    let output = run(&["token", "explain", "--object", object, "--as", "systemd"]);
    let lines = text(&output.stdout);
    let requests: Vec<&str> = lines.lines().filter(|line| line.starts_with("BPFDelegate")).collect();
    let mut args = vec!["token", "explain", "--as", "incus"];
    args.extend(requests.iter().flat_map(|request| ["--request", request]));
    assert_eq!(text(&run(&args).stdout), expected);
    let output = run(&["token", "explain", "--object", "/none/such.o"]);
    assert_eq!(status(&output), 1);
    assert_one_line(&output);
}

#[test]
fn token_probe_reports_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&["token", "probe", directory.path().to_str().unwrap(), "-o", "json"]);
    assert_eq!(status(&output), 1);
    let probed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&probed["works"], &probed["steps"][1]["outcome"]), (&Value::from(false), &Value::from("failed")));
    assert!(!probed["steps"][1]["meaning"].as_str().unwrap().is_empty());
}

#[test]
fn token_create_errors_name_the_problem() {
    for (args, expected) in [
        (&["--pid", "2147483647", "--delegate", "maps"][..], 1),
        (&["--pid", "0", "--delegate", "maps"], 1),
        (&["--pid", "1", "--delegate", "nonsense"], 2),
    ] {
        let output = run(&["token", "create"].iter().chain(args).copied().collect::<Vec<_>>());
        assert_eq!(status(&output), expected, "{args:?}");
        assert_one_line(&output);
    }
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let mut child = program().args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((status(&output), text(&output.stderr)), (0, ""));
}

#[test]
fn gc_removes_pins_after_the_store_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let args = |more: &[&'static str]| {
        let mut args = vec!["--root", root.path().to_str().unwrap(), "gc"];
        args.extend(more);
        run(&args)
    };
    let fs = root.path().join("run/bpfman-hook/fs");
    assert_eq!(text(&args(&[]).stdout), "nothing to release\n");
    assert!(!root.path().join("run/bpfman-hook").exists(), "a read-only command left something");
    fs::create_dir_all(fs.join("owner_3")).unwrap();
    let told = args(&["--dry-run"]);
    assert!(text(&told.stdout).contains("owner_3"), "{told:?}");
    assert!(fs.join("owner_3").exists());
    let told: Value = serde_json::from_slice(&args(&["-o", "json"]).stdout).unwrap();
    assert_eq!(told[0]["no"], 3);
    assert_eq!(told[0]["result"], "removed");
    assert!(!fs.join("owner_3").exists());
    // gc fails if something cannot be removed.
    fs::create_dir_all(fs.join("owner_4/stranger")).unwrap();
    let left = args(&[]);
    assert_eq!(status(&left), 1, "{left:?}");
    assert!(text(&left.stdout).contains("left: "), "{left:?}");
}

#[test]
fn an_unread_standard_error_does_not_change_the_status() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, input, expected) in [
        ("createRuntime", &br#"{"id":"web","bundle":"/none","annotations":{"hook.bpfman.io/bpffs":"token"}}"#[..], 1),
        ("createRuntime", b"nonsense", 2),
        ("poststop", b"nonsense", 2),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program();
        command.args(["hook", stage, "--root"]).arg(dir.path());
        let mut child = command.stdin(Stdio::piped()).stderr(writer).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input);
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{stage}");
    }
}
