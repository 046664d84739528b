//! Parses policy files: the TOML, the values of each key, and the merging of several files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::raw::{
    DelegateTable, RawClient, RawContainer, RawDelegate, RawFile, RawGate, RawImage, RawMatch, RawPolice, RawProxy, RawSigner,
    RawSize,
};
use super::signer::LENGTH_MAX;
use super::{
    ClientRule, ContainerLimits, ContainerRule, ImageRule, MapNames, Match, NameSet, PatternError, Policy, RepositoryPattern,
    RuleLocation, Signer, StoreLimits, TRUSTED_ROOT, Words,
};
use crate::model::annotations::OnFailure;
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::delegation::{Category, Delegation, NameError, Preset, SYSCALL};
use crate::model::gate::{ContainerGate, ExecutableDigest, HostGate};
use crate::model::ids::{Digest, IdError};
use crate::model::police::{KFUNCS_MAX, Police, with_descriptors};
use crate::model::proxy::CallCeiling;
use crate::model::reach;
use crate::model::text::{is_normal_path, is_symbol, listed, nearest_hint, quoted};

/// Rules of one kind in all files together.
const RULES_MAX: usize = 1024;
/// Maximum size of one file in bytes.
const FILE_MAX: usize = 256 * 1024;

/// Executables of one list.
const EXECUTABLES_MAX: usize = 1024;

/// A mistake in a policy file. Nothing is allowed until it is corrected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {}, line {line}: {problem}", file.display())]
pub struct PolicyError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong and, if known, what to write instead.
    pub problem: String,
}

/// A file that is being read: turns offsets in its text into line numbers.
struct PolicyText<'a> {
    file: &'a Path,
    text: &'a str,
}

impl PolicyText<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    fn error(&self, offset: usize, problem: impl Into<String>) -> PolicyError {
        PolicyError { file: self.file.to_owned(), line: self.line(offset), problem: problem.into() }
    }

    fn at<T>(&self, what: &Spanned<T>, problem: impl Into<String>) -> PolicyError {
        self.error(what.span().start, problem)
    }
}

/// The state after all files are read.
#[derive(Default)]
struct Merged {
    images: Vec<ImageRule>,
    containers: Vec<ContainerRule>,
    clients: Vec<ClientRule>,
    gate: Option<HostGate>,
    limits: ContainerLimits,
    store: StoreLimits,
    /// Names of image rules in the files, with their location for messages.
    names: BTreeMap<String, (PathBuf, usize)>,
    /// Names of image rules that container and client rules use, with the error in case a name does not exist.
    uses: Vec<(String, PolicyError)>,
}

pub(super) fn merge(files: &[(PathBuf, String)]) -> Result<Policy, PolicyError> {
    let mut merged = Merged::default();
    for (file, text) in files {
        let source = PolicyText { file, text };
        if text.len() > FILE_MAX {
            return Err(source.error(0, format!("the file has {} bytes, more than {FILE_MAX}", text.len())));
        }
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            source.error(offset, error.message().replace('\n', "; "))
        })?;
        merged.add(&source, raw)?;
    }
    merged.finish()
}

impl Merged {
    fn add(&mut self, source: &PolicyText<'_>, raw: RawFile) -> Result<(), PolicyError> {
        for image in raw.image {
            let at = image.span().start;
            if self.images.len() == RULES_MAX {
                return Err(source.error(at, format!("there are more than {RULES_MAX} image rules")));
            }
            let name = self.image_name(source, at, image.get_ref().name.as_ref())?;
            self.images.push(image_rule(source, at, name, image.into_inner())?);
        }
        for container in raw.container {
            let at = container.span().start;
            if self.containers.len() == RULES_MAX {
                return Err(source.error(at, format!("there are more than {RULES_MAX} container rules")));
            }
            let raw = container.into_inner();
            self.use_images(source, raw.images.as_deref());
            self.containers.push(container_rule(source, at, raw)?);
        }
        for client in raw.client {
            let at = client.span().start;
            if self.clients.len() == RULES_MAX {
                return Err(source.error(at, format!("there are more than {RULES_MAX} client rules")));
            }
            let raw = client.into_inner();
            self.use_images(source, raw.images.as_deref());
            self.clients.push(client_rule(source, at, raw)?);
        }
        if let Some(raw) = raw.gate {
            self.use_images(source, raw.images.as_deref());
            add_gate(source, raw, self.gate.get_or_insert_default())?;
        }
        if let Some(limits) = raw.limits {
            if let Some(programs) = limits.programs {
                self.limits.programs = programs;
            }
            if let Some(links) = limits.links {
                self.limits.links = links;
            }
            if let Some(size) = limits.map_memory {
                self.limits.map_memory = size_of(source, &size)?;
            }
            for (size, limit) in [
                (limits.store_per_load, &mut self.store.load),
                (limits.store_per_client, &mut self.store.client),
                (limits.store_clients, &mut self.store.clients),
            ] {
                if let Some(size) = size {
                    *limit = size_of(source, &size)?;
                }
            }
        }
        Ok(())
    }

    fn use_images(&mut self, source: &PolicyText<'_>, names: Option<&[Spanned<String>]>) {
        for name in names.into_iter().flatten() {
            let error = source.at(name, format!("there is no image rule with the name {}", quoted(name.get_ref())));
            self.uses.push((name.get_ref().clone(), error));
        }
    }

    fn image_name(
        &mut self,
        source: &PolicyText<'_>,
        at: usize,
        given: Option<&Spanned<String>>,
    ) -> Result<String, PolicyError> {
        let (name, at) = match given {
            Some(name) => (name.get_ref().clone(), name.span().start),
            None => (format!("image-{}", self.images.len() + 1), at),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
            return Err(source.error(at, format!("the name {} is not 1 to 64 of A-Z a-z 0-9 _ . -", quoted(&name))));
        }
        if name == ImageRule::BUILT_IN {
            return Err(source
                .error(at, "the name built-in is reserved for the rule that applies without policy files; choose another"));
        }
        if let Some((file, line)) = self.names.get(&name) {
            return Err(
                source.error(at, format!("the name {name} is taken by the rule at {}:{line}; choose another", file.display()))
            );
        }
        self.names.insert(name.clone(), (source.file.to_owned(), source.line(at)));
        Ok(name)
    }

    fn finish(mut self) -> Result<Policy, PolicyError> {
        if self.images.is_empty() {
            self.images.push(ImageRule::built_in());
        }
        if self.containers.is_empty() {
            self.containers.push(ContainerRule::built_in());
        }
        let names: BTreeSet<&str> = self.images.iter().map(|rule| rule.name.as_str()).collect();
        if let Some((name, mut error)) = self.uses.into_iter().find(|(name, _)| !names.contains(name.as_str())) {
            error.problem += &nearest_hint(&name, names.iter().copied());
            return Err(error);
        }
        Ok(Policy {
            images: self.images,
            containers: self.containers,
            clients: self.clients,
            gate: self.gate,
            limits: self.limits,
            store: self.store,
        })
    }
}

fn size_of(source: &PolicyText<'_>, size: &Spanned<RawSize>) -> Result<u64, PolicyError> {
    let problem = "a size must be a number with B, KiB, MiB or GiB, such as \"64MiB\", or a number of bytes";
    bytes(size.get_ref()).ok_or_else(|| source.at(size, problem))
}

fn image_rule(source: &PolicyText<'_>, at: usize, name: String, raw: RawImage) -> Result<ImageRule, PolicyError> {
    let repository = RepositoryPattern::parse(raw.repository.get_ref())
        .map_err(|error: PatternError| source.at(&raw.repository, error.to_string()))?;
    let unsigned = raw.unsigned.as_ref().is_some_and(|unsigned| *unsigned.get_ref());
    let signed_by = match (raw.signed_by, unsigned) {
        (Some(signers), true) => return Err(source.at(&signers, "a rule has signed-by or unsigned = true, not both")),
        (None, true) => Vec::new(),
        (None, false) => return Err(source.error(at, "a rule needs signed-by, or unsigned = true")),
        (Some(signers), false) => {
            let whole = signers.span().start;
            let signers = signers.into_inner().0;
            if signers.is_empty() {
                return Err(source.error(whole, "signed-by is empty, so no image can satisfy it"));
            }
            // The span of a single table is empty; that of the list is the same.
            let at = |signer: &Spanned<RawSigner>| if signer.span().is_empty() { whole } else { signer.span().start };
            signers
                .iter()
                .map(|raw| signer(raw.get_ref()).map_err(|problem| source.error(at(raw), problem)))
                .collect::<Result<_, _>>()?
        }
    };
    let digests =
        raw.digests.iter().map(|text| text.get_ref().parse::<Digest>().map_err(|error| source.at(text, error.to_string())));
    let digests = digests.collect::<Result<BTreeSet<_>, _>>()?;
    let globals = match raw.globals {
        None if raw.scope == Scope::Container => NameSet::All,
        None => NameSet::Only(BTreeSet::new()),
        Some(names) => NameSet::Only(names.iter().map(|name| symbol(source, name, name.get_ref())).collect::<Result<_, _>>()?),
    };
    let maps = match raw.maps {
        None if raw.scope == Scope::Container => MapNames::All,
        None => MapNames::Only(BTreeSet::new()),
        Some(names) => MapNames::Only(names.iter().map(|name| map_name(source, name)).collect::<Result<_, _>>()?),
    };
    let (scope, kernel_signed) = (raw.scope, raw.kernel_signed);
    Ok(ImageRule { name, repository, signed_by, unsigned, scope, kernel_signed, digests, globals, maps })
}

fn symbol(source: &PolicyText<'_>, at: &Spanned<String>, name: &str) -> Result<String, PolicyError> {
    if is_symbol(name) {
        Ok(name.to_owned())
    } else {
        Err(source.at(at, format!("{} is not the name of a symbol", quoted(name))))
    }
}

fn map_name(source: &PolicyText<'_>, text: &Spanned<String>) -> Result<(String, bool), PolicyError> {
    let (name, writable) = match text.get_ref().split_once(':') {
        None => (text.get_ref().as_str(), false),
        Some((name, "ro")) => (name, false),
        Some((name, "rw")) => (name, true),
        Some((_, other)) => return Err(source.at(text, format!("access to a map must be ro or rw, not {}", quoted(other)))),
    };
    Ok((symbol(source, text, name)?, writable))
}

fn signer(raw: &RawSigner) -> Result<Signer, String> {
    let file = |path: &str| match is_normal_path(path) {
        true => Ok(PathBuf::from(path)),
        false => Err(format!("{} is not an absolute path without . and .. and //", quoted(path))),
    };
    let words = |name: &str, exact: &Option<String>, regexp: &Option<String>| {
        let (text, words): (_, fn(String) -> Words) = match (exact, regexp) {
            (Some(exact), None) => (exact, Words::Exact),
            (None, Some(regexp)) => (regexp, Words::Regexp),
            _ => return Err(SIGNER.to_owned()),
        };
        match text.len() {
            0 => Err(format!("{name} must not be empty")),
            1..=LENGTH_MAX => Ok(words(text.clone())),
            _ => Err(format!("{name} is longer than {LENGTH_MAX} bytes")),
        }
    };
    match raw {
        RawSigner {
            key: Some(key),
            identity: None,
            identity_regexp: None,
            issuer: None,
            issuer_regexp: None,
            trusted_root: None,
        } => Ok(Signer::Key(file(key)?)),
        RawSigner { key: None, identity, identity_regexp, issuer, issuer_regexp, trusted_root } => Ok(Signer::Identity {
            identity: words("identity", identity, identity_regexp)?,
            issuer: words("issuer", issuer, issuer_regexp)?,
            trusted_root: file(trusted_root.as_deref().unwrap_or(TRUSTED_ROOT))?,
        }),
        RawSigner { key: Some(_), .. } => Err(SIGNER.to_owned()),
    }
}

/// The forms of a signer.
const SIGNER: &str = "a signer is { key } or { identity or identity-regexp, issuer or issuer-regexp, trusted-root }";

fn container_rule(source: &PolicyText<'_>, at: usize, raw: RawContainer) -> Result<ContainerRule, PolicyError> {
    let mut programs = BTreeSet::new();
    for word in &raw.programs {
        let kind = ProgramKind::from_word(word.get_ref()).ok_or_else(|| {
            let hint = nearest_hint(word.get_ref(), ProgramKind::ALL.map(|(_, word)| word));
            source.at(word, format!("{} is not a program type{hint}", quoted(word.get_ref())))
        })?;
        programs.insert(kind);
    }
    let host_scope = raw.host_scope;
    let delegate = raw.delegate.as_ref().map(|written| {
        let ceiling = ceiling(source, written.get_ref())?;
        inside(source, written, &ceiling, host_scope)
    });
    let delegate = delegate.transpose()?.unwrap_or_default();
    let proxy = raw.proxy.as_ref().map(|written| proxy_ceiling(source, written, host_scope)).transpose()?.unwrap_or_default();
    let police = raw.police.as_ref().map(|written| police(source, written.get_ref(), &delegate, &proxy)).transpose()?;
    let RawMatch { engine, namespace, pod, container, labels, runtime_user, userns } = raw.r#match;
    if let (Some(labels), None) = (&labels, &namespace) {
        return Err(source
            .at(labels, "the creator of a pod chooses its labels; they only narrow a rule for a namespace, so add namespace"));
    }
    let labels = labels.map(Spanned::into_inner).unwrap_or_default();
    Ok(ContainerRule {
        place: RuleLocation::Line { file: source.file.to_owned(), line: source.line(at) },
        matches: Match { engine, namespace, pod, container, labels, runtime_user, userns },
        images: raw.images.map(|names| names.into_iter().map(Spanned::into_inner).collect()),
        programs,
        host_scope,
        delegate,
        proxy,
        police,
        gate: raw.gate.map(|texts| container_gate(source, texts)).transpose()?,
        on_failure: if raw.on_failure.is_empty() { vec![OnFailure::Stop] } else { raw.on_failure },
        on_missed: raw.on_missed,
        grant: raw.grant,
        pull_policy: raw.pull_policy,
    })
}

fn client_rule(source: &PolicyText<'_>, at: usize, raw: RawClient) -> Result<ClientRule, PolicyError> {
    if raw.user.is_none() && raw.group.is_none() && raw.subject.is_none() {
        return Err(source.error(at, "a client rule needs user, group or subject"));
    }
    if let Some(subject) = &raw.subject
        && (raw.user.is_some() || raw.group.is_some() || subject.get_ref().is_empty())
    {
        return Err(source.at(subject, "subject is for TLS clients, which have no user and no group; it must not be empty"));
    }
    let path = |text: &Spanned<String>| match is_normal_path(text.get_ref()) && text.get_ref() != "/" {
        true => Ok(PathBuf::from(text.get_ref())),
        false => Err(source.at(text, format!("{} is not an absolute path without . and .. and //", quoted(text.get_ref())))),
    };
    Ok(ClientRule {
        place: RuleLocation::Line { file: source.file.to_owned(), line: source.line(at) },
        user: raw.user,
        group: raw.group,
        subject: raw.subject.map(Spanned::into_inner),
        allow: raw.allow.into_iter().collect(),
        images: raw.images.map(|names| names.into_iter().map(Spanned::into_inner).collect()),
        paths: raw.paths.iter().map(path).collect::<Result<_, _>>()?,
        host_scope: raw.host_scope,
        programs: raw.programs,
        links: raw.links,
        map_memory: raw.map_memory.as_ref().map(|size| size_of(source, size)).transpose()?,
        store: raw.store.as_ref().map(|size| size_of(source, size)).transpose()?,
    })
}

/// Refuses a ceiling that cannot be kept inside a container, unless the rule allows host scope.
fn inside<T>(
    source: &PolicyText<'_>,
    written: &Spanned<T>,
    ceiling: &Delegation,
    host_scope: bool,
) -> Result<Delegation, PolicyError> {
    let beyond = ceiling.host_scope();
    if !host_scope && !beyond.is_empty() {
        let names = Category::ALL.into_iter().flat_map(|category| beyond.names(category)).collect::<Vec<_>>();
        let names = listed(names.iter().map(String::as_str), 8);
        let problem = format!("{names} cannot be kept inside a container; add host-scope = true, or leave them out");
        return Err(source.at(written, problem));
    }
    Ok(*ceiling)
}

fn ceiling(source: &PolicyText<'_>, raw: &RawDelegate) -> Result<Delegation, PolicyError> {
    let none = DelegateTable::default();
    let (presets, table) = match raw {
        RawDelegate::Presets(presets) => (presets, &none),
        RawDelegate::Table(table) => (&table.presets, table),
    };
    union(source, presets, [&table.cmds, &table.maps, &table.progs, &table.attachs], SyscallPrograms::Refused)
}

/// Whether a list of program types may contain `syscall`, which is never delegated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SyscallPrograms {
    Refused,
    Accepted,
}

/// The union of presets and of the lists for [`Category::ALL`].
fn union(
    source: &PolicyText<'_>,
    presets: &[Spanned<String>],
    lists: [&Vec<Spanned<String>>; 4],
    syscall: SyscallPrograms,
) -> Result<Delegation, PolicyError> {
    let mut ceiling = Delegation::default();
    for word in presets {
        let preset = Preset::from_word(word.get_ref()).ok_or_else(|| {
            let known = Preset::ALL.map(|(_, word)| word);
            let hint = if word.get_ref() == "any" { ANY.to_owned() } else { nearest_hint(word.get_ref(), known) };
            source.at(word, format!("{} is not a preset{hint}; presets are {}", quoted(word.get_ref()), known.join(", ")))
        })?;
        ceiling = ceiling.union(preset.delegation());
    }
    for (category, words) in Category::ALL.into_iter().zip(lists) {
        for word in words {
            let value = match category.value(word.get_ref()) {
                Err(NameError::Syscall) if syscall == SyscallPrograms::Accepted => Ok(SYSCALL.trailing_zeros()),
                value => value,
            };
            let value = value.map_err(|error| {
                let hint = if word.get_ref() == "any" { ANY } else { "" };
                source.at(word, format!("{error}{hint}"))
            })?;
            *ceiling.mask_mut(category) |= 1 << value;
        }
    }
    Ok(ceiling)
}

/// What begins the repository of verified images among `instructions`.
const OF_IMAGE: &str = "image:";

fn proxy_ceiling(source: &PolicyText<'_>, written: &Spanned<RawProxy>, host_scope: bool) -> Result<CallCeiling, PolicyError> {
    let table = &written.get_ref().0;
    let lists = [&table.cmds, &table.maps, &table.progs, &table.attachs];
    let ceiling = union(source, &table.presets, lists, SyscallPrograms::Refused)?;
    let kfuncs = table.kfuncs.as_ref().map(|names| names.iter().map(|name| kfunc(source, name, host_scope)).collect());
    let (mut digests, mut images) = (BTreeSet::new(), BTreeSet::new());
    for text in table.instructions.iter().flatten() {
        match text.get_ref().strip_prefix(OF_IMAGE) {
            Some(pattern) => {
                let pattern = RepositoryPattern::parse(pattern).map_err(|error| source.at(text, error.to_string()))?;
                images.insert(pattern);
            }
            None => {
                digests.insert(text.get_ref().parse().map_err(|error: IdError| source.at(text, error.to_string()))?);
            }
        }
    }
    Ok(CallCeiling {
        delegation: inside(source, written, &ceiling, host_scope)?,
        helpers: table.helpers.as_ref().map(|names| helpers(source, names)).transpose()?,
        kfuncs: kfuncs.transpose()?,
        instructions: table.instructions.as_ref().map(|_| digests),
        images,
    })
}

fn helpers(source: &PolicyText<'_>, names: &[Spanned<String>]) -> Result<BTreeSet<u32>, PolicyError> {
    let numbers = names.iter().map(|name| {
        let problem = || source.at(name, format!("{} is not a helper", quoted(name.get_ref())));
        reach::helper_number(name.get_ref()).ok_or_else(problem)
    });
    numbers.collect()
}

/// Policing takes away and gives nothing, so that it may allow what cannot be kept inside a container.
fn police(
    source: &PolicyText<'_>,
    written: &RawPolice,
    delegate: &Delegation,
    proxy: &CallCeiling,
) -> Result<Police, PolicyError> {
    let table = match written {
        RawPolice::Mode(mode) => {
            let calls = CallCeiling { delegation: delegate.union(proxy.delegation), ..proxy.clone() };
            return Ok(Police::of_ceiling(*mode, calls));
        }
        RawPolice::Table(table) => table,
    };
    let presets = union(source, &table.presets, [&vec![], &vec![], &vec![], &vec![]], SyscallPrograms::Refused)?;
    let lists = [&table.cmds, &table.maps, &table.progs, &table.attachs];
    let listed = union(source, &[], lists, SyscallPrograms::Accepted)?;
    let kfuncs = table.kfuncs.as_ref().map(|names| {
        let all = names.iter().map(|name| kfunc(source, name, true)).collect::<Result<BTreeSet<_>, _>>()?;
        match names.get(KFUNCS_MAX) {
            Some(name) => Err(source.at(name, format!("more than {KFUNCS_MAX} kernel functions"))),
            None => Ok(all),
        }
    });
    let calls = CallCeiling {
        delegation: if table.presets.is_empty() { listed } else { with_descriptors(presets).union(listed) },
        helpers: table.helpers.as_ref().map(|names| helpers(source, names)).transpose()?,
        kfuncs: kfuncs.transpose()?,
        instructions: None,
        images: BTreeSet::new(),
    };
    Ok(Police { mode: table.mode, calls })
}

/// A function of the kernel; the running one need not have it.
fn kfunc(source: &PolicyText<'_>, name: &Spanned<String>, host_scope: bool) -> Result<String, PolicyError> {
    let text = name.get_ref();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(source.at(name, format!("{} is not the name of a kernel function", quoted(text))));
    }
    match reach::kfunc(text) {
        Some(reach) if reach.is_beyond() && !host_scope => {
            Err(source.at(name, format!("{text} reaches {reach}; add host-scope = true, or leave it out")))
        }
        _ => Ok(text.clone()),
    }
}

/// A limit of `any` would also allow what newer kernels add.
const ANY: &str = "; a limit must name its values, so that a newer kernel does not extend it";

fn bytes(size: &RawSize) -> Option<u64> {
    let text = match size {
        RawSize::Bytes(bytes) => return Some(*bytes),
        RawSize::Text(text) => text,
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Adds what one file says about the gate.
fn add_gate(source: &PolicyText<'_>, raw: RawGate, gate: &mut HostGate) -> Result<(), PolicyError> {
    if let Some(executables) = raw.executables {
        add_executables(source, &executables, gate.executables.get_or_insert_default())?;
    }
    if let Some(names) = raw.images {
        gate.images.extend(names.into_iter().map(Spanned::into_inner));
        gate.executables.get_or_insert_default();
    }
    if !raw.kernel_signed.is_default() {
        gate.kernel_signed = raw.kernel_signed;
    }
    Ok(())
}

/// The list of a container: digests, and `images` for those that its images name.
fn container_gate(source: &PolicyText<'_>, texts: Vec<Spanned<String>>) -> Result<ContainerGate, PolicyError> {
    let (images, digests): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text.get_ref() == "images");
    let mut gate = ContainerGate { images: !images.is_empty(), ..ContainerGate::default() };
    add_executables(source, &digests, &mut gate.executables)?;
    Ok(gate)
}

fn add_executables(
    source: &PolicyText<'_>,
    texts: &[Spanned<String>],
    list: &mut BTreeSet<ExecutableDigest>,
) -> Result<(), PolicyError> {
    for text in texts {
        let digest = text.get_ref().parse().map_err(|error| source.at(text, format!("executable {error}")))?;
        list.insert(digest);
        if list.len() > EXECUTABLES_MAX {
            return Err(source.at(text, format!("the gate has more than {EXECUTABLES_MAX} executables")));
        }
    }
    Ok(())
}
