//! The only code that orders effects: acquire, release, reconcile.
//!
//! Read `acquire` first, then `release`; `reconcile` applies `release` to dead owners.

pub mod acquire;
mod attach;
mod claim;
pub mod container_names;
pub mod error;
mod failures;
pub mod gate;
pub mod guard;
pub mod health;
pub mod host;
pub mod linux_host;
pub mod manual;
pub mod missed;
mod pod_maps;
pub mod podman_names;
mod police;
pub mod policy_files;
pub mod program_keyring;
pub mod proxy;
pub mod proxy_account;
pub mod proxy_processes;
pub mod reconcile;
pub mod registries_file;
pub mod release;
pub mod running;
pub mod runtime_states;
pub mod token_reach;
pub mod verified_programs;

pub use error::{Cause, ReleaseErrors};

use std::path::{Path, PathBuf};

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::model::object::ObjectFacts;
use crate::model::program_signing::{KernelSigned, KernelSigning};
use crate::model::record::Actor;
use crate::paths::{GUARD, PROGRAM_KEYRING};
use crate::store::Store;

/// The parts that every lifecycle call works with. It holds no state of its own; the state is in the store.
#[derive(Debug)]
pub struct Lifecycle<'a, K, H> {
    /// Operations on BPF objects.
    pub kernel: &'a K,
    /// Processes, namespaces, cgroups, mounts and time.
    pub host: &'a H,
    /// The record store.
    pub store: &'a Store,
    /// Our bpffs; every owner has a directory in it.
    pub fs: &'a Path,
    /// When this process gives up: seconds since boot.
    pub deadline: u64,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// This process, as records identify it.
    fn actor(&self) -> Actor {
        Actor { process: self.host.me(), deadline: self.deadline }
    }

    /// The pins of the guard.
    fn guard(&self) -> PathBuf {
        self.fs.join(GUARD)
    }

    /// How the signatures of an object's programs are used. The node's keyring is looked up only if it matters.
    fn signing(&self, facts: &ObjectFacts, rule: KernelSigned) -> KernelSigning {
        let matters = facts.signed || rule == KernelSigned::Required;
        let keyring = matters.then(|| self.kernel.program_keyring(&self.fs.with_file_name(PROGRAM_KEYRING))).flatten();
        KernelSigning { rule, keyring }
    }

    /// Fails once the deadline has passed, early enough that the changes made can still be undone.
    fn check_deadline(&self) -> Result<(), Cause> {
        if self.host.boottime() >= self.deadline { Err(Cause::Deadline) } else { Ok(()) }
    }
}
