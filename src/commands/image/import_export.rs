//! `image export` and `image import`: transfer images and their signatures to machines without a network.

use std::process::ExitCode;

use crate::cli::RegistryArgs;
use crate::cli::image::{ImageExportArgs, ImageImportArgs};
use crate::commands::image::pull::{ImagePolicyFiles, Pulled, print_pulled};
use crate::image::{Archive, InUse, LinuxImages};
use crate::model::bytecode::PullPolicy;
use crate::model::ids::Digest;
use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;

/// `image export REF FILE`
pub fn export(paths: &Paths, args: &ImageExportArgs) -> Result<ExitCode, CommandError> {
    let text = exported(paths, args)?;
    if args.quiet { Ok(ExitCode::SUCCESS) } else { print(&text) }
}

fn exported(paths: &Paths, args: &ImageExportArgs) -> Result<String, CommandError> {
    let reference = super::reference(&args.reference)?;
    let name = match (&args.name, &reference) {
        (Some(name), _) => Some(super::reference(name)?.to_string()),
        (None, Reference::Registry(at)) if at.tag.is_none() => None,
        (None, Reference::Registry(_)) => Some(reference.to_string()),
        (None, Reference::Layout { tag, .. } | Reference::Archive { tag, .. }) => tag.clone(),
        (None, Reference::File { .. }) => None,
    };
    let images = super::images(paths);
    let image_set = images.local(&reference)?;
    let doing = CommandError::doing(format!("export to {}", args.file.display()));
    let file = std::path::absolute(&args.file).map_err(doing)?;
    let to = Reference::Archive { path: file, tag: None };
    images.deliver(&image_set, &to, name.as_deref())?;
    let mut text = format!("{}\n", image_set.digest);
    if image_set.signatures.is_empty() {
        text.push_str("exported without signatures: none is cached, since no rule required one when the image was pulled\n");
    }
    if !image_set.left_out.is_empty() {
        text.push_str(&format!("left out, since not in the cache: {}\n", printable(&image_set.left_out.join(", "))));
    }
    Ok(text)
}

/// `image import FILE [REF]`
pub fn import(paths: &Paths, args: &ImageImportArgs) -> Result<ExitCode, CommandError> {
    let rules = ImagePolicyFiles::load(paths, &RegistryArgs::default())?;
    let images = super::images(paths);
    let (archive, wanted) = contents(args)?;
    let mut status = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for (reference, digest) in wanted {
        match one(&images, &rules, &archive, &reference, &digest) {
            Ok(pulled) => done.push(pulled),
            Err(error) => status = error.print(),
        }
    }
    print_pulled(&done, args.quiet, args.output)?;
    Ok(status)
}

/// The images of the archive, with the names that they get in the cache.
fn contents(args: &ImageImportArgs) -> Result<(Archive, Vec<(Reference, Digest)>), CommandError> {
    let shown = args.file.display();
    let refused = |problem: String| Err(CommandError::new(format!("import {shown}: {problem}")));
    let archive = Archive::read(&args.file)?;
    let found = archive.images()?;
    let wanted = match &args.reference {
        Some(text) => {
            let reference = super::reference(text)?;
            if !matches!(reference, Reference::Registry(_)) {
                return refused(format!("{reference} is not a valid name in the cache; write registry/repository:tag"));
            }
            let mut named: Vec<Digest> = found
                .iter()
                .filter(|(name, _)| name.as_deref().is_some_and(|name| super::reference(name).as_ref() == Ok(&reference)))
                .map(|(_, digest)| *digest)
                .collect();
            if named.is_empty() {
                named = found.iter().map(|(_, digest)| *digest).collect();
            }
            named.sort();
            named.dedup();
            match named.as_slice() {
                [digest] => vec![(reference, *digest)],
                [] => return refused("it contains no image".to_owned()),
                _ => return refused(format!("it contains {} images, but not {reference}", named.len())),
            }
        }
        None => {
            let named = |(name, digest): &(Option<String>, Digest)| {
                let reference = Reference::parse(name.as_deref()?).ok()?;
                matches!(reference, Reference::Registry(_)).then_some((reference, *digest))
            };
            found.iter().filter_map(named).collect()
        }
    };
    if wanted.is_empty() {
        return refused(format!(
            "none of its images has a registry name; write bpfman-hook image import {shown} registry/repository:tag"
        ));
    }
    Ok((archive, wanted))
}

fn one(
    images: &LinuxImages,
    rules: &ImagePolicyFiles,
    archive: &Archive,
    reference: &Reference,
    digest: &Digest,
) -> Result<Pulled, CommandError> {
    let selected = rules.of(reference, "import")?;
    let want = rules.want(reference, &selected, PullPolicy::IfNotPresent, InUse::NONE);
    Ok(Pulled::from(images.import(&want, archive, digest)?))
}
