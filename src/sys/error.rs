//! Why a system call, or a few of them that belong together, did not work.

use std::io;
use std::time::Duration;

use crate::sys::bpffs::BpffsError;
use crate::sys::token::TokenError;

/// The error of this layer. A variant beside `Io` exists because somebody matches on it or because its sentence has to name
/// a remedy.
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// A system call failed and its errno says why.
    #[error("{doing} {object}")]
    Io {
        /// What we were doing, as a verb phrase: `open`, `enter the network namespace of`.
        doing: &'static str,
        /// To which object: a path, a name, a pid.
        object: String,
        /// The errno.
        #[source]
        source: io::Error,
    },

    /// A bpffs could not be made for a container.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),

    /// A token could not be minted or read.
    #[error(transparent)]
    Token(#[from] TokenError),

    /// A child of ours did not answer before its deadline and was killed.
    #[error("wait for the {role} process: no answer within {:.1} s", waited.as_secs_f64())]
    Deadline {
        /// What the child was for.
        role: &'static str,
        /// How long we waited for it.
        waited: Duration,
    },

    /// A child of ours ended without saying what it was asked.
    #[error("the {role} process ended early: {how}")]
    ChildGone {
        /// What the child was for.
        role: &'static str,
        /// Its exit status or signal.
        how: String,
    },

    /// A message over a socket was not as the protocol has it.
    #[error("receive {what}: {problem}")]
    Message {
        /// The message.
        what: &'static str,
        /// What was wrong with it.
        problem: String,
    },

    /// A thread could not give up or take the capabilities that it should run with.
    #[error("run with the capabilities {wanted}: the process lacks {missing}; grant it to the hook")]
    Capabilities {
        /// The set to run with.
        wanted: String,
        /// What of it the process does not hold.
        missing: String,
    },
}

impl SysError {
    /// An `Io` error; the form that `map_err` takes.
    pub fn io<E: Into<io::Error>>(doing: &'static str, object: impl Into<String>) -> impl FnOnce(E) -> Self {
        let object = object.into();
        move |source| Self::Io { doing, object, source: source.into() }
    }
}

/// An error with its causes in one line, joined by `: `. A cause that the message before it already ends with is not said twice.
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
