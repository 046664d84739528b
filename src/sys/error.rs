//! Why a system call, or a few of them that belong together, did not work.

use std::io;

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
}

impl SysError {
    /// An `Io` error; the form that `map_err` takes.
    pub fn io<E: Into<io::Error>>(doing: &'static str, object: impl Into<String>) -> impl FnOnce(E) -> Self {
        let object = object.into();
        move |source| Self::Io { doing, object, source: source.into() }
    }
}
