//! `doctor --report`: one file with what a bug report needs. Secrets are left out: no credential, no variable's value and
//! no annotation is in it, and user information is removed from addresses.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::commands::{policy, records};
use crate::output::error::CommandError;
use crate::output::finding::Findings;
use crate::paths::Paths;
use crate::sys::fsutil;

/// How much of a log is quoted.
const LOG_LINES: usize = 200;
/// The most that is read of a log or an event file.
const LOG_MAX: usize = 16 << 20;

/// What describes the system, and the programs whose versions matter.
const SYSTEM: [&str; 3] = ["/proc/version", "/etc/os-release", "/sys/kernel/security/lsm"];
const VERSIONS: [&str; 6] = ["podman", "runc", "crun", "conmon", "containerd", "crio"];

/// Writes the report, which only its owner may read, into a new file.
pub fn write(file: &Path, paths: &Paths, findings: &Findings) -> Result<(), CommandError> {
    let text = redacted(&report(paths, findings));
    fsutil::write_new(file, text.as_bytes(), 0o600).map_err(CommandError::doing("write the report"))
}

fn report(paths: &Paths, findings: &Findings) -> String {
    let mut text = format!(
        "# bpfman-hook {}\n\nLook through this before you publish it: it names images, containers and rules of this host.\n",
        env!("CARGO_PKG_VERSION")
    );
    let system = SYSTEM.map(|path| read(Path::new(path)).unwrap_or_else(|why| format!("{path}: {why}\n")));
    section(&mut text, "System", &system.concat());
    section(&mut text, "Versions", &VERSIONS.iter().filter_map(|name| version(name)).collect::<String>());
    section(&mut text, "Doctor", &findings.to_string());
    let policy = policy::check(paths, None).map_or_else(|error| format!("{error}\n"), |report| format!("{report:#}"));
    section(&mut text, "Policy", &policy);
    let owners = records::seen_owners(paths, None).map(|seen| {
        let views: Vec<_> = seen.iter().map(|seen| seen.view()).collect();
        crate::output::format::json(&views)
    });
    section(&mut text, "Owners", &owners.unwrap_or_else(|error| format!("{error}\n")));
    let export = paths.export();
    for (title, path) in [("Events", export.join(crate::sys::export::EVENTS)), ("Log", paths.log())] {
        section(&mut text, title, &read(&path).map_or_else(|why| format!("{why}\n"), |text| last(&text)));
    }
    let lines = LOG_LINES.to_string();
    let journal = output("journalctl", &["-t", "bpfman-hook", "-n", &lines, "--no-pager", "-o", "short-iso"]);
    section(&mut text, "Journal", &journal.unwrap_or_else(|| "there is no journal\n".to_owned()));
    text
}

fn section(text: &mut String, title: &str, content: &str) {
    // Writing to a string does not fail.
    _ = writeln!(text, "\n## {title}\n\n```\n{}\n```", content.trim_end());
}

fn read(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let bytes = fsutil::read_capped(file, LOG_MAX).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The first line of `NAME --version`; None if there is no such program.
fn version(name: &str) -> Option<String> {
    let text = output(name, &["--version"])?;
    Some(format!("{}\n", text.lines().next()?))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes the user information of addresses: `https://user:password@host` becomes `https://…@host`.
fn redacted(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("://");
        let end = part.find(|c: char| c.is_whitespace() || "/\"'?#".contains(c)).unwrap_or(part.len());
        match part[..end].rfind('@') {
            Some(at) => {
                clean.push('…');
                clean.push_str(&part[at..]);
            }
            None => clean.push_str(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn user_information_is_removed_from_addresses() {
        for (text, clean) in [
            ("pull https://me:secret@r.example/x: no", "pull https://…@r.example/x: no"),
            ("oci://r.example/x@sha256:ab", "oci://r.example/x@sha256:ab"),
            ("\"https://a@b@r.example\" and http://b.example", "\"https://…@r.example\" and http://b.example"),
            ("none", "none"),
        ] {
            assert_eq!(redacted(text), clean);
        }
    }

    #[test]
    fn a_report_is_a_private_file_and_never_replaces_one() {
        let root = tempfile::tempdir().unwrap();
        let (paths, file) = (Paths::below(root.path()), root.path().join("report.md"));
        write(&file, &paths, &Findings::default()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for title in ["System", "Versions", "Doctor", "Policy", "Owners", "Events", "Log", "Journal"] {
            assert!(text.contains(&format!("\n## {title}\n\n```\n")), "{title}: {text}");
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(&file, &paths, &Findings::default()).is_err());
    }
}
