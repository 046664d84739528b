//! `gate`: the LSM programs that let only listed executables load BPF programs.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::gate::{GateCommand, GateSealArgs};
use crate::cli::{Format, Formatted};
use crate::kernel::gate::{self, GateState};
use crate::kernel::{Kernel as _, LinuxKernel};
use crate::lifecycle::{gate as lifecycle, policy_files, program_keyring};
use crate::model::gate::{DigestKind, ExecutableDigest, GateOutcome, GateRules, HostGate, UnlistedExecutable};
use crate::model::program_signing::KernelSigned;
use crate::output::error::CommandError;
use crate::output::print;
use crate::paths::Paths;
use crate::sys::{Errno, SysError, clock, verity};

/// Runs one of the subcommands.
///
/// # Errors
/// If the policy has no gate or an error; if the kernel cannot enforce the gate, or it would refuse this program; if its pins
/// cannot be read or removed; if a file cannot be sealed.
pub fn run(paths: &Paths, what: &GateCommand) -> Result<ExitCode, CommandError> {
    match what {
        GateCommand::Load(args) => load(paths, !args.warn, None),
        GateCommand::Try(args) => {
            load(paths, true, Some(args.seconds))?;
            print(&format!("the gate refuses for {} seconds, then it only counts\n", args.seconds))
        }
        GateCommand::Unload => {
            let was_there = lifecycle::unload(&paths.gate())?;
            print(if was_there { "the gate is no longer in force\n" } else { "the gate was not in force\n" })
        }
        GateCommand::Status(args) => status(paths, args),
        GateCommand::Seal(args) => seal(args),
    }
}

fn load(paths: &Paths, enforce: bool, seconds: Option<u64>) -> Result<ExitCode, CommandError> {
    let rules = rules(paths, enforce)?;
    lifecycle::load(paths, &GateRules { seconds, ..rules }, None)?;
    Ok(ExitCode::SUCCESS)
}

/// What the policy says.
///
/// # Errors
/// If it has an error, or no gate.
pub fn rules(paths: &Paths, enforce: bool) -> Result<GateRules, CommandError> {
    let loaded = policy_files::load(paths).map_err(CommandError::of_input)?;
    let containers = loaded.policy.containers.iter().any(|rule| rule.gate.is_some());
    match loaded.policy.gate.clone().or_else(|| containers.then(HostGate::default)) {
        Some(HostGate { mut executables, images, kernel_signed }) => {
            if let Some(executables) = &mut executables {
                executables.extend(lifecycle::executables_of_images(paths, &loaded, &images)?);
            }
            let keyring = match kernel_signed {
                KernelSigned::IfPossible => None,
                KernelSigned::Required => Some(keyring(paths)?),
            };
            Ok(GateRules { enforce, seconds: None, executables, containers, keyring })
        }
        None => Err(CommandError::bad_input(format!(
            "the policy has no gate; write [gate] with executables = [\"sha256:…\"] into {}",
            paths.policy_file().display()
        ))),
    }
}

/// The serial number of the node's keyring, which is made if there is none.
fn keyring(paths: &Paths) -> Result<i32, CommandError> {
    if let Some(serial) = LinuxKernel.program_keyring(&paths.program_keyring()) {
        return Ok(serial);
    }
    let made = program_keyring::make(paths)?.ok_or_else(|| {
        CommandError::bad_input(format!(
            "the policy's gate has kernel-signed = \"required\", and {} has no certificates (*.pem)",
            paths.program_keys().display()
        ))
    })?;
    Ok(made.serial)
}

/// Exit status 1 if it is not in force.
fn status(paths: &Paths, args: &Formatted) -> Result<ExitCode, CommandError> {
    let state = gate::state(&paths.gate())?;
    let now = clock::boot_nanoseconds();
    let printed = print(&match args.output {
        Format::Table => text(state.as_ref(), now),
        Format::Json => format!("{:#}\n", document(state.as_ref(), now)),
    })?;
    Ok(if state.is_some() { printed } else { ExitCode::FAILURE })
}

/// What a gate does at a time: refuses, refuses until a time, or counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Refuses,
    RefusesFor(u64),
    Counts,
    CountsAfterTrial,
}

fn doing(state: &GateState, now: u64) -> Doing {
    match (state.enforce, state.expires) {
        (false, _) => Doing::Counts,
        (true, None) => Doing::Refuses,
        (true, Some(expires)) if now < expires => Doing::RefusesFor((expires - now).div_ceil(1_000_000_000)),
        (true, Some(_)) => Doing::CountsAfterTrial,
    }
}

fn text(state: Option<&GateState>, now: u64) -> String {
    let Some(state) = state else { return "the gate is not in force\n".to_owned() };
    let mut lines = match doing(state, now) {
        Doing::Refuses => "the gate is in force, and refuses\n".to_owned(),
        Doing::RefusesFor(seconds) => format!("the gate is in force, and refuses for {seconds} more seconds\n"),
        Doing::Counts => "the gate is in force, and only counts\n".to_owned(),
        Doing::CountsAfterTrial => "the gate is in force, and only counts: its trial has ended\n".to_owned(),
    };
    if state.host {
        lines.push_str(&format!("executables that are listed: {}\n", state.executables.len()));
    }
    if state.cgroups > 0 {
        lines.push_str(&format!("containers with a list of their own: {}\n", state.cgroups));
    }
    if let Some(keyring) = state.keyring {
        lines.push_str(&format!("programs have to be signed by the node's keyring {keyring}\n"));
    }
    for (outcome, name) in GateOutcome::ALL {
        let count = state.counts.iter().find(|(other, _)| *other == outcome).map_or(0, |(_, count)| *count);
        if count > 0 {
            lines.push_str(&format!("{name}: {count}\n"));
        }
    }
    if !state.unlisted.is_empty() {
        lines.push_str("not listed:\n");
    }
    for UnlistedExecutable { executable, command, list, calls } in &state.unlisted {
        let digest = executable.map_or_else(|| "unknown contents".to_owned(), |digest| digest.to_string());
        let place = if *list == 0 { String::new() } else { format!(", in cgroup {list}") };
        lines.push_str(&format!("  {digest}  {command} ({calls} calls{place})\n"));
    }
    lines
}

fn document(state: Option<&GateState>, now: u64) -> serde_json::Value {
    let Some(state) = state else { return json!({ "in_force": false }) };
    let (refuses, seconds) = match doing(state, now) {
        Doing::Refuses => (true, None),
        Doing::RefusesFor(seconds) => (true, Some(seconds)),
        Doing::Counts | Doing::CountsAfterTrial => (false, None),
    };
    let counts: serde_json::Map<String, serde_json::Value> = GateOutcome::ALL
        .into_iter()
        .map(|(outcome, name)| {
            let count = state.counts.iter().find(|(other, _)| *other == outcome).map_or(0, |(_, count)| *count);
            (name.to_owned(), json!(count))
        })
        .collect();
    json!({
        "in_force": true,
        "refuses": refuses,
        "seconds": seconds,
        "host": state.host,
        "executables": state.executables,
        "keyring": state.keyring,
        "containers": state.cgroups,
        "counts": counts,
        "unlisted": state.unlisted,
    })
}

fn seal(args: &GateSealArgs) -> Result<ExitCode, CommandError> {
    for path in &args.files {
        let digest = sealed(path)?;
        print(&format!("{digest}  {}\n", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Seals a file that is not sealed, and returns its digest.
fn sealed(path: &Path) -> Result<ExecutableDigest, CommandError> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(SysError::io("open", &shown))?;
    let why = |errno: Errno| match errno {
        Errno::NOTTY | Errno::OPNOTSUPP => {
            "its file system has no fs-verity (ext4: tune2fs -O verity, and not below overlayfs); list the file as sha256:…"
        }
        Errno::TXTBSY => "it is open for writing",
        Errno::ROFS => "its file system is read-only",
        Errno::INVAL => "it is not a regular file, or its fs-verity digest is not a sha256",
        _ => "",
    };
    let failed = |errno: Errno| {
        let why = why(errno);
        let hint = if why.is_empty() { String::new() } else { format!("{why}: ") };
        CommandError::new(format!("seal {shown}: {hint}{errno}"))
    };
    match verity::enable(&file) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let digest = verity::measure(&file).map_err(failed)?;
    Ok(ExecutableDigest { kind: DigestKind::FsVerity, digest })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_state_says_what_the_gate_does_and_who_called() {
        assert_eq!(text(None, 0), "the gate is not in force\n");
        let unlisted = UnlistedExecutable {
            executable: Some(ExecutableDigest::sha256([0xab; 32])),
            command: "bpftool".to_owned(),
            list: 0,
            calls: 2,
        };
        let nameless = UnlistedExecutable { executable: None, list: 77, ..unlisted.clone() };
        let mut state = GateState {
            enforce: true,
            expires: Some(10_000_000_000),
            host: true,
            keyring: Some(9),
            executables: BTreeSet::new(),
            cgroups: 1,
            counts: vec![(GateOutcome::Allowed, 3), (GateOutcome::Refused, 0)],
            unlisted: vec![unlisted, nameless],
        };
        let expected = format!(
            "the gate is in force, and refuses for 8 more seconds\n\
             executables that are listed: 0\ncontainers with a list of their own: 1\n\
             programs have to be signed by the node's keyring 9\n\
             allowed: 3\nnot listed:\n  sha256:{}  bpftool (2 calls)\n  unknown contents  bpftool (2 calls, in cgroup 77)\n",
            "ab".repeat(32)
        );
        assert_eq!(text(Some(&state), 2_500_000_000), expected);
        assert_eq!(document(Some(&state), 2_500_000_000)["seconds"], 8);
        assert!(text(Some(&state), 10_000_000_000).starts_with("the gate is in force, and only counts: its trial has ended\n"));
        assert_eq!(document(Some(&state), 10_000_000_000)["refuses"], false);
        state.expires = None;
        assert_eq!(doing(&state, 0), Doing::Refuses);
        state.enforce = false;
        assert_eq!(doing(&state, 0), Doing::Counts);
    }
}
