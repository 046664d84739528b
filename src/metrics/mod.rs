//! `metrics`: a process that reads what the runs leave, and needs no rights but to read it. See
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
        // One at a time: what many scrapers at once cost is time, not memory.
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

/// The page, or why there is none: zeros from somebody who may not look would be lies.
fn page(directory: &Path, exposition: Exposition) -> Result<String, String> {
    static SAID: Once = Once::new();
    if let Err(error) = fs::read_dir(directory)
        && error.kind() == ErrorKind::PermissionDenied
    {
        return Err(format!("read {}: only root and the directory's group may, run it as one of them", directory.display()));
    }
    let gathered = gather(directory);
    if gathered.source == StatsSource::Nowhere {
        SAID.call_once(|| {
            eprintln!(
                "bpfman-hook: run time, memory and load time of programs are left out: the kernel tells them to \
                 CAP_SYS_ADMIN only, and nobody has left a sample; let root run `bpfman-hook metrics --sample` now and then"
            );
        });
    }
    Ok(gathered.page(exposition))
}

/// Asks the kernel, as root, and leaves the answers for a process that may not.
fn sample(directory: &Path) -> ExitCode {
    // Nothing has been recorded since boot: there is nothing to ask about.
    if !directory.exists() {
        return ExitCode::SUCCESS;
    }
    let (owner_files, _) = owner_files(directory);
    let programs = match ask(&owner_files) {
        Ok(programs) => programs,
        Err(errno) => return fail(&format!("ask the kernel about our programs: {errno}; run it as root")),
    };
    match Export::open(directory) {
        Some(export) => {
            export.put_programs(&serde_json::to_vec(&programs).expect("numbers are JSON"));
            ExitCode::SUCCESS
        }
        None => fail(&format!("write to {}: it is not a directory that is ours alone; run it as root", directory.display())),
    }
}
