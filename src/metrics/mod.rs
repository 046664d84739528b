//! `metrics`: exports metrics from the files that each run writes; reading them is the only privilege it needs. See
//! docs/decisions/0008-where-metrics-come-from.md.

pub mod gather;
pub mod serve;
#[cfg(test)]
mod tests;
pub mod text;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use crate::cli::watch::MetricsArgs;
use crate::metrics::gather::{StatsSource, ask, gather, owner_files};
use crate::metrics::serve::MetricsAddress;
use crate::metrics::text::Exposition;
use crate::output::error::{AS_ROOT, CommandError};
use crate::output::print;
use crate::paths::Paths;
use crate::sys::export::Export;
use crate::sys::fsutil;

/// Serves, writes or prints metrics.
pub fn run(paths: &Paths, args: &MetricsArgs) -> Result<ExitCode, CommandError> {
    let directory = paths.export();
    if args.sample {
        return sample(&directory);
    }
    if let Some(listen) = &args.listen {
        let address = MetricsAddress::parse(listen)?;
        // One page at a time: concurrent scrapers then cost time, not memory.
        let turn = Mutex::new(());
        let pages = move |exposition| {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            page(&directory, exposition)
        };
        serve::serve(&address, Arc::new(pages))?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let page = page(&directory, Exposition::Prometheus)?;
        let Some(file) = &args.textfile else { return print(&page) };
        fsutil::write_atomically(file, page.as_bytes(), 0o644)?;
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(Duration::from_secs(args.interval));
    }
}

/// The page, or the reason why it cannot be produced: an unprivileged process must not report wrong zeros.
fn page(directory: &Path, exposition: Exposition) -> Result<String, CommandError> {
    static SAID: Once = Once::new();
    if let Err(error) = fs::read_dir(directory)
        && error.kind() == ErrorKind::PermissionDenied
    {
        let problem = "only root and the directory's group may; run this as one of them";
        return Err(CommandError::new(format!("read {}: {problem}", directory.display())));
    }
    let gathered = gather(directory);
    if gathered.source == StatsSource::Nowhere {
        SAID.call_once(|| {
            eprintln!(
                "bpfman-hook: run time, memory and load time of programs are omitted: the kernel reports them to \
                 CAP_SYS_ADMIN only, and no sample exists; run `bpfman-hook metrics --sample` as root periodically"
            );
        });
    }
    Ok(gathered.page(exposition))
}

/// Queries the kernel as root, and stores the results for an unprivileged process.
fn sample(directory: &Path) -> Result<ExitCode, CommandError> {
    // Nothing has been recorded since boot, so there is nothing to query.
    if !directory.exists() {
        return Ok(ExitCode::SUCCESS);
    }
    let (owner_files, _) = owner_files(directory);
    let programs = ask(&owner_files)
        .map_err(CommandError::doing("query the kernel about our programs"))
        .map_err(CommandError::with_remedy(AS_ROOT))?;
    let Some(export) = Export::open(directory) else {
        let problem = "it is not a directory that only bpfman-hook writes; run this as root";
        return Err(CommandError::new(format!("write to {}: {problem}", directory.display())));
    };
    export.put_programs(&serde_json::to_vec(&programs).expect("numbers are JSON"));
    Ok(ExitCode::SUCCESS)
}
