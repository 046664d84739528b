//! The man pages: one for each command, generated from the command line, and those of the policy file and of the
//! annotations, generated from their documents.

use std::fmt::Write as _;

use clap::Command;
use clap_mangen::Man;

use crate::cli;
use crate::commands::roff::{body, escaped};

/// A page: its section, its file name and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManPage {
    /// 1, 5 or 7.
    pub section: u8,
    /// `bpfman-hook-list.1`
    pub file: String,
    /// In the macros of man(7).
    pub text: Vec<u8>,
}

/// Name, section, subject and source of the pages that are documents.
const DOCUMENTS: [(&str, u8, &str, &str); 2] = [
    ("bpfman-hook-policy", 5, "what images and containers may do", include_str!("../../docs/policy.md")),
    ("bpfman-hook-annotations", 7, "what a container requests", include_str!("../../docs/annotations.md")),
];

const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
0
success
.TP
1
failure, with one sentence on standard error; \\fBdoctor\\fR and \\fBinstall \\-\\-check\\fR found a failure; \\fBgc\\fR left something
.TP
2
wrong usage, annotation or policy file
";

/// The files that users meet, with what they are.
const FILES: [(&str, &str); 6] = [
    ("/etc/bpfman-hook/policy.toml", "the policy, see bpfman\\-hook\\-policy(5); policy.d/*.toml is read before it"),
    ("/etc/bpfman-hook/keys/", "public keys (*.pub)"),
    ("/etc/bpfman-hook/registries.toml", "mirrors, certificates and credentials of registries"),
    ("/var/cache/bpfman-hook/", "images by digest; safe to remove"),
    ("/run/bpfman-hook/", "the records, pins and events of this boot; see bpfman\\-hook\\-gc(1)"),
    ("/usr/share/containers/oci/hooks.d/50-bpfman-hook-*.json", "the hook files of podman and CRI\\-O"),
];

/// Every page.
pub fn pages() -> Vec<ManPage> {
    let mut command = cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    of_command(&command, "", &mut pages);
    pages.extend(DOCUMENTS.map(|(name, section, about, markdown)| document(name, section, about, markdown)));
    pages
}

/// Adds the page of a command after those of its subcommands; `path` is its name without the program's.
fn of_command(command: &Command, path: &str, pages: &mut Vec<ManPage>) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let path = if path.is_empty() { inner.get_name().to_owned() } else { format!("{path} {}", inner.get_name()) };
        of_command(inner, &path, pages);
    }
    let man = Man::new(command.clone()).source(source()).manual("bpfman-hook");
    let mut text = Vec::new();
    let sections = [
        Man::render_title,
        Man::render_name_section,
        Man::render_synopsis_section,
        Man::render_description_section,
        Man::render_options_section,
    ];
    for render in sections {
        render(&man, &mut text).expect("writing to a Vec cannot fail");
    }
    if command.get_subcommands().any(|inner| !inner.is_hide_set()) {
        man.render_subcommands_section(&mut text).expect("writing to a Vec cannot fail");
    }
    text.extend(examples(path).into_bytes());
    text.extend(EXIT_STATUS.bytes());
    text.extend(files().into_bytes());
    text.extend(see_also(command, path).into_bytes());
    pages.push(ManPage { section: 1, file: man.get_filename(), text });
}

fn source() -> String {
    format!("bpfman-hook {}", env!("CARGO_PKG_VERSION"))
}

fn examples(path: &str) -> String {
    let examples = cli::examples_of(path);
    if examples.is_empty() {
        return String::new();
    }
    let lines: String = examples.iter().map(|example| format!("{}\n", escaped(example))).collect();
    format!(".SH EXAMPLES\n.nf\n{lines}.fi\n")
}

fn files() -> String {
    let mut text = String::from(".SH FILES\n");
    for (path, meaning) in FILES {
        _ = writeln!(text, ".TP\n.I {}\n{meaning}", escaped(path));
    }
    text
}

/// The command above, those below, and the pages of what a user writes.
fn see_also(command: &Command, path: &str) -> String {
    let page = |words: &str| format!("bpfman-hook-{}(1)", words.replace(' ', "-"));
    let mut others = Vec::new();
    if !path.is_empty() {
        others.push(path.rsplit_once(' ').map_or_else(|| "bpfman-hook(1)".to_owned(), |(above, _)| page(above)));
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        others.push(page(format!("{path} {}", inner.get_name()).trim()));
    }
    others.extend(DOCUMENTS.map(|(name, section, ..)| format!("{name}({section})")));
    format!(".SH SEE ALSO\n{}\n", escaped(&others.join(", ")))
}

fn document(name: &str, section: u8, about: &str, markdown: &str) -> ManPage {
    let (page, title) = (escaped(name), escaped(&name.to_uppercase()));
    let mut text = format!(".TH {title} {section} \"\" \"{}\" \"bpfman-hook\"\n", source());
    _ = writeln!(text, ".SH NAME\n{page} \\- {about}");
    text.push_str(&body(markdown));
    text.push_str(&files());
    let others =
        DOCUMENTS.iter().filter(|(other, ..)| *other != name).map(|(other, section, ..)| format!("{other}({section})"));
    let others: Vec<String> =
        ["bpfman-hook(1)".to_owned(), "bpfman-hook-policy-explain(1)".to_owned()].into_iter().chain(others).collect();
    _ = writeln!(text, ".SH SEE ALSO\n{}", escaped(&others.join(", ")));
    ManPage { section, file: format!("{name}.{section}"), text: text.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_says_what_a_user_looks_for() {
        let pages = pages();
        assert!(pages.len() > 50, "{}", pages.len());
        for page in &pages {
            let text = String::from_utf8(page.text.clone()).unwrap();
            let has = |section: &str| text.contains(&format!(".SH {section}\n"));
            assert!(
                text.lines().find(|line| line.starts_with(".TH")).is_some_and(|line| line.contains(&source())),
                "{}",
                page.file
            );
            assert!(has("NAME") && has("FILES"), "{}", page.file);
            // mandoc and groff ignore an unknown request without a word, and the line is lost.
            for line in text.lines().filter(|line| line.starts_with('.')) {
                let request = line.split(' ').next().unwrap();
                let known =
                    [".TH", ".SH", ".SS", ".PP", ".IP", ".TP", ".RS", ".RE", ".nf", ".fi", ".br", ".I", ".ie", ".el", ".TP"];
                assert!(known.contains(&request), "{}: {line}", page.file);
            }
            if page.section == 1 {
                assert!(has("EXIT STATUS") && text.contains(".SH \"SEE ALSO\"\n") | has("SEE ALSO"), "{}", page.file);
            }
        }
        let of = |file: &str| String::from_utf8(pages.iter().find(|page| page.file == file).unwrap().text.clone()).unwrap();
        assert!(of("bpfman-hook-list-programs.1").contains(".SH EXAMPLES\n.nf\nbpfman\\-hook list programs\n"));
        assert!(of("bpfman-hook-list-programs.1").contains("bpfman\\-hook\\-list(1)"));
        assert!(of("bpfman-hook-policy.5").contains("[[container]]"));
        assert!(of("bpfman-hook-annotations.7").contains("\\fBdelegate"));
    }
}
