//! `pull REF…`: fetches images and verifies them against the policy, so that container starts do not wait for the
//! network.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::{Format, PullArgs, RegistryArgs};
use crate::commands::image::user_auth::registries;
use crate::image::{Images as _, InUse, LinuxImages, PullWatch, Want, registries_conf};
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::model::bytecode::{Bytecode, ImageVerdict, PullPolicy};
use crate::model::policy::{ImageRule, rule_remedy};
use crate::model::reference::{Reference, ReferenceError};
use crate::model::registries::RegistryConfig;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;

/// Timeout for one image; no container start waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Number of images that are fetched in parallel, each by its own process.
const AT_ONCE: usize = 10;

/// The result for one reference.
#[derive(Debug, Serialize)]
pub(super) struct Pulled {
    reference: String,
    /// The digest.
    pub digest: String,
    rule: String,
    #[serde(flatten)]
    verdict: ImageVerdict,
}

impl From<Bytecode> for Pulled {
    fn from(bytecode: Bytecode) -> Self {
        Self {
            reference: bytecode.reference.to_string(),
            digest: bytecode.digest.to_string(),
            rule: bytecode.rule,
            verdict: bytecode.verdict,
        }
    }
}

/// The configuration that decides about images.
#[derive(Debug)]
pub(super) struct ImagePolicyFiles {
    /// The policy.
    pub policy: LoadedPolicy,
    /// The registry configuration.
    pub registries: RegistryConfig,
}

impl ImagePolicyFiles {
    /// Reads the configuration; an error is exit status 2.
    pub fn load(paths: &Paths, args: &RegistryArgs) -> Result<Self, CommandError> {
        let policy = policy_files::load(paths).map_err(CommandError::of_input)?;
        let registries = registries(paths, args).map_err(CommandError::of_input)?;
        Ok(Self { policy, registries })
    }

    /// The rules that apply to an image; `doing` begins the error message if no rule applies.
    pub fn of(&self, reference: &Reference, doing: &str) -> Result<Vec<&ImageRule>, CommandError> {
        let rules: Vec<_> = self.policy.policy.images.iter().filter(|rule| rule.repository.matches(reference)).collect();
        match rules.is_empty() {
            true => {
                let remedy = rule_remedy(reference);
                Err(CommandError::new(format!("{doing} {reference}: no [[image]] rule of the policy applies to it; {remedy}")))
            }
            false => Ok(rules),
        }
    }

    /// A request of a user on this host for an image to which `rules` apply.
    pub fn want<'a>(
        &'a self,
        reference: &'a Reference,
        rules: &'a [&'a ImageRule],
        pull: PullPolicy,
        in_use: InUse<'a>,
    ) -> Want<'a> {
        Want {
            reference,
            pull,
            rules,
            keys: &self.policy.keys,
            policy: self.policy.id,
            registries: &self.registries,
            deadline: Instant::now() + PATIENCE,
            tenant: "",
            in_use,
        }
    }
}

/// Fetches the images, several in parallel; continues after a failure, and then exits with status 1.
pub fn run(paths: &Paths, args: &PullArgs) -> Result<ExitCode, CommandError> {
    let rules = ImagePolicyFiles::load(paths, &args.registry)?;
    let lines = PullLines::on_stderr(args.references.len());
    let images = lines.watched(super::images(paths));
    let results = all(&args.references, |text| {
        let line = lines.begin(text);
        let result = one(paths, &images, &rules, args.pull_policy, text);
        lines.end(text, line);
        result
    });
    lines.clear();
    let mut status = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for result in results {
        match result {
            Ok(bytecode) => done.push(Pulled::from(bytecode)),
            Err(error) => status = error.below(paths.root()).print(),
        }
    }
    print_pulled(&done, args.quiet, args.output)?;
    Ok(status)
}

/// Prints images that are in the cache now: their digests, or JSON. Without images only JSON has an output.
pub(super) fn print_pulled(done: &[Pulled], quiet: bool, output: Format) -> Result<ExitCode, CommandError> {
    let text = match (quiet, output) {
        (false, Format::Json) => json(&done),
        _ => done.iter().map(|pulled| format!("{}\n", pulled.digest)).collect(),
    };
    if done.is_empty() && output != Format::Json { Ok(ExitCode::SUCCESS) } else { print(&text) }
}

/// Runs `work` for every reference, [`AT_ONCE`] at a time; the results are in the order of the references.
fn all<T: Send>(references: &[String], work: impl Fn(&str) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new(references.iter().map(|_| None).collect());
    let worker = || {
        while let Some((at, text)) = Some(next.fetch_add(1, Ordering::SeqCst)).and_then(|at| Some((at, references.get(at)?))) {
            let result = work(text);
            results.lock().expect("no worker panics while it holds the lock")[at] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        // The calling thread is a worker too: a single reference needs no other thread, and if none can be started it
        // does all the work.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, worker).ok();
        let others: Vec<_> = (1..references.len().min(AT_ONCE)).map_while(start).collect();
        worker();
        for other in others {
            other.join().expect("workers do not panic");
        }
    });
    let results = results.into_inner().expect("no worker panics while it holds the lock");
    results.into_iter().map(|result| result.expect("every index has a result")).collect()
}

/// A line for each image that is being pulled, with the bytes that have arrived, and one for all of them; on a terminal
/// only. Without colours, so NO_COLOR does not matter.
struct PullLines {
    lines: MultiProgress,
    /// How many images are done; only if there are several.
    count: Option<ProgressBar>,
    /// The lines by the name of the image.
    running: Arc<Mutex<BTreeMap<String, ProgressBar>>>,
    terminal: bool,
}

impl PullLines {
    fn on_stderr(images: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let lines = MultiProgress::with_draw_target(match terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        });
        let count = (images > 1).then(|| {
            let style = ProgressStyle::with_template("{pos} of {len} images").expect("the template is constant");
            lines.add(ProgressBar::new(images as u64).with_style(style))
        });
        Self { lines, count, running: Arc::default(), terminal }
    }

    /// The same images, which report what arrives if a terminal shows it.
    fn watched(&self, images: LinuxImages) -> LinuxImages {
        let running = Arc::clone(&self.running);
        let watch = PullWatch(Arc::new(move |image, arrived, announced| {
            let running = running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = running.get(image) {
                line.set_message(format!("{}  {}", bytes(arrived, announced), printable(image)));
            }
        }));
        if self.terminal { images.watched(watch) } else { images }
    }

    /// Shows that an image is being pulled, under its full name.
    fn begin(&self, text: &str) -> Option<ProgressBar> {
        let name = super::reference(text).map_or_else(|_| text.to_owned(), |reference| reference.to_string());
        let style = ProgressStyle::with_template("{spinner} {elapsed:>3} {msg}").expect("the template is constant");
        let line = ProgressBar::new_spinner().with_style(style).with_message(printable(&name));
        let line = self.terminal.then(|| self.lines.add(line))?;
        line.enable_steady_tick(Duration::from_millis(120));
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(name, line.clone());
        Some(line)
    }

    fn end(&self, text: &str, line: Option<ProgressBar>) {
        let name = super::reference(text).map_or_else(|_| text.to_owned(), |reference| reference.to_string());
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        if let Some(line) = line {
            line.finish_and_clear();
            self.lines.remove(&line);
        }
        self.count.iter().for_each(|count| count.inc(1));
    }

    /// Removes every line: what is printed next, also an error, stands alone.
    fn clear(&self) {
        self.count.iter().for_each(ProgressBar::finish_and_clear);
        // A terminal that cannot be written to has no line to remove.
        _ = self.lines.clear();
    }
}

/// `1.5 of 12.0 MiB`
fn bytes(arrived: u64, announced: u64) -> String {
    match announced > arrived {
        true => format!("{} of {}", super::size(arrived), super::size(announced)),
        false => super::size(arrived),
    }
}

fn one(
    paths: &Paths,
    images: &LinuxImages,
    rules: &ImagePolicyFiles,
    pull: PullPolicy,
    text: &str,
) -> Result<Bytecode, CommandError> {
    let reference = named(paths, text)?;
    let selected = rules.of(&reference, "pull")?;
    let in_use = || super::cache_commands::in_use(paths).unwrap_or_default();
    Ok(images.fetch(&rules.want(&reference, &selected, pull, InUse(&in_use)))?)
}

/// Parses a reference; registries.conf resolves a short name before the policy sees it.
fn named(paths: &Paths, text: &str) -> Result<Reference, CommandError> {
    if !matches!(Reference::parse(text), Err(ReferenceError::NoRegistry { .. })) {
        return super::reference(text);
    }
    let (conf, _) = registries_conf(paths.root())?;
    match conf.long_name(text) {
        Some(long) => super::reference(&long),
        None if conf.search().len() > 1 => {
            let choices: Vec<_> = conf.search().iter().map(|registry| format!("{registry}/{text}")).collect();
            Err(CommandError::new(format!(
                "pull {text}: it names no registry, and more than one would be searched; write one of {}",
                choices.join(", ")
            )))
        }
        None => super::reference(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_references_run_in_parallel_with_results_in_order() {
        let references: Vec<String> = (0..25).map(|n| n.to_string()).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let gate = std::sync::Barrier::new(AT_ONCE);
        let results = all(&references, |text| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let n: usize = text.parse().unwrap();
            if n < AT_ONCE {
                gate.wait();
            }
            now.fetch_sub(1, Ordering::SeqCst);
            if n % 7 == 3 { Err(format!("no {n}")) } else { Ok(n) }
        });
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
        let expected: Vec<_> = (0..25).map(|n| if n % 7 == 3 { Err(format!("no {n}")) } else { Ok(n) }).collect();
        assert_eq!(results, expected);
    }
}
