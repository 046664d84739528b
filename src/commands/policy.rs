//! `policy check` and `policy explain`: show what the installed policy, or a draft, allows.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Format, PolicyCheckArgs, PolicyExplainArgs};
use crate::image::{examine_registries, unusable_signers};
use crate::lifecycle::policy_files::{self, PolicyFilesError};
use crate::lifecycle::registries_file;
use crate::lifecycle::token_reach;
use crate::model::annotations::PREFIX;
use crate::model::attach_point::Scope;
use crate::model::explain::{ExplainedRule, Explanation};
use crate::model::manifest;
use crate::model::policy::{ContainerFacts, ContainerLimits, ContainerRule, Engine, Policy};
use crate::output::error::{BAD_INPUT, CommandError};
use crate::output::format::json;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;
use crate::sys::error::chain;
use crate::sys::fsutil::read_capped;

/// The output of `policy check`; its JSON form is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The policy's identity; None for a draft, whose keys may not be installed.
    pub id: Option<String>,
    /// The image rules, in order.
    pub images: Vec<ExplainedRule>,
    /// The container rules, in order.
    pub containers: Vec<CheckedContainerRule>,
    /// Limits per container.
    pub limits: ContainerLimits,
    /// Configuration problems that make a start fail, one sentence each: keys and trusted roots that the verifier
    /// cannot use.
    pub problems: Vec<String>,
    /// Valid settings that are probably mistakes, one sentence each.
    pub warnings: Vec<String>,
}

/// A container rule in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedContainerRule {
    /// Its place in the policy files.
    pub rule: String,
    /// The containers it matches.
    pub matches: String,
    /// The program types it allows.
    pub programs: Vec<&'static str>,
    /// Whether its programs may have host scope.
    pub host_scope: bool,
    /// The most that it delegates.
    pub delegates: String,
    /// The most that it allows through the proxy of bpf(2); absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// How its containers' own bpf(2) calls are policed; absent if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub police: Option<String>,
    /// Both, for one line.
    #[serde(skip)]
    pub summaries: (String, Option<String>),
}

/// Checks a draft, or the installed policy if there is none.
///
/// # Errors
/// Anything that makes the policy refuse every request: exit status 2.
pub fn check(paths: &Paths, draft: Option<&Path>) -> Result<CheckReport, PolicyFilesError> {
    let (policy, id, signers, unread) = match draft {
        Some(path) => {
            let policy = policy_files::load_draft(path)?;
            let (signers, unread) = policy_files::read_signers(&policy, paths);
            (policy, None, signers, unread)
        }
        None => {
            let loaded = policy_files::load(paths)?;
            (loaded.policy, Some(loaded.id.0.to_string()), loaded.keys, Vec::new())
        }
    };
    let problems = unusable_signers(&policy, &signers).iter().map(ToString::to_string).collect();
    let mut warnings = policy.warnings();
    warnings.extend(delegations_beyond(paths, &policy));
    warnings.extend(unread.iter().map(|problem| chain(problem)));
    if policy.built_in_images().is_some_and(|rule| rule.signed_by.is_empty()) && draft.is_none() {
        warnings.push(format!("no image is allowed: there are no image rules, and no keys in {}", paths.keys().display()));
    }
    Ok(CheckReport {
        id,
        images: policy.images.iter().map(ExplainedRule::of).collect(),
        containers: policy.containers.iter().map(CheckedContainerRule::of).collect(),
        limits: policy.limits,
        problems,
        warnings,
    })
}

/// Why an invalid registry configuration makes every request fail, if it does.
fn registry_problem(paths: &Paths) -> Option<String> {
    match registries_file::load(paths) {
        Err(error) => Some(chain(&error)),
        Ok(config) => examine_registries(paths.root(), &config).err().map(|error| chain(&error)),
    }
}

/// Explains what the installed policy grants to a request; annotation keys may omit our prefix. None if no annotation
/// is ours and no rule polices the container.
///
/// # Errors
/// Anything that makes the policy refuse every request: exit status 2.
pub fn explain(
    paths: &Paths,
    facts: &ContainerFacts,
    annotations: &[(String, String)],
) -> Result<Option<Explanation>, PolicyFilesError> {
    let policy: Policy = policy_files::load(paths)?.policy;
    let whole = |key: &str| if key.contains('/') { key.to_owned() } else { format!("{PREFIX}{key}") };
    let annotations: BTreeMap<String, String> = annotations.iter().map(|(key, value)| (whole(key), value.clone())).collect();
    Ok(Explanation::of(&policy, facts, &annotations, || token_reach::known(paths)))
}

/// The container rules that delegate, without `host-scope = true`, what is host scope on this kernel.
fn delegations_beyond(paths: &Paths, policy: &Policy) -> Vec<String> {
    let mut rules = policy.containers.iter().filter(|rule| !rule.host_scope && rule.delegate.loads_programs()).peekable();
    let Some(reach) = rules.peek().and_then(|_| token_reach::known(paths)) else { return Vec::new() };
    let beyond = rules.filter_map(|rule| Some((rule, reach.delegation_beyond(&rule.delegate)?)));
    beyond
        .map(|(rule, beyond)| format!("{} delegates what is refused without host-scope = true: {beyond}", rule.place))
        .collect()
}

/// `policy check [FILE]`: exit status 2 if the files would make a start fail.
pub fn run_check(paths: &Paths, args: &PolicyCheckArgs) -> Result<ExitCode, CommandError> {
    let mut report = check(paths, args.file.as_deref()).map_err(CommandError::of_input)?;
    if args.file.is_none() {
        report.problems.extend(registry_problem(paths));
    }
    let printed = print(&match args.format.output {
        Format::Table if args.verbose => format!("{report:#}"),
        Format::Table => report.to_string(),
        Format::Json => json(&report),
    })?;
    Ok(if report.problems.is_empty() { printed } else { ExitCode::from(BAD_INPUT) })
}

/// `policy explain`: exit status 1 if part of the request is refused.
pub fn run_explain(paths: &Paths, args: &PolicyExplainArgs) -> Result<ExitCode, CommandError> {
    if let Some(file) = &args.file {
        return explain_manifest(paths, file, args);
    }
    let facts = ContainerFacts {
        engine: args.engine.unwrap_or(Engine::Oci),
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        labels: args.labels.iter().cloned().collect(),
        runtime_user: args.runtime_user,
        userns: args.userns,
    };
    let none = "explain the request: no annotation applies to this container, and no rule polices it; see docs/annotations.md";
    let explanation = explain(paths, &facts, &args.annotations)
        .map_err(CommandError::of_input)?
        .ok_or_else(|| CommandError::bad_input(none))?;
    let printed = print(&match args.format.output {
        Format::Table if args.verbose => format!("{explanation:#}"),
        Format::Table => explanation.to_string(),
        Format::Json => json(&explanation),
    })?;
    Ok(if explanation.allowed { printed } else { ExitCode::FAILURE })
}

/// One container of a manifest that requests something.
#[derive(Debug, Serialize)]
struct ExplainedContainer {
    /// `NAMESPACE/POD`
    pod: String,
    /// The container's name in the pod.
    name: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// The most that is read of a manifest.
const MANIFEST_MAX: usize = 16 << 20;

/// `policy explain --file`: exit status 1 if part of one of the requests is refused.
fn explain_manifest(paths: &Paths, file: &Path, args: &PolicyExplainArgs) -> Result<ExitCode, CommandError> {
    fn doing<E: Into<CommandError>>(file: &Path) -> impl FnOnce(E) -> CommandError {
        CommandError::doing(format!("read the manifest {}", file.display()))
    }
    let text = match file.as_os_str() == "-" {
        true => read_capped(std::io::stdin().lock(), MANIFEST_MAX),
        false => read_capped(File::open(file).map_err(doing(file))?, MANIFEST_MAX),
    };
    let text = String::from_utf8(text.map_err(doing(file))?).map_err(doing(file))?;
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).map_err(doing(file)).map_err(CommandError::of_input)?;
    let mut explained = Vec::new();
    for pod in manifest::pods(&documents).map_err(doing(file)).map_err(CommandError::of_input)? {
        let namespace = pod.namespace.or_else(|| args.namespace.clone()).unwrap_or_else(|| "default".to_owned());
        // None of ours is without a domain, which `--annotation` may omit.
        let annotations: Vec<_> = pod.annotations.into_iter().filter(|(key, _)| key.contains('/')).collect();
        for container in pod.containers {
            let facts = ContainerFacts {
                engine: args.engine.unwrap_or(Engine::Containerd),
                namespace: Some(namespace.clone()),
                pod: Some(pod.name.clone()),
                container: Some(container.clone()),
                labels: pod.labels.clone(),
                runtime_user: args.runtime_user,
                userns: pod.userns,
            };
            let explanation = explain(paths, &facts, &annotations).map_err(CommandError::of_input)?;
            let pod = format!("{namespace}/{}", pod.name);
            explained.extend(explanation.map(|explanation| ExplainedContainer { pod, name: container, explanation }));
        }
    }
    if explained.is_empty() {
        let problem = "no container in it has an annotation of bpfman-hook; see docs/annotations.md";
        return Err(doing(file)(CommandError::bad_input(problem)));
    }
    let allowed = explained.iter().all(|container| container.explanation.allowed);
    let printed = print(&match args.format.output {
        Format::Json => json(&explained),
        Format::Table => {
            let one = |container: &ExplainedContainer| {
                let ExplainedContainer { pod, name, explanation } = container;
                let text = if args.verbose { format!("{explanation:#}") } else { explanation.to_string() };
                format!("{}/{}\n{text}", printable(pod), printable(name))
            };
            explained.iter().map(one).collect::<Vec<_>>().join("\n")
        }
    })?;
    Ok(if allowed { printed } else { ExitCode::FAILURE })
}

impl CheckedContainerRule {
    fn of(rule: &ContainerRule) -> Self {
        let wanted = &rule.matches;
        let mut keys = Vec::new();
        if let Some(engine) = wanted.engine {
            keys.push(format!("engine {}", engine.word()));
        }
        for (word, value) in [("namespace", &wanted.namespace), ("pod", &wanted.pod), ("container", &wanted.container)] {
            keys.extend(value.as_ref().map(|value| format!("{word} {value}")));
        }
        keys.extend(wanted.labels.iter().map(|(key, value)| format!("label {key}={value}")));
        keys.extend(wanted.runtime_user.map(|user| format!("runtime user {user}")));
        keys.extend(
            wanted.userns.map(|userns| (if userns { "with a user namespace" } else { "without a user namespace" }).to_owned()),
        );
        Self {
            rule: rule.place.to_string(),
            matches: if keys.is_empty() { "every container".to_owned() } else { keys.join(", ") },
            programs: rule.programs.iter().map(|kind| kind.word()).collect(),
            host_scope: rule.host_scope,
            delegates: rule.delegate.to_string(),
            proxy: (!rule.proxy.is_empty()).then(|| rule.proxy.delegation.to_string()),
            police: rule.police.as_ref().map(ToString::to_string),
            summaries: (rule.delegate.summary(), (!rule.proxy.is_empty()).then(|| rule.proxy.delegation.summary())),
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.images {
            let by = match rule.signed_by.is_empty() {
                true if rule.name == crate::model::policy::ImageRule::BUILT_IN => "signed by no key yet".to_owned(),
                true => "unsigned".to_owned(),
                false => format!("signed by {}", rule.signed_by.join(" or ")),
            };
            let scope = if rule.scope == Scope::Host { ", host scope" } else { "" };
            writeln!(f, "image       {}: {}, {by}{scope}", rule.name, rule.repository)?;
        }
        for rule in &self.containers {
            let programs = if rule.programs.is_empty() { "no programs".to_owned() } else { rule.programs.join(" ") };
            let scope = if rule.host_scope { ", host scope" } else { "" };
            let (delegates, proxy) = match f.alternate() {
                true => (&rule.delegates, &rule.proxy),
                false => (&rule.summaries.0, &rule.summaries.1),
            };
            let proxy = proxy.as_ref().map_or_else(String::new, |proxy| format!("; by proxy {proxy}"));
            let police = rule.police.as_ref().map_or_else(String::new, |police| format!("; polices: {police}"));
            writeln!(
                f,
                "container   {}: {}: {programs}{scope}; delegates {delegates}{proxy}{police}",
                rule.rule, rule.matches
            )?;
        }
        let ContainerLimits { programs, links, map_memory } = self.limits;
        writeln!(f, "limits      {programs} programs, {links} links, {map_memory} bytes of maps")?;
        if let Some(id) = &self.id {
            writeln!(f, "id          {id}")?;
        }
        for problem in &self.problems {
            writeln!(f, "error       {problem}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning     {warning}")?;
        }
        Ok(())
    }
}
