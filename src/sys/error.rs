//! The error of this layer: a failed system call, or a failed sequence of them.

use std::io;
use std::time::Duration;

use crate::sys::bpffs::error::BpffsError;
use crate::sys::token::TokenError;

/// The error of this layer. Variants other than `Io` exist because a caller matches on them or because their message
/// names a remedy.
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// A system call failed; the errno says why.
    #[error("{doing} {object}")]
    Io {
        /// The operation, as a verb phrase: `open`, `enter the network namespace of`.
        doing: &'static str,
        /// The object of the operation: a path, a name, a pid.
        object: String,
        /// The errno.
        #[source]
        source: io::Error,
    },

    /// A bpffs could not be created for a container.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),

    /// A token could not be minted or read.
    #[error(transparent)]
    Token(#[from] TokenError),

    /// A child process did not answer before its deadline and was killed.
    #[error("wait for the {role} process: no answer within {:.1} s", waited.as_secs_f64())]
    Deadline {
        /// The role of the child.
        role: &'static str,
        /// How long this process waited.
        waited: Duration,
    },

    /// A child process ended without an answer.
    #[error("the {role} process ended early: {how}")]
    ChildGone {
        /// The role of the child.
        role: &'static str,
        /// Its exit status or signal.
        how: String,
    },

    /// A child process or thread cannot be had (EAGAIN of clone(2)).
    #[error(
        "start the {role} process: the limit on processes is reached; raise pids.max of the cgroup (TasksMax= of the \
         systemd unit) or RLIMIT_NPROC"
    )]
    NoProcess {
        /// The role of the child.
        role: &'static str,
    },

    /// A message received over a socket violates the protocol.
    #[error("receive {what}: {problem}")]
    Message {
        /// The message.
        what: &'static str,
        /// What was wrong with it.
        problem: String,
    },

    /// A thread could not drop or acquire the capabilities that it should run with.
    #[error("run with the capabilities {wanted}: the process lacks {missing}; grant it to the hook")]
    Capabilities {
        /// The capability set to run with.
        wanted: String,
        /// The capabilities of that set that the process does not hold.
        missing: String,
    },
}

impl SysError {
    /// Builds an `Io` error, in the form that `map_err` takes.
    pub fn io<E: Into<io::Error>>(doing: &'static str, object: impl Into<String>) -> impl FnOnce(E) -> Self {
        let object = object.into();
        move |source| Self::Io { doing, object, source: source.into() }
    }
}

/// Formats an error and its causes in one line, joined by `: `. A cause with which the text already ends is not
/// repeated.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}
