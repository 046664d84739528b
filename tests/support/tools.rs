//! Third-party tools of newer Debian releases, unpacked beside the system by tests/lab/suite.sh: they sign and attach
//! as users do.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness;
use crate::support::lab::Lab;
use crate::support::process::{Ended, ended, tool};

/// Reports that something is not tested, on standard error, bypassing the test harness, and in the file that
/// `BPFMAN_HOOK_TEST_SKIPPED` names.
pub fn skipped(wanted_for: &str, why: &str) {
    let line = format!("SKIPPED {wanted_for}: {why}\n");
    _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("BPFMAN_HOOK_TEST_SKIPPED") {
        let file = fs::OpenOptions::new().create(true).append(true).open(file);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|e| harness!("write {line:?}: {e}"));
    }
}

/// A program of another Debian release. If it is not available, the tests that need it are skipped.
fn program(suite: &str, package: &str, wanted_for: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/suite.sh");
    let Ended { status, stdout, stderr } = ended(Command::new(script).args([suite, package]));
    let last = stdout.lines().last().unwrap_or_default();
    match status.code() {
        Some(0) => Some(Path::new(last).join(package).join("usr/bin").join(package)),
        Some(77) => {
            skipped(wanted_for, &format!("no {package} of Debian {suite}: {last}"));
            None
        }
        _ => harness!("tests/lab/suite.sh {suite} {package}: {status}: {stderr}"),
    }
}

/// cosign, in one of the two releases that sign differently.
#[derive(Debug)]
pub struct Cosign {
    program: PathBuf,
    home: PathBuf,
    /// 2 or 3.
    pub major: u8,
}

impl Cosign {
    /// cosign 2.5 of trixie.
    pub fn two(lab: &Lab, wanted_for: &str) -> Option<Self> {
        Self::get(lab, "trixie", 2, wanted_for)
    }

    /// cosign 3.1 of sid, with a signing configuration that names no log and no time stamp authority.
    pub fn three(lab: &Lab, wanted_for: &str) -> Option<Self> {
        let cosign = Self::get(lab, "sid", 3, wanted_for)?;
        cosign.must(&["signing-config", "create", "--out", "signing.json"]);
        Some(cosign)
    }

    fn get(lab: &Lab, suite: &str, major: u8, wanted_for: &str) -> Option<Self> {
        let program = program(suite, "cosign", wanted_for)?;
        let home = lab.path("cosign");
        fs::create_dir_all(&home).unwrap_or_else(|e| harness!("create {}: {e}", home.display()));
        Some(Self { program, home, major })
    }

    /// A file of its working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Runs it in its working directory, where keys and configuration are.
    pub fn run(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(&self.program);
        ended(command.args(args).current_dir(&self.home).env("HOME", &self.home).env("COSIGN_PASSWORD", ""))
    }

    /// Runs it; it must succeed.
    pub fn must(&self, args: &[&str]) -> String {
        let Ended { status, stdout, stderr } = self.run(args);
        if !status.success() {
            harness!("cosign {} {args:?} ended with {status}: {stderr}", self.major);
        }
        stdout
    }

    /// Makes `NAME.key` and `NAME.pub` from a key that openssl made; only Debian's cosign 3 can.
    pub fn import(&self, name: &str, made_by: &[&str]) {
        let raw = self.path(&format!("{name}.raw"));
        tool(Command::new("openssl").args(made_by).arg("-out").arg(&raw));
        let plain = self.path(&format!("{name}.pem"));
        tool(Command::new("openssl").args(["pkcs8", "-topk8", "-nocrypt", "-in"]).arg(&raw).arg("-out").arg(&plain));
        self.must(&["import-key-pair", "--key", &plain.display().to_string(), "--output-key-prefix", name]);
    }

    /// Signs with this release's defaults, without a log.
    pub fn sign(&self, key: &str, image: &str) {
        let key = format!("{key}.key");
        match self.major {
            2 => self.must(&["sign", "--key", &key, "--tlog-upload=false", "--yes", image]),
            _ => self.must(&["sign", "--key", &key, "--signing-config", "signing.json", "--yes", image]),
        };
    }

    /// Makes cosign 3 sign like cosign 2.
    pub fn sign_as_two(&self, key: &str, image: &str) {
        let key = format!("{key}.key");
        let how = ["--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false"];
        self.must(&[&["sign", "--key", &key, "--yes"], &how[..], &[image]].concat());
    }

    /// Attaches a signed attestation to an image.
    pub fn attest(&self, key: &str, image: &str) {
        fs::write(self.path("predicate.json"), "{\"made\":\"by a test\"}").unwrap_or_else(|e| harness!("write: {e}"));
        let key = format!("{key}.key");
        let how: &[&str] = match self.major {
            2 => &["--tlog-upload=false"],
            _ => &["--signing-config", "signing.json"],
        };
        let what = ["--type", "https://example.com/made/v1", "--predicate", "predicate.json"];
        self.must(&[&["attest", "--key", &key, "--yes"], how, &what, &[image]].concat());
    }

    /// Whether it accepts the image as signed by a key.
    pub fn takes(&self, key: &str, image: &str) -> bool {
        let key = format!("{key}.pub");
        self.run(&["verify", "--key", &key, "--insecure-ignore-tlog=true", image]).status.success()
    }
}

/// oras of sid: pushes and attaches any artifact.
#[derive(Debug)]
pub struct Oras(PathBuf);

impl Oras {
    /// Returns it, if it is available.
    pub fn get(wanted_for: &str) -> Option<Self> {
        program("sid", "oras", wanted_for).map(Self)
    }

    /// Runs it in a directory; it must succeed.
    pub fn must(&self, dir: &Path, args: &[&str]) -> String {
        tool(Command::new(&self.0).args(args).current_dir(dir).env("HOME", dir))
    }
}
