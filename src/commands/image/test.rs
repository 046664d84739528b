//! `image test REF`: the verifier's answer about each program of a local image, on the running kernel.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::cli::Format;
use crate::cli::image::ImageTestArgs;
use crate::kernel::{TriedProgram, try_programs};
use crate::output::error::CommandError;
use crate::output::format::{json, word};
use crate::output::print;
use crate::output::table::{Table, printable};
use crate::paths::Paths;

/// `image test REF`
pub fn run(paths: &Paths, args: &ImageTestArgs) -> Result<ExitCode, CommandError> {
    let reference = super::reference(&args.reference)?;
    let details = super::images(paths).details(&reference)?;
    let doing = format!("test {reference}");
    let tried = try_programs(&details.object, &args.programs).map_err(CommandError::doing(doing))?;
    print(&match args.format.output {
        Format::Json => json(&tried),
        Format::Table => text(&tried, args.verbose),
    })?;
    let refused = tried.iter().any(|program| program.refused.is_some());
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(tried: &[TriedProgram], verbose: bool) -> String {
    let mut table = Table::new(&["PROGRAM", "TYPE", "SCOPE", "VERIFIED", "ANSWER"]);
    for program in tried {
        table.row([
            program.name.clone(),
            program.kind.clone(),
            program.scope.as_ref().map_or_else(|| "-".to_owned(), word),
            program.verified_instructions.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            program.refused.clone().unwrap_or_else(|| "loads".to_owned()),
        ]);
    }
    let mut text = table.to_string();
    for program in tried {
        if let Some(why) = &program.beyond_container {
            _ = writeln!(text, "\n{} needs host scope: {}", printable(&program.name), printable(why));
        }
        if let Some(log) = program.verifier_log.as_ref().filter(|_| verbose) {
            _ = writeln!(text, "\nThe verifier's log of {}:", printable(&program.name));
            log.lines().for_each(|line| _ = writeln!(text, "  {}", printable(line)));
        }
    }
    text
}
