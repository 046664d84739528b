//! `token probe --matrix`: what a token can be used for on this kernel, as a table, JSON or Markdown.

use std::process::ExitCode;

use crate::cli::{Format, TokenProbeArgs};
use crate::kernel::token_matrix;
use crate::model::token_matrix::{MatrixRow, MatrixSet, TokenMatrix};
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::Table;

/// Tries everything and prints the result.
pub fn print_matrix(args: &TokenProbeArgs) -> Result<ExitCode, CommandError> {
    let matrix = token_matrix()?;
    print(&match (args.markdown, args.format.output) {
        (true, _) => markdown(&matrix),
        (false, Format::Json) => json(&matrix),
        (false, Format::Table) => text(&matrix),
    })
}

/// The cells of a row: what it is, the program type, whether the token makes it possible, the capabilities of each
/// operation, and why it fails.
fn cells(row: &MatrixRow) -> [String; 6] {
    let token = match row.token {
        Some(true) => "needed",
        Some(false) => "not needed",
        None => "-",
    };
    [
        row.name.clone(),
        row.program.clone().unwrap_or_default(),
        token.to_owned(),
        shown(&row.outcome.to_string()),
        row.attach.as_ref().map(|attach| shown(&attach.to_string())).unwrap_or_default(),
        row.reason().unwrap_or_default(),
    ]
}

/// An outcome; the reason has a column of its own.
fn shown(outcome: &str) -> String {
    outcome.split_once(": ").map_or(outcome, |(outcome, _)| outcome).to_owned()
}

/// The headings of the columns that a set uses.
fn columns(set: MatrixSet) -> Vec<(usize, &'static str)> {
    match set {
        MatrixSet::Cmds => vec![(0, "COMMAND"), (2, "TOKEN"), (3, "CAPABILITIES"), (5, "REMARK")],
        MatrixSet::Maps => vec![(0, "MAP TYPE"), (2, "TOKEN"), (3, "CREATE"), (5, "REMARK")],
        MatrixSet::Progs => vec![(0, "PROGRAM TYPE"), (2, "TOKEN"), (3, "LOAD"), (5, "REMARK")],
        MatrixSet::Attachs => vec![(0, "ATTACH TYPE"), (1, "PROGRAM"), (3, "LOAD"), (4, "ATTACH"), (5, "REMARK")],
        MatrixSet::Links => vec![(0, "LINK TYPE"), (1, "PROGRAM"), (3, "CREATE"), (5, "REMARK")],
    }
}

fn text(matrix: &TokenMatrix) -> String {
    let mut all = format!("Linux {}\n", matrix.kernel);
    for (set, _) in MatrixSet::ALL {
        let columns = columns(set);
        let mut table = Table::new(&columns.iter().map(|(_, heading)| *heading).collect::<Vec<_>>());
        for row in matrix.of(set) {
            let cells = cells(row);
            table.row(columns.iter().filter_map(|(at, _)| cells.get(*at).cloned()));
        }
        all.push_str(&format!("\n{table}"));
    }
    all
}

/// One table per set. Types with the same result share a row, so that the document stays readable.
pub fn markdown(matrix: &TokenMatrix) -> String {
    let mut all = String::new();
    for (set, what) in MatrixSet::ALL {
        let columns: Vec<_> = columns(set).into_iter().skip(1).collect();
        let heading: Vec<_> = columns.iter().map(|(_, heading)| lower(heading)).collect();
        all.push_str(&format!("| {what} | {} |\n|{}\n", heading.join(" | "), " --- |".repeat(columns.len() + 1)));
        let mut groups: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for row in matrix.of(set) {
            let cells = cells(row);
            let rest: Vec<String> = columns.iter().filter_map(|(at, _)| cells.get(*at).cloned()).collect();
            let [name, ..] = cells;
            match groups.iter_mut().find(|(known, _)| *known == rest) {
                Some((_, names)) => names.push(name),
                None => groups.push((rest, vec![name])),
            }
        }
        for (rest, names) in groups {
            all.push_str(&format!("| {} | {} |\n", names.join(", "), rest.join(" | ")));
        }
        all.push('\n');
    }
    all.truncate(all.trim_end().len());
    all.push('\n');
    all
}

fn lower(heading: &str) -> String {
    heading.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::token_matrix::MatrixOutcome;

    #[test]
    fn types_with_one_result_share_a_row() {
        let row = |set, name: &str, outcome| MatrixRow {
            set,
            name: name.into(),
            program: None,
            token: Some(true),
            outcome,
            attach: None,
        };
        let bpf = || MatrixOutcome::Needs(vec!["CAP_BPF".into()]);
        let matrix = TokenMatrix {
            kernel: "6.18".into(),
            rows: vec![
                row(MatrixSet::Maps, "hash", bpf()),
                row(MatrixSet::Maps, "devmap", MatrixOutcome::Fails { errno: 22, error: "EINVAL".into() }),
                row(MatrixSet::Maps, "array", bpf()),
                row(MatrixSet::Cmds, "enable_stats", MatrixOutcome::NotTried("why".into())),
            ],
        };
        let text = markdown(&matrix);
        assert!(text.contains("| map type | token | create | remark |\n| --- | --- | --- | --- |\n"), "{text}");
        assert!(text.contains("| hash, array | needed | CAP_BPF |  |\n"), "{text}");
        assert!(text.contains("| enable_stats | needed | not tried | why |"), "{text}");
        assert!(super::text(&matrix).contains("devmap"));
    }
}
