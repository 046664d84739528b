//! Documents generated from the command-line types: completion scripts and man pages.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;

use crate::cli::{Format, Formatted};
use crate::commands::man::ManPage;
use crate::commands::{complete, man};
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> Result<ExitCode, CommandError> {
    print(&String::from_utf8_lossy(&complete::script(shell)))
}

/// Writes the man pages into an existing directory.
pub fn man(directory: &Path) -> Result<ExitCode, CommandError> {
    write_man(directory).map_err(CommandError::doing(format!("write man pages into {}", directory.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn write_man(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "create the directory first"));
    }
    man::pages().into_iter().try_for_each(|page| std::fs::write(directory.join(page.file), page.text))
}

/// The files that `install` writes below PREFIX, with their paths relative to it: completions where each shell looks
/// for them, and man pages.
pub fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let scripts = [
        (Shell::Bash, "share/bash-completion/completions/bpfman-hook"),
        (Shell::Zsh, "share/zsh/site-functions/_bpfman-hook"),
        (Shell::Fish, "share/fish/vendor_completions.d/bpfman-hook.fish"),
    ];
    let script = |(shell, path): (Shell, &str)| (PathBuf::from(path), complete::script(shell));
    let page = |page: ManPage| (Path::new("share/man").join(format!("man{}", page.section)).join(page.file), page.text);
    scripts.into_iter().map(script).chain(man::pages().into_iter().map(page)).collect()
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
        for page in [
            "bpfman-hook.1",
            "bpfman-hook-doctor.1",
            "bpfman-hook-token-create.1",
            "bpfman-hook-list-programs.1",
            "bpfman-hook-policy.5",
        ] {
            assert!(pages.iter().any(|p| p == page), "{page} in {pages:?}");
        }
        assert!(write_man(&directory.path().join("none")).is_err());
        let installed: Vec<_> = files()
            .into_iter()
            .filter(|(path, _)| path.starts_with("share/man"))
            .filter_map(|(path, text)| Some((PathBuf::from(path.file_name()?), text)))
            .collect();
        assert_eq!(installed.len(), pages.len());
        for (path, text) in installed {
            assert_eq!(std::fs::read(directory.path().join(&path)).unwrap(), text, "{}", path.display());
        }
    }
}
