//! What is done beside the handlers, each in a run of our own program: images fetched early, the dead released.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::process::Command;

/// Runs at a time.
const FETCHES: usize = 4;
/// Images that wait. More are left to the hooks, which fetch what they miss.
const WAITING: usize = 256;

/// Starts runs of our own program.
#[derive(Debug, Clone)]
pub struct Work(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    root: Option<PathBuf>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: BTreeSet<String>,
    waiting: VecDeque<String>,
    collecting: bool,
}

impl Queue {
    /// Takes an image in; once, however many pods name it.
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

impl Work {
    /// `program` is ourselves; `root` is handed on.
    pub fn new(program: PathBuf, root: Option<PathBuf>) -> Self {
        Self(Arc::new(Shared { program, root, queue: Mutex::default() }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches and verifies images; returns at once. What fails is said on stderr, and tried again by the hook.
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

    /// Releases what belongs to the dead; returns at once. One run at a time.
    pub fn collect(&self) {
        if std::mem::replace(&mut self.queue().collecting, true) {
            return;
        }
        let work = self.clone();
        tokio::spawn(async move {
            work.run(&["gc"]).await;
            work.queue().collecting = false;
        });
    }

    async fn run(&self, args: &[&str]) {
        let mut command = Command::new(&self.0.program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(root) = &self.0.root {
            command.arg("--root").arg(root);
        }
        if let Err(error) = command.args(args).status().await {
            eprintln!("bpfman-hook: run {} {}: {error}", self.0.program.display(), args.join(" "));
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
}
