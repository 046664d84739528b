//! Documents generated from the command-line types: completion scripts and man pages.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::{Cli, Format, Formatted};
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> Result<ExitCode, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bpfman-hook", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes one man page for each command into an existing directory.
pub fn man(directory: &Path) -> Result<ExitCode, CommandError> {
    write_man(directory).map_err(CommandError::doing(format!("write man pages into {}", directory.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn write_man(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "create the directory first"));
    }
    clap_mangen::generate_to(Cli::command(), directory)
}

/// The files that `install` writes below PREFIX, with their paths relative to it: completions where each shell looks
/// for them, and man pages.
pub fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let scripts = [
        (Shell::Bash, "share/bash-completion/completions/bpfman-hook"),
        (Shell::Zsh, "share/zsh/site-functions/_bpfman-hook"),
        (Shell::Fish, "share/fish/vendor_completions.d/bpfman-hook.fish"),
    ];
    let script = |(shell, path): (Shell, &str)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "bpfman-hook", &mut text);
        (PathBuf::from(path), text)
    };
    let mut files: Vec<_> = scripts.into_iter().map(script).collect();
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &mut files);
    files
}

fn pages(command: &Command, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages(inner, files);
    }
    let man = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text).expect("writing to a Vec cannot fail");
    files.push((Path::new("share/man/man1").join(man.get_filename()), text));
}

/// `version`: the program's version and the revision of the store, whose records another revision may not read.
pub fn version(args: Formatted) -> Result<ExitCode, CommandError> {
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
        let installed: Vec<_> = files()
            .into_iter()
            .filter_map(|(path, text)| Some((path.strip_prefix("share/man/man1").ok()?.to_owned(), text)))
            .collect();
        assert_eq!(installed.len(), pages.len());
        for (path, text) in installed {
            assert_eq!(std::fs::read(directory.path().join(&path)).unwrap(), text, "{}", path.display());
        }
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "bpfman-hook", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{}", command.get_name());
        }
    }
}
