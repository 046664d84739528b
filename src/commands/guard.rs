//! `guard`: the LSM programs that judge what is loaded with a BPF token.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::guard::GuardCommand;
use crate::cli::{Format, Formatted};
use crate::kernel::guard::{self, GuardState};
use crate::lifecycle::guard as lifecycle;
use crate::output::error::CommandError;
use crate::output::print;
use crate::paths::Paths;

/// Runs one of the subcommands.
///
/// # Errors
/// If the kernel cannot enforce the guard, or the proof fails; if its pins cannot be read or removed.
pub fn run(paths: &Paths, what: &GuardCommand) -> Result<ExitCode, CommandError> {
    match what {
        GuardCommand::Load(args) => lifecycle::load(paths, args.bounded).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        GuardCommand::Unload => {
            let was_there = lifecycle::unload(&paths.guard())?;
            print(if was_there { "the guard is no longer in force\n" } else { "the guard was not in force\n" })
        }
        GuardCommand::Status(args) => status(paths, args),
    }
}

/// Exit status 1 if it is not in force.
fn status(paths: &Paths, args: &Formatted) -> Result<ExitCode, CommandError> {
    let state = guard::state(&paths.guard())?;
    let printed = print(&match args.output {
        Format::Table => text(state.as_ref()),
        Format::Json => format!("{:#}\n", document(state.as_ref())),
    })?;
    Ok(if state.is_some() { printed } else { ExitCode::FAILURE })
}

fn text(state: Option<&GuardState>) -> String {
    let Some(state) = state else { return "the guard is not in force\n".to_owned() };
    let loops = if state.bounded { ", and refuses programs without a bound" } else { "" };
    let mut lines = format!("the guard is in force{loops}\n");
    for (why, count) in state.refused.iter().filter(|(_, count)| *count > 0) {
        lines.push_str(&format!("refused for {why}: {count}\n"));
    }
    lines
}

fn document(state: Option<&GuardState>) -> serde_json::Value {
    let Some(state) = state else { return json!({ "in_force": false }) };
    let refused: Vec<_> = state.refused.iter().map(|(why, count)| json!({ "why": why, "count": count })).collect();
    json!({ "in_force": true, "bounded": state.bounded, "refused": refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::GuardRefusal;

    #[test]
    fn the_state_is_shown_with_what_was_refused() {
        assert_eq!(text(None), "the guard is not in force\n");
        let refused = vec![(GuardRefusal::Kfunc, 3), (GuardRefusal::Loop, 0)];
        let state = GuardState { bounded: true, refused };
        let shown = "the guard is in force, and refuses programs without a bound\nrefused for a kfunc: 3\n";
        assert_eq!(text(Some(&state)), shown);
        let document = document(Some(&state));
        assert_eq!(document["refused"][0], json!({ "why": "kfunc", "count": 3 }));
    }
}
