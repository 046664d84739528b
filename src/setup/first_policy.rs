//! `init`: the first policy of a host, with comments, and what to do next.
//!
//! It never replaces a file, except for a policy of comments alone. The policy is written last, so that a failure leaves the host without a policy, as before.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::init::InitArgs;
use crate::image::{unusable_key, unusable_trusted_root};
use crate::model::policy::{Policy, TRUSTED_ROOT};
use crate::output::error::CommandError;
use crate::output::print;
use crate::paths::Paths;
use crate::sys::fsutil;

/// The workflow that signs bpfman's images, in both spellings that its repository has had, on its main branch and its
/// release tags.
const BPFMAN_WORKFLOW: &str =
    r"https://github\.com/bpfman/bpfman/\.github/workflows/image-build\.ya?ml@refs/(heads/main|tags/v[0-9][0-9A-Za-z.-]*)";
/// The issuer of GitHub's workflows.
const GITHUB_ISSUER: &str = "https://token.actions.githubusercontent.com";
/// The most that is read of a key, and of a trusted root.
const KEY_MAX: usize = 64 << 10;
const ROOT_MAX: usize = 1 << 20;

/// A file that the policy needs, and its contents.
struct NeededFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// `init`: writes `policy.toml` and the files that it names, and prints what to do next.
pub fn run(paths: &Paths, args: &InitArgs) -> Result<ExitCode, CommandError> {
    let file = paths.policy_file();
    let needed = needed_file(paths, args)?;
    let trusted_root = paths.trusted_root();
    let text = policy_text(args, needed.as_ref().filter(|_| args.key.is_some()).map(|key| key.path.as_path()), &trusted_root);
    Policy::parse(&[(file.clone(), text.clone())]).map_err(CommandError::of_input)?;
    if args.dry_run {
        return print(&text);
    }

    refuse_existing(paths)?;
    for directory in [paths.etc.clone(), paths.keys()] {
        fsutil::ensure_directory(&directory, 0o755)
            .map_err(CommandError::doing(format!("create the directory {}", directory.display())))?;
    }
    let mut report = String::new();
    if let Some(NeededFile { path, bytes }) = &needed {
        let written = write_unless_same(path, bytes)?;
        _ = writeln!(report, "{:<8} {}", if written { "write" } else { "keep" }, path.display());
    }
    if has_only_comments(&file) {
        fsutil::write_atomically(&file, text.as_bytes(), 0o644)?;
    } else {
        fsutil::write_new(&file, text.as_bytes(), 0o644)?;
    }
    _ = writeln!(report, "{:<8} {}", "write", file.display());
    next_steps(&mut report, paths, args, trusted_root.exists());
    print(&report)
}

/// Whether the policy file allows and refuses nothing, as the one that a package installs.
fn has_only_comments(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_else(|_| "unreadable".to_owned());
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

/// Refuses if the host has a policy: another one beside it could allow more than its author knows.
fn refuse_existing(paths: &Paths) -> Result<(), CommandError> {
    let mut found = Vec::new();
    if fs::symlink_metadata(paths.policy_file()).is_ok() && !has_only_comments(&paths.policy_file()) {
        found.push(paths.policy_file());
    }
    match fsutil::names_in(&paths.policy_directory()) {
        Ok(names) => found.extend(
            names
                .into_iter()
                .map(|name| paths.policy_directory().join(name))
                .filter(|path| path.extension().is_some_and(|extension| extension == "toml")),
        ),
        Err(_) if !paths.policy_directory().exists() => {}
        Err(error) => return Err(error.into()),
    }
    let Some(first) = found.first() else { return Ok(()) };
    Err(CommandError::new(format!(
        "write the first policy: this host has one, {}; `bpfman-hook init … --dry-run` prints the rules, to be added by hand",
        first.display()
    )))
}

/// The key or the trusted root, checked with the verifier's own parser.
fn needed_file(paths: &Paths, args: &InitArgs) -> Result<Option<NeededFile>, CommandError> {
    let (from, path, max) = match (&args.key, &args.trusted_root) {
        (Some(key), _) => {
            let name = key.file_stem().unwrap_or_default().to_string_lossy();
            (key, paths.keys().join(format!("{name}.pub")), KEY_MAX)
        }
        (None, Some(root)) => (root, paths.trusted_root(), ROOT_MAX),
        (None, None) => return Ok(None),
    };
    let bytes = fs::File::open(from)
        .and_then(|file| fsutil::read_capped(file, max).map_err(io::Error::other))
        .map_err(CommandError::doing(format!("read {}", from.display())))?;
    let problem = if args.key.is_some() { unusable_key(from, &bytes) } else { unusable_trusted_root(from, &bytes) };
    match problem {
        Some(problem) => Err(CommandError::bad_input(problem.to_string())),
        None => Ok(Some(NeededFile { path, bytes })),
    }
}

/// Writes a new file; false if it exists with these contents.
fn write_unless_same(path: &Path, bytes: &[u8]) -> Result<bool, CommandError> {
    match fs::read(path) {
        Ok(present) if present == bytes => Ok(false),
        Ok(_) => Err(CommandError::new(format!(
            "write {}: a file with other contents is there; remove it, or give the new one another name",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fsutil::write_new(path, bytes, 0o644)?;
            Ok(true)
        }
        Err(error) => Err(CommandError::doing(format!("read {}", path.display()))(error)),
    }
}

/// A TOML string: JSON's escapes are TOML's.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

fn policy_text(args: &InitArgs, key: Option<&Path>, trusted_root: &Path) -> String {
    let mut text = String::from(
        "# The policy of bpfman-hook: which images may be loaded, and what containers may ask for.\n\
         # Every key: bpfman-hook-policy(5), or docs/policy.md. `bpfman-hook policy check` parses this file as a start does.\n\n\
         # An image is allowed if it satisfies one of the [[image]] rules.\n[[image]]\n",
    );
    let repository = if args.bpfman { "quay.io/bpfman-bytecode/**" } else { &args.repository };
    if args.bpfman {
        text.push_str(
            "# bpfman's public images, signed by the workflow that builds them. The rule is written after that workflow's\n\
             # file; it was not tried against the registry. `bpfman-hook image verify REF` shows what an image is signed by.\n",
        );
    }
    _ = writeln!(text, "repository = {:<28} # * is one component of the path, ** any number of them", quoted(repository));
    let (identity, issuer) = match (&args.identity, &args.issuer) {
        (Some(identity), Some(issuer)) => (format!("identity = {}", quoted(identity)), issuer.as_str()),
        _ => (format!("identity-regexp = '{BPFMAN_WORKFLOW}'"), GITHUB_ISSUER),
    };
    if let Some(key) = key {
        _ = writeln!(text, "signed-by  = {{ key = {} }}", quoted(&key.to_string_lossy()));
    } else {
        // A rule names its trusted root only where it is not the default, which does not move with --root.
        let root = match trusted_root == Path::new(TRUSTED_ROOT) {
            true => String::new(),
            false => format!(", trusted-root = {}", quoted(&trusted_root.to_string_lossy())),
        };
        _ = writeln!(text, "signed-by  = {{ {identity},\n               issuer = {}{root} }}", quoted(issuer));
        _ = writeln!(text, "# The certificate authority and the logs of the signatures are in {}.", trusted_root.display());
    }
    text.push_str(
        "# scope    = \"host\"                     # its programs may see the whole host, where host-scope below allows it too\n\n\
         # The first [[container]] rule that matches decides what a container gets; what a rule does not name, it refuses.\n\
         [[container]]\n\
         # match    = { engine = \"podman\" }      # or namespace, pod, container, labels; without match: every container\n\
         programs   = [\"xdp\", \"tcx\", \"tc\", \"cgroup_skb\", \"cgroup_sock_addr\"]\n\
         grant      = true                      # podman: add the capabilities and the system call that a request needs\n\
         # delegate = [\"maps\"]                  # a BPF token for maps of the container's own; see docs/tokens.md\n\
         # host-scope = true                    # tracepoints, kprobes, uprobes, fentry and LSM programs: these see the host\n\n\
         # [limits]                             # per container; these are the defaults\n\
         # programs   = 64\n\
         # links      = 256\n\
         # map-memory = \"64MiB\"\n",
    );
    text
}

fn next_steps(report: &mut String, paths: &Paths, args: &InitArgs, has_root: bool) {
    report.push_str("\nnext:\n");
    let mut step = |line: &str| _ = writeln!(report, "  {line}");
    if args.key.is_none() && !has_root {
        let root = paths.trusted_root();
        step(&format!("install -m 0644 trusted_root.json {}   # until then every request is refused", root.display()));
        step("    # the file comes from `cosign trusted-root create --with-default-services`; see docs/signing.md");
    }
    step("bpfman-hook policy check                # the policy as a start reads it");
    step("bpfman-hook image verify IMAGE          # whether an image satisfies it");
    step("bpfman-hook doctor                      # what this host lacks");
    step("podman run --annotation hook.bpfman.io/image=IMAGE --annotation 'hook.bpfman.io/programs=xdp:NAME iface=eth0' …");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::model::policy::Signer;

    const KEY: &[u8] = include_bytes!("../../tests/data/signatures/keys/cosign-v2.pub");

    fn parsed(words: &[&str]) -> InitArgs {
        use clap::Parser as _;
        let line = ["bpfman-hook", "init"].iter().chain(words);
        let Command::Init(args) = Cli::try_parse_from(line).unwrap().command else { unreachable!() };
        args
    }

    #[test]
    fn each_answer_gives_a_policy_that_a_start_reads() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let workflow = "https://github.com/acme/p/.github/workflows/release.yml@refs/heads/main";
        for (words, repository, pattern) in [
            (vec!["--key", "k.pub"], "**", None),
            (vec!["--key", "k.pub", "--repository", "ghcr.io/acme/*"], "ghcr.io/acme/*", None),
            (vec!["--identity", "a\"b@example.com", "--issuer", "https://i.example"], "**", Some("a\"b@example.com")),
            (vec!["--identity", workflow, "--issuer", GITHUB_ISSUER], "**", Some(workflow)),
            (
                vec!["--bpfman"],
                "quay.io/bpfman-bytecode/**",
                Some("https://github.com/bpfman/bpfman/.github/workflows/image-build.yml@refs/heads/main"),
            ),
            (
                vec!["--bpfman"],
                "quay.io/bpfman-bytecode/**",
                Some("https://github.com/bpfman/bpfman/.github/workflows/image-build.yaml@refs/tags/v0.6.0"),
            ),
        ] {
            let args = parsed(&words);
            let key = args.key.as_ref().map(|_| paths.keys().join("k.pub"));
            let text = policy_text(&args, key.as_deref(), &paths.trusted_root());
            let policy =
                Policy::parse(&[("policy.toml".into(), text.clone())]).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(policy.images[0].repository.to_string(), repository, "{text}");
            assert!(policy.warnings().is_empty(), "{:?}", policy.warnings());
            match (&policy.images[0].signed_by[..], pattern) {
                ([Signer::Key(path)], None) => assert_eq!(path, &key.unwrap()),
                ([Signer::Identity { identity, .. }], Some(subject)) => {
                    assert!(identity.matcher().unwrap().fits(subject), "{text}")
                }
                (signers, _) => panic!("{signers:?}"),
            }
        }
        assert!(!BPFMAN_WORKFLOW.contains("//github.com"), "a dot in a pattern matches every character");
    }

    #[test]
    fn nothing_is_replaced_and_a_bad_key_writes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let given = root.path().join("acme.pub");
        fs::write(&given, KEY).unwrap();
        let mut args = parsed(&["--key", given.to_str().unwrap(), "--dry-run"]);
        run(&paths, &args).unwrap();
        assert!(!paths.etc.exists(), "--dry-run writes nothing");

        args.dry_run = false;
        run(&paths, &args).unwrap();
        assert_eq!(fs::read(paths.keys().join("acme.pub")).unwrap(), KEY);
        let first = fs::read(paths.policy_file()).unwrap();
        let error = run(&paths, &args).unwrap_err().to_string();
        assert!(error.contains("this host has one") && error.contains("policy.toml"), "{error}");

        fs::remove_file(paths.policy_file()).unwrap();
        fs::create_dir_all(paths.policy_directory()).unwrap();
        fs::write(paths.policy_directory().join("50-mine.toml"), "").unwrap();
        let error = run(&paths, &args).unwrap_err().to_string();
        assert!(error.contains("50-mine.toml"), "{error}");
        fs::remove_file(paths.policy_directory().join("50-mine.toml")).unwrap();

        // A package's policy has comments alone.
        fs::write(paths.policy_file(), "# comment\n\n  # [[image]]\n").unwrap();
        run(&paths, &args).unwrap();
        assert_eq!(fs::read(paths.policy_file()).unwrap(), first);
        fs::remove_file(paths.policy_file()).unwrap();

        // The same key is kept; another one under its name is not replaced.
        run(&paths, &args).unwrap();
        assert_eq!(fs::read(paths.policy_file()).unwrap(), first);
        fs::remove_file(paths.policy_file()).unwrap();
        fs::write(&given, include_bytes!("../../tests/data/signatures/keys/wrong.pub")).unwrap();
        let error = run(&paths, &args).unwrap_err().to_string();
        assert!(error.contains("other contents"), "{error}");
        fs::write(&given, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
        assert!(run(&paths, &args).is_err());
        assert!(!paths.policy_file().exists());
    }
}
