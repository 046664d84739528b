//! The sources of the metrics: the counters, the owner files, and the kernel's statistics about the programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::kernel::inspect;
use crate::metrics::text::{Exposition, FamilyKind, Page, seconds, short};
use crate::model::metrics_table;
use crate::model::metrics_table::{BOUNDS, FAMILIES, Shape};
use crate::model::proxy::ProxyProcess;
use crate::model::public_owner::{ProxiedCounts, PublicOwner};
use crate::nri::status::{SeenPlugin, plugins};
use crate::sys::export::{self, OWNERS, PROGRAMS, PROXIES};
use crate::sys::{Errno, clock, fsutil};

/// Maximum number of programs, links and images with series of their own; the sums cover all of them.
const DETAILED: usize = 2000;
/// Maximum number of owner files that are read.
const OWNER_FILES_MAX: usize = 20_000;
/// Maximum size of an owner file, in bytes.
const OWNER_FILE_BYTES_MAX: u64 = 256 << 10;
/// Maximum size of the stored kernel statistics, in bytes.
const PROGRAMS_MAX: u64 = 16 << 20;

/// The kernel's statistics about one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStat {
    /// Kernel id.
    pub id: u32,
    /// Run time in nanoseconds.
    pub run_time: u64,
    /// Run count.
    pub runs: u64,
    /// Kernel memory in bytes.
    pub memory: Option<u64>,
    /// Instructions that the verifier processed.
    pub verified: u32,
    /// Load time, in nanoseconds since boot.
    pub loaded: u64,
}

/// Source of the program statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsSource {
    /// The kernel, queried by this process.
    Kernel,
    /// The file that `metrics --sample` wrote.
    Sample,
    /// None available.
    Nowhere,
}

/// All gathered data.
#[derive(Debug)]
pub struct GatheredMetrics {
    owner_files: Vec<PublicOwner>,
    left_out: usize,
    counters: Option<Vec<u64>>,
    programs: BTreeMap<u32, ProgramStat>,
    /// Source of the program statistics.
    pub source: StatsSource,
    /// When the sample was taken, in seconds since 1970.
    sampled: Option<u64>,
    stats_enabled: bool,
    plugins: Vec<SeenPlugin>,
    /// The processes of proxies: how many run as far as known, and how many were found dead.
    proxies: (u64, u64),
}

/// Reads all sources. A file that is missing, is being replaced or does not parse is skipped.
pub fn gather(directory: &Path) -> GatheredMetrics {
    let (owner_files, left_out) = owner_files(directory);
    let (programs, source, sampled) = match ask(&owner_files) {
        Ok(programs) => (programs, StatsSource::Kernel, None),
        Err(_) => {
            sample(directory).map_or((Vec::new(), StatsSource::Nowhere, None), |(p, time)| (p, StatsSource::Sample, time))
        }
    };
    let stats_enabled = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1");
    GatheredMetrics {
        owner_files,
        left_out,
        counters: export::read_counters(directory),
        programs: programs.into_iter().map(|program| (program.id, program)).collect(),
        source,
        sampled,
        stats_enabled,
        plugins: plugins(directory),
        proxies: proxies(directory),
    }
}

fn proxies(directory: &Path) -> (u64, u64) {
    let names = |path: &Path| fsutil::names_in(path).unwrap_or_default();
    let all = directory.join(PROXIES);
    let files = names(&all).into_iter().take(OWNER_FILES_MAX).flat_map(|container| names(&all.join(container)));
    let found = files.filter_map(|name| ProxyProcess::of_file_name(name.to_str()?));
    found.fold((0, 0), |(running, lost), process| if process.reported { (running, lost + 1) } else { (running + 1, lost) })
}

/// The owner files in the order of their numbers, and how many were skipped.
pub fn owner_files(directory: &Path) -> (Vec<PublicOwner>, usize) {
    let entries = fs::read_dir(directory.join(OWNERS)).into_iter().flatten().filter_map(Result::ok);
    let mut numbers: Vec<u64> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let left_out = numbers.len().saturating_sub(OWNER_FILES_MAX);
    let read = |no: &u64| -> Option<PublicOwner> {
        let bytes = bytes(&directory.join(OWNERS).join(no.to_string()), OWNER_FILE_BYTES_MAX)?;
        serde_json::from_slice::<PublicOwner>(&bytes).ok().filter(|owner_file| owner_file.no == *no)
    };
    (numbers.iter().take(OWNER_FILES_MAX).filter_map(read).collect(), left_out)
}

fn bytes(path: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(max + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= max).then_some(bytes)
}

/// Queries the kernel about every program of the owner files. A program that no longer exists is skipped.
///
/// # Errors
/// EPERM if this process may not: the kernel requires CAP_SYS_ADMIN.
pub fn ask(owner_files: &[PublicOwner]) -> Result<Vec<ProgramStat>, Errno> {
    let mut found = Vec::new();
    for program in owner_files.iter().flat_map(|owner_file| &owner_file.programs) {
        match inspect::program_by_id(program.id) {
            Ok(inspected) => found.push(ProgramStat {
                id: program.id,
                run_time: inspected.info.run_time,
                runs: inspected.info.runs,
                memory: inspected.memory,
                verified: inspected.info.verified_instructions,
                loaded: inspected.info.loaded,
            }),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

fn sample(directory: &Path) -> Option<(Vec<ProgramStat>, Option<u64>)> {
    let path = directory.join(PROGRAMS);
    let programs = serde_json::from_slice(&bytes(&path, PROGRAMS_MAX)?).ok()?;
    let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Some((programs, since.map(|since| since.as_secs())))
}

impl GatheredMetrics {
    /// The metrics page.
    pub fn page(&self, exposition: Exposition) -> String {
        let mut page = Page::new(exposition);
        page.family("build", FamilyKind::Info, "The exporter.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.counters(&mut page);
        self.sums(&mut page);
        self.owners(&mut page);
        self.policed(&mut page);
        self.programs(&mut page);
        self.links(&mut page);
        page.finish()
    }

    fn counters(&self, page: &mut Page) {
        let Some(counters) = &self.counters else { return };
        let at = |slot: usize| counters.get(slot).copied().unwrap_or_default();
        for (number, family) in FAMILIES.iter().enumerate() {
            let kind = if family.shape == Shape::Counter { FamilyKind::Counter } else { FamilyKind::Histogram };
            page.family(family.name, kind, family.help);
            for index in 0..family.series() {
                let (slot, labels) = (metrics_table::slot(number, index), family.values(index));
                match family.shape {
                    Shape::Counter => page.sample(&labels, at(slot)),
                    Shape::Histogram => {
                        let buckets: Vec<_> = BOUNDS.iter().enumerate().map(|(n, (_, bound))| (*bound, at(slot + n))).collect();
                        page.histogram(&labels, &buckets, at(slot + BOUNDS.len()), at(slot + BOUNDS.len() + 1));
                    }
                }
            }
        }
    }

    /// Sums over everything, including what has no series of its own.
    fn sums(&self, page: &mut Page) {
        let mut owners = BTreeMap::from([("container", 0_u64), ("host", 0), ("netns", 0)]);
        let (mut programs, mut links, mut delegated, mut maps) = (BTreeMap::new(), BTreeMap::new(), 0_u64, 0);
        for owner_file in &self.owner_files {
            if let Some(count) = owners.get_mut(owner_file.kind.as_str()) {
                *count += 1;
            }
            delegated += u64::from(owner_file.delegated);
            maps += owner_file.maps;
            for program in &owner_file.programs {
                *programs.entry((program.kind.as_str(), program.scope.as_str())).or_insert(0_u64) += 1;
            }
            for link in &owner_file.links {
                *links.entry(link.kind.as_str()).or_insert(0_u64) += 1;
            }
        }
        page.family("owners", FamilyKind::Gauge, "Owners of programs, links, maps or a bpffs.");
        owners.iter().for_each(|(kind, count)| page.sample(&[("kind", kind)], count));
        page.family("programs", FamilyKind::Gauge, "Loaded programs.");
        programs.iter().for_each(|((kind, scope), count)| page.sample(&[("type", kind), ("scope", scope)], count));
        page.family("links", FamilyKind::Gauge, "Attached programs.");
        links.iter().for_each(|(kind, count)| page.sample(&[("type", kind)], count));
        page.family("maps", FamilyKind::Gauge, "Maps.");
        page.sample(&[], maps);
        page.family("delegated_bpffs", FamilyKind::Gauge, "Containers with a delegated bpffs.");
        page.sample(&[], delegated);
        self.proxies(page);
        page.family(
            "left_out",
            FamilyKind::Gauge,
            "Owners and programs without series of their own, because there are too many.",
        );
        let count = self.owner_files.iter().map(|owner_file| owner_file.programs.len()).sum::<usize>();
        page.sample(&[], self.left_out + self.owner_files.len().saturating_sub(DETAILED) + count.saturating_sub(DETAILED));
        page.family(
            "bpf_stats_enabled",
            FamilyKind::Gauge,
            "1 if the kernel measures run time and runs (kernel.bpf_stats_enabled).",
        );
        page.sample(&[], u8::from(self.stats_enabled));
        if !self.plugins.is_empty() {
            page.family("plugin_connected", FamilyKind::Gauge, "1 if an NRI plugin of this node is connected to the runtime.");
            for plugin in &self.plugins {
                page.sample(&[("start", plugin.start.word())], u8::from(plugin.runtime.is_some()));
            }
        }
        if let Some(sampled) = self.sampled {
            page.family("sample_timestamp_seconds", FamilyKind::Gauge, "When the kernel was queried about the programs.");
            page.sample(&[], sampled);
        }
    }

    fn proxies(&self, page: &mut Page) {
        let counts: Vec<ProxiedCounts> = self.owner_files.iter().filter_map(|owner_file| owner_file.proxied).collect();
        page.family("proxied_containers", FamilyKind::Gauge, "Containers that may load programs through the proxy.");
        page.sample(&[], counts.len());
        page.family("proxied_objects", FamilyKind::Gauge, "What workloads have loaded through the proxy.");
        let of_kind = |of: fn(&ProxiedCounts) -> u64| counts.iter().map(of).sum::<u64>();
        page.sample(&[("kind", "btf")], of_kind(|counts| counts.btf));
        page.sample(&[("kind", "link")], of_kind(|counts| counts.links));
        page.sample(&[("kind", "map")], of_kind(|counts| counts.maps));
        page.sample(&[("kind", "program")], of_kind(|counts| counts.programs));
        let (running, lost) = self.proxies;
        page.family("proxies", FamilyKind::Gauge, "Processes of the proxy: one for each container with it, and for each exec.");
        page.sample(&[("state", "running")], running);
        page.sample(&[("state", "lost")], lost);
    }

    fn owners(&self, page: &mut Page) {
        page.family("owner", FamilyKind::Info, "An owner of programs, links, maps or a bpffs.");
        for owner_file in self.owner_files.iter().take(DETAILED) {
            page.sample(
                &[
                    ("owner", &owner_file.no.to_string()),
                    ("kind", &owner_file.kind),
                    ("id", &owner_file.id),
                    ("engine", &owner_file.engine),
                    ("namespace", &owner_file.namespace),
                    ("pod", &owner_file.pod),
                    ("container", &owner_file.container),
                ],
                1,
            );
        }
        page.family("owner_created_timestamp_seconds", FamilyKind::Gauge, "When the owner's record was created.");
        for owner_file in self.owner_files.iter().take(DETAILED) {
            page.sample(&[("owner", &owner_file.no.to_string())], owner_file.created);
        }
        let mut images: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for owner_file in &self.owner_files {
            for program in &owner_file.programs {
                if let Some(image) = owner_file.images.get(program.image) {
                    // Shortened first: two names that are equal after shortening form one series.
                    *images.entry((short(&image.reference), short(&image.digest))).or_insert(0) += 1;
                }
            }
        }
        page.family("image_programs", FamilyKind::Gauge, "Loaded programs of an image.");
        for ((reference, digest), count) in images.iter().take(DETAILED) {
            page.sample(&[("image", reference), ("digest", digest)], count);
        }
    }

    fn policed(&self, page: &mut Page) {
        page.family("policed_calls", FamilyKind::Counter, "bpf(2) calls of a policed container that were not allowed.");
        let policed = self.owner_files.iter().filter_map(|owner_file| Some((owner_file, owner_file.police.as_ref()?)));
        let calls = policed.flat_map(|(owner_file, police)| police.refused.iter().map(move |call| (owner_file, police, call)));
        for (owner_file, police, call) in calls.take(DETAILED) {
            page.sample(
                &[
                    ("owner", &owner_file.no.to_string()),
                    ("id", &owner_file.id),
                    ("namespace", &owner_file.namespace),
                    ("pod", &owner_file.pod),
                    ("container", &owner_file.container),
                    ("mode", &police.mode.to_string()),
                    ("set", call.set.word()),
                    ("name", &call.name),
                ],
                call.refused,
            );
        }
    }

    fn programs(&self, page: &mut Page) {
        let all = || {
            self.owner_files
                .iter()
                .flat_map(|owner_file| owner_file.programs.iter().map(move |p| (owner_file, p)))
                .take(DETAILED)
        };
        page.family("program", FamilyKind::Info, "A loaded program.");
        for (owner_file, program) in all() {
            let image = owner_file.images.get(program.image);
            page.sample(
                &[
                    ("owner", &owner_file.no.to_string()),
                    ("program_id", &program.id.to_string()),
                    ("name", &program.name),
                    ("type", &program.kind),
                    ("scope", &program.scope),
                    ("image", image.map_or("", |image| &image.reference)),
                ],
                1,
            );
        }
        let known = || all().filter_map(|(owner_file, program)| Some((owner_file, program, self.programs.get(&program.id)?)));
        let mut each = |name: &str, kind, help: &str, value: &dyn Fn(&ProgramStat) -> Option<String>| {
            page.family(name, kind, help);
            for (owner_file, program, stat) in known() {
                if let Some(value) = value(stat) {
                    page.sample(&[("owner", &owner_file.no.to_string()), ("program_id", &program.id.to_string())], value);
                }
            }
        };
        let booted = clock::unix_seconds().saturating_sub(clock::boot_seconds());
        each("program_run_time_seconds", FamilyKind::Counter, "Run time of a program.", &|p| Some(seconds(p.run_time)));
        each("program_runs", FamilyKind::Counter, "Run count of a program.", &|p| Some(p.runs.to_string()));
        each("program_memory_bytes", FamilyKind::Gauge, "Kernel memory of a program.", &|p| p.memory.map(|m| m.to_string()));
        each("program_verified_instructions", FamilyKind::Gauge, "Instructions that the verifier processed.", &|p| {
            Some(p.verified.to_string())
        });
        each("program_loaded_timestamp_seconds", FamilyKind::Gauge, "When a program was loaded.", &|p| {
            Some((booted + p.loaded / 1_000_000_000).to_string())
        });
    }

    fn links(&self, page: &mut Page) {
        page.family("link", FamilyKind::Info, "An attached program.");
        let all = self.owner_files.iter().flat_map(|owner_file| owner_file.links.iter().map(move |link| (owner_file, link)));
        for (owner_file, link) in all.take(DETAILED) {
            page.sample(
                &[
                    ("owner", &owner_file.no.to_string()),
                    ("link_id", &link.id.to_string()),
                    ("program_id", &link.program.to_string()),
                    ("type", &link.kind),
                ],
                1,
            );
        }
    }
}
