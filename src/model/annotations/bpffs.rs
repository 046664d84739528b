//! `bpffs`, `bpffs-path`, `delegate`, `delegate-via` and the four lists `delegate-*`: the bpffs that a container requests,
//! and what it may load itself.

use std::path::PathBuf;

use super::keys::{AnnotationKey, Annotations, FoundAnnotation};
use super::lex::{self, LexError};
use super::{BpffsRequest, RequestError};
use crate::model::delegation::{AnyOf, Category, Delegation, DelegationRequest, Preset};
use crate::model::text::{is_normal_path, nearest_hint, quoted};

/// The default mount point of a bpffs, where libbpf and bpftool look.
const DEFAULT_PATH: &str = "/sys/fs/bpf";

#[derive(Clone, Copy, PartialEq, Eq)]
enum BpffsKind {
    None,
    Private,
    Token,
}

/// How a delegation reaches the container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DelegateVia {
    Token,
    Proxy,
}

/// Parses these annotations together, because each one only makes sense in the context of the others. Returns the bpffs,
/// and what the container may do through the proxy.
pub(super) fn build(ours: &Annotations<'_>) -> Result<(BpffsRequest, Option<DelegationRequest>), RequestError> {
    let delegation = parse_delegation(ours)?;
    let via = ours.get(AnnotationKey::DelegateVia).map(|found| found.parse(parse_via)).transpose()?;
    if let (Some(found), None) = (ours.get(AnnotationKey::DelegateVia), &delegation) {
        return found.refuse("it does not say what to delegate; add the annotation delegate, such as delegate=sockets");
    }
    if via == Some(DelegateVia::Proxy) {
        if let Some(found) = ours.get(AnnotationKey::Bpffs)
            && found.parse(parse_kind)? == BpffsKind::Token
        {
            return found.refuse("a token is not needed with delegate-via=proxy; remove this annotation, or write private");
        }
        return Ok((bpffs(ours, None)?, delegation.map(|(_, delegation)| delegation)));
    }
    Ok((bpffs(ours, delegation)?, None))
}

fn bpffs(
    ours: &Annotations<'_>,
    delegation: Option<(FoundAnnotation<'_>, DelegationRequest)>,
) -> Result<BpffsRequest, RequestError> {
    let written = ours.get(AnnotationKey::Bpffs).map(|found| found.parse(parse_kind)).transpose()?;
    let path = ours.get(AnnotationKey::BpffsPath).map(|found| found.parse(parse_path)).transpose()?;
    let kind = written.unwrap_or(match (&delegation, ours.get(AnnotationKey::Maps)) {
        (Some(_), _) => BpffsKind::Token,
        (None, Some(_)) => BpffsKind::Private,
        (None, None) => BpffsKind::None,
    });
    if let (Some((found, _)), true) = (&delegation, kind != BpffsKind::Token) {
        return found.refuse("it needs bpffs=token; remove the annotation bpffs or write token");
    }
    if kind == BpffsKind::None {
        if let Some(found) = ours.get(AnnotationKey::Maps) {
            return found.refuse("maps are shown in a bpffs, but the annotation says bpffs=none; remove it or write private");
        }
        if let Some(found) = ours.get(AnnotationKey::BpffsPath) {
            return found.refuse("there is no bpffs to mount there; add bpffs=private, or the annotation delegate");
        }
        return Ok(BpffsRequest::None);
    }
    let path = path.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    match (kind, delegation) {
        (BpffsKind::Token, Some((_, delegation))) => Ok(BpffsRequest::Token { path, delegation }),
        (BpffsKind::Token, None) => match ours.get(AnnotationKey::Bpffs) {
            Some(found) => found.refuse("it does not say what to delegate; add the annotation delegate, such as delegate=maps"),
            None => Ok(BpffsRequest::None),
        },
        _ => Ok(BpffsRequest::Private { path }),
    }
}

fn parse_kind(value: &str) -> Result<BpffsKind, LexError> {
    let word = lex::single(value)?;
    match word.text.as_str() {
        "none" => Ok(BpffsKind::None),
        "private" => Ok(BpffsKind::Private),
        "token" => Ok(BpffsKind::Token),
        other => {
            let hint = nearest_hint(other, ["none", "private", "token"]);
            Err(word.fault(format!("it must be none, private or token, not {}{hint}", quoted(other))))
        }
    }
}

fn parse_via(value: &str) -> Result<DelegateVia, LexError> {
    let word = lex::single(value)?;
    match word.text.as_str() {
        "token" => Ok(DelegateVia::Token),
        "proxy" => Ok(DelegateVia::Proxy),
        other => {
            let hint = nearest_hint(other, ["token", "proxy"]);
            Err(word.fault(format!("it must be token or proxy, not {}{hint}", quoted(other))))
        }
    }
}

fn parse_path(value: &str) -> Result<PathBuf, LexError> {
    let word = lex::single(value)?;
    let path = word.text.as_str();
    if !is_normal_path(path) {
        return Err(word.fault(format!("{} is not an absolute path without . and .. and //", quoted(path))));
    }
    if path != DEFAULT_PATH && !path.starts_with("/run/") && !path.starts_with("/mnt/") {
        return Err(word.fault(format!("{} is neither /sys/fs/bpf nor below /run or /mnt", quoted(path))));
    }
    Ok(PathBuf::from(path))
}

const LISTS: [(AnnotationKey, Category); 4] = [
    (AnnotationKey::DelegateCmds, Category::Cmds),
    (AnnotationKey::DelegateMaps, Category::Maps),
    (AnnotationKey::DelegateProgs, Category::Progs),
    (AnnotationKey::DelegateAttachs, Category::Attachs),
];

/// The delegation, with the annotation to report if it does not fit the rest; None if none of the five keys is set.
fn parse_delegation<'a>(ours: &Annotations<'a>) -> Result<Option<(FoundAnnotation<'a>, DelegationRequest)>, RequestError> {
    let mut blame = None;
    let mut request = DelegationRequest::default();
    if let Some(found) = ours.get(AnnotationKey::Delegate) {
        request.named = found.parse(parse_presets)?;
        blame = Some(found);
    }
    for (key, category) in LISTS {
        let Some(found) = ours.get(key) else { continue };
        let (mask, any) = found.parse(|value| parse_list(category, value))?;
        *request.named.mask_mut(category) = mask;
        if any {
            request.any.set(category);
        }
        blame = blame.or(Some(found));
    }
    let Some(found) = blame else { return Ok(None) };
    match request.named.useless() {
        // What `any` stands for is known only once the policy's limit applies.
        Some(problem) if request.any == AnyOf::default() => found.refuse(problem),
        _ => Ok(Some((found, request))),
    }
}

fn parse_presets(value: &str) -> Result<Delegation, LexError> {
    let mut all = Delegation::default();
    for word in lex::set(value)? {
        let preset = Preset::from_word(&word.text).ok_or_else(|| {
            let known = Preset::ALL.map(|(_, word)| word);
            let hint = nearest_hint(&word.text, known);
            word.fault(format!("{} is not a preset{hint}; presets are {}", quoted(&word.text), known.join(", ")))
        })?;
        all = all.union(preset.delegation());
    }
    Ok(all)
}

/// The names of one list as a mask, and whether `any` was among them.
fn parse_list(category: Category, value: &str) -> Result<(u64, bool), LexError> {
    let mut mask = 0;
    let mut any = false;
    for word in lex::set(value)? {
        match word.text.as_str() {
            "any" => any = true,
            name => mask |= 1 << category.value(name).map_err(|error| word.fault(error.to_string()))?,
        }
    }
    Ok((mask, any))
}
