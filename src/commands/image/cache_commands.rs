//! Commands for the image cache: `images`, `image list`, `image rm`, `image prune`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use crate::cli::Listing;
use crate::cli::image::{ImagePruneArgs, ImageRmArgs};
use crate::image::{Cache, SweepSelection, Swept};
use crate::model::ids::Digest;
use crate::model::reference::Reference;
use crate::output::format::{ListFormat, json};
use crate::output::table::{Table, printable};
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::store::{Store, StoreError};
use crate::sys::clock;
use crate::sys::error::chain;

/// `images`, `image list`, `list images`
pub fn list(paths: &Paths, listing: Listing) -> ExitCode {
    let cached = match Cache::new(&paths.cache).images() {
        Ok(cached) => cached,
        Err(error) => return fail(&chain(&error)),
    };
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
pub fn remove(paths: &Paths, args: &ImageRmArgs) -> ExitCode {
    let cache = Cache::new(&paths.cache);
    let mut all = Swept::default();
    let mut status = ExitCode::SUCCESS;
    for text in &args.images {
        let result = which(text).and_then(|which| {
            let swept = cache.sweep(&which, &BTreeSet::new(), false).map_err(|e| chain(&e))?;
            match swept.references.is_empty() {
                true => Err(format!("remove {}: it is not in the cache; see `bpfman-hook images`", printable(text))),
                false => Ok(swept),
            }
        });
        match result {
            Ok(swept) => add(&mut all, swept),
            Err(sentence) => status = fail(&sentence),
        }
    }
    let printed = show(&all, args.format.into(), "removed");
    if status == ExitCode::SUCCESS { printed } else { status }
}

fn which(text: &str) -> Result<SweepSelection, String> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(SweepSelection::Digests(BTreeSet::from([digest])));
    }
    match Reference::parse(text).map_err(|e| chain(&e))? {
        Reference::Registry(at) => Ok(SweepSelection::References(BTreeSet::from([Reference::Registry(at).to_string()]))),
        other => Err(format!("remove {other}: the cache holds only images from registries")),
    }
}

/// `image prune [--all] [--dry-run]`
pub fn prune(paths: &Paths, args: ImagePruneArgs) -> ExitCode {
    let in_use = match in_use(paths) {
        Ok(in_use) => in_use,
        // If it is not known which images are unused, nothing is removed.
        Err(sentence) => return fail(&sentence),
    };
    let which = if args.all { SweepSelection::Unused } else { SweepSelection::Dangling };
    match Cache::new(&paths.cache).sweep(&which, &in_use, args.dry_run) {
        Ok(swept) => show(&swept, args.format.into(), if args.dry_run { "would be removed" } else { "removed" }),
        Err(error) => fail(&chain(&error)),
    }
}

/// The images of every owner, including owners that are being released.
pub(super) fn in_use(paths: &Paths) -> Result<BTreeSet<Digest>, String> {
    let boot = clock::boot_id().map_err(|e| chain(&e))?;
    let Some(store) = Store::open_existing(&paths.stores(), &boot).map_err(|e| chain(&e))? else {
        return Ok(BTreeSet::new());
    };
    let mut in_use = BTreeSet::new();
    for record in store.records() {
        let record = record.map_err(|error| match error {
            StoreError::Record { .. } => format!("prune images: {}; run bpfman-hook gc first", chain(&error)),
            error => chain(&error),
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

fn show(swept: &Swept, format: ListFormat, verb: &str) -> ExitCode {
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
