//! Work outside the handlers, in separate processes of our own program: prefetching images, releasing dead owners.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use tokio::process::Command;

use crate::model::missed::{Missed, MissedContainers, RefusedContainer};
use crate::sys::error::SysError;
use crate::sys::error::chain;

/// Maximum number of concurrent fetches.
const FETCHES: usize = 4;
/// Maximum number of waiting images. The hooks fetch what is dropped here.
const WAITING: usize = 256;
/// The first pause before an image of the pre-pull list is retried; it doubles up to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// The interval for `gc`, which is skipped if a run began since the last time; see `setup/units/gc.rs`.
const COLLECT_EVERY: Duration = Duration::from_secs(40);
/// Maximum number of refusals that wait to be recorded. The others are only in the pods' events and the journal.
const REFUSALS: usize = 1000;

/// Passes containers that were started without our hook to a child, and waits for it.
pub type DealWith = fn(&MissedContainers) -> Result<(), SysError>;

/// Starts processes of our own program.
#[derive(Debug, Clone)]
pub struct ProgramRuns(Arc<RunsShared>);

#[derive(Debug)]
struct RunsShared {
    program: PathBuf,
    root: Option<PathBuf>,
    deal_with: DealWith,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: BTreeSet<String>,
    waiting: VecDeque<String>,
    collecting: bool,
    /// Requested during a run, which may have missed containers that died meanwhile.
    collect_again: bool,
    /// A run was started since the last check by [`ProgramRuns::keep_collecting`].
    collected: bool,
    /// Refusals that are not recorded yet.
    refused: Vec<RefusedContainer>,
    recording: bool,
}

impl Queue {
    /// Queues an image, once, however many pods name it.
    fn add(&mut self, image: String) {
        if self.waiting.len() < WAITING && !self.running.contains(&image) && !self.waiting.contains(&image) {
            self.waiting.push_back(image);
        }
    }

    fn next(&mut self) -> Option<String> {
        if self.running.len() >= FETCHES {
            return None;
        }
        let image = self.waiting.pop_front()?;
        self.running.insert(image.clone());
        Some(image)
    }
}

impl ProgramRuns {
    /// `program` is our own binary; `root` is passed on.
    pub fn new(program: PathBuf, root: Option<PathBuf>, deal_with: DealWith) -> Self {
        Self(Arc::new(RunsShared { program, root, deal_with, queue: Mutex::default() }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches and verifies images; returns immediately. Failures are logged on stderr, and the hook retries.
    pub fn fetch(&self, images: Vec<String>) {
        images.into_iter().for_each(|image| self.queue().add(image));
        self.go_on();
    }

    fn go_on(&self) {
        while let Some(image) = self.queue().next() {
            let work = self.clone();
            tokio::spawn(async move {
                work.run(&["pull", "--quiet", "--", &image]).await;
                work.queue().running.remove(&image);
                work.go_on();
            });
        }
    }

    /// Fetches and verifies a list, one image at a time, in parallel to what pods request, and retries until all images
    /// are fetched; returns immediately.
    pub fn pre_pull(&self, images: Vec<String>) {
        let work = self.clone();
        tokio::spawn(async move {
            let (mut left, mut pause) = (images, AGAIN);
            loop {
                let mut failed = Vec::new();
                for image in left {
                    if !work.run(&["pull", "--quiet", "--", &image]).await {
                        failed.push(image);
                    }
                }
                if failed.is_empty() {
                    return;
                }
                left = failed;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            }
        });
    }

    /// Records a refused container; returns immediately. One run at a time, with all containers that were refused
    /// meanwhile.
    pub fn refused(&self, refused: RefusedContainer) {
        {
            let mut queue = self.queue();
            if queue.refused.len() < REFUSALS {
                queue.refused.push(refused);
            }
            if std::mem::replace(&mut queue.recording, true) {
                return;
            }
        }
        let work = self.clone();
        tokio::spawn(async move {
            loop {
                let refused = {
                    let mut queue = work.queue();
                    if queue.refused.is_empty() {
                        queue.recording = false;
                        return;
                    }
                    std::mem::take(&mut queue.refused)
                };
                let told = MissedContainers { root: work.0.root.clone(), refused, ..Default::default() };
                work.hand_over(told, "cannot record containers that were refused").await;
            }
        });
    }

    /// Passes containers to the child, and waits for it.
    async fn hand_over(&self, told: MissedContainers, otherwise: &'static str) {
        let deal_with = self.0.deal_with;
        match tokio::task::spawn_blocking(move || deal_with(&told)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("{otherwise}: {}", chain(&error)),
            Err(error) => tracing::error!("{otherwise}: {error}"),
        }
    }

    /// Records containers that were started without our hook, then releases dead owners; returns immediately.
    pub fn missed(&self, containers: Vec<Missed>) {
        if containers.is_empty() {
            return self.collect();
        }
        let work = self.clone();
        tokio::spawn(async move {
            let told = MissedContainers { root: work.0.root.clone(), containers, ..Default::default() };
            work.hand_over(told, "cannot record containers that run without what they requested").await;
            work.collect();
        });
    }

    /// Releases dead owners; returns immediately. One run at a time, and one more for all requests made meanwhile.
    pub fn collect(&self) {
        {
            let mut queue = self.queue();
            if queue.collecting {
                queue.collect_again = true;
                return;
            }
            queue.collecting = true;
            queue.collected = true;
        }
        let work = self.clone();
        tokio::spawn(async move {
            loop {
                work.run(&["gc"]).await;
                let mut queue = work.queue();
                if !std::mem::take(&mut queue.collect_again) {
                    queue.collecting = false;
                    return;
                }
            }
        });
    }

    /// Releases dead owners every minute, because not every death is reported: a hook may be killed, a runtime may die.
    pub fn keep_collecting(&self) {
        let work = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(COLLECT_EVERY).await;
                if !std::mem::take(&mut work.queue().collected) {
                    work.collect();
                }
            }
        });
    }

    /// Runs our own program; true if it succeeded. It logs its own errors.
    async fn run(&self, args: &[&str]) -> bool {
        let mut command = Command::new(&self.0.program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(root) = &self.0.root {
            command.arg("--root").arg(root);
        }
        match command.args(args).status().await {
            Ok(status) => status.success(),
            Err(error) => {
                tracing::error!("run {} {}: {error}", self.0.program.display(), args.join(" "));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_are_bounded_and_each_image_is_fetched_once() {
        let mut queue = Queue::default();
        for n in 0..1000 {
            queue.add(format!("registry.example/{}", n % 300));
        }
        assert_eq!(queue.waiting.len(), WAITING);
        let running: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(running.len(), FETCHES);
        queue.add(running[0].clone());
        assert_eq!(queue.waiting.len(), WAITING - FETCHES);
        queue.running.remove(&running[0]);
        assert_eq!(queue.next().as_deref(), Some("registry.example/4"));
    }

    #[test]
    fn a_dead_owner_is_found_within_ninety_seconds() {
        // A death just after a run began is found at the end of the next interval but one at the latest.
        assert!(2 * COLLECT_EVERY <= Duration::from_secs(80), "there is time left for the run");
    }
}
