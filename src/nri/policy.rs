//! The policy in memory, reloaded when one of its files changes: handlers never read a policy file.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::lifecycle::policy_files;
use crate::model::policy::Policy;
use crate::paths::Paths;
use crate::sys::SysError;
use crate::sys::error::chain;

/// How often the files are checked. The hook reads the policy itself, so an outdated one can refuse requests for this
/// long, but not allow any.
const LOOK: Duration = Duration::from_secs(1);

/// A policy, or why it cannot be loaded.
pub type PolicyOrError = Result<Policy, String>;

/// The policy as it was last loaded.
#[derive(Debug, Clone)]
pub struct CachedPolicy(Arc<RwLock<Arc<PolicyOrError>>>);

/// Path, inode, length and times of each file: these change with a file's contents.
type PolicyStamp = Vec<(PathBuf, u64, u64, i64, i64)>;

impl CachedPolicy {
    /// Loads the policy, and checks its files for changes as long as the process lives.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn begin(paths: &Paths) -> Result<Self, SysError> {
        let mut before = look(paths);
        let kept = Self(Arc::new(RwLock::new(Arc::new(read(paths)))));
        let (paths, shared) = (paths.clone(), kept.clone());
        let looking = move || {
            loop {
                std::thread::sleep(LOOK);
                let now = look(&paths);
                if now != before {
                    let judged = Arc::new(read(&paths));
                    *shared.0.write().unwrap_or_else(PoisonError::into_inner) = judged;
                    before = now;
                }
            }
        };
        std::thread::Builder::new().spawn(looking).map_err(SysError::io("start the thread", "that watches the policy"))?;
        Ok(kept)
    }

    /// The current policy.
    pub fn now(&self) -> Arc<PolicyOrError> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(paths: &Paths) -> PolicyOrError {
    policy_files::load(paths).map(|loaded| loaded.policy).map_err(|error| chain(&error))
}

/// The set of files counts as well. Keys do not, because only the hook reads them.
fn look(paths: &Paths) -> PolicyStamp {
    let directories = [paths.policy_directory(), paths.keys()];
    let listed = directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let all = listed.chain(directories.iter().cloned()).chain([paths.policy_file()]);
    let mut seen: PolicyStamp = all
        .filter_map(|path| {
            let meta = std::fs::symlink_metadata(&path).ok()?;
            Some((
                path,
                meta.ino(),
                meta.len(),
                meta.mtime_nsec() ^ meta.mtime().rotate_left(32),
                meta.ctime_nsec() ^ meta.ctime().rotate_left(32),
            ))
        })
        .collect();
    seen.sort();
    seen
}
