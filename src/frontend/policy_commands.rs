//! `policy check` and `policy explain` at the door: exit status 2 for a policy that is wrong, 1 for a request that it refuses.

use std::fmt::Display;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Format, PolicyCheckArgs, PolicyCommand, PolicyExplainArgs};
use crate::frontend::{policy, print};
use crate::lifecycle::error::chain;
use crate::model::policy::ContainerFacts;
use crate::paths::Paths;

/// A policy or a request that cannot be parsed.
const BAD_INPUT: u8 = 2;

/// Runs one of them.
pub fn run(paths: &Paths, command: &PolicyCommand) -> ExitCode {
    match command {
        PolicyCommand::Check(args) => check(paths, args),
        PolicyCommand::Explain(args) => explain(paths, args),
    }
}

fn check(paths: &Paths, args: &PolicyCheckArgs) -> ExitCode {
    match policy::check(paths, args.file.as_deref()) {
        Ok(report) => show(&report, args.format.output),
        Err(error) => bad(&error),
    }
}

fn explain(paths: &Paths, args: &PolicyExplainArgs) -> ExitCode {
    let facts = ContainerFacts {
        engine: args.engine,
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        runtime_user: args.runtime_user,
        userns: args.userns,
    };
    match policy::explain(paths, &facts, &args.annotations) {
        Ok(Some(explanation)) => {
            let printed = show(&explanation, args.format.output);
            if explanation.allowed { printed } else { ExitCode::FAILURE }
        }
        Ok(None) => {
            eprintln!("bpfman-hook: none of these annotations is ours; write them as in docs/annotations.md");
            ExitCode::from(BAD_INPUT)
        }
        Err(error) => bad(&error),
    }
}

fn show<T: Display + Serialize>(report: &T, format: Format) -> ExitCode {
    print(&match format {
        Format::Table => report.to_string(),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(report).expect("a report's keys are strings")),
    })
}

fn bad(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("bpfman-hook: {}", chain(error));
    ExitCode::from(BAD_INPUT)
}
