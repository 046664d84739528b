//! The commands that are not a hook, a service or the installer: one module per command or group of related commands.

pub mod complete;
pub mod documents;
pub mod events;
pub mod gate;
pub mod get;
pub mod graph;
pub mod guard;
pub mod image;
pub mod list;
pub mod load_and_attach;
pub mod man;
pub mod manual;
pub mod police;
pub mod policy;
pub mod privilege;
pub mod records;
pub mod request_child;
mod roff;
pub mod select;
pub mod token;
mod token_bpffs;
mod token_names;
pub mod tree;
