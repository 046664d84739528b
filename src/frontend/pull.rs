//! `pull REF…`: fetch images and verify them as policy says, so that no start has to wait for the network.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::{Format, PullArgs};
use crate::frontend::list::json;
use crate::frontend::{fail, print};
use crate::image::{Images as _, LinuxImages, Want};
use crate::lifecycle::error::chain;
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::lifecycle::registries_file;
use crate::model::bytecode::{Bytecode, PullPolicy, Verdict};
use crate::model::policy::ImageRule;
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;
use crate::paths::Paths;

/// How long one image may take: nobody's start waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of one reference.
#[derive(Debug, Serialize)]
struct Pulled {
    reference: String,
    digest: String,
    rule: String,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Fetches each image in turn; goes on after one that fails, and then exits 1.
pub fn run(paths: &Paths, args: &PullArgs) -> ExitCode {
    let policy = match policy_files::load(paths) {
        Ok(policy) => policy,
        Err(error) => {
            fail(&chain(&error));
            return ExitCode::from(2);
        }
    };
    let registries = match registries_file::load(paths) {
        Ok(registries) => registries,
        Err(error) => {
            fail(&chain(&error));
            return ExitCode::from(2);
        }
    };
    let images = LinuxImages::new(&paths.cache, paths.root());
    let mut status = ExitCode::SUCCESS;
    let mut all = Vec::new();
    for text in &args.references {
        match one(&images, &policy, &registries, text) {
            Ok(bytecode) => all.push(Pulled {
                reference: bytecode.reference.to_string(),
                digest: bytecode.digest.to_string(),
                rule: bytecode.rule,
                verdict: bytecode.verdict,
            }),
            Err(sentence) => status = fail(&sentence),
        }
    }
    let text = match (args.quiet, args.output) {
        (false, Format::Json) => json(&all),
        _ => all.iter().map(|pulled| format!("{}\n", pulled.digest)).collect(),
    };
    if !all.is_empty() || args.output == Format::Json {
        print(&text);
    }
    status
}

fn one(images: &LinuxImages, policy: &LoadedPolicy, registries: &RegistryConfig, text: &str) -> Result<Bytecode, String> {
    let reference = Reference::parse(text).map_err(|e| chain(&e))?;
    let speaks = |rule: &&ImageRule| rule.repository.matches(&reference);
    let rules: Vec<&ImageRule> = policy.policy.images.iter().filter(speaks).collect();
    if rules.is_empty() {
        return Err(format!("pull {reference}: no image rule of the policy speaks of it; see `bpfman-hook policy check`"));
    }
    let want = Want {
        reference: &reference,
        pull: PullPolicy::Always,
        rules: &rules,
        keys: &policy.keys,
        policy: policy.id,
        registries,
        deadline: Instant::now() + PATIENCE,
    };
    images.fetch(&want).map_err(|e| chain(&e))
}
