//! The values that exist on this host.

use std::ffi::OsStr;
use std::fs;

use clap_complete::engine::CompletionCandidate;

use crate::image::Cache;
use crate::lifecycle::container_names::EngineNames;
use crate::model::annotations::key_words;
use crate::model::attach_point::{ProgramKind, TypeFilter};
use crate::model::delegation::Preset;
use crate::model::metrics_table::EventKind;
use crate::model::record::{Owner, OwnerRecord};
use crate::output::view::{self, short_id};
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::clock;

/// More candidates than this are of no use, and reading them takes time.
const MOST: usize = 500;

/// Where the candidates of an argument come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Ids and names of containers in the store.
    Containers,
    /// Kernel ids of programs in the store.
    Programs,
    /// Kernel ids of links in the store.
    Links,
    /// Applications of programs in the store.
    Applications,
    /// Interfaces of the calling process.
    Interfaces,
    /// References in the image cache.
    Images,
    /// Presets of delegations.
    Presets,
    /// Types of a listing's programs.
    Types,
    /// `TYPE:` of a program to load.
    TypesToLoad,
    /// `KEY=` and, for some keys, `KEY=VALUE` of an event filter.
    EventFilters,
    /// `KEY=` of an annotation.
    Annotations,
}

impl Source {
    /// The source for an argument, by the name of its command and its id.
    pub fn of(command: &str, argument: &str) -> Option<Self> {
        Some(match (command, argument) {
            ("explain", "container") => Self::Containers,
            ("inspect" | "create" | "profile" | "graph", "container") => Self::Containers,
            ("attach", "program") | ("unload", "programs") | ("program", "id") => Self::Programs,
            (_, "map_owner_id" | "program_id") => Self::Programs,
            ("detach", "links") | ("link", "id") => Self::Links,
            ("load" | "file" | "image", "programs") => Self::TypesToLoad,
            (_, "application") => Self::Applications,
            (_, "iface") => Self::Interfaces,
            ("rm", "images") | ("push", "source") | ("pull", "references") => Self::Images,
            ("inspect" | "verify" | "export", "reference") | ("image", "image_url") => Self::Images,
            (_, "delegate") => Self::Presets,
            (_, "program_type") => Self::Types,
            ("events", "filters") => Self::EventFilters,
            (_, "annotations") => Self::Annotations,
            _ => return None,
        })
    }

    /// The candidates that begin with `word`; fewer if the store or the cache cannot be read.
    pub fn candidates(self, paths: &Paths, word: &OsStr) -> Vec<CompletionCandidate> {
        let word = word.to_string_lossy();
        let words = |words: Vec<&str>| words.into_iter().map(|word| (word.to_owned(), String::new())).collect();
        let all: Vec<(String, String)> = match self {
            Self::Containers => containers(paths),
            Self::Programs => records(paths).iter().flat_map(programs).collect(),
            Self::Links => records(paths).iter().flat_map(links).collect(),
            Self::Applications => records(paths).iter().filter_map(application).collect(),
            Self::Interfaces => interfaces().into_iter().map(|name| (name, String::new())).collect(),
            Self::Images => images(paths),
            Self::Presets => words(Preset::ALL.map(|(_, word)| word).to_vec()),
            Self::Types => words(TypeFilter::words().collect()),
            Self::TypesToLoad => ProgramKind::ALL.iter().map(|(_, word)| (format!("{word}:"), String::new())).collect(),
            Self::EventFilters => event_filters(paths, &word),
            Self::Annotations => key_words().map(|word| (format!("{word}="), String::new())).into(),
        };
        let mut fitting: Vec<_> = all.into_iter().filter(|(value, _)| value.starts_with(&*word)).take(MOST).collect();
        fitting.dedup();
        let candidate =
            |(value, help): (String, String)| CompletionCandidate::new(value).help((!help.is_empty()).then(|| help.into()));
        fitting.into_iter().map(candidate).collect()
    }
}

fn records(paths: &Paths) -> Vec<OwnerRecord> {
    let store = clock::boot_id().ok().and_then(|boot| Store::open_existing(&paths.stores(), &boot).ok()?);
    store.map(|store| store.records().filter_map(Result::ok).take(MOST).collect()).unwrap_or_default()
}

/// The name of each container, and its id.
fn containers(paths: &Paths) -> Vec<(String, String)> {
    let mut names = EngineNames::default();
    let mut found = Vec::new();
    for record in records(paths) {
        let Some(container) = record.owner.container() else { continue };
        let id = short_id(container.id.as_str()).to_owned();
        match names.of(container) {
            Some(name) => found.extend([(name.clone(), id.clone()), (id, name)]),
            None => found.push((id, record.owner.kind().to_owned())),
        }
    }
    found
}

fn programs(record: &OwnerRecord) -> Vec<(String, String)> {
    let owner = record.owner.to_string();
    let described =
        |program: view::ProgramView<'_>| Some((program.id?.to_string(), format!("{} {}, {owner}", program.kind, program.name)));
    view::programs(record).filter_map(described).collect()
}

fn links(record: &OwnerRecord) -> Vec<(String, String)> {
    let links = view::programs(record).flat_map(|program| program.links);
    let described = |link: view::LinkView<'_>| Some((link.id?.to_string(), format!("{} on {}", link.program, link.place())));
    links.filter_map(described).collect()
}

fn application(record: &OwnerRecord) -> Option<(String, String)> {
    if let Owner::Host(host) = &record.owner { Some((host.application.clone()?, String::new())) } else { None }
}

fn interfaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn images(paths: &Paths) -> Vec<(String, String)> {
    let cached = Cache::new(&paths.cache).images().unwrap_or_default();
    cached.into_iter().map(|image| (image.reference, image.digest.to_string())).collect()
}

fn event_filters(paths: &Paths, word: &str) -> Vec<(String, String)> {
    let prefixed =
        |key: &str, values: Vec<String>| values.into_iter().map(|value| (format!("{key}={value}"), String::new())).collect();
    match word.split_once('=') {
        Some(("type", _)) => prefixed("type", EventKind::WORDS.iter().map(|word| (*word).to_owned()).collect()),
        Some(("container", _)) => prefixed("container", containers(paths).into_iter().map(|(value, _)| value).collect()),
        Some(("image", _)) => prefixed("image", images(paths).into_iter().map(|(value, _)| value).collect()),
        Some(_) => Vec::new(),
        None => crate::commands::events::KEYS.map(|key| (format!("{key}="), String::new())).into(),
    }
}
