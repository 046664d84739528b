//! A process of the proxy, as the name of a file says it.

use crate::model::ids::{Pid, ProcessIdentity};

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerOf {
    /// The container's first process and its children.
    Container,
    /// An exec in the container.
    Exec,
}

impl ListenerOf {
    const WORDS: [(&'static str, Self); 2] = [("container", Self::Container), ("exec", Self::Exec)];

    /// `container` or `exec`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Exec => "exec",
        }
    }
}

/// The suffix of the file of a process that was found dead.
const LOST: &str = ".lost";

/// A process that serves one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyProcess {
    /// The process.
    pub process: ProcessIdentity,
    /// Whose calls it serves.
    pub of: ListenerOf,
    /// True if it was found dead before, and reported.
    pub reported: bool,
}

impl ProxyProcess {
    /// The name of its file: `container-812-4711`, with `.lost` once it was found dead.
    pub fn file_name(&self) -> String {
        let ProcessIdentity { pid, start_time } = self.process;
        format!("{}-{pid}-{start_time}{}", self.of.word(), if self.reported { LOST } else { "" })
    }

    /// The process that a file is for; None if the name is not that of such a file.
    pub fn of_file_name(name: &str) -> Option<Self> {
        let (rest, reported) = name.strip_suffix(LOST).map_or((name, false), |rest| (rest, true));
        let mut parts = rest.split('-');
        let word = parts.next()?;
        let (_, of) = ListenerOf::WORDS.into_iter().find(|(known, _)| *known == word)?;
        let pid = Pid::new(parts.next()?.parse().ok()?).ok()?;
        let start_time = parts.next()?.parse().ok()?;
        let found = Self { process: ProcessIdentity { pid, start_time }, of, reported };
        // Digits have one form, and nothing follows.
        (found.file_name() == name).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_which_process_it_is_for() {
        let process = ProcessIdentity { pid: Pid::new(812).unwrap(), start_time: 4711 };
        for (name, of, reported) in [
            ("container-812-4711", ListenerOf::Container, false),
            ("exec-812-4711", ListenerOf::Exec, false),
            ("exec-812-4711.lost", ListenerOf::Exec, true),
        ] {
            let found = ProxyProcess { process, of, reported };
            assert_eq!((found.file_name().as_str(), ProxyProcess::of_file_name(name)), (name, Some(found)));
        }
        for name in ["", "exec", "exec-0-1", "exec-1", "exec-1-2-3", "exec-01-2", "other-1-2", "exec-1-2.lost.lost", ".new"] {
            assert_eq!(ProxyProcess::of_file_name(name), None, "{name}");
        }
    }
}
