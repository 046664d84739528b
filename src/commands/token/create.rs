//! `token create`: a delegated bpffs for a running container, for a process, or for a command in namespaces of its own.
//!
//! All three are given what a start gives a container, by the same code: the request is admitted, planned, recorded and
//! applied. A container's rule in the policy decides; about other processes, root does.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::ended;
use crate::cli::{Format, TokenCreateArgs};
use crate::image::LinuxImages;
use crate::kernel::LinuxKernel;
use crate::lifecycle::acquire::{Acquired, Start};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::lifecycle::release::Released;
use crate::lifecycle::runtime_states::{self, RunningContainer};
use crate::lifecycle::{Lifecycle, proxy, running};
use crate::model::annotations::{BpffsRequest, PREFIX, Request};
use crate::model::container::Container;
use crate::model::delegation::Delegation;
use crate::model::ids::{OwnerNo, Pid};
use crate::model::registries::RegistryConfig;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::child::CONFINED_ID;
use crate::sys::mounts::parse_mountinfo;
use crate::sys::unshared::{self, UnsharedCommand};
use crate::sys::{SysError, clock, fsutil, mounts, pid};

/// Timeout for all work on one bpffs.
const PATIENCE: Duration = Duration::from_secs(25);

/// Runs the command.
pub fn create(paths: &Paths, args: &TokenCreateArgs) -> Result<ExitCode, CommandError> {
    if !args.exec && !args.command.is_empty() {
        return Err(CommandError::bad_input("create a token: a command needs --exec"));
    }
    let request = asked(args).map_err(CommandError::of_input)?;
    pid::require_initial_user_namespace()?;
    fsutil::ensure_directory(&paths.run, 0o755)?;
    let store = Store::open(&paths.stores(), &clock::boot_id()?)?;
    let (host, fs) = (LinuxHost::new(Instant::now() + PATIENCE)?, paths.bpffs());
    mounts::ensure_bpffs(&fs)?;
    let deadline = clock::boot_seconds() + PATIENCE.as_secs();
    let giver = TokenGiver {
        paths,
        lifecycle: Lifecycle { kernel: &LinuxKernel, host: &host, store: &store, fs: &fs, deadline },
        request,
    };
    if args.exec {
        return giver.exec(args);
    }
    let doing = || CommandError::doing("create a token");
    let containers = giver.containers(args)?;
    let (container, policy) = match (&args.container, args.pid) {
        (Some(prefix), _) => {
            let found = running::by_id(containers, prefix).map_err(doing())?;
            (
                running::container(&found).map_err(doing())?,
                policy_files::load_without_signers(paths).map_err(CommandError::of_input)?,
            )
        }
        (None, Some(number)) => match containers.iter().find(|container| container.pid == number) {
            // The init of a container is the container.
            Some(found) => {
                let policy = policy_files::load_without_signers(paths).map_err(CommandError::of_input)?;
                (running::container(found).map_err(doing())?, policy)
            }
            None => {
                // A process may have several, at different places.
                let id = format!("process-{number}{}", args.path.to_string_lossy().replace('/', "-"));
                (running::process(number, id, &containers).map_err(doing())?, giver.decided_by_root()?)
            }
        },
        (None, None) => return Err(CommandError::bad_input("create a token: name a container, a process or a command")),
    };
    let given = giver.give(&container, &policy);
    if given.is_err() && container.bundle == Path::new("/") {
        giver.lifecycle.forget_failures(&container.id)?;
    }
    giver.told(&container, given?, args)
}

/// The request that the options make, in the words of the annotations, which have the same parser.
fn asked(args: &TokenCreateArgs) -> Result<Request, CommandError> {
    let path = args.path.to_string_lossy().into_owned();
    let lists = [
        ("delegate", args.delegate.clone()),
        ("delegate-cmds", args.cmds.clone()),
        ("delegate-maps", args.maps.clone()),
        ("delegate-progs", args.progs.clone()),
        ("delegate-attachs", args.attachs.clone()),
        ("bpffs-path", Some(path)),
    ];
    let annotations = lists.into_iter().filter_map(|(key, value)| Some((format!("{PREFIX}{key}"), value?)));
    let request = Request::parse(&annotations.collect(), None)?;
    request.ok_or_else(|| CommandError::new("create a token: nothing is delegated; name presets or lists"))
}

/// What all ways of creating a token share.
struct TokenGiver<'a> {
    paths: &'a Paths,
    lifecycle: Lifecycle<'a, LinuxKernel, LinuxHost>,
    request: Request,
}

impl TokenGiver<'_> {
    fn containers(&self, args: &TokenCreateArgs) -> Result<Vec<RunningContainer>, CommandError> {
        let read = match &args.state {
            Some(directory) => runtime_states::recorded_in(directory, Path::new("/")),
            None => runtime_states::recorded(Path::new("/")),
        };
        read.map_err(CommandError::doing("read the states of running containers"))
    }

    /// Root's decision: exactly what the options name; `any` is everything that can be delegated.
    fn decided_by_root(&self) -> Result<LoadedPolicy, CommandError> {
        let everything = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };
        let delegation = match &self.request.bpffs {
            BpffsRequest::Token { delegation, .. } => delegation.under(&everything).delegable(),
            BpffsRequest::None | BpffsRequest::Private { .. } => Delegation::default(),
        };
        Ok(policy_files::decided_by_root(delegation)?)
    }

    fn give(&self, container: &Container, policy: &LoadedPolicy) -> Result<OwnerNo, CommandError> {
        self.lifecycle.require_no_record(&container.id)?.map_err(CommandError::doing("create a token"))?;
        let images = LinuxImages::new(&self.paths.cache, Path::new("/"));
        let start = Start {
            container,
            request: &self.request,
            policy,
            registries: &RegistryConfig::default(),
            fetch_until: Instant::now(),
            token_reach: &self.paths.token_reach(),
            proxy_sockets: &proxy::sockets(self.paths),
        };
        match self.lifecycle.acquire(&images, start)? {
            Acquired::Done(no) | Acquired::Already(no) => Ok(no),
            Acquired::Without(cause) => Err(cause.into()),
            Acquired::Nothing => Err(CommandError::new("create a token: nothing is delegated; name presets or lists")),
        }
    }

    /// Prints what was mounted, as the process's mount table shows it.
    fn told(&self, container: &Container, no: OwnerNo, args: &TokenCreateArgs) -> Result<ExitCode, CommandError> {
        let number = container.pid.map_or(0, Pid::get);
        let process = pid::open_process(Pid::new(number)?)?;
        let mounts = parse_mountinfo(&process.mountinfo()?)?;
        let ours = mounts.iter().rev().find(|mount| mount.kind == "bpf" && mount.point == args.path);
        let mount =
            ours.ok_or_else(|| CommandError::new(format!("create a token: {} is no longer mounted", args.path.display())))?;
        let delegation = Delegation::from_mount_options(&mount.super_options.join(","))?;
        let delegates: BTreeMap<_, _> = delegation.mount_options().into_iter().collect();
        print(&match args.format.output {
            Format::Json => json(&serde_json::json!({
                "pid": number, "container": container.id.as_str(), "owner": no.0, "path": args.path, "mount_id": mount.id,
                "delegates": delegates,
            })),
            Format::Table => format!(
                "{} (process {number}) has a bpffs at {}, and a token was created from it as a test:\n  {delegation}\n",
                container.id,
                args.path.display()
            ),
        })
    }

    /// Runs the command in new namespaces with the bpffs, and releases it afterwards.
    fn exec(&self, args: &TokenCreateArgs) -> Result<ExitCode, CommandError> {
        let variables = [("LIBBPF_BPF_TOKEN_PATH", args.path.clone().into_os_string())];
        let command = UnsharedCommand { words: &args.command, ids: ids(), variables: &variables };
        let mut given = None;
        let ran = unshared::run(&command, |number| {
            let id = format!("exec-{number}");
            let container = running::process(number.get(), id, &[]).map_err(|error| Failed(error.into()))?;
            given = Some(container.id.clone());
            self.decided_by_root().and_then(|policy| self.give(&container, &policy)).map(drop).map_err(Failed)
        });
        // After a failure, a record with the reason may be left.
        if let Some(id) = given {
            self.lifecycle.forget_failures(&id)?;
            for (no, released) in self.lifecycle.release_container(&id)? {
                match released {
                    Released::Gone | Released::Absent | Released::Held(_) => {}
                    _ => return Err(CommandError::new(format!("release owner {no} of the command: run `bpfman-hook gc`"))),
                }
            }
        }
        match ran {
            Ok(status) => Ok(ended(status)),
            Err(Failed(error)) => Err(error),
        }
    }
}

/// An error of the preparation, or of running the command.
struct Failed(CommandError);

impl From<SysError> for Failed {
    fn from(error: SysError) -> Self {
        Self(error.into())
    }
}

/// The user and group of the host that root of the command's user namespace is: those of the user who called sudo, so
/// that the command can read that user's files; otherwise ids that no other process has.
fn ids() -> (u32, u32) {
    let of_sudo = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok().filter(|id| *id != 0);
    match (of_sudo("SUDO_UID"), of_sudo("SUDO_GID")) {
        (Some(uid), Some(gid)) => (uid, gid),
        _ => {
            let own = CONFINED_ID + (std::process::id() & 0x3f_ffff);
            (own, own)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl FnOnce(&mut TokenCreateArgs)) -> TokenCreateArgs {
        let mut args = TokenCreateArgs {
            container: None,
            pid: Some(7),
            path: "/run/bpf".into(),
            state: None,
            delegate: Some("maps".into()),
            cmds: None,
            maps: None,
            progs: None,
            attachs: None,
            format: crate::cli::Formatted { output: Format::Table },
            exec: false,
            command: Vec::new(),
        };
        change(&mut args);
        args
    }

    #[test]
    fn the_options_are_a_request() {
        let request = asked(&args(|args| args.progs = Some("BPFProgTypeXdp".into()))).unwrap_err();
        assert!(request.to_string().contains("prog_load"), "{request}");
        let request = asked(&args(|_| ())).unwrap();
        let BpffsRequest::Token { path, delegation } = request.bpffs else { panic!("{:?}", request.bpffs) };
        assert_eq!((path.to_str(), delegation.named.cmds), (Some("/run/bpf"), 1));
        assert!(asked(&args(|args| args.path = "/etc".into())).is_err(), "a bpffs is mounted only where annotations may");
        assert!(asked(&args(|args| args.delegate = Some("nonsense".into()))).is_err());
    }
}
