//! Which commands only root can run. They say so before they try, in the same words; otherwise the first check that
//! fails would name a remedy for root.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cli::guard::GuardCommand;
use crate::cli::{Command, ListCommand, TokenCommand};
use crate::output::error::{AS_ROOT, CommandError};
use crate::paths::Paths;
use crate::sys::pid;

/// What a command does that needs root.
enum Deed {
    /// It reads the records.
    Reads(&'static str),
    /// It changes the kernel, the records or the files of the host.
    Changes(&'static str),
}

/// Refuses a command that this user cannot run. A user's own directories below `--root`, as in tests, are not refused.
pub fn require(command: &Command, root: Option<&Path>, paths: &Paths) -> Result<(), CommandError> {
    let uid = pid::own_uid();
    let Some(deed) = deed(command).filter(|_| uid != 0) else { return Ok(()) };
    let is_foreign = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.uid() != uid);
    match deed {
        Deed::Reads(what) if is_foreign(&paths.stores()) => {
            Err(CommandError::new(format!("{what}: only root can read the records; {AS_ROOT}")))
        }
        Deed::Changes(what) if root.is_none() || is_foreign(&paths.run) => {
            Err(CommandError::new(format!("{what}: only root can do that; {AS_ROOT}")))
        }
        Deed::Reads(_) | Deed::Changes(_) => Ok(()),
    }
}

fn deed(command: &Command) -> Option<Deed> {
    Some(match command {
        Command::Load(_) => Deed::Changes("load programs"),
        Command::Attach(_) => Deed::Changes("attach a program"),
        Command::Detach(_) => Deed::Changes("remove links"),
        Command::Unload(_) => Deed::Changes("remove programs"),
        Command::Gc(_) => Deed::Changes("release what dead containers left"),
        Command::Guard(GuardCommand::Load(_) | GuardCommand::Unload) => Deed::Changes("change the guard of tokens"),
        Command::Guard(GuardCommand::Status(_)) => Deed::Changes("read the guard of tokens"),
        Command::Token(TokenCommand::Create(_)) => Deed::Changes("create a token"),
        Command::Token(TokenCommand::Profile(_)) => Deed::Changes("profile a command"),
        Command::Police(_) => Deed::Changes("profile bpf(2) calls"),
        Command::List(ListCommand::Programs(_)) => Deed::Reads("list programs"),
        Command::List(ListCommand::Links(_)) => Deed::Reads("list links"),
        Command::List(ListCommand::Containers(_)) => Deed::Reads("list containers"),
        Command::Get(_) => Deed::Reads("get"),
        Command::Graph(_) => Deed::Reads("draw a graph"),
        Command::Inspect(_) => Deed::Reads("inspect"),
        _ => return None,
    })
}
