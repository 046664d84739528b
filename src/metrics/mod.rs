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
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::sys::error::chain;
use crate::sys::export::Export;
use crate::sys::fsutil;

/// Exit status for bad usage.
const BAD_USAGE: u8 = 2;

/// Serves, writes or prints metrics.
pub fn run(paths: &Paths, args: &MetricsArgs) -> ExitCode {
    let directory = paths.export();
    if args.sample {
        return sample(&directory);
    }
    if let Some(listen) = &args.listen {
        let address = match MetricsAddress::parse(listen) {
            Ok(address) => address,
            Err(sentence) => {
                fail(&sentence);
                return ExitCode::from(BAD_USAGE);
            }
        };
        // One page at a time: concurrent scrapers then cost time, not memory.
        let turn = Mutex::new(());
        let pages = move |exposition| {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            page(&directory, exposition)
        };
        return match serve::serve(&address, Arc::new(pages)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => fail(&sentence),
        };
    }
    loop {
        let page = match page(&directory, Exposition::Prometheus) {
            Ok(page) => page,
            Err(sentence) => return fail(&sentence),
        };
        let Some(file) = &args.textfile else { return print(&page) };
        if let Err(error) = fsutil::write_atomically(file, page.as_bytes(), 0o644) {
            return fail(&chain(&error));
        }
        if args.once {
            return ExitCode::SUCCESS;
        }
        thread::sleep(Duration::from_secs(args.interval));
    }
}

/// The page, or the reason why it cannot be produced: an unprivileged process must not report wrong zeros.
fn page(directory: &Path, exposition: Exposition) -> Result<String, String> {
    static SAID: Once = Once::new();
    if let Err(error) = fs::read_dir(directory)
        && error.kind() == ErrorKind::PermissionDenied
    {
        return Err(format!("read {}: only root and the directory's group may; run this as one of them", directory.display()));
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
fn sample(directory: &Path) -> ExitCode {
    // Nothing has been recorded since boot, so there is nothing to query.
    if !directory.exists() {
        return ExitCode::SUCCESS;
    }
    let (owner_files, _) = owner_files(directory);
    let programs = match ask(&owner_files) {
        Ok(programs) => programs,
        Err(errno) => return fail(&format!("query the kernel about our programs: {errno}; run this as root")),
    };
    match Export::open(directory) {
        Some(export) => {
            export.put_programs(&serde_json::to_vec(&programs).expect("numbers are JSON"));
            ExitCode::SUCCESS
        }
        None => fail(&format!(
            "write to {}: it is not a directory that only bpfman-hook writes; run this as root",
            directory.display()
        )),
    }
}
