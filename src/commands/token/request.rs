//! `token explain --request`: what a request for a delegation asks for, name by name, and what that reaches.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Format, TokenExplainArgs};
use crate::commands::token_names::{DelegatedName, delegated_names, names_table};
use crate::lifecycle::token_reach;
use crate::model::annotations::{BpffsRequest, Request};
use crate::model::delegation::{Category, Delegation, Spelling};
use crate::model::reach::TokenReach;
use crate::model::text::quoted;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::paths::Paths;

/// The answer. Its JSON form is stable: keys are added, but never renamed.
#[derive(Debug, Serialize)]
struct ExplainedRequest {
    /// The mount point.
    path: PathBuf,
    /// The sets that ask for exactly the policy's ceiling.
    any: Vec<&'static str>,
    /// Each name, by which preset, and for program types what they reach.
    names: Vec<DelegatedName>,
    /// The delegation by spelling.
    text: BTreeMap<&'static str, String>,
}

/// Explains the request of the command line.
pub fn explain(paths: &Paths, args: &TokenExplainArgs) -> Result<ExitCode, CommandError> {
    let (path, delegation, any) = parse(&args.request).map_err(CommandError::of_input)?;
    let reach = token_reach::known(paths);
    let beyond = |reach: &TokenReach| reach.delegation_beyond(&delegation).is_some();
    let host = !delegation.host_scope().is_empty() || reach.as_ref().is_none_or(beyond);
    if let Some(spelling) = args.spelling {
        return print(&spelling.write(&delegation, host));
    }
    let names = delegated_names(&delegation, reach.as_ref());
    let text = Spelling::ALL.map(|(spelling, word)| (word, spelling.write(&delegation, host))).into();
    let explained = ExplainedRequest { path, any, names, text };
    print(&match args.format.output {
        Format::Json => json(&explained),
        Format::Table => table(&explained),
    })
}

fn parse(pairs: &[(String, String)]) -> Result<(PathBuf, Delegation, Vec<&'static str>), CommandError> {
    let mut annotations = BTreeMap::new();
    for (key, value) in pairs {
        let (key, value) = Spelling::annotation_for(key, value).ok_or_else(|| {
            CommandError::new(format!(
                "explain the request: {} is no key of annotations, systemd, Incus, LXD or mount options",
                quoted(key)
            ))
        })?;
        annotations.insert(key, value);
    }
    let request = Request::parse(&annotations, None)?;
    match request.map(|request| request.bpffs) {
        Some(BpffsRequest::Token { path, delegation }) => {
            let any = Category::ALL.into_iter().filter(|category| delegation.any.get(*category));
            let mut named = delegation.named;
            let any: Vec<_> = any
                .map(|category| {
                    *named.mask_mut(category) = u64::MAX;
                    category.word()
                })
                .collect();
            Ok((path, named, any))
        }
        _ => Err(CommandError::new("explain the request: it asks for no delegation; name presets or lists")),
    }
}

fn table(explained: &ExplainedRequest) -> String {
    let mut text = names_table(&explained.names);
    if !explained.any.is_empty() {
        let sets = explained.any.join(", ");
        text.push_str(&format!("`any` of {sets} asks for exactly what the policy's rule contains\n"));
    }
    text.push_str("\nThe same for\n");
    for (word, written) in &explained.text {
        text.push_str(&format!("  {word}\n"));
        for line in written.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text.push_str("What the policy would allow: bpfman-hook policy explain -a KEY=VALUE\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn other_spellings_are_requests_too() {
        let (_, systemd, _) = parse(&pairs(&[
            ("BPFDelegateCommands", "BPFMapCreate,BPFProgLoad"),
            ("BPFDelegateMaps", "BPFMapTypeArray"),
            ("BPFDelegatePrograms", "BPFProgTypeXdp"),
            ("BPFDelegateAttachments", "BPFXdp"),
        ]))
        .unwrap();
        let (path, incus, any) = parse(&pairs(&[
            ("security.bpffs.delegate_cmds", "map_create,prog_load"),
            ("security.bpffs.delegate_maps", "array"),
            ("security.bpffs.delegate_progs", "xdp"),
            ("security.bpffs.delegate_attachs", "xdp"),
        ]))
        .unwrap();
        assert_eq!((systemd, path.to_str(), any), (incus, Some("/sys/fs/bpf"), Vec::new()));
        let (_, _, any) = parse(&pairs(&[("delegate", "maps"), ("delegate-progs", "any")])).unwrap();
        assert_eq!(any, ["progs"]);
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        for (key, value, words) in [
            ("security.nesting", "true", "is no key of"),
            ("delegate", "nonsense", "is not a preset"),
            ("bpffs", "private", "asks for no delegation"),
        ] {
            let sentence = parse(&pairs(&[(key, value)])).unwrap_err().to_string();
            assert!(sentence.contains(words), "{sentence}");
        }
    }
}
