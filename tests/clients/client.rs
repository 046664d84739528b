//! One client: what it runs in, what it is granted, and what it must print.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use crate::harness;
use crate::support::bpf_proxy;
use crate::support::bundle::Bundle;
use crate::support::kernel::{cgroup2, cgroups};
use crate::support::process::Ended;
use crate::support::runtime::Runtime;
use crate::support::world::World;
use crate::{here, script};

/// A client of clients.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The program or library, as the table names it.
    pub name: String,
    /// What it does, as the table says.
    pub does: String,
    /// Whether `make test` runs it.
    #[serde(default)]
    pub always: bool,
    /// The root file system of trees.sh.
    pub tree: String,
    /// The container's user.
    #[serde(default = "nobody")]
    pub uid: u32,
    /// The annotations, without their prefix. The policy allows exactly this.
    pub delegate: BTreeMap<String, String>,
    /// Whether the policy allows host scope.
    #[serde(default)]
    pub host_scope: bool,
    /// What bash runs. It prints `version …`, and the numbers of `seen`.
    pub script: String,
    /// A word that the output has, and the least and the most that the number after it may be.
    #[serde(default)]
    pub seen: Vec<(String, u64, u64)>,
    /// What a client says that does not work, and why, as the table says.
    #[serde(default)]
    pub fails: Option<Failure>,
}

/// Why a client does not work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What it prints.
    pub says: String,
    /// The reason.
    pub reason: String,
    /// Capabilities in the container with which it works after all, and prints the numbers of `seen`.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    client: Vec<Client>,
}

fn nobody() -> u32 {
    65534
}

/// The clients of clients.toml.
pub fn all() -> Vec<Client> {
    let path = here("clients.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| harness!("read {}: {e}", path.display()));
    let file: File = toml::from_str(&text).unwrap_or_else(|e| harness!("{}: {e}", path.display()));
    file.client
}

impl Client {
    /// Its root file system, or why that cannot be made.
    pub fn root(&self) -> Result<PathBuf, String> {
        script("trees.sh", &[&self.tree]).map(PathBuf::from)
    }

    /// Runs it, without the proxy too, and returns its version; or what was not as expected.
    pub fn run(&self, world: &World, root: &Path, built: &Path) -> Result<String, String> {
        bpf_proxy::listen(&world.lab);
        world.lab.policy(&self.policy());
        let with = self.in_container(world, "with", root, built, &[], true);
        let Some(failure) = &self.fails else {
            self.check(&with)?;
            // Otherwise it would prove nothing.
            let without = self.in_container(world, "without", root, built, &[], false);
            if self.check(&without).is_ok() {
                return Err(format!("it works without the proxy too: {}", without.stdout));
            }
            return version(&with);
        };
        if !with.stdout.contains(&failure.says) || (!self.seen.is_empty() && self.check(&with).is_ok()) {
            return Err(format!("expected to fail with {:?}, but: {}\n{}", failure.says, with.stdout, world.lab.log()));
        }
        if !failure.capabilities.is_empty() {
            self.check(&self.in_container(world, "capable", root, built, &failure.capabilities, true))?;
        }
        version(&with)
    }

    fn policy(&self) -> String {
        let lists = self.delegate.iter().map(|(key, names)| {
            let field = key.strip_prefix("delegate-").unwrap_or("presets");
            let names: Vec<&str> = names.split(':').collect();
            format!("{field} = {names:?}")
        });
        let lists: Vec<String> = lists.collect();
        let scope = if self.host_scope { "host-scope = true\n" } else { "" };
        format!("[[container]]\nproxy = {{ {} }}\n{scope}", lists.join(", "))
    }

    fn in_container(
        &self,
        world: &World,
        name: &str,
        root: &Path,
        built: &Path,
        capabilities: &[String],
        is_asked: bool,
    ) -> Ended {
        let mut bundle = Bundle::new(&world.lab, name).without_userns();
        if is_asked {
            bundle = bundle.ask("delegate-via", "proxy").ask("bpffs", "private");
            for (key, names) in &self.delegate {
                bundle = bundle.ask(key, names);
            }
        }
        let bpf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf");
        let directory = |bundle: Bundle, source: &Path, to: &str| bundle.mount("bind", source, to, &["rbind", "ro"]);
        bundle.config["root"] = json!({ "path": root, "readonly": true });
        for place in ["/run", "/tmp"] {
            bundle = bundle.without_mount(place).mount("tmpfs", Path::new("tmpfs"), place, &["mode=1777"]);
        }
        bundle = directory(directory(bundle, built, "/run/built"), &bpf, "/run/bpf");
        bundle = directory(bundle, &here("configuration"), "/run/configuration");
        bundle = directory(bundle, &cgroup2(), "/run/cg");
        // With a namespace of cgroups the container's own is below what it sees otherwise.
        let cgroup = match cgroups() {
            crate::support::kernel::Cgroups::Hybrid(_) => format!("/run/cg/{}", bundle.id),
            crate::support::kernel::Cgroups::Unified => {
                bundle = bundle.namespace("cgroup", None).mount("cgroup", Path::new("cgroup"), "/run/own", &["ro"]);
                "/run/own".to_owned()
            }
        };
        let profile = bpf_proxy::profile(&world.lab, self.host_scope);
        let words = json!(["/usr/bin/bash", "-c", format!("exec 2>&1; cd /tmp; {}", self.script)]);
        let bundle = bundle.edit(|config| {
            let process = &mut config["process"];
            process["args"] = words;
            process["env"] = json!(["PATH=/usr/sbin:/usr/bin", "HOME=/tmp", format!("CGROUP={cgroup}")]);
            process["user"] = json!({ "uid": self.uid, "gid": self.uid });
            let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
            process["capabilities"] = sets.into_iter().map(|set| (set.to_owned(), json!(capabilities))).collect();
            config["linux"]["seccomp"] = profile;
        });
        Runtime::Runc.run(&world.lab, &bundle.write())
    }

    fn check(&self, ended: &Ended) -> Result<(), String> {
        for (word, least, most) in &self.seen {
            let found = ended.stdout.split_once(word.as_str()).map(|(_, rest)| rest.trim_start());
            let digits: String = found.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
            let number: Option<u64> = digits.parse().ok();
            if !number.is_some_and(|number| (*least..=*most).contains(&number)) {
                let what = format!("expected {word:?} and a number from {least} to {most}");
                return Err(format!("{what}, but: {}{}", ended.stdout, ended.stderr));
            }
        }
        Ok(())
    }
}

fn version(ended: &Ended) -> Result<String, String> {
    let version = ended.line("version ").map(|version| version.trim_start_matches('v').to_owned());
    version.filter(|version| !version.is_empty()).ok_or_else(|| format!("expected a version, but: {}", ended.stdout))
}
