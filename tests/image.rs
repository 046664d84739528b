//! Images from end to end, without root: layouts, archives and object files in a temporary directory, registries on
//! loopback ports, the fetch work on a thread instead of the confined child.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test it is called from")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/registry.rs"]
mod registry;

#[path = "image/cache.rs"]
mod cache;
#[path = "image/flight.rs"]
mod flight;
#[path = "image/host.rs"]
mod host;
#[path = "image/library.rs"]
mod library;
#[path = "image/registries.rs"]
mod registries;
#[path = "image/remote.rs"]
mod remote;
#[path = "image/signatures.rs"]
mod signatures;
#[path = "image/ways.rs"]
mod ways;
#[path = "image/world.rs"]
mod world;
