//! Thin safe wrappers around system calls and kernel files. This is the only module that uses rustix, libc and caps,
//! and the only one with `unsafe` code besides the store, which knows the properties of LMDB's mapping.
#![allow(unsafe_code, reason = "raw system calls that no crate wraps; each block says why it is sound")]

pub mod accounts;
pub mod activation;
pub mod bpf;
pub mod bpffs;
pub mod caps;
pub mod cgroup;
pub mod cgroup_command;
pub mod child;
pub mod clock;
pub mod conmon;
pub mod context;
pub mod cpus;
pub mod credential_helper;
pub mod deadline;
pub mod environment;
pub mod error;
pub mod export;
pub mod fault;
pub mod fsutil;
pub mod inherited;
pub mod journal;
pub mod keyring;
pub mod lsm;
pub mod machine;
mod memfd;
pub mod mounts;
mod namespaces;
pub mod netlink;
pub mod netns;
pub mod pages;
pub mod peer;
pub mod pid;
pub mod sandbox;
pub mod seccomp_notify;
pub mod sock;
pub mod statmount;
pub mod terminal;
pub mod token;
pub mod tracefs;
mod trusted;
pub mod unshared;
pub mod verity;
pub mod watch;

pub use error::SysError;
pub use rustix::io::Errno;
