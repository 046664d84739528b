//! Shell completion: the scripts that `completions` prints ask `bpfman-hook __complete` for each word, so that ids,
//! names, interfaces and images are those of this host. clap_complete's own scripts are not used for these shells: that
//! for bash offers file names only, because of the hyphen in the program's name.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{self, ArgValueCompleter, CompletionCandidate};

use crate::cli;
use crate::cli::{CompleteArgs, CompletingShell};
use crate::output::error::CommandError;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;

mod candidates;

use candidates::Source;

/// The completion script of a shell.
pub fn script(shell: Shell) -> Vec<u8> {
    match shell {
        Shell::Bash => include_str!("complete/bash.sh").into(),
        Shell::Zsh => include_str!("complete/zsh.zsh").into(),
        Shell::Fish => include_str!("complete/fish.fish").into(),
        other => {
            let mut script = Vec::new();
            clap_complete::generate(other, &mut cli::command(), "bpfman-hook", &mut script);
            script
        }
    }
}

/// `__complete SHELL INDEX -- WORD…`: prints what the word at `INDEX` may be, one candidate per line; for zsh and fish
/// with a tab and a description.
///
/// A mistake in the words, or a store that this user may not read, is not an error: there are fewer candidates.
pub fn run(args: &CompleteArgs) -> Result<ExitCode, CommandError> {
    let paths = root_of(&args.words).map_or_else(Paths::system, |root| Paths::below(Path::new(&root)));
    let mut command = with_candidates(cli::command(), &paths);
    let here = std::env::current_dir().ok();
    let found = engine::complete(&mut command, args.words.clone(), args.index, here.as_deref()).unwrap_or_default();
    let word = args.words.get(args.index).cloned().unwrap_or_default();
    let text: String = offered(found, &word).iter().map(|candidate| line(candidate, args.shell)).collect();
    print(&text)
}

/// The options are offered once their first letter is typed, or if there is nothing else.
fn offered(found: Vec<CompletionCandidate>, word: &OsStr) -> Vec<CompletionCandidate> {
    let is_option = |candidate: &CompletionCandidate| candidate.get_value().as_encoded_bytes().starts_with(b"-");
    let others = found.iter().any(|candidate| !is_option(candidate));
    if word.is_empty() && others { found.into_iter().filter(|candidate| !is_option(candidate)).collect() } else { found }
}

fn line(candidate: &CompletionCandidate, shell: CompletingShell) -> String {
    let value = printable(&candidate.get_value().to_string_lossy());
    let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
    match (shell, help.lines().next()) {
        (CompletingShell::Bash, _) | (_, None) => format!("{value}\n"),
        (CompletingShell::Zsh | CompletingShell::Fish, Some(help)) => format!("{value}\t{}\n", printable(help)),
    }
}

/// The value of `--root` among the words.
fn root_of(words: &[OsString]) -> Option<OsString> {
    let after = |pair: &[OsString]| (pair[0] == "--root").then(|| pair[1].clone());
    let joined = |word: &OsString| word.to_str()?.strip_prefix("--root=").map(OsString::from);
    words.windows(2).find_map(after).or_else(|| words.iter().find_map(joined)).filter(|root| Path::new(root).is_absolute())
}

/// The command tree with a source of candidates for each argument whose values are on this host.
fn with_candidates(command: Command, paths: &Paths) -> Command {
    let arguments: Vec<String> = command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
    let name = command.get_name().to_owned();
    let command = arguments.into_iter().fold(command, |command, id| match Source::of(&name, &id) {
        Some(source) => command.mut_arg(id, |argument| {
            let paths = paths.clone();
            argument.add(ArgValueCompleter::new(move |word: &OsStr| source.candidates(&paths, word)))
        }),
        None => command,
    });
    let inner: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    inner.into_iter().fold(command, |command, name| command.mut_subcommand(name, |inner| with_candidates(inner, paths)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_that_of_the_words() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, root) in [
            ("bpfman-hook list", None),
            ("bpfman-hook --root /r list", Some("/r")),
            ("bpfman-hook list --root=/r", Some("/r")),
            ("bpfman-hook list --root r", None),
            ("bpfman-hook list --root", None),
        ] {
            assert_eq!(root_of(&words(line)).as_deref(), root.map(OsStr::new), "{line}");
        }
    }
}
