//! The container of a listener: its grant, and what it has used of it.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::image;
use crate::kernel::{FunctionTypes, GrantedKfuncs, KERNEL_BTF, in_call_order, is_trial, kernel_symbol};
use crate::lifecycle::proxy::{self, ProxiedContainer};
use crate::lifecycle::proxy_account::ProxyAccount;
use crate::lifecycle::verified_programs::{self, FoundPrograms};
use crate::model::ids::ContainerId;
use crate::model::proxy::usage::{HeldObject, UsedKind};
use crate::model::proxy::{ProxyRefusal, ProxyUsage};
use crate::paths::Paths;
use crate::proxy::failure::{FailedCall, foreign};
use crate::sys::bpf::{self, ObjectKind};
use crate::sys::caps::Capability;
use crate::sys::error::chain;
use crate::sys::seccomp_notify::NotifiedThread;
use crate::sys::{Errno, cpus, netns};

/// Ids of functions and variables of the kernel whose names are looked up for one container. Each takes milliseconds, and
/// the container chooses the ids.
const NAMES_MAX: usize = 64;

/// How long the programs of verified images are taken for all: a container can ask with any number of others.
const LOOKED_UP: Duration = Duration::from_secs(5);

/// A container with its grant, and what it has used of it.
pub(super) struct GrantedContainer {
    pub(super) container: ProxiedContainer,
    pub(super) kfuncs: GrantedKfuncs,
    pub(super) usage: ProxyUsage,
    /// The id of the BTF of the last program, and its functions. An object's programs are loaded one after another with one
    /// BTF.
    pub(super) types: Option<(u32, FunctionTypes)>,
    /// The programs of the verified images that the grant names, and when they were looked up.
    verified: Option<(Instant, FoundPrograms)>,
    /// Why images that the grant names give no programs, if that has not been noted yet.
    pub(super) unnoted: Vec<String>,
    paths: Paths,
    /// Names in the kernel's BTF that refusals needed.
    names: HashMap<u32, Option<String>>,
    /// The calls are made with these.
    pub(super) capabilities: &'static [Capability],
    pub(super) cpus: u64,
    /// The container's network namespace once it was found, and its inode, which is not reused while it is open.
    pub(super) network: Option<(OwnedFd, u64)>,
    /// True once this process is in it.
    pub(super) entered: bool,
    /// True if something was loaded that the container's record does not list yet.
    pub(super) unrecorded: bool,
    /// What was loaded and has not been reported yet.
    pub(super) unreported: Vec<HeldObject>,
    /// When the record was last written.
    pub(super) recorded: Option<Instant>,
}

impl GrantedContainer {
    /// Finds the grant in the record that createRuntime left.
    pub(super) fn find(paths: &Paths, id: &ContainerId) -> Result<Self, FailedCall> {
        const CONTAINER: &[Capability] = &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN];
        const HOST: &[Capability] = &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
        let no_grant = |why: String| FailedCall::from(ProxyRefusal::NoGrant { why });
        let container = proxy::find(paths, id).map_err(|error| no_grant(chain(&error)))?;
        let lists = container.grant.kfuncs.as_ref().is_some_and(|names| !names.is_empty());
        let kfuncs = if lists {
            let types = fs::read(KERNEL_BTF).map_err(|error| no_grant(format!("read {KERNEL_BTF}: {error}")))?;
            GrantedKfuncs::find(&container.grant, &types).map_err(|error| no_grant(format!("read {KERNEL_BTF}: {error}")))?
        } else {
            GrantedKfuncs::default()
        };
        let mut usage = ProxyUsage::default();
        usage.learn(container.objects.clone());
        Ok(Self {
            capabilities: if container.grant.host_scope { HOST } else { CONTAINER },
            container,
            kfuncs,
            usage,
            types: None,
            verified: None,
            unnoted: Vec::new(),
            paths: paths.clone(),
            names: HashMap::new(),
            cpus: cpus::possible(),
            network: None,
            entered: false,
            unrecorded: false,
            unreported: Vec::new(),
            recorded: None,
        })
    }

    /// Notes what was loaded.
    fn add(&mut self, object: HeldObject) {
        self.unrecorded = true;
        self.unreported.push(object.clone());
        self.usage.add(object);
    }

    /// Writes what was loaded to the container's record, and learns what other processes made for it. False if there is no
    /// record of the running container any more: the grant has ended.
    pub(super) fn record(&mut self, paths: &Paths) -> Result<bool, String> {
        self.usage.prune(exists);
        let recorded = proxy::record(paths, &self.container, self.usage.held(), exists).map_err(|error| chain(&error))?;
        self.unrecorded = false;
        let is_recorded = recorded.is_some();
        self.usage.learn(recorded.unwrap_or_default());
        Ok(is_recorded)
    }

    /// Learns what other processes made for the container.
    pub(super) fn learn(&mut self, account: &mut ProxyAccount) -> Result<(), FailedCall> {
        let learned = account.locked(self.container.owner, |locked| locked.learned)?;
        self.usage.learn(learned);
        Ok(())
    }

    /// Makes an object for the container, if its limits allow one more of this kind and size in bytes: of all processes that
    /// serve it, only this one makes any in the meantime. `make` returns the object, and what to return.
    pub(super) fn make<T>(
        &mut self,
        account: &mut ProxyAccount,
        kind: UsedKind,
        bytes: u64,
        make: impl FnOnce() -> Result<(Option<HeldObject>, T), FailedCall>,
    ) -> Result<T, FailedCall> {
        account.locked(self.container.owner, |mut locked| {
            self.usage.learn(std::mem::take(&mut locked.learned));
            self.make_room(kind, bytes)?;
            let (object, made) = make()?;
            if let Some(object) = object {
                self.add(object.clone());
                locked.add(&object, self.usage.held(), exists)?;
            }
            Ok(made)
        })?
    }

    /// Checks that a descriptor of a map, if it is one, is that of a map which the container's programs may use.
    pub(super) fn check_map(&mut self, account: &mut ProxyAccount, fd: BorrowedFd<'_>) -> Result<(), FailedCall> {
        if self.container.grant.host_scope {
            return Ok(());
        }
        // The kernel refuses other descriptors.
        let Some(id) = bpf::id_if_map(fd)? else { return Ok(()) };
        if self.usage.may_use_map(id, &self.container.shown).is_err() {
            // An exec has a process of its own, which may have created it just now.
            self.learn(account)?;
            self.usage.may_use_map(id, &self.container.shown)?;
        }
        Ok(())
    }

    /// Checks that types (BTF) are those that the container has loaded. At host scope, those of the kernel, of its modules and of
    /// all other loaders are given, too.
    pub(super) fn check_types(&mut self, account: &mut ProxyAccount, id: u32) -> Result<(), FailedCall> {
        if self.container.grant.host_scope || self.usage.has(UsedKind::Btf, id) {
            return Ok(());
        }
        // An exec has a process of its own, which may have loaded them just now.
        self.learn(account)?;
        match self.usage.has(UsedKind::Btf, id) {
            true => Ok(()),
            false => Err(foreign("the BTF", "it was not loaded through the proxy")),
        }
    }

    /// Whether a program is one of a verified image that the grant names, or what its library tries before. Images that
    /// came into the cache later are found, too.
    pub(super) fn is_of_verified_image(&mut self, program_type: u32, code: &[[u8; 8]]) -> bool {
        let images = &self.container.grant.images;
        if images.is_empty() {
            return false;
        }
        if is_trial(program_type, code) {
            return true;
        }
        let Some(ordered) = in_call_order(code) else { return false };
        let program = (program_type, image::hash(&ordered));
        let (known, problems) = match self.verified.take() {
            Some((at, known)) if known.programs.contains(&program) || at.elapsed() < LOOKED_UP => {
                (Some((at, known)), Vec::new())
            }
            Some((_, known)) => (None, known.problems),
            None => (None, Vec::new()),
        };
        let (_, known) = self.verified.insert(known.unwrap_or_else(|| {
            let found = verified_programs::find(&self.paths, images);
            // The log has each once, not every time that the container asks.
            self.unnoted.extend(found.problems.iter().filter(|problem| !problems.contains(problem)).cloned());
            (Instant::now(), found)
        }));
        known.programs.contains(&program)
    }

    /// The name of a function or variable of the kernel, by its id in the kernel's BTF.
    pub(super) fn kernel_name(&mut self, id: u32) -> Option<String> {
        if let Some(known) = self.names.get(&id) {
            return known.clone();
        }
        if self.names.len() >= NAMES_MAX {
            return None;
        }
        let name = fs::read(KERNEL_BTF).ok().and_then(|types| kernel_symbol(&types, id).ok().flatten());
        self.names.insert(id, name.clone());
        name
    }

    /// Checks the limits, without the objects that are gone.
    fn make_room(&mut self, kind: UsedKind, bytes: u64) -> Result<(), FailedCall> {
        let limits = self.container.grant.limits;
        if self.usage.fits(kind, bytes, &limits).is_err() {
            self.usage.prune(exists);
            self.usage.fits(kind, bytes, &limits)?;
        }
        Ok(())
    }

    /// Finds the container's network namespace: the caller must be in it. The inode could be another's by now, so a namespace
    /// is recognised by its cookie first.
    pub(super) fn own_network(&mut self, caller: &NotifiedThread<'_>) -> Result<(), FailedCall> {
        let (namespace, inode) = caller.network_namespace()?;
        let is_own = match &self.network {
            Some((_, own)) => *own == inode,
            None => netns::cookie(namespace.as_fd()).is_ok_and(|cookie| cookie == self.container.network),
        };
        if !is_own {
            return Err(foreign("the caller's network namespace", "it is not the one that the container was started with"));
        }
        self.network.get_or_insert((namespace, inode));
        Ok(())
    }

    /// Enters the container's network namespace, if the caller is in it. A process stays there: it serves only this
    /// container.
    pub(super) fn enter_network(&mut self, caller: &NotifiedThread<'_>) -> Result<(), FailedCall> {
        self.own_network(caller)?;
        if let (Some((namespace, _)), false) = (&self.network, self.entered) {
            netns::enter(namespace.as_fd()).map_err(|_| Errno::PERM)?;
            self.entered = true;
        }
        Ok(())
    }
}

/// True unless an object is gone. The kernel reuses an id only after all others.
fn exists(object: &HeldObject) -> bool {
    bpf::exists(object_kind(object.kind), object.id)
}

fn object_kind(kind: UsedKind) -> ObjectKind {
    match kind {
        UsedKind::Program => ObjectKind::Program,
        UsedKind::Map => ObjectKind::Map,
        UsedKind::Btf => ObjectKind::Btf,
        UsedKind::Link => ObjectKind::Link,
    }
}
