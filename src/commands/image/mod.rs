//! `pull` and `image …`: one module per subject.

pub mod build;
pub mod cache_commands;
pub mod import_export;
pub mod inspect;
pub mod pull;
pub mod push;
pub mod sign;
pub mod test;
mod user_auth;
pub mod verify;

use std::process::ExitCode;

use crate::cli::image::ImageCommand;
use crate::image::LinuxImages;
use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::paths::Paths;

/// `image WHAT`
pub fn run(paths: &Paths, what: &ImageCommand) -> Result<ExitCode, CommandError> {
    match what {
        ImageCommand::List(listing) => cache_commands::list(paths, *listing),
        ImageCommand::Inspect(args) => inspect::run(paths, args),
        ImageCommand::Test(args) => test::run(paths, args),
        ImageCommand::Verify(args) => verify::run(paths, args),
        ImageCommand::Pull(args) => pull::run(paths, args),
        ImageCommand::Build(args) => build::run(paths, args),
        ImageCommand::Sign(args) => sign::run(args),
        ImageCommand::Keyring(args) => sign::keyring(paths, args),
        ImageCommand::Push(args) => push::run(paths, args),
        ImageCommand::GenerateBuildArgs(args) => build::print_arguments(args),
        ImageCommand::Rm(args) => cache_commands::remove(paths, args),
        ImageCommand::Prune(args) => cache_commands::prune(paths, *args),
        ImageCommand::Export(args) => import_export::export(paths, args),
        ImageCommand::Import(args) => import_export::import(paths, args),
    }
}

/// The local images, with a cache that keeps what is fetched.
fn images(paths: &Paths) -> LinuxImages {
    LinuxImages::new(&paths.cache, paths.root()).to_keep()
}

/// Parses a reference as users write it; relative paths of layouts and files are resolved against the working
/// directory.
fn reference(text: &str) -> Result<Reference, CommandError> {
    let parsed = ["oci:", "oci-archive:", "file:"].into_iter().find_map(|transport| {
        let place = text.strip_prefix(transport).filter(|place| !place.starts_with('/') && !place.is_empty())?;
        let here = std::env::current_dir().ok()?;
        let mut path = here;
        for part in place.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    path.pop();
                }
                part => path.push(part),
            }
        }
        Some(Reference::parse(&format!("{transport}{}", path.display())))
    });
    Ok(parsed.unwrap_or_else(|| Reference::parse(text))?)
}

/// Formats a number of bytes for humans.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (16 << 20, "16.0 MiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn paths_are_relative_to_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        let absolute = format!("oci:{}/out:v1", here.display());
        assert_eq!(reference("oci:./x/../out:v1"), reference(&absolute));
        assert_eq!(reference("ghcr.io/a/b:v1").unwrap().to_string(), "ghcr.io/a/b:v1");
        assert!(reference("busybox").unwrap_err().to_string().contains("has no registry"));
    }
}
