//! Only one process at a time fetches a reference: a hook whose image another process is fetching waits for that
//! process and uses the result, or gets the reason for its failure.
//!
//! For each fetch there is a file with a lock. The process that holds the lock fetches; the others wait for it. The
//! file is removed before the lock is released: later processes create a new file, while the waiting ones still have
//! the old file open, which contains the reason. If the fetching process is killed, the kernel releases the lock, and
//! the first waiting process takes over.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::image::cache::reader::Cache;
use crate::image::error::{CacheError, ImageError};
use crate::image::hash;
use crate::model::policy::{ImageRule, PolicyId};
use crate::sys::SysError;
use crate::sys::fsutil::{FileLock, ensure_directory, names_in, unlink_if_present};

/// The size limit of a reason, in bytes.
const MAX_NOTE: u64 = 64 << 10;

/// The caller that wants to fetch, and its deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FetchRequest<'a> {
    /// The normalized reference.
    pub image: &'a str,
    /// The policy of the fetch: a reason from a fetch under another policy does not apply.
    pub policy: PolicyId,
    /// The image rules that may allow it, in order: a refusal by other rules does not apply either.
    pub rules: &'a [&'a ImageRule],
    /// The deadline.
    pub deadline: Instant,
    /// True for a user's command, which uses the user's own credentials and files; reasons that depend on these apply
    /// to the user only.
    pub user_env: bool,
}

/// Why a fetch failed, for the processes that wait for it.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    policy: PolicyId,
    /// The names of the rules that decided; None if no rule was involved.
    rules: Option<Vec<String>>,
    reason: String,
}

impl Note {
    /// True if the waiting process would get the same reason from a fetch of its own.
    fn is_for(&self, fetch_request: &FetchRequest<'_>) -> bool {
        let same = |rules: &Vec<String>| rules.iter().eq(fetch_request.rules.iter().map(|rule| &rule.name));
        self.policy == fetch_request.policy && self.rules.as_ref().is_none_or(same)
    }
}

impl Cache {
    /// Fetches an image unless another process is doing so. After another process has finished, `again` checks whether
    /// its result can be used.
    pub(crate) fn fetch_once<T>(
        &self,
        fetch_request: FetchRequest<'_>,
        again: impl Fn() -> Result<Option<T>, ImageError>,
        fetch: impl FnOnce() -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let begin = Instant::now();
        let path = match self.lock_path(fetch_request.image) {
            Ok(path) => path,
            Err(err) => {
                let image = fetch_request.image;
                tracing::warn!(image, error = &err as &dyn std::error::Error, "fetching without waiting for other fetches");
                return fetch();
            }
        };
        // Set if a fetch that we waited for was refused by other rules than ours: the next one may be too, so we wait
        // only once.
        let mut alone = false;
        loop {
            let cache = |source| ImageError::Cache { image: fetch_request.image.to_owned(), source };
            let file = open(&path).map_err(|source| cache(self.failed(source)))?;
            let lock = |patience| FileLock::wait_for(&file, &path, patience).map_err(|source| cache(self.failed(source)));
            let (held, waited) = match lock(Duration::ZERO)? {
                Some(held) => (held, false),
                None if alone => return fetch(),
                None => match lock(fetch_request.deadline.saturating_duration_since(Instant::now()))? {
                    Some(held) => (held, true),
                    None => {
                        let (image, seconds) = (fetch_request.image.to_owned(), begin.elapsed().as_secs());
                        return Err(ImageError::InFlight { image, seconds });
                    }
                },
            };
            let landed = !is_at(&file, &path);
            if waited
                && !fetch_request.user_env
                && let Some(note) = read_note(&file)
            {
                if note.is_for(&fetch_request) {
                    return Err(ImageError::Shared { image: fetch_request.image.to_owned(), reason: note.reason });
                }
                alone = true;
            }
            if (waited || landed)
                && let Some(result) = again()?
            {
                if !landed {
                    unlink_if_present(&path).map_err(|source| cache(self.failed(source)))?;
                }
                return Ok(result);
            }
            if landed {
                // Another process may have created a new file and locked it by now.
                drop(held);
                continue;
            }
            let result = fetch();
            if let Err(err) = &result
                && !fetch_request.user_env
                && is_for_others(err)
            {
                let decided = || fetch_request.rules.iter().map(|rule| rule.name.clone()).collect();
                let rules = (!is_for_every_rule(err)).then(decided);
                write_note(&file, &Note { policy: fetch_request.policy, rules, reason: crate::sys::error::chain(err) });
            }
            if let Err(err) = unlink_if_present(&path) {
                tracing::warn!(error = &err as &dyn std::error::Error, "fetch lock not removed");
            }
            return result;
        }
    }

    /// Removes the lock files of killed processes.
    pub(super) fn remove_dead_locks(&self) -> Result<(), CacheError> {
        let directory = self.path.join("flights");
        for path in names_in(&directory).unwrap_or_default().iter().map(|name| directory.join(name)) {
            let file = open(&path).map_err(|source| self.failed(source))?;
            let lock = FileLock::wait_for(&file, &path, Duration::ZERO).map_err(|source| self.failed(source))?;
            // A process that waits for the lock finds that the file is gone and creates a new one.
            if lock.is_some() && is_at(&file, &path) {
                unlink_if_present(&path).map_err(|source| self.failed(source))?;
            }
        }
        Ok(())
    }

    fn lock_path(&self, image: &str) -> Result<PathBuf, CacheError> {
        let directory = self.path.join("flights");
        for path in [&self.path, &directory] {
            ensure_directory(path, 0o700).map_err(|source| self.not_trusted(source))?;
        }
        let path = directory.join(format!("{}.lock", hash(image.as_bytes()).hex()));
        open(&path).map_err(|source| self.failed(source))?;
        Ok(path)
    }
}

/// True for reasons that depend on the image or its registry. Reasons that depend on the caller (its credentials, its
/// deadline, its child) do not apply to others.
fn is_for_others(err: &ImageError) -> bool {
    !matches!(
        err,
        ImageError::Access { .. }
            | ImageError::Timeout { .. }
            | ImageError::Child { .. }
            | ImageError::Cache { .. }
            | ImageError::HostPath { .. }
            | ImageError::Remote { .. }
    )
}

/// True for reasons that are found before any rule is evaluated. Later ones depend on the rules, which decide whether
/// signatures are searched for and whether the content is read at all.
fn is_for_every_rule(err: &ImageError) -> bool {
    matches!(err, ImageError::NotFound { .. })
}

fn open(path: &Path) -> Result<OwnedFd, SysError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map(OwnedFd::from).map_err(SysError::io("open", path.display().to_string()))
}

/// True if the open file is the one at the path.
fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let ours = file.try_clone().map(File::from).and_then(|file| file.metadata());
    match (ours, std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn read_note(file: &OwnedFd) -> Option<Note> {
    let mut file = File::from(file.try_clone().ok()?);
    file.rewind().ok()?;
    let mut text = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// If the reason cannot be written, the other processes find it themselves.
fn write_note(file: &OwnedFd, note: &Note) {
    let text = serde_json::to_vec(note).expect("strings are JSON");
    if let Ok(mut file) = file.try_clone().map(File::from) {
        let _ = file.rewind().and_then(|()| file.write_all(&text));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::image::cache::tests::cache;
    use crate::model::ids::Digest;

    fn fetch_request(image: &str, patience: Duration) -> FetchRequest<'_> {
        FetchRequest {
            image,
            policy: PolicyId(Digest::from_bytes([1; 32])),
            rules: &[],
            deadline: Instant::now() + patience,
            user_env: false,
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    /// Starts a fetch that ends when `go` is passed, and returns once it holds the lock.
    fn leader<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        cache: &'scope Cache,
        go: &'scope Barrier,
        result: impl FnOnce() -> Result<u32, ImageError> + Send + 'scope,
    ) {
        let begun = std::sync::Arc::new(Barrier::new(2));
        let signal = begun.clone();
        scope.spawn(move || {
            let fetch = || {
                signal.wait();
                go.wait();
                result()
            };
            let _ = cache.fetch_once(fetch_request("a/b:c", LONG), || Ok(None), fetch);
        });
        begun.wait();
    }

    /// The number of lock files that this process has open.
    fn opened(cache: &Cache) -> usize {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(cache.path.join("flights"))).count()
    }

    #[test]
    fn waiting_callers_get_the_result_or_the_reason() {
        for fails in [false, true] {
            let (_dir, cache) = cache();
            let go = Barrier::new(2);
            let fetched = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                let result = || if fails { Err(ImageError::NotFound { image: "a/b:c".into() }) } else { Ok(1) };
                leader(scope, &cache, &go, result);
                let waiters: Vec<_> = (0..3)
                    .map(|_| {
                        scope.spawn(|| {
                            cache.fetch_once(
                                fetch_request("a/b:c", LONG),
                                || Ok(Some(2)),
                                || {
                                    fetched.fetch_add(1, Ordering::SeqCst);
                                    Ok(3)
                                },
                            )
                        })
                    })
                    .collect();
                // They are waiting once they have the file open, and a fourth caller with a short deadline times out.
                let deadline = Instant::now() + LONG;
                while opened(&cache) < 4 {
                    assert!(Instant::now() < deadline, "{} of the leader and three others", opened(&cache));
                    std::thread::yield_now();
                }
                let late = cache.fetch_once(fetch_request("a/b:c", Duration::from_millis(200)), || Ok(Some(2)), || Ok(3));
                assert!(matches!(late, Err(ImageError::InFlight { .. })), "{late:?}");
                go.wait();
                for waiter in waiters {
                    match waiter.join().unwrap() {
                        Ok(2) if !fails => {}
                        Err(ImageError::Shared { reason, .. }) if fails => {
                            assert!(reason.contains("no such image"), "{reason}")
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
            assert_eq!(fetched.load(Ordering::SeqCst), 0);
            assert_eq!(std::fs::read_dir(cache.path.join("flights")).unwrap().count(), 0);
            // And a later caller does not get an old reason.
            assert_eq!(cache.fetch_once(fetch_request("a/b:c", LONG), || Ok(None), || Ok(7)).unwrap(), 7);
        }
    }

    #[test]
    fn reasons_of_another_policy_or_of_the_caller_do_not_apply() {
        let timeout = || ImageError::Timeout { image: "a/b:c".into(), host: "a".into(), seconds: 1 };
        let not_found = || ImageError::NotFound { image: "a/b:c".into() };
        for (error, policy) in [(timeout(), 1), (not_found(), 2)] {
            let (_dir, cache) = cache();
            let go = Barrier::new(2);
            std::thread::scope(|scope| {
                leader(scope, &cache, &go, move || Err(error));
                let waiter = scope.spawn(|| {
                    let fetch_request =
                        FetchRequest { policy: PolicyId(Digest::from_bytes([policy; 32])), ..fetch_request("a/b:c", LONG) };
                    cache.fetch_once(fetch_request, || Ok(None), || Ok(3))
                });
                go.wait();
                assert_eq!(waiter.join().unwrap().unwrap(), 3);
            });
        }
    }

    #[test]
    fn a_refusal_by_other_rules_does_not_apply() {
        let text = "[[image]]\nname = \"strict\"\nrepository = \"registry.example/**\"\nunsigned = true\n\
                    [[image]]\nname = \"open\"\nrepository = \"registry.example/**\"\nunsigned = true\n";
        let policy = crate::model::policy::Policy::parse(&[(PathBuf::from("/p.toml"), text.to_owned())]).unwrap();
        let [strict, open] = &policy.images[..] else { panic!() };
        let unsigned = || ImageError::Unsigned { image: "a/b:c".into(), rules: "strict".into() };
        let not_found = || ImageError::NotFound { image: "a/b:c".into() };
        let cases: [(ImageError, &[&ImageRule], bool); 4] = [
            (unsigned(), &[strict], true),
            (unsigned(), &[open], false),
            (unsigned(), &[strict, open], false),
            (not_found(), &[open], true),
        ];
        for (error, rules, shared) in cases {
            let note = Note {
                policy: fetch_request("a", LONG).policy,
                rules: (!is_for_every_rule(&error)).then(|| vec!["strict".to_owned()]),
                reason: String::new(),
            };
            assert_eq!(note.is_for(&FetchRequest { rules, ..fetch_request("a", LONG) }), shared, "{error}");
        }
    }

    /// A private repository is "not found" for a caller without credentials for it.
    #[test]
    fn reasons_are_not_shared_between_users_and_hooks() {
        for leads in [true, false] {
            let (_dir, cache) = cache();
            let go = Barrier::new(2);
            let begun = Barrier::new(2);
            let boards = |user_env| FetchRequest { user_env, ..fetch_request("a/b:c", LONG) };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let fetch = || {
                        begun.wait();
                        go.wait();
                        Err::<u32, _>(ImageError::NotFound { image: "a/b:c".into() })
                    };
                    cache.fetch_once(boards(leads), || Ok(None), fetch).unwrap_err()
                });
                begun.wait();
                let waiter = scope.spawn(|| cache.fetch_once(boards(!leads), || Ok(None), || Ok(3)));
                go.wait();
                assert_eq!(waiter.join().unwrap().unwrap(), 3, "{leads}");
            });
        }
    }

    #[test]
    fn other_images_do_not_wait_and_locks_of_dead_processes_are_free() {
        let (_dir, cache) = cache();
        let go = Barrier::new(2);
        std::thread::scope(|scope| {
            leader(scope, &cache, &go, || Ok(1));
            assert_eq!(cache.fetch_once(fetch_request("a/b:d", Duration::ZERO), || Ok(None), || Ok(4)).unwrap(), 4);
            go.wait();
        });
        let path = cache.lock_path("a/b:c").unwrap();
        assert!(path.exists());
        assert_eq!(cache.fetch_once(fetch_request("a/b:c", Duration::ZERO), || Ok(None), || Ok(5)).unwrap(), 5);
        assert!(!path.exists());
    }
}
