//! Credentials for registries: auth files in the format of podman and docker, and where a user keeps them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

/// A credential that is sent to a registry. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// A user name and a password.
    Login {
        /// The name.
        user: String,
        /// The password, or a personal token.
        password: String,
    },
    /// An identity token, which a token service exchanges for access tokens.
    Identity(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Login { .. } => "Login(…)",
            Self::Identity(_) => "Identity(…)",
        })
    }
}

impl Credential {
    /// `user:password` in base64, as in auth files and `--registry-auth`.
    pub fn from_base64(text: &str) -> Option<Self> {
        let text = text.trim().trim_end_matches('=');
        let bytes = STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()?;
        let plain = String::from_utf8(bytes).ok()?;
        let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
        Some(Self::Login { user: user.to_owned(), password: password.to_owned() })
    }

    /// Parses the output of a credential helper. The user `<token>` marks an identity token.
    pub fn from_helper(json: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct HelperAnswer {
            username: String,
            secret: String,
        }
        let HelperAnswer { username, secret } = serde_json::from_str(json).ok()?;
        Some(match username.as_str() {
            "<token>" => Self::Identity(secret),
            _ => Self::Login { user: username, password: secret },
        })
    }
}

/// One auth file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFile {
    auths: BTreeMap<String, Credential>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthDocument {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthEntry {
    /// None for an entry that only refers to a helper; Err for a malformed entry.
    fn credential(self) -> Result<Option<Credential>, ()> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(auth) = filled(self.auth) {
            return Credential::from_base64(&auth).map(Some).ok_or(());
        }
        Ok(filled(self.username).map(|user| Credential::Login { user, password: self.password.unwrap_or_default() }))
    }
}

impl AuthFile {
    /// Parses an auth.json, a docker config.json or a .dockercfg, which has the entries at its top level. Errors quote
    /// a key, never a value.
    pub fn parse(text: &str, dockercfg: bool) -> Result<Self, String> {
        // serde_json's messages can quote a value, and thus a password.
        let place = |err: serde_json::Error| format!("it is not an auth file: line {}, column {}", err.line(), err.column());
        let file = match dockercfg {
            true => AuthDocument {
                auths: serde_json::from_str(text).map_err(place)?,
                cred_helpers: BTreeMap::new(),
                creds_store: None,
            },
            false => serde_json::from_str(text).map_err(place)?,
        };
        let mut auths = BTreeMap::new();
        for (key, entry) in file.auths {
            let broken = |()| format!("the entry {key:?} is not user:password in base64");
            if let Some(credential) = entry.credential().map_err(broken)? {
                auths.insert(normal_key(&key), credential);
            }
        }
        let helpers = file.cred_helpers.into_iter().map(|(host, helper)| (normal_key(&host), helper)).collect();
        Ok(Self { auths, helpers, store: file.creds_store.filter(|store| !store.is_empty()) })
    }

    /// The entry with the longest matching prefix: `host/ns/repo`, `host/ns`, `host`.
    pub fn credential(&self, host: &str, repository: &str) -> Option<&Credential> {
        let mut key = format!("{host}/{repository}");
        loop {
            if let Some(found) = self.auths.get(&key) {
                return Some(found);
            }
            key.truncate(key.rfind('/')?);
        }
    }

    /// The helper for exactly this host.
    pub fn helper(&self, host: &str) -> Option<&str> {
        self.helpers.get(host).map(String::as_str)
    }

    /// The helper for every host without an entry.
    pub fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }
}

/// A key without its scheme. docker's keys are URLs, of which only the host counts; Docker Hub has one canonical name.
fn normal_key(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let key = match bare {
        Some(bare) => bare.split('/').next().unwrap_or(bare),
        None => key.trim_end_matches('/'),
    };
    let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let path = if path == "/v1" || path == "/v2" { "" } else { path };
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => format!("docker.io{path}"),
        _ => format!("{}{path}", host.to_ascii_lowercase()),
    }
}

/// The user who runs a command: the environment and flags that matter for registries. Hooks have none. `Debug` does not
/// show proxies, whose URLs may contain passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserEnvironment {
    /// `--registry-auth`, for the named registry, not for its mirrors.
    pub login: Option<Credential>,
    /// `--authfile` or REGISTRY_AUTH_FILE: only this file is used.
    pub auth_file: Option<PathBuf>,
    /// XDG_RUNTIME_DIR.
    pub runtime_directory: Option<PathBuf>,
    /// The uid.
    pub uid: u32,
    /// XDG_CONFIG_HOME.
    pub config_home: Option<PathBuf>,
    /// DOCKER_CONFIG.
    pub docker_config: Option<PathBuf>,
    /// HOME.
    pub home: Option<PathBuf>,
    /// PATH, which is searched for credential helpers.
    pub path: Option<String>,
    /// HTTPS_PROXY.
    pub https_proxy: Option<String>,
    /// HTTP_PROXY.
    pub http_proxy: Option<String>,
    /// NO_PROXY.
    pub no_proxy: Option<String>,
    /// True if no files are used: for a client of a service, who is not the user who runs it.
    pub no_files: bool,
}

impl fmt::Debug for UserEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserEnvironment")
            .field("login", &self.login)
            .field("auth_files", &self.auth_files())
            .finish_non_exhaustive()
    }
}

impl UserEnvironment {
    /// A user of whom only the credential for a registry is known.
    pub fn with_login(login: Credential) -> Self {
        Self { login: Some(login), no_files: true, ..Self::default() }
    }

    /// The user's auth files, in podman's order.
    pub fn auth_files(&self) -> Vec<PathBuf> {
        if self.no_files {
            return Vec::new();
        }
        if let Some(only) = &self.auth_file {
            return vec![only.clone()];
        }
        let below_home = |path: &str| self.home.as_ref().map(|home| home.join(path));
        let config = self.config_home.clone().or_else(|| below_home(".config"));
        let docker = self.docker_config.clone().or_else(|| below_home(".docker"));
        [
            self.runtime_directory.as_ref().map(|run| run.join("containers/auth.json")),
            Some(PathBuf::from(format!("/run/containers/{}/auth.json", self.uid))),
            config.map(|config| config.join("containers/auth.json")),
            docker.map(|docker| docker.join("config.json")),
            below_home(".dockercfg"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str) -> Credential {
        Credential::Login { user: user.to_owned(), password: "p:w".to_owned() }
    }

    #[test]
    fn the_longest_matching_key_wins() {
        let entry = |user: &str| format!("{{\"auth\":\"{}\"}}", STANDARD.encode(format!("{user}:p:w")));
        let text = format!(
            r#"{{"auths":{{"r.example/a/b":{},"r.example/a":{},"R.example":{},"https://index.docker.io/v1/":{},"empty.example":{{}},
               "i.example":{{"auth":"eDp5","identitytoken":"idt"}}}},"credHelpers":{{"h.example":"pass"}},"credsStore":"store"}}"#,
            entry("b"),
            entry("a"),
            entry("host"),
            entry("hub")
        );
        let file = AuthFile::parse(&text, false).unwrap();
        for (host, repository, user) in [
            ("r.example", "a/b", Some("b")),
            ("r.example", "a/b/c", Some("b")),
            ("r.example", "a/bc", Some("a")),
            ("r.example", "other", Some("host")),
            ("r.example:5000", "a/b", None),
            ("docker.io", "library/x", Some("hub")),
            ("empty.example", "x", None),
        ] {
            assert_eq!(file.credential(host, repository), user.map(login).as_ref(), "{host}/{repository}");
        }
        assert_eq!(file.credential("i.example", "x"), Some(&Credential::Identity("idt".into())));
        assert_eq!((file.helper("h.example"), file.helper("x"), file.store()), (Some("pass"), None, Some("store")));
        let old = AuthFile::parse(&format!("{{\"https://r.example\":{}}}", entry("old")), true).unwrap();
        assert_eq!(old.credential("r.example", "x"), Some(&login("old")));
    }

    #[test]
    fn errors_and_debug_output_do_not_show_secrets() {
        for text in [
            r#"{"auths":{"a":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"a":{"auth":12,"password":"secret"}}}"#,
            r#"{"auths":{"a":"secret"}}"#,
            "secret",
        ] {
            let problem = AuthFile::parse(text, false).unwrap_err();
            assert!(!problem.contains("secret") && !problem.contains("c2VjcmV0"), "{problem}");
        }
        let shown = format!("{:?}", Credential::Login { user: "secret".into(), password: "secret".into() });
        assert_eq!(shown, "Login(…)");
        let login = Some(Credential::Identity("secret".into()));
        let proxy = || Some("http://u:secret@p".to_owned());
        let user_env = UserEnvironment { login, https_proxy: proxy(), http_proxy: proxy(), ..UserEnvironment::default() };
        assert!(!format!("{user_env:?}").contains("secret"), "{user_env:?}");
        assert_eq!(Credential::from_helper(r#"{"Username":"<token>","Secret":"t"}"#), Some(Credential::Identity("t".into())));
    }

    #[test]
    fn a_named_auth_file_is_used_exclusively() {
        let mut user_env = UserEnvironment { uid: 7, home: Some("/h".into()), ..UserEnvironment::default() };
        let shown = |user_env: &UserEnvironment| {
            user_env.auth_files().iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&user_env),
            ["/run/containers/7/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json", "/h/.dockercfg"]
        );
        user_env.runtime_directory = Some("/r".into());
        user_env.docker_config = Some("/d".into());
        assert_eq!((shown(&user_env)[0].as_str(), shown(&user_env)[3].as_str()), ("/r/containers/auth.json", "/d/config.json"));
        user_env.auth_file = Some("/only".into());
        assert_eq!(shown(&user_env), ["/only"]);
        assert_eq!(shown(&UserEnvironment::with_login(login("a"))), [""; 0]);
    }
}
