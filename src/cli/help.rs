//! `bpfman-hook --help`: the commands in groups, by what a user wants to do. clap has no groups of subcommands, so the
//! groups are rendered from its command tree into the help template.

use std::fmt::Write as _;

use clap::Command;
use clap::builder::PossibleValuesParser;

use crate::model::attach_point::{Order, ProgramKind};

/// The groups in the order in which the help shows them, and the names of their commands. A test requires each visible
/// command in exactly one group.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Load programs without a container", &["load", "attach", "detach", "unload"]),
    ("See what runs, and why not", &["list", "get", "inspect", "graph", "events", "metrics", "doctor"]),
    ("Prepare images, policy and tokens", &["pull", "image", "policy", "police", "token", "guard", "gate"]),
    ("Install and maintain", &["install", "init", "uninstall", "gc", "version", "completions", "man"]),
    ("Run by runtimes, systemd and Kubernetes", &["hook", "nri", "proxy", "system"]),
];

/// Gives the whole program's command a help with groups of commands, and the commands that take verdicts their lists.
pub fn grouped(command: Command) -> Command {
    let command = with_verdicts(command);
    let styles = command.get_styles();
    let (header, literal) = (*styles.get_header(), *styles.get_literal());
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max().unwrap_or_default();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        _ = writeln!(groups, "{header}{title}:{header:#}");
        for inner in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let (name, about) = (inner.get_name(), inner.get_about().map(ToString::to_string).unwrap_or_default());
            _ = writeln!(groups, "  {literal}{name:<width$}{literal:#}  {about}");
        }
    }
    command.help_template(format!(
        "{{about-with-newline}}{{usage-heading}} {{usage}}\n\n{groups}\n{header}Options:{header:#}\n{{options}}{{after-help}}"
    ))
}

/// Lists the verdicts of --proceed-on, which depend on the type of the program.
fn with_verdicts(command: Command) -> Command {
    let kinds = [("xdp", ProgramKind::Xdp), ("tc", ProgramKind::Tc), ("tcx", ProgramKind::Tcx)];
    kinds.into_iter().fold(command, |command, (name, kind)| {
        let verdicts = PossibleValuesParser::new(Order::verdict_words(kind));
        command.mut_subcommand("attach", |attach| {
            attach.mut_subcommand(name, |inner| inner.mut_arg("proceed_on", |argument| argument.value_parser(verdicts)))
        })
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn each_visible_command_is_in_one_group_and_its_line_fits_a_terminal() {
        let mut grouped_names: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        grouped_names.sort_unstable();
        let command = Cli::command();
        let mut visible: Vec<_> =
            command.get_subcommands().filter(|inner| !inner.is_hide_set()).map(Command::get_name).collect();
        visible.sort_unstable();
        assert_eq!(grouped_names, visible);

        let help = grouped(Cli::command()).render_help().to_string();
        for inner in command.get_subcommands() {
            let about = inner.get_about().unwrap().to_string();
            let line = |line: &&str| line.starts_with(&format!("  {} ", inner.get_name())) && line.ends_with(&about);
            assert_eq!(help.lines().filter(line).count(), usize::from(!inner.is_hide_set()), "{}\n{help}", inner.get_name());
        }
        // clap itself wraps the options.
        for line in help.lines().take_while(|line| *line != "Options:") {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for part in [
            "eBPF for containers",
            "Usage: bpfman-hook [OPTIONS] <COMMAND>",
            "Options:\n",
            "--root <DIR>",
            "-h, --help",
            "-V, --version",
        ] {
            assert!(help.contains(part), "{part}\n{help}");
        }
    }
}
