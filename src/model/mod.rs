//! The data types of bpfman-hook: no I/O, no clock, no environment, no logging.
//!
//! Untrusted text (annotations, state, policy files, object files) is parsed into these types at the boundary; the code
//! behind it does not handle raw text again.

pub mod admission;
pub mod annotations;
pub mod attach_point;
pub mod bytecode;
pub mod config;
pub mod confinement;
pub mod container;
pub mod credentials;
pub mod delegation;
pub mod engine;
pub mod event;
pub mod explain;
pub mod facts;
pub mod gate;
pub mod globals;
pub mod grant;
pub mod ids;
pub mod manifest;
pub mod manual;
pub mod metrics_table;
pub mod missed;
pub mod object;
pub mod plan;
pub mod podman;
pub mod police;
pub mod policy;
pub mod program_signing;
pub mod proxy;
pub mod public_owner;
pub mod reach;
pub mod record;
pub mod recording;
pub mod reference;
pub mod registries;
pub mod runtime_hooks;
pub mod seccomp;
pub mod state;
pub mod text;
pub mod token_diagnosis;
pub mod token_matrix;
