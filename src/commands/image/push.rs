//! `image push SRC [DEST]`: pushes local images with their signatures to registries.

use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use crate::cli::image::ImagePushArgs;
use crate::cli::{Format, RegistryArgs};
use crate::commands::image::pull::PATIENCE;
use crate::commands::image::user_auth::registries;
use crate::image::{ImageSet, Pushed, Target};
use crate::model::reference::{Reference, RegistryReference};
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::paths::Paths;

/// The result, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct PushedView {
    reference: String,
    digest: String,
    blobs_sent: usize,
    blobs_spared: usize,
    signatures: usize,
}

/// `image push SRC [DEST]`
pub fn run(paths: &Paths, args: &ImagePushArgs) -> Result<ExitCode, CommandError> {
    let view = from_here(paths, args)?;
    print(&match (args.quiet, args.output) {
        (false, Format::Json) => json(&view),
        _ => format!("{}\n", view.digest),
    })
}

fn from_here(paths: &Paths, args: &ImagePushArgs) -> Result<PushedView, CommandError> {
    let source = super::reference(&args.source)?;
    let destination = args.destination.as_deref().map(super::reference).transpose()?;
    let to = destination.as_ref().unwrap_or(&source);
    let Reference::Registry(at) = to else {
        let problem = "is not in a registry; write registry/repository:tag after it";
        return Err(CommandError::new(format!("push {source}: {to} {problem}")));
    };
    let image_set = super::images(paths).local(&source)?;
    // Blobs that were pulled from the same registry exist there, in another repository.
    let from = match &source {
        Reference::Registry(from) if from.registry == at.registry => Some(from.repository.as_str()),
        _ => None,
    };
    let pushed = push(paths, &args.registry, &image_set, at, from)?;
    Ok(PushedView {
        reference: to.to_string(),
        digest: pushed.digest.to_string(),
        blobs_sent: pushed.sent,
        blobs_spared: pushed.spared,
        signatures: pushed.signatures,
    })
}

/// Pushes an image set to a registry.
pub(super) fn push(
    paths: &Paths,
    args: &RegistryArgs,
    image_set: &ImageSet,
    at: &RegistryReference,
    from: Option<&str>,
) -> Result<Pushed, CommandError> {
    let registries = registries(paths, args)?;
    let target = Target { at, from, registries: &registries, deadline: Instant::now() + PATIENCE };
    Ok(super::images(paths).push(image_set, target)?)
}
