//! Puts the gate in force and ends it: see [`crate::kernel::gate`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::image::{Cache, CacheError, Images as _, InUse, LinuxImages, Want};
use crate::kernel::gate::{self, GateError};
use crate::kernel::{Kernel as _, KernelError, LinuxKernel};
use crate::lifecycle::policy_files::LoadedPolicy;
use crate::model::bytecode::PullPolicy;
use crate::model::gate::{DigestKind, ExecutableDigest, GateRules};
use crate::model::policy::ImageRule;
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;
use crate::paths::Paths;
use crate::sys::error::chain;
use crate::sys::fsutil::ensure_directory;
use crate::sys::{SysError, mounts, verity};

/// The file that this process executes.
const OWN: &str = "/proc/self/exe";
/// Time limit for the verification of one image.
const PATIENCE: Duration = Duration::from_secs(10);

/// Mounts our bpffs if it is not mounted, and puts the gate in force with these rules. This program is always on the list,
/// and so is `installed`, the program that hooks run.
///
/// # Errors
/// See [`gate::load`].
pub fn load(paths: &Paths, rules: &GateRules, installed: Option<&Path>) -> Result<(), GateError> {
    ensure_directory(&paths.run, 0o755)?;
    mounts::ensure_bpffs(&paths.bpffs())?;
    let mut own = Vec::new();
    for path in [Some(Path::new(OWN)), installed].into_iter().flatten() {
        let shown = path.display().to_string();
        let file = File::open(path).map_err(SysError::io("open", &shown))?;
        // The kernel need not read a file whose digest it has.
        own.extend(verity::measure(&file).ok().map(|digest| ExecutableDigest { kind: DigestKind::FsVerity, digest }));
        own.push(ExecutableDigest::sha256(sha256(file).map_err(SysError::io("read", &shown))?));
    }
    gate::load(&paths.gate(), rules, &own)
}

/// Enables fs-verity on a file of ours, where the file system can. The kernel then knows the file's digest without reading
/// it. A failure changes nothing, and is not reported.
pub fn seal(path: &Path) {
    _ = File::open(path).map(|file| verity::enable(&file));
}

/// Ends the gate; the result says whether there was one.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(directory: &Path) -> Result<bool, KernelError> {
    gate::unload(directory)
}

/// The executables that the cached images of these rules name. Each image is verified against the policy, and its registry is
/// not asked.
///
/// # Errors
/// If the cache cannot be read. An image that no longer satisfies the policy names none, and is logged.
pub fn executables_of_images(
    paths: &Paths,
    policy: &LoadedPolicy,
    names: &BTreeSet<String>,
) -> Result<BTreeSet<ExecutableDigest>, CacheError> {
    let mut found = BTreeSet::new();
    if names.is_empty() {
        return Ok(found);
    }
    let images = LinuxImages::new(&paths.cache, paths.root());
    for cached in Cache::new(&paths.cache).images()? {
        let Ok(reference) = Reference::parse(&cached.reference) else { continue };
        let named = policy.policy.images.iter().filter(|rule| names.contains(&rule.name));
        let rules: Vec<&ImageRule> = named.filter(|rule| rule.repository.matches(&reference)).collect();
        if rules.is_empty() {
            continue;
        }
        let fetched = images.fetch(&Want {
            reference: &reference,
            pull: PullPolicy::Never,
            rules: &rules,
            keys: &policy.keys,
            policy: policy.id,
            registries: &RegistryConfig::default(),
            deadline: Instant::now() + PATIENCE,
            tenant: "",
            in_use: InUse::NONE,
        });
        let facts = fetched
            .map_err(|error| chain(&error))
            .and_then(|bytecode| LinuxKernel.describe(&bytecode.object).map_err(|error| chain(&error)));
        match facts {
            Ok(facts) => found.extend(facts.executables),
            Err(why) => tracing::warn!(image = %reference, error = %why, "its executables are not listed"),
        }
    }
    Ok(found)
}

/// The sha256 of a file's contents.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(mut file: File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}
