//! `system service` as its clients see it: the real binary, sockets and kernel. Needs root.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod announced;
mod authority;
mod bpfmans_client;
mod calls;
mod chaos;
mod fields;
mod lifetime;
mod limits;
mod peers;
mod places;
mod reflection;
mod world;
