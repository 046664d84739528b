//! docker-credential-* programs, which store a user's credentials. They run only for commands on a command line, never
//! for a hook.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::sys::error::SysError;

/// Maximum size of the output in bytes.
const MAX: u64 = 64 << 10;

/// Runs `docker-credential-NAME get` for a host, with only PATH and HOME in its environment. Returns None if it does
/// not have credentials for the host. It is killed after `patience`. Its output is returned to the caller only.
pub fn ask(name: &str, host: &str, path: &str, home: Option<&Path>, patience: Duration) -> Result<Option<String>, SysError> {
    let program = format!("docker-credential-{name}");
    let failed = |doing: &'static str| SysError::io(doing, program.clone());
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Err(failed("run")(io::Error::other("its name contains characters other than letters, digits, - and _")));
    }
    let found =
        path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(&program)).find(|p| p.is_file());
    let found = found.ok_or_else(|| failed("run")(io::Error::other("it is not in any directory of PATH")))?;
    let mut command = Command::new(found);
    command.arg("get").env_clear().env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(home) = home {
        command.env("HOME", home);
    }
    let mut child = command.spawn().map_err(failed("run"))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (said, answer) = mpsc::channel();
    let host = host.to_owned();
    // Not joined: child processes of a helper may hold its pipes open longer than we wait.
    std::thread::Builder::new()
        .name("helper".to_owned())
        .spawn(move || {
            // A helper that does not read its input is handled by its answer.
            let _ = stdin.map(|mut stdin| stdin.write_all(host.as_bytes()));
            let mut text = String::new();
            let read = stdout.map_or(Ok(0), |stdout| stdout.take(MAX).read_to_string(&mut text));
            let _ = said.send(read.map(|_| text));
        })
        .map_err(failed("run"))?;
    let text = match answer.recv_timeout(patience) {
        Ok(read) => read.map_err(failed("read the answer of")),
        Err(_) => Err(failed("wait for")(io::Error::other(format!("it did not answer within {} s", patience.as_secs())))),
    };
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed("wait for"))?;
    // "credentials not found in native keychain", status 1: there are no credentials.
    text.map(|text| status.success().then_some(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn helper(dir: &Path, script: &str) {
        let path = dir.join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_helper_gets_the_host_and_a_clean_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        helper(dir.path(), "read host; echo \"$1 $host $HOME ${CARGO_MANIFEST_DIR-none}\"");
        let patience = Duration::from_secs(10);
        let said = ask("test", "r.example", &path, Some(Path::new("/h")), patience).unwrap();
        assert_eq!(said.as_deref(), Some("get r.example /h none\n"));
        helper(dir.path(), "echo credentials not found; exit 1");
        assert_eq!(ask("test", "r.example", &path, None, patience).unwrap(), None);
        assert!(ask("../test", "r.example", &path, None, patience).is_err());
        assert!(ask("absent", "r.example", &path, None, patience).is_err());
    }

    #[test]
    fn a_helper_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        helper(dir.path(), "exec sleep 60");
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let err = ask("test", "r.example", &path, None, Duration::from_millis(200)).unwrap_err();
        assert!(std::error::Error::source(&err).is_some_and(|why| why.to_string().contains("did not answer")), "{err}");
    }
}
