//! `image verify REF`: shows the signatures of an image, and which of them are accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Format;
use crate::cli::image::{ImageVerifyArgs, SignerArgs};
use crate::commands::image::pull::ImagePolicyFiles;
use crate::image::{CheckOutcome, Examination, Examined, InUse, RuleResult, Want};
use crate::model::attach_point::Scope;
use crate::model::bytecode::{ImageVerdict, PullPolicy};
use crate::model::policy::{ImageRule, MapNames, NameSet, RepositoryPattern, Signer, TRUSTED_ROOT, Words};
use crate::model::program_signing::KernelSigned;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;
use crate::sys::fsutil::read_capped;

/// Maximum size of a key or a trusted root, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The name of the rule that the command line makes.
const GIVEN: &str = "of the command line";

/// `image verify REF`: exit status 0 if a rule is satisfied.
pub fn run(paths: &Paths, args: &ImageVerifyArgs) -> Result<ExitCode, CommandError> {
    let rules = ImagePolicyFiles::load(paths, &args.registry)?;
    let examination = examined(paths, &rules, args)?;
    let printed = print(&match args.format.output {
        Format::Json => json(&examination),
        Format::Table => text(&examination),
    })?;
    Ok(if examination.refused.is_some() { ExitCode::FAILURE } else { printed })
}

fn examined(paths: &Paths, rules: &ImagePolicyFiles, args: &ImageVerifyArgs) -> Result<Examination, CommandError> {
    let reference = super::reference(&args.reference)?;
    let given = given(&args.signers)?;
    let selected = match &given {
        Some(given) => vec![&given.rule],
        None => rules.of(&reference, "verify")?,
    };
    let want = Want {
        keys: given.as_ref().map_or(&rules.policy.keys, |given| &given.keys),
        ..rules.want(&reference, &selected, PullPolicy::Always, InUse::NONE)
    };
    Ok(super::images(paths).examine(&want)?)
}

/// The rule that the command line makes, with the files that it names.
#[derive(Debug)]
struct Given {
    rule: ImageRule,
    keys: BTreeMap<PathBuf, Vec<u8>>,
}

fn given(args: &SignerArgs) -> Result<Option<Given>, CommandError> {
    let mut signed_by: Vec<Signer> = args.keys.iter().cloned().map(Signer::Key).collect();
    let words = |text: &Option<String>, pattern: &Option<String>| match (text, pattern) {
        (Some(text), _) => Some(Words::Exact(text.clone())),
        (None, Some(pattern)) => Some(Words::Regexp(pattern.clone())),
        (None, None) => None,
    };
    let identity = words(&args.certificate_identity, &args.certificate_identity_regexp);
    let issuer = words(&args.certificate_oidc_issuer, &args.certificate_oidc_issuer_regexp);
    if let (Some(identity), Some(issuer)) = (identity, issuer) {
        let trusted_root = args.trusted_root.clone().unwrap_or_else(|| PathBuf::from(TRUSTED_ROOT));
        signed_by.push(Signer::Identity { identity, issuer, trusted_root });
    }
    if signed_by.is_empty() {
        return Ok(None);
    }
    let mut keys = BTreeMap::new();
    for signer in &signed_by {
        let what = if matches!(signer, Signer::Key(_)) { "key" } else { "trusted root" };
        let path = signer.file();
        let read = std::fs::File::open(path).map_err(CommandError::from).and_then(|file| Ok(read_capped(file, MAX_FILE)?));
        keys.insert(path.to_owned(), read.map_err(CommandError::doing(format!("read {what} {}", path.display())))?);
    }
    let rule = ImageRule {
        name: GIVEN.to_owned(),
        repository: RepositoryPattern::parse("**")?,
        signed_by,
        unsigned: false,
        scope: Scope::Container,
        kernel_signed: KernelSigned::default(),
        digests: BTreeSet::new(),
        globals: NameSet::All,
        maps: MapNames::All,
    };
    Ok(Some(Given { rule, keys }))
}

fn text(examination: &Examination) -> String {
    let mut text = format!("{}\n{}\n", printable(&examination.reference), examination.digest);
    if examination.signatures.is_empty() {
        text.push_str("no signature in any layout\n");
    }
    for (nth, signature) in examination.signatures.iter().enumerate() {
        _ = writeln!(text, "\nsignature {}", nth + 1);
        for (name, value) in described(signature) {
            _ = writeln!(text, "  {name:<12}{}", printable(&value));
        }
        if signature.rules.is_empty() {
            text.push_str("  no rule requires a signature\n");
        }
        for result in &signature.rules {
            text.push_str(&valued(result));
        }
    }
    text.push_str(if examination.signatures.is_empty() { "" } else { "\n" });
    if let Some(problem) = &examination.problem {
        _ = writeln!(text, "there may be others: {}", printable(problem));
    }
    _ = match (&examination.verdict, &examination.rule, &examination.refused) {
        (Some(ImageVerdict::Verified { by, .. }), Some(rule), _) => {
            writeln!(text, "verified: by {}, under rule {}", printable(by), printable(rule))
        }
        (Some(ImageVerdict::Unsigned), Some(rule), _) => writeln!(text, "accepted unsigned, under rule {}", printable(rule)),
        (_, _, refused) => writeln!(text, "refused: {}", printable(refused.as_deref().unwrap_or("no rule is satisfied"))),
    };
    text
}

/// The claims of a signature, one per line.
fn described(signature: &Examined) -> Vec<(&'static str, String)> {
    let mut lines = vec![("found", format!("in {}", signature.place.words())), ("format", signature.format.clone())];
    if let Some(blob) = &signature.blob {
        lines.push(("blob", blob.to_string()));
    }
    lines.push(("kind", signature.kind.words().to_owned()));
    if let Some(predicate) = &signature.predicate {
        lines.push(("predicate", predicate.clone()));
    }
    if let Some(claimed) = &signature.certificate {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
        lines.push(("certificate", format!("says {} ({})", or_none(&claimed.identity), or_none(&claimed.issuer))));
        lines.push(("valid", format!("{} to {}", claimed.not_before, claimed.not_after)));
    }
    for entry in &signature.log {
        let time = entry.time.as_deref().map(|time| format!(", {time}")).unwrap_or_default();
        lines.push(("log entry", format!("{}, number {}{time}", entry.kind, entry.index)));
    }
    if signature.timestamps > 0 {
        lines.push(("time stamps", signature.timestamps.to_string()));
    }
    lines
}

/// The result of a signature under a rule, and the checks that were made.
fn valued(result: &RuleResult) -> String {
    let rule = printable(&result.rule);
    let mut text = match (&result.by, &result.reason) {
        (Some(by), _) => {
            let key = result.fingerprint.map(|fingerprint| format!(", the key {fingerprint}")).unwrap_or_default();
            format!("  counts for rule {rule}: by {}{key}\n", printable(by))
        }
        (None, reason) => {
            let reason = reason.as_deref().unwrap_or("it was not checked");
            format!("  does not count for rule {rule}: {}\n", printable(reason))
        }
    };
    for (outcome, words) in [
        (CheckOutcome::Passed, "passed"),
        (CheckOutcome::Failed, "failed"),
        (CheckOutcome::NotReached, "not checked"),
        (CheckOutcome::Absent, "not there"),
        (CheckOutcome::Ignored, "present, but not checked under a key"),
    ] {
        let checks = result.checks.iter().filter(|checked| checked.result == outcome);
        let checks: Vec<_> = checks.map(|checked| checked.check.words()).collect();
        if !checks.is_empty() {
            _ = writeln!(text, "    {words}: {}", checks.join(", "));
        }
    }
    text
}
