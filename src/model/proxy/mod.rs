//! The proxy of bpf(2): the calls of a container's processes that create or attach, judged on a copy of their arguments.
//!
//! A seccomp filter notifies the calls of [`NotifiedCommand`] to a process of bpfman-hook. That process copies the
//! arguments once, asks this module about the copy, makes the call itself and hands the new descriptor back. The
//! instructions of programs are judged by `kernel::review`.

pub mod attr;
pub mod default_profile;
pub mod grant;
pub mod perf_event;
mod process;
pub mod profile;
mod refusal;
mod tally;
mod traced_file;
pub mod usage;

pub use attr::{CopiedAttr, NotifiedCommand};
pub use grant::{AttachTarget, CallCeiling, ProxyGrant, ProxyRecord};
pub use perf_event::PerfEventCall;
pub use process::{ListenerOf, ProxyProcess};
pub use refusal::{ProxyErrno, ProxyRefusal};
pub use tally::{Tallied, Tally};
pub use traced_file::{TracedFile, TracedTask};
pub use usage::ProxyUsage;
