//! The paths that bpfman-hook uses.

use std::path::{Path, PathBuf};

/// The name of the guard's directory in our bpffs, beside the owners' directories.
pub const GUARD: &str = "guard";

/// The name of the gate's directory in our bpffs.
pub const GATE: &str = "gate";

/// The name of the file with the serial number of the node's keyring, beside our bpffs.
pub const PROGRAM_KEYRING: &str = "program-keyring";

/// The directories of one installation. `--root DIR` moves all of them below DIR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// State of this boot: `/run/bpfman-hook`, 0755.
    pub run: PathBuf,
    /// The image cache: `/var/cache/bpfman-hook`, 0700; safe to delete at any time.
    pub cache: PathBuf,
    /// Policy, keys, trusted roots: `/etc/bpfman-hook`.
    pub etc: PathBuf,
}

impl Paths {
    /// The paths of an installation on the host itself.
    pub fn system() -> Self {
        Self::below(Path::new("/"))
    }

    /// The same paths below another root directory, which must be absolute.
    pub fn below(root: &Path) -> Self {
        Self { run: root.join("run/bpfman-hook"), cache: root.join("var/cache/bpfman-hook"), etc: root.join("etc/bpfman-hook") }
    }

    /// The stores of this and previous boots: `store/<boot-id>/`, 0700.
    pub fn stores(&self) -> PathBuf {
        self.run.join("store")
    }

    /// The bpffs that holds all pins: 0700.
    pub fn bpffs(&self) -> PathBuf {
        self.run.join("fs")
    }

    /// The pins of the guard, in the bpffs of all pins.
    pub fn guard(&self) -> PathBuf {
        self.bpffs().join(GUARD)
    }

    /// The pins of the gate, in the bpffs of all pins.
    pub fn gate(&self) -> PathBuf {
        self.bpffs().join(GATE)
    }

    /// The file with the serial number of the node's keyring for signatures of programs.
    pub fn program_keyring(&self) -> PathBuf {
        self.run.join(PROGRAM_KEYRING)
    }

    /// The certificates from which that keyring is made: *.pem.
    pub fn program_keys(&self) -> PathBuf {
        self.etc.join("program-keys")
    }

    /// The log of `hook`, for hosts without a journal.
    pub fn log(&self) -> PathBuf {
        self.run.join("log")
    }

    /// The default socket of the gRPC service.
    pub fn service_socket(&self) -> PathBuf {
        self.run.join("bpfman.sock")
    }

    /// Exported data for unprivileged readers: counters, events, an owner file for each owner.
    pub fn export(&self) -> PathBuf {
        self.run.join("export")
    }

    /// What programs that are loaded with a token reach on this kernel: 0644, kept for this boot.
    pub fn token_reach(&self) -> PathBuf {
        self.run.join("token-reach.json")
    }

    /// The socket of systemd at which the proxy of bpf(2) takes seccomp listeners.
    pub fn proxy_socket(&self) -> PathBuf {
        self.run.join("proxy.sock")
    }

    /// Sockets that take the listeners of one container each: 0700.
    pub fn proxy_directory(&self) -> PathBuf {
        self.run.join("proxy")
    }

    /// What the proxies of each container have made, by container id: 0700.
    pub fn proxy_accounts(&self) -> PathBuf {
        self.run.join("proxy-accounts")
    }

    /// The sockets of commands that record what containers ask the proxy for, by container id: 0700.
    pub fn proxy_recordings(&self) -> PathBuf {
        self.run.join("proxy-recordings")
    }

    /// The policy file that is read last.
    pub fn policy_file(&self) -> PathBuf {
        self.etc.join("policy.toml")
    }

    /// Policy files that are read before it, in the order of their names.
    pub fn policy_directory(&self) -> PathBuf {
        self.etc.join("policy.d")
    }

    /// The trusted root of rules for keyless identities that name none.
    pub fn trusted_root(&self) -> PathBuf {
        self.etc.join("trusted_root.json")
    }

    /// The registry configuration.
    pub fn registries(&self) -> PathBuf {
        self.etc.join("registries.toml")
    }

    /// The root directory of all paths: `/`, or the value of `--root`.
    pub fn root(&self) -> &Path {
        self.etc.ancestors().nth(2).unwrap_or(Path::new("/"))
    }

    /// Keys that the built-in policy trusts.
    pub fn keys(&self) -> PathBuf {
        self.etc.join("keys")
    }
}
