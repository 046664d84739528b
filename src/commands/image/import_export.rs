//! `image export` and `image import`: transfer images and their signatures to machines without a network.

use std::process::ExitCode;
use std::time::Instant;

use crate::cli::RegistryArgs;
use crate::cli::image::{ImageExportArgs, ImageImportArgs};
use crate::commands::image::pull::{ImagePolicyFiles, PATIENCE, Pulled, print_pulled};
use crate::image::{Archive, InUse, LinuxImages, Want};
use crate::model::bytecode::PullPolicy;
use crate::model::ids::Digest;
use crate::model::reference::Reference;
use crate::output::table::printable;
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::sys::error::chain;

/// `image export REF FILE`
pub fn export(paths: &Paths, args: &ImageExportArgs) -> ExitCode {
    match exported(paths, args) {
        Ok(text) if args.quiet => {
            drop(text);
            ExitCode::SUCCESS
        }
        Ok(text) => print(&text),
        Err(sentence) => fail(&sentence),
    }
}

fn exported(paths: &Paths, args: &ImageExportArgs) -> Result<String, String> {
    let reference = super::reference(&args.reference)?;
    let name = match (&args.name, &reference) {
        (Some(name), _) => Some(super::reference(name)?.to_string()),
        (None, Reference::Registry(at)) if at.tag.is_none() => None,
        (None, Reference::Registry(_)) => Some(reference.to_string()),
        (None, Reference::Layout { tag, .. } | Reference::Archive { tag, .. }) => tag.clone(),
        (None, Reference::File { .. }) => None,
    };
    let images = super::images(paths);
    let image_set = images.local(&reference).map_err(|e| chain(&e))?;
    let file = std::path::absolute(&args.file).map_err(|err| format!("export to {}: {err}", args.file.display()))?;
    let to = Reference::Archive { path: file, tag: None };
    images.deliver(&image_set, &to, name.as_deref()).map_err(|e| chain(&e))?;
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
pub fn import(paths: &Paths, args: &ImageImportArgs) -> ExitCode {
    let rules = match ImagePolicyFiles::load(paths, &RegistryArgs::default()) {
        Ok(rules) => rules,
        Err(status) => return status,
    };
    let images = super::images(paths);
    let (archive, wanted) = match contents(args) {
        Ok(contents) => contents,
        Err(sentence) => return fail(&sentence),
    };
    let mut status = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for (reference, digest) in wanted {
        match one(&images, &rules, &archive, &reference, &digest) {
            Ok(pulled) => done.push(pulled),
            Err(sentence) => status = fail(&sentence),
        }
    }
    print_pulled(&done, args.quiet, args.output);
    status
}

/// The images of the archive, with the names that they get in the cache.
fn contents(args: &ImageImportArgs) -> Result<(Archive, Vec<(Reference, Digest)>), String> {
    let shown = args.file.display();
    let archive = Archive::read(&args.file).map_err(|e| chain(&e))?;
    let found = archive.images().map_err(|e| chain(&e))?;
    let wanted = match &args.reference {
        Some(text) => {
            let reference = super::reference(text)?;
            if !matches!(reference, Reference::Registry(_)) {
                return Err(format!(
                    "import {shown}: {reference} is not a valid name in the cache; write registry/repository:tag"
                ));
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
                [] => return Err(format!("import {shown}: it contains no image")),
                _ => return Err(format!("import {shown}: it contains {} images, but not {reference}", named.len())),
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
        return Err(format!(
            "import {shown}: none of its images has a registry name; write bpfman-hook image import {shown} registry/repository:tag"
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
) -> Result<Pulled, String> {
    let selected = rules.of(reference, "import")?;
    let want = Want {
        reference,
        pull: PullPolicy::IfNotPresent,
        rules: &selected,
        keys: &rules.policy.keys,
        policy: rules.policy.id,
        registries: &rules.registries,
        deadline: Instant::now() + PATIENCE,
        tenant: "",
        in_use: InUse::NONE,
    };
    images.import(&want, archive, digest).map(Pulled::from).map_err(|e| chain(&e))
}
