//! Commands for the image cache: `image list`, `image rm`, `image prune`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use crate::cli::Listing;
use crate::cli::image::{ImagePruneArgs, ImageRmArgs};
use crate::image::{Cache, SweepSelection, Swept};
use crate::model::ids::Digest;
use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::output::format::{ListFormat, json};
use crate::output::print;
use crate::output::table::{Table, printable};
use crate::paths::Paths;
use crate::store::{Store, StoreError};
use crate::sys::clock;

/// `image list`, and its other names `images` and `list images`
pub fn list(paths: &Paths, listing: Listing) -> Result<ExitCode, CommandError> {
    let cached = Cache::new(&paths.cache).images()?;
    print(&match ListFormat::from(listing) {
        ListFormat::Json => json(&cached),
        ListFormat::Quiet => cached.iter().map(|image| format!("{}\n", image.digest)).collect(),
        ListFormat::Table => {
            let mut table = Table::new(&["REFERENCE", "DIGEST", "SIZE", "PULLED"]);
            for image in &cached {
                table.row([
                    image.reference.clone(),
                    image.digest.hex().chars().take(12).collect(),
                    super::size(image.size),
                    ago(image.pulled),
                ]);
            }
            table.to_string()
        }
    })
}

/// `image rm REF|DIGEST…`
pub fn remove(paths: &Paths, args: &ImageRmArgs) -> Result<ExitCode, CommandError> {
    let cache = Cache::new(&paths.cache);
    let mut all = Swept::default();
    let mut status = ExitCode::SUCCESS;
    for text in &args.images {
        match remove_one(&cache, text) {
            Ok(swept) => add(&mut all, swept),
            Err(error) => status = error.print(),
        }
    }
    show(&all, args.format.into(), "removed")?;
    Ok(status)
}

fn remove_one(cache: &Cache, text: &str) -> Result<Swept, CommandError> {
    let swept = cache.sweep(&which(text)?, &BTreeSet::new(), false)?;
    match swept.references.is_empty() {
        true => {
            let problem = "it is not in the cache; see `bpfman-hook images`";
            Err(CommandError::new(format!("remove {}: {problem}", printable(text))))
        }
        false => Ok(swept),
    }
}

fn which(text: &str) -> Result<SweepSelection, CommandError> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(SweepSelection::Digests(BTreeSet::from([digest])));
    }
    match Reference::parse(text)? {
        Reference::Registry(at) => Ok(SweepSelection::References(BTreeSet::from([Reference::Registry(at).to_string()]))),
        other => Err(CommandError::new(format!("remove {other}: the cache holds only images from registries"))),
    }
}

/// `image prune [--all] [--dry-run]`
pub fn prune(paths: &Paths, args: ImagePruneArgs) -> Result<ExitCode, CommandError> {
    // If it is not known which images are unused, nothing is removed.
    let in_use = in_use(paths)?;
    let which = if args.all { SweepSelection::Unused } else { SweepSelection::Dangling };
    let swept = Cache::new(&paths.cache).sweep(&which, &in_use, args.dry_run)?;
    show(&swept, args.format.into(), if args.dry_run { "would be removed" } else { "removed" })
}

/// The images of every owner, including owners that are being released.
pub(super) fn in_use(paths: &Paths) -> Result<BTreeSet<Digest>, CommandError> {
    let Some(store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else {
        return Ok(BTreeSet::new());
    };
    let mut in_use = BTreeSet::new();
    for record in store.records() {
        let record = record.map_err(|error| match error {
            StoreError::Record { .. } => {
                let error = CommandError::doing("prune images")(error);
                CommandError::with_remedy("run bpfman-hook gc first")(error)
            }
            error => error.into(),
        })?;
        in_use.extend(record.images.iter().map(|image| image.digest));
    }
    Ok(in_use)
}

fn add(all: &mut Swept, more: Swept) {
    all.references.extend(more.references);
    all.images.extend(more.images);
    all.blobs += more.blobs;
    all.bytes += more.bytes;
}

fn show(swept: &Swept, format: ListFormat, verb: &str) -> Result<ExitCode, CommandError> {
    print(&match format {
        ListFormat::Json => json(swept),
        ListFormat::Table | ListFormat::Quiet => {
            let mut text: String = swept.references.iter().map(|name| format!("{}\n", printable(name))).collect();
            text.push_str(&format!(
                "{verb}: {} references, {} images, {} blobs, {}\n",
                swept.references.len(),
                swept.images.len(),
                swept.blobs,
                super::size(swept.bytes),
            ));
            text
        }
    })
}

fn ago(then: u64) -> String {
    let seconds = clock::unix_seconds().saturating_sub(then);
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86400),
    }
}
