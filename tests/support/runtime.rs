//! runc and crun, called directly.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::bundle::Bundle;
use super::kernel::{Cgroups, cgroups};
use super::lab::Lab;
use super::process::{Ended, Running, ended, eventually, tool};
use crate::harness;

/// An OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Runc,
    Crun,
}

impl Runtime {
    /// The name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// A command of the runtime with its state below the lab.
    pub fn command(self, lab: &Lab, args: &[&str]) -> Command {
        let mut command = match (self, cgroups()) {
            (Self::Crun, Cgroups::Hybrid(unified)) => without_cgroup2(&unified, "crun"),
            _ => Command::new(self.name()),
        };
        command.arg("--root").arg(lab.path(self.name())).args(args);
        command
    }

    /// Runs a container to its end, with an empty standard input.
    pub fn run(self, lab: &Lab, bundle: &Bundle) -> Ended {
        ended(&mut self.run_command(lab, bundle))
    }

    /// Starts a container in the foreground: `Running::say` writes to its script's standard input.
    pub fn start(self, lab: &Lab, bundle: &Bundle) -> Running {
        Running::start(&mut self.run_command(lab, bundle))
    }

    /// The command that runs a bundle in the foreground.
    pub fn run_command(self, lab: &Lab, bundle: &Bundle) -> Command {
        let mut command = self.command(lab, &["run", "-b"]);
        command.arg(&bundle.dir).arg(&bundle.id);
        command
    }

    /// The state of a container, Null if it does not exist.
    pub fn state(self, lab: &Lab, id: &str) -> Value {
        let ended = ended(&mut self.command(lab, &["state", id]));
        serde_json::from_str(&ended.stdout).unwrap_or(Value::Null)
    }

    /// The init of a running container, as the host sees it.
    pub fn init(self, lab: &Lab, id: &str) -> u32 {
        eventually("a running container", Duration::from_secs(20), || {
            let state = self.state(lab, id);
            let pid = state["pid"].as_u64().filter(|_| state["status"] == "running")?;
            u32::try_from(pid).ok()
        })
    }

    /// Removes a container by force, which runs poststop.
    pub fn delete(self, lab: &Lab, id: &str) -> Ended {
        ended(&mut self.command(lab, &["delete", "-f", id]))
    }

    /// Fails if the runtime is not installed.
    pub fn need(self) {
        tool(Command::new(self.name()).arg("--version"));
    }
}

/// A command in its own mount namespace in which the version 2 half of a hybrid hierarchy is hidden. Otherwise crun
/// refuses to start; its containers then stay in the version 2 cgroup of crun itself.
pub fn without_cgroup2(unified: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", r#"umount -l "$0" && exec "$@""#]).arg(unified).arg(program);
    command
}

/// A hook's message, as runc quotes it in its own error, and the hook's exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSaid {
    pub status: i32,
    pub stderr: String,
}

impl HookSaid {
    /// Parses runc's standard error.
    pub fn in_error_of_runc(stderr: &str) -> Option<Self> {
        let line = stderr.lines().find(|line| line.contains("error running hook"))?;
        let (_, rest) = line.split_once("exit status ")?;
        let (status, rest) = rest.split_once(", stdout: ")?;
        let (_, said) = rest.split_once("stderr: ")?;
        let said = said.strip_suffix('"').unwrap_or(said);
        Some(Self { status: status.trim().parse().ok()?, stderr: unquote(said) })
    }
}

/// Removes the quoting of runc's logger (Go's %q).
fn unquote(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, c == '\\') {
            (_, true) => match rest.next() {
                Some('n') => plain.push('\n'),
                Some('t') => plain.push('\t'),
                Some(other) => plain.push(other),
                None => harness!("a quoted error ends with a backslash: {text}"),
            },
            (c, _) => plain.push(c),
        }
    }
    plain
}

#[test]
fn runc_errors_are_parsed() {
    let line = r#"time="2026-11-25T02:00:00Z" level=error msg="runc run failed: error running hook #0: error running hook: exit status 2, stdout: , stderr: bpfman-hook: annotation \"x\": no\n""#;
    let said = HookSaid { status: 2, stderr: "bpfman-hook: annotation \"x\": no\n".to_owned() };
    assert_eq!(HookSaid::in_error_of_runc(line), Some(said));
    assert_eq!(HookSaid::in_error_of_runc("time= level=error msg=\"no such file\""), None);
}
