//! The programs of verified images, by the digests of their instructions on this kernel: what a workload may load itself if
//! the policy names their images.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::image::{self, Cache, Images as _, InUse, LinuxImages, Want};
use crate::kernel::{KERNEL_BTF, programs_in_call_order};
use crate::lifecycle::policy_files;
use crate::model::bytecode::{ImageVerdict, PullPolicy};
use crate::model::ids::Digest;
use crate::model::policy::RepositoryPattern;
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;
use crate::paths::Paths;
use crate::sys::error::chain;

/// Time limit for all of them; a call of the container waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// Images that are looked at: a pattern can cover all of a cache.
const IMAGES_MAX: usize = 256;

/// A program of a verified image: its type, `enum bpf_prog_type`, and the digest of its instructions in the order of
/// [`crate::kernel::in_call_order`].
pub type VerifiedProgram = (u32, Digest);

/// What the images give that the patterns cover.
#[derive(Debug, Default)]
pub struct FoundPrograms {
    /// The programs.
    pub programs: BTreeSet<VerifiedProgram>,
    /// Why images give none, one sentence each.
    pub problems: Vec<String>,
}

/// The programs of the images that the patterns cover: those in the cache, and host paths, which a pattern names in whole. An
/// image counts if a signature satisfies an image rule of the policy. Programs that this version's loader cannot link are
/// left out.
pub fn find(paths: &Paths, patterns: &BTreeSet<RepositoryPattern>) -> FoundPrograms {
    let mut found = FoundPrograms::default();
    let policy = match policy_files::load(paths) {
        Ok(policy) => policy,
        Err(error) => {
            found.problems.push(format!("no program of a verified image may be loaded: {}", chain(&error)));
            return found;
        }
    };
    let images = LinuxImages::new(&paths.cache, Path::new("/"));
    let (deadline, registries) = (Instant::now() + PATIENCE, RegistryConfig::default());
    let kernel = fs::read(KERNEL_BTF).unwrap_or_default();
    for reference in covered(images.cache(), patterns, &mut found.problems) {
        let rules: Vec<_> = policy.policy.images.iter().filter(|rule| rule.repository.matches(&reference)).collect();
        let fetched = images.fetch(&Want {
            reference: &reference,
            pull: PullPolicy::Never,
            rules: &rules,
            keys: &policy.keys,
            policy: policy.id,
            registries: &registries,
            deadline,
            tenant: "",
            in_use: InUse::NONE,
        });
        let why = match fetched {
            Ok(bytecode) if matches!(bytecode.verdict, ImageVerdict::Verified { .. }) => {
                let programs = programs_in_call_order(&bytecode.object, &kernel);
                found.programs.extend(programs.iter().map(|(program_type, code)| (*program_type, image::hash(code))));
                continue;
            }
            Ok(_) => "it is not signed".to_owned(),
            Err(error) => chain(&error),
        };
        found.problems.push(format!("programs of {reference} may not be loaded: {why}"));
    }
    found
}

/// The references that the patterns cover.
fn covered(cache: &Cache, patterns: &BTreeSet<RepositoryPattern>, problems: &mut Vec<String>) -> Vec<Reference> {
    let host = patterns.iter().filter(|pattern| pattern.names_host_path());
    let mut found: Vec<Reference> = host.filter_map(|pattern| Reference::parse(&pattern.to_string()).ok()).collect();
    let cached = cache.images().unwrap_or_else(|error| {
        problems.push(chain(&error));
        Vec::new()
    });
    let cached = cached.iter().filter_map(|image| Reference::parse(&image.reference).ok());
    found.extend(cached.filter(|reference| patterns.iter().any(|pattern| pattern.matches(reference))));
    if found.len() > IMAGES_MAX {
        problems.push(format!("{} images may give programs; only {IMAGES_MAX} are looked at", found.len()));
        found.truncate(IMAGES_MAX);
    }
    found
}
