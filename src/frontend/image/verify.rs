//! `image verify REF`: which signatures an image has, and which of them count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::Format;
use crate::cli::image::ImageVerifyArgs;
use crate::frontend::image::pull::{PATIENCE, Rules};
use crate::frontend::list::json;
use crate::frontend::output::{fail, print};
use crate::frontend::table::printable;
use crate::image::{Examination, Want};
use crate::lifecycle::error::chain;
use crate::model::attach_point::Scope;
use crate::model::bytecode::{PullPolicy, Verdict};
use crate::model::policy::{ImageRule, MapNames, Names, RepositoryPattern, Signer};
use crate::paths::Paths;

/// The most that a key file may hold.
const MAX_KEY: usize = 64 << 10;

/// `image verify REF`: exit status 0 where a rule is satisfied.
pub fn run(paths: &Paths, args: &ImageVerifyArgs) -> ExitCode {
    let rules = match Rules::load(paths, &args.registry) {
        Ok(rules) => rules,
        Err(status) => return status,
    };
    match examined(paths, &rules, args) {
        Ok(examination) => {
            let printed = print(&match args.format.output {
                Format::Json => json(&examination),
                Format::Table => text(&examination),
            });
            if examination.refused.is_some() { ExitCode::FAILURE } else { printed }
        }
        Err(sentence) => fail(&sentence),
    }
}

fn examined(paths: &Paths, rules: &Rules, args: &ImageVerifyArgs) -> Result<Examination, String> {
    let reference = super::reference(&args.reference)?;
    let given = given(&args.keys)?;
    let selected = match &given {
        Some(given) => vec![&given.rule],
        None => rules.of(&reference, "verify")?,
    };
    let want = Want {
        reference: &reference,
        pull: PullPolicy::Always,
        rules: &selected,
        keys: given.as_ref().map_or(&rules.policy.keys, |given| &given.keys),
        policy: rules.policy.id,
        registries: &rules.registries,
        deadline: Instant::now() + PATIENCE,
    };
    super::images(paths).examine(&want).map_err(|e| chain(&e))
}

/// The rule that the command line makes, with the keys that it names.
#[derive(Debug)]
struct Given {
    rule: ImageRule,
    keys: BTreeMap<PathBuf, Vec<u8>>,
}

fn given(keys: &[PathBuf]) -> Result<Option<Given>, String> {
    if keys.is_empty() {
        return Ok(None);
    }
    let mut bytes = BTreeMap::new();
    for path in keys {
        let read = std::fs::File::open(path).map_err(|err| err.to_string());
        let read = read.and_then(|file| crate::sys::fsutil::read_capped(file, MAX_KEY).map_err(|err| err.to_string()));
        bytes.insert(path.clone(), read.map_err(|err| format!("read key {}: {err}", path.display()))?);
    }
    let rule = ImageRule {
        name: "of the command line".to_owned(),
        repository: RepositoryPattern::parse("**").map_err(|err| chain(&err))?,
        signed_by: keys.iter().cloned().map(Signer::Key).collect(),
        unsigned: false,
        scope: Scope::Container,
        digests: BTreeSet::new(),
        globals: Names::All,
        maps: MapNames::All,
    };
    Ok(Some(Given { rule, keys: bytes }))
}

fn text(examination: &Examination) -> String {
    let mut text = format!("{}\n{}\n", printable(&examination.reference), examination.digest);
    if examination.signatures.is_empty() {
        text.push_str("no signature in any layout\n");
    }
    for (nth, signature) in examination.signatures.iter().enumerate() {
        _ = writeln!(text, "signature {}, {}", nth + 1, signature.layout);
        if signature.rules.is_empty() {
            text.push_str("  no rule asks for one\n");
        }
        for worth in &signature.rules {
            _ = match (&worth.by, &worth.reason) {
                (Some(by), _) => writeln!(text, "  counts for rule {}: by {}", printable(&worth.rule), printable(by)),
                (None, reason) => {
                    let reason = reason.as_deref().unwrap_or("it is not judged");
                    writeln!(text, "  does not count for rule {}: {}", printable(&worth.rule), printable(reason))
                }
            };
        }
    }
    if let Some(trouble) = &examination.trouble {
        _ = writeln!(text, "there may be others: {}", printable(trouble));
    }
    _ = match (&examination.verdict, &examination.rule, &examination.refused) {
        (Some(Verdict::Verified { by, .. }), Some(rule), _) => {
            writeln!(text, "verified: by {}, under rule {}", printable(by), printable(rule))
        }
        (Some(Verdict::Unsigned), Some(rule), _) => writeln!(text, "accepted unsigned, under rule {}", printable(rule)),
        (_, _, refused) => writeln!(text, "refused: {}", printable(refused.as_deref().unwrap_or("no rule is satisfied"))),
    };
    text
}
