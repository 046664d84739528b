//! bpftool of Debian trixie, which is built on libbpf 1.5, the first in Debian that uses BPF tokens: unpacked beside the
//! system by tests/lab/suite.sh, and run by its own interpreter.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The packages: bpftool and the libraries that it needs.
const PACKAGES: [&str; 7] = ["bpftool", "libc6", "libelf1t64", "zlib1g", "libzstd1", "libcap2", "libssl3t64"];

/// Where the packages are unpacked, and the command line of bpftool there.
#[derive(Debug)]
pub struct TokenBpftool {
    /// The directory.
    pub suite: PathBuf,
    /// Interpreter, its options, and bpftool.
    pub words: Vec<String>,
}

impl TokenBpftool {
    /// Unpacks it if that has not been done yet.
    ///
    /// # Errors
    /// Why it cannot be had on this machine: then the tests that need it are skipped.
    pub fn get() -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/suite.sh");
        let output = Command::new(script).arg("trixie").args(PACKAGES).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = said.lines().last().unwrap_or_default().to_owned();
        match output.status.code() {
            Some(0) => {}
            Some(77) => return Err(last),
            _ => panic!("tests/lab/suite.sh: {last}: {}", String::from_utf8_lossy(&output.stderr)),
        }
        let suite = PathBuf::from(last);
        let found = |arguments: &[&str]| -> Vec<String> {
            let output = Command::new("find").arg(&suite).args(arguments).output().expect("find starts");
            let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
            lines.sort();
            lines.dedup();
            lines
        };
        let one = |arguments: &[&str]| found(arguments).into_iter().next().expect("the packages have it");
        let interpreter = one(&["-path", "*/libc6/*", "-name", "ld-linux*"]);
        let libraries: Vec<String> = found(&["-name", "*.so.*", "-printf", "%h\n"])
            .into_iter()
            .filter(|path| PACKAGES.iter().any(|package| path.starts_with(&format!("{}/{package}/", suite.display()))))
            .collect();
        let program = one(&["-path", "*/bpftool/*", "-name", "bpftool", "-type", "f", "-perm", "-1"]);
        let words = vec![interpreter, "--library-path".to_owned(), libraries.join(":"), program];
        Ok(Self { suite, words })
    }
}
