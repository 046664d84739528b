//! What is generated from the command line's types: completion scripts and man pages.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{Cli, Format, Formatted};
use crate::frontend::list::json;
use crate::frontend::{fail, print};

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bpfman-hook", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes one man page for each command into an existing directory.
pub fn man(directory: &Path) -> ExitCode {
    match write_man(directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("write man pages into {}: {error}", directory.display())),
    }
}

fn write_man(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "make the directory first"));
    }
    clap_mangen::generate_to(Cli::command(), directory)
}

/// `version`: the program's, and that of the records, which another version may not read.
pub fn version(args: Formatted) -> ExitCode {
    let (program, store) = (env!("CARGO_PKG_VERSION"), crate::store::SCHEMA);
    print(&match args.output {
        Format::Table => format!("bpfman-hook {program} (store {store})\n"),
        Format::Json => json(&serde_json::json!({ "version": program, "store": store })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_man_page_and_a_completion() {
        let directory = tempfile::tempdir().unwrap();
        write_man(directory.path()).unwrap();
        let mut pages: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        pages.sort();
        for page in ["bpfman-hook.1", "bpfman-hook-doctor.1", "bpfman-hook-token-create.1", "bpfman-hook-list-programs.1"] {
            assert!(pages.iter().any(|p| p == page), "{page} in {pages:?}");
        }
        assert!(write_man(&directory.path().join("none")).is_err());
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "bpfman-hook", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{}", command.get_name());
        }
    }
}
