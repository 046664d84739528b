//! `[[client]]`: what clients of the gRPC service may do. Root of the host may do everything without a rule.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ContainerLimits, Policy, RuleLocation, StoreLimits};
use crate::model::text::{is_normal_path, quoted};

/// One rule; the first that matches a client decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRule {
    /// Its location.
    pub place: RuleLocation,
    /// The uid or the user name.
    pub user: Option<ClientAccount>,
    /// The gid or the name of a group: the client's primary or a supplementary group.
    pub group: Option<ClientAccount>,
    /// The subject of a TLS client's certificate (RFC 4514).
    pub subject: Option<String>,
    /// The operations that it may request.
    pub allow: BTreeSet<Verb>,
    /// Names of image rules; None means every image rule.
    pub images: Option<BTreeSet<String>>,
    /// Files, and directories with everything below them, from which it may load.
    pub paths: Vec<PathBuf>,
    /// True if its programs may reach the host: every attachment without a container does, and tracing programs do once
    /// loaded.
    pub host_scope: bool,
    /// Programs that it may have loaded at the same time, instead of `[limits]`.
    pub programs: Option<u32>,
    /// Links that its loaded programs may have at the same time, instead of `[limits]`.
    pub links: Option<u32>,
    /// Bytes of all maps that it has loaded, instead of `[limits]`.
    pub map_memory: Option<u64>,
    /// Bytes of the record store for everything that it has loaded, instead of `[limits]`.
    pub store: Option<u64>,
}

/// A user or a group as written in the policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ClientAccount {
    /// A number.
    Id(u32),
    /// A name from /etc/passwd or /etc/group.
    Name(String),
}

/// An operation that a client may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// List and Get.
    Read,
    /// PullBytecode.
    Pull,
    /// Load and Unload.
    Load,
    /// Attach and Detach.
    Attach,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Pull => "pull",
            Self::Load => "load",
            Self::Attach => "attach",
        })
    }
}

/// A client, as the kernel or a verified certificate identifies it; never as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceClient {
    /// A client on the unix socket.
    Unix {
        /// Its uid.
        uid: u32,
        /// The name for that uid.
        user: Option<String>,
        /// Its gid and supplementary groups, with their names.
        groups: Vec<(u32, Option<String>)>,
        /// False if it is in another user namespace than this process, or if that could not be determined.
        same_user_namespace: bool,
    },
    /// A client with mutual TLS.
    Tls {
        /// The subject of its certificate.
        subject: String,
    },
}

/// Why a client is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientRefusal {
    /// Root of another user namespace.
    #[error("uid 0 of another user namespace is not root of this host, and {verb} needs a [[client]] rule for another uid")]
    ForeignRoot {
        /// The requested operation.
        verb: Verb,
    },
    /// No rule matches the client.
    #[error("{client} may not {verb}: only root may, and no [[client]] rule of the policy matches")]
    NoRule {
        /// The client.
        client: String,
        /// The requested operation.
        verb: Verb,
    },
    /// The rule that matches does not allow it.
    #[error("{client} may not {verb}: {place} does not allow it")]
    Verb {
        /// The client.
        client: String,
        /// The requested operation.
        verb: Verb,
        /// The rule.
        place: String,
    },
    /// The file is not below any of the rule's paths.
    #[error("{client} may not load the file {path}: {place} does not name it in paths")]
    Path {
        /// The client.
        client: String,
        /// The file, quoted.
        path: String,
        /// The rule.
        place: String,
    },
    /// No image rule that the client may use covers the image.
    #[error("{client} may not use the image {image}: no image rule that {place} allows names it")]
    Image {
        /// The client.
        client: String,
        /// The reference, quoted.
        image: String,
        /// The rule.
        place: String,
    },
    /// It reaches the host.
    #[error("{client} may not {what}: that reaches the host, and {place} does not set host-scope = true")]
    HostScope {
        /// The client.
        client: String,
        /// The requested operation.
        what: String,
        /// The rule.
        place: String,
    },
}

impl fmt::Display for ServiceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, user: Some(user), .. } => write!(f, "uid {uid} ({user})"),
            Self::Unix { uid, .. } => write!(f, "uid {uid}"),
            Self::Tls { subject } => write!(f, "the client {}", quoted(subject)),
        }
    }
}

impl ServiceClient {
    /// A text that identifies the client uniquely, without names that may change; its loads are recorded under it.
    pub fn identity(&self) -> String {
        match self {
            Self::Unix { uid, .. } => format!("uid {uid}"),
            Self::Tls { subject } => format!("the client {subject:?}"),
        }
    }
}

impl ClientRule {
    /// True if the rule matches this client: everything that it names must match, and it must name something.
    pub fn matches(&self, client: &ServiceClient) -> bool {
        let named = self.user.is_some() || self.group.is_some() || self.subject.is_some();
        let holds = match client {
            ServiceClient::Unix { uid, user, groups, .. } => {
                self.subject.is_none()
                    && self.user.as_ref().is_none_or(|account| account.is(*uid, user.as_deref()))
                    && self
                        .group
                        .as_ref()
                        .is_none_or(|account| groups.iter().any(|(gid, name)| account.is(*gid, name.as_deref())))
            }
            ServiceClient::Tls { subject } => {
                self.user.is_none() && self.group.is_none() && self.subject.as_ref() == Some(subject)
            }
        };
        named && holds
    }

    /// True if the rule allows a file to be loaded: one that it names, or one below a directory that it names.
    pub fn allows_path(&self, path: &Path) -> bool {
        path.to_str().is_some_and(is_normal_path) && self.paths.iter().any(|allowed| path.starts_with(allowed))
    }

    /// The limits for everything that the client has loaded.
    pub fn limits(&self, policy: &ContainerLimits) -> ContainerLimits {
        ContainerLimits {
            programs: self.programs.unwrap_or(policy.programs),
            links: self.links.unwrap_or(policy.links),
            map_memory: self.map_memory.unwrap_or(policy.map_memory),
        }
    }

    /// The limits for the record store of everything that the client has loaded.
    pub fn store_limits(&self, policy: &StoreLimits) -> StoreLimits {
        StoreLimits { client: self.store.unwrap_or(policy.client), ..*policy }
    }

    /// The rule's location for messages.
    pub fn shown(&self) -> String {
        match &self.place {
            RuleLocation::BuiltIn | RuleLocation::Root => "the built-in client rule".to_owned(),
            RuleLocation::Line { file, line } => format!("the client rule at {}:{line}", file.display()),
        }
    }
}

impl ClientAccount {
    fn is(&self, id: u32, name: Option<&str>) -> bool {
        match self {
            Self::Id(wanted) => *wanted == id,
            Self::Name(wanted) => name == Some(wanted),
        }
    }
}

impl Policy {
    /// The rule under which a client may do something; `Ok(None)` is root of this host, to whom no rule applies.
    ///
    /// # Errors
    /// A message for the client, which names the rule and never what other rules allow.
    pub fn client_rule(&self, client: &ServiceClient, verb: Verb) -> Result<Option<&ClientRule>, ClientRefusal> {
        if let ServiceClient::Unix { uid: 0, same_user_namespace, .. } = client {
            return if *same_user_namespace { Ok(None) } else { Err(ClientRefusal::ForeignRoot { verb }) };
        }
        let shown = client.to_string();
        match self.clients.iter().find(|rule| rule.matches(client)) {
            None => Err(ClientRefusal::NoRule { client: shown, verb }),
            Some(rule) if rule.allow.contains(&verb) => Ok(Some(rule)),
            Some(rule) => Err(ClientRefusal::Verb { client: shown, verb, place: rule.shown() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy::parse(&[(PathBuf::from("/p.toml"), text.to_owned())]).unwrap()
    }

    fn unix(uid: u32, user: Option<&str>, groups: &[(u32, Option<&str>)]) -> ServiceClient {
        ServiceClient::Unix {
            uid,
            user: user.map(str::to_owned),
            groups: groups.iter().map(|(gid, name)| (*gid, name.map(str::to_owned))).collect(),
            same_user_namespace: true,
        }
    }

    #[test]
    fn without_rules_only_root_of_this_host_is_allowed() {
        let policy = policy("");
        assert_eq!(policy.client_rule(&unix(0, Some("root"), &[]), Verb::Load), Ok(None));
        let mut foreign = unix(0, None, &[]);
        if let ServiceClient::Unix { same_user_namespace, .. } = &mut foreign {
            *same_user_namespace = false;
        }
        assert_eq!(policy.client_rule(&foreign, Verb::Read), Err(ClientRefusal::ForeignRoot { verb: Verb::Read }));
        let error = policy.client_rule(&unix(7, Some("al"), &[(0, Some("root"))]), Verb::Read).unwrap_err();
        assert_eq!(error.to_string(), "uid 7 (al) may not read: only root may, and no [[client]] rule of the policy matches");
        assert!(policy.client_rule(&ServiceClient::Tls { subject: "CN=root".into() }, Verb::Read).is_err());
    }

    #[test]
    fn client_identities_are_exact_and_independent_of_names() {
        let tls = |tail: &str| ServiceClient::Tls { subject: format!("CN={}{tail}", "x".repeat(60)) }.identity();
        assert_ne!(tls("a"), tls("b"));
        assert_eq!(unix(7, Some("al"), &[]).identity(), unix(7, Some("alice"), &[(1, None)]).identity());
        let pretender = ServiceClient::Tls { subject: "uid 7".into() };
        assert_ne!(pretender.identity(), unix(7, None, &[]).identity());
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "[[client]]\nuser = 7\nallow = [\"read\"]\n[[client]]\ngroup = \"ops\"\nallow = [\"read\", \"load\"]\npaths = [\"/usr/lib/bpf\"]\n\
             [[client]]\nuser = \"al\"\ngroup = 50\nallow = [\"pull\"]\n[[client]]\nsubject = \"CN=agent\"\nallow = [\"attach\"]\nhost-scope = true\n",
        );
        let ops = [(100, Some("ops"))];
        let cases = [
            (unix(7, None, &ops), Verb::Read, true),
            (unix(7, None, &ops), Verb::Load, false),
            (unix(8, None, &ops), Verb::Load, true),
            (unix(8, None, &[(100, None)]), Verb::Load, false),
            (unix(9, Some("al"), &[(50, None)]), Verb::Pull, true),
            (unix(9, Some("al"), &[(51, None)]), Verb::Pull, false),
            (unix(9, Some("CN=agent"), &[]), Verb::Attach, false),
            (ServiceClient::Tls { subject: "CN=agent".into() }, Verb::Attach, true),
            (ServiceClient::Tls { subject: "CN=agent2".into() }, Verb::Attach, false),
            (ServiceClient::Tls { subject: "al".into() }, Verb::Pull, false),
        ];
        for (client, verb, allowed) in cases {
            let rule = policy.client_rule(&client, verb);
            assert_eq!(rule.is_ok_and(|rule| rule.is_some()), allowed, "{client} {verb}");
        }
        let error = policy.client_rule(&unix(7, None, &[]), Verb::Load).unwrap_err();
        assert_eq!(error.to_string(), "uid 7 may not load: the client rule at /p.toml:1 does not allow it");
    }

    #[test]
    fn a_rule_has_its_own_limits_or_the_global_ones() {
        let policy = policy(
            "[limits]\nprograms = 3\n[[client]]\nuser = 7\nallow = []\nmap-memory = \"1MiB\"\nlinks = 9\n[[client]]\nuser = 8\nallow = []\nprograms = 500\n",
        );
        let limits: Vec<_> = policy.clients.iter().map(|rule| rule.limits(&policy.limits)).collect();
        let default = ContainerLimits::default();
        let expected =
            [ContainerLimits { programs: 3, links: 9, map_memory: 1 << 20 }, ContainerLimits { programs: 500, ..default }];
        assert_eq!(limits, expected);
        let wrong = "[[client]]\nuser = 7\nallow = []\nmap-memory = \"1 potato\"\n";
        assert!(Policy::parse(&[(PathBuf::from("/p.toml"), wrong.to_owned())]).is_err());
    }

    #[test]
    fn a_rule_has_its_own_store_limit_or_the_global_one() {
        let text = "[limits]\nstore-per-load = \"8KiB\"\nstore-clients = 1000000\n[[client]]\nuser = 7\nallow = []\nstore = \"1MiB\"\n\
                    [[client]]\nuser = 8\nallow = []\n";
        let policy = policy(text);
        let limits: Vec<_> = policy.clients.iter().map(|rule| rule.store_limits(&policy.store)).collect();
        let default = StoreLimits { load: 8 << 10, clients: 1_000_000, ..StoreLimits::default() };
        assert_eq!(limits, [StoreLimits { client: 1 << 20, ..default }, default]);
    }

    #[test]
    fn paths_match_by_components() {
        let policy = policy("[[client]]\nuser = 7\nallow = [\"load\"]\npaths = [\"/usr/lib/bpf\", \"/srv/one.o\"]\n");
        let rule = policy.client_rule(&unix(7, None, &[]), Verb::Load).unwrap().unwrap();
        for (path, allowed) in [
            ("/usr/lib/bpf/x.o", true),
            ("/usr/lib/bpf/a/x.o", true),
            ("/srv/one.o", true),
            ("/usr/lib/bpfx/x.o", false),
            ("/usr/lib/bpf/../../../etc/shadow", false),
            ("/usr/lib/bpf//x.o", false),
            ("usr/lib/bpf/x.o", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(rule.allows_path(Path::new(path)), allowed, "{path}");
        }
    }
}
