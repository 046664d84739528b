//! Edits containerd's `config.toml`, versions 2 and 3, as text: comments, order and other settings are preserved.
//!
//! Each change is marked in place by a comment with the previous value; [`ContainerdConfig::restore`] needs nothing
//! else to restore the original text. Sources: docs/cri/config.md and docs/NRI.md of containerd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value, value};

/// Marks a key or a table that did not exist before.
const ADDED: &str = " # bpfman-hook: added";
/// Marks a changed key; its former value follows as a JSON string.
const WAS: &str = " # bpfman-hook: was ";
/// Precedes a table that install added.
const TABLE: &str = "\n# bpfman-hook: added by `bpfman-hook install --containerd`, removed by `uninstall`\n";

/// The annotation patterns that a handler passes to its hooks (Go's path.Match): pod-wide keys and those of one
/// container.
pub const PATTERNS: [&str; 2] = ["hook.bpfman.io/*", "*.hook.bpfman.io/*"];

const NRI: &str = "io.containerd.nri.v1.nri";

/// Why a configuration cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not TOML.
    #[error("parse it")]
    Toml(#[from] toml_edit::TomlError),
    /// Its version is not supported.
    #[error("its version is {0}; versions 2 and 3 are supported: `containerd config migrate` converts it")]
    Version(String),
    /// toml_edit would not preserve it.
    #[error("uninstall could not restore it byte for byte: {0}")]
    NotRestorable(&'static str),
    /// A part is not written in the way that containerd writes it.
    #[error("{0} is not written as a separate table; write it as [{0}]")]
    Shape(String),
    /// A handler already has another base spec.
    #[error(
        "the handler {handler} already has base_runtime_spec = {path:?}; choose another handler, or add our hooks to that file"
    )]
    Taken {
        /// The handler.
        handler: String,
        /// Its base spec.
        path: String,
    },
    /// The handler that is to be copied does not exist.
    #[error("there is no handler {0} to copy the runtime from; its default_runtime_name is wrong")]
    NoHandler(String),
}

/// The NRI part of the configuration. None means containerd's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nri {
    /// `disable`: the default is true before containerd 2.0, and false since.
    pub disabled: Option<bool>,
    /// `disable_connections`: only pre-installed plugins are served.
    pub no_connections: bool,
    /// `socket_path`.
    pub socket: Option<PathBuf>,
    /// `plugin_path`.
    pub plugins: Option<PathBuf>,
    /// `plugin_request_timeout`.
    pub request_timeout: Option<Duration>,
    /// The default validator (containerd 2.2) is enabled and refuses hooks that plugins inject.
    pub rejects_hooks: bool,
    /// The plugins that the validator, if enabled, requires for every container.
    pub required: Vec<String>,
}

/// A runtime handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// The name that a RuntimeClass refers to.
    pub name: String,
    /// `base_runtime_spec`.
    pub base_spec: Option<PathBuf>,
    /// `pod_annotations`.
    pub pod_annotations: Vec<String>,
}

impl Handler {
    /// True if the pods' annotations reach the hooks of the base spec.
    pub fn hands_on_annotations(&self) -> bool {
        let has = |pattern: &str| self.pod_annotations.iter().any(|found| found == pattern || found == "*/*");
        PATTERNS.iter().all(|pattern| has(pattern))
    }
}

/// True if a text contains a mark of ours. Files without one are never touched.
pub fn has_ours(text: &[u8]) -> bool {
    let mark = b"# bpfman-hook: ";
    text.windows(mark.len()).any(|window| window == mark)
}

/// A configuration.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    document: DocumentMut,
    /// The plugin that contains the runtime handlers.
    runtime: &'static str,
}

impl ContainerdConfig {
    /// Parses a configuration; an empty text stands for a missing file.
    ///
    /// # Errors
    /// [`ConfigError::Toml`], [`ConfigError::Version`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document: DocumentMut = text.parse()?;
        let runtime = match document.get("version") {
            // containerd 2 also reads version 2, and containerd 1 reads nothing newer.
            None if document.is_empty() => "io.containerd.grpc.v1.cri",
            None => return Err(ConfigError::Version("1 (it has no version key)".to_owned())),
            Some(version) => match version.as_integer() {
                Some(2) => "io.containerd.grpc.v1.cri",
                Some(3) => "io.containerd.cri.v1.runtime",
                _ => return Err(ConfigError::Version(version.to_string().trim().to_owned())),
            },
        };
        Ok(Self { document, runtime })
    }

    /// The text.
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// [`Self::parse`] for a change that must be reversible byte for byte.
    ///
    /// # Errors
    /// Also [`ConfigError::NotRestorable`].
    pub fn parse_to_change(text: &str) -> Result<Self, ConfigError> {
        let refused = |why| Err(ConfigError::NotRestorable(why));
        if text.starts_with('\u{feff}') {
            return refused("it begins with a byte order mark; remove it");
        }
        if text.contains('\r') {
            return refused("its lines end with CR LF; end them with LF");
        }
        if !text.is_empty() && !text.ends_with('\n') {
            return refused("its last line has no line end; add one");
        }
        let config = Self::parse(text)?;
        if config.text() == text {
            Ok(config)
        } else {
            refused("its layout would change; write it as containerd config dump does")
        }
    }

    fn plugin(&self, name: &str) -> Option<&dyn TableLike> {
        self.document.get("plugins")?.as_table_like()?.get(name)?.as_table_like()
    }

    /// The NRI settings.
    pub fn nri(&self) -> Nri {
        let Some(nri) = self.plugin(NRI) else { return Nri::default() };
        let path = |key: &str| nri.get(key).and_then(Item::as_str).map(PathBuf::from);
        let yes = |table: &dyn TableLike, key: &str| table.get(key).and_then(Item::as_bool);
        let validator = nri.get("default_validator").and_then(Item::as_table_like);
        let on = validator.is_some_and(|validator| yes(validator, "enable") == Some(true));
        let validator = validator.filter(|_| on);
        Nri {
            disabled: yes(nri, "disable"),
            no_connections: yes(nri, "disable_connections") == Some(true),
            socket: path("socket_path"),
            plugins: path("plugin_path"),
            request_timeout: nri.get("plugin_request_timeout").and_then(Item::as_str).and_then(duration),
            rejects_hooks: validator.is_some_and(|validator| yes(validator, "reject_oci_hook_adjustment") == Some(true)),
            required: validator.and_then(|validator| validator.get("required_plugins")).map(strings).unwrap_or_default(),
        }
    }

    fn handlers_table(&self) -> Option<&dyn TableLike> {
        self.plugin(self.runtime)?.get("containerd")?.as_table_like()?.get("runtimes")?.as_table_like()
    }

    /// The configured runtime handlers.
    pub fn handlers(&self) -> Vec<Handler> {
        let tables = self.handlers_table().into_iter().flat_map(TableLike::iter);
        let named = tables.filter_map(|(name, item)| Some((name, item.as_table_like()?)));
        named
            .map(|(name, table)| Handler {
                name: name.to_owned(),
                base_spec: table
                    .get("base_runtime_spec")
                    .and_then(Item::as_str)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                pod_annotations: table.get("pod_annotations").map(strings).unwrap_or_default(),
            })
            .collect()
    }

    /// Enables NRI if it is disabled, by the configuration or by containerd's default (before 2.0).
    ///
    /// # Errors
    /// [`ConfigError::Shape`].
    pub fn enable_nri(&mut self, off_by_default: bool) -> Result<(), ConfigError> {
        let says = self.nri();
        if says.disabled.unwrap_or(off_by_default) {
            set(self.table(&["plugins", NRI])?, "disable", Value::from(false));
        }
        if says.no_connections {
            set(self.table(&["plugins", NRI])?, "disable_connections", Value::from(false));
        }
        Ok(())
    }

    /// Adds our hooks and the pods' annotations to a handler: to an existing one, or to a new one that runs the same as
    /// the default handler.
    ///
    /// # Errors
    /// [`ConfigError::Taken`], [`ConfigError::NoHandler`], [`ConfigError::Shape`].
    pub fn add_handler(&mut self, handler: &str, base_spec: &Path) -> Result<(), ConfigError> {
        let spec = base_spec.to_string_lossy().into_owned();
        let runtimes = ["plugins", self.runtime, "containerd", "runtimes"];
        let found = self.handlers().into_iter().find(|found| found.name == handler);
        let path = [&runtimes[..], &[handler]].concat();
        if let Some(found) = found {
            match found.base_spec {
                Some(other) if other != base_spec => {
                    return Err(ConfigError::Taken { handler: handler.to_owned(), path: other.to_string_lossy().into_owned() });
                }
                Some(_) => {}
                None => set(self.table(&path)?, "base_runtime_spec", Value::from(spec)),
            }
            if !found.hands_on_annotations() {
                let wanted = found.pod_annotations.iter().map(String::as_str);
                let missing = PATTERNS.into_iter().filter(|pattern| !found.pod_annotations.iter().any(|had| had == pattern));
                let all: Array = wanted.chain(missing).collect();
                set(self.table(&path)?, "pod_annotations", Value::Array(all));
            }
            return Ok(());
        }
        let mut table = self.default_handler()?;
        table.remove("pod_annotations");
        table.insert("base_runtime_spec", value(spec));
        table.insert("pod_annotations", value(PATTERNS.into_iter().collect::<Array>()));
        table.decor_mut().set_prefix(TABLE);
        let parent = self.table(&runtimes)?;
        if parent.is_dotted() {
            let quoted: Vec<_> = runtimes.iter().map(|name| quoted(name)).collect();
            return Err(ConfigError::Shape(quoted.join(".")));
        }
        parent.insert(handler, Item::Table(table));
        Ok(())
    }

    /// A copy of the pods' default handler, without comments and positions, so that it can be inserted anywhere.
    fn default_handler(&self) -> Result<Table, ConfigError> {
        let containerd = self.plugin(self.runtime).and_then(|plugin| plugin.get("containerd")).and_then(Item::as_table_like);
        let name = containerd.and_then(|table| table.get("default_runtime_name")).and_then(Item::as_str).unwrap_or("runc");
        let mut copy = match self.handlers_table().and_then(|table| table.get(name)) {
            Some(Item::Table(table)) => table.clone(),
            Some(_) => return Err(ConfigError::Shape(format!("plugins.{:?}.containerd.runtimes.{name}", self.runtime))),
            // containerd's default without any configuration.
            None if name == "runc" => Table::from_iter([("runtime_type", Value::from("io.containerd.runc.v2"))]),
            None => return Err(ConfigError::NoHandler(name.to_owned())),
        };
        if let Some(path) = copy.get("base_runtime_spec").and_then(Item::as_str).filter(|path| !path.is_empty()) {
            return Err(ConfigError::Taken { handler: name.to_owned(), path: path.to_owned() });
        }
        bare(&mut copy);
        Ok(copy)
    }

    /// The table at a path, created if it is missing.
    fn table(&mut self, path: &[&str]) -> Result<&mut Table, ConfigError> {
        if self.document.get("version").is_none() {
            set(self.document.as_table_mut(), "version", Value::from(2));
        }
        let mut table = self.document.as_table_mut();
        let shape = |depth: usize| {
            let quoted: Vec<_> = path[..=depth].iter().map(|name| quoted(name)).collect();
            Err(ConfigError::Shape(quoted.join(".")))
        };
        for (depth, name) in path.iter().enumerate() {
            let last = depth + 1 == path.len();
            // Items below dotted keys are written as dotted keys, without our mark.
            if table.is_dotted() && !table.contains_key(name) {
                return shape(depth.saturating_sub(1));
            }
            let item = table.entry(name).or_insert_with(|| {
                let mut new = Table::new();
                new.set_implicit(!last);
                if last {
                    new.decor_mut().set_prefix(TABLE);
                }
                Item::Table(new)
            });
            table = match item {
                Item::Table(table) => table,
                _ => return shape(depth),
            };
        }
        Ok(table)
    }

    /// Reverts all our changes.
    pub fn restore(&mut self) {
        restore(self.document.as_table_mut());
    }
}

fn quoted(name: &str) -> String {
    if name.contains('.') { format!("'{name}'") } else { name.to_owned() }
}

fn strings(item: &Item) -> Vec<String> {
    let entries = item.as_array().into_iter().flat_map(Array::iter);
    entries.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Go's time.ParseDuration, as far as configurations use it: `2s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ms" => Duration::from_millis(1),
                "s" => Duration::from_secs(1),
                "m" => Duration::from_secs(60),
                "h" => Duration::from_secs(3600),
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Some(total)
}

/// Sets a key, with a mark that contains the previous value.
fn set(table: &mut Table, key: &str, mut new: Value) {
    let mark = match table.get(key) {
        Some(Item::Value(old)) => {
            // On one line, whatever the value is.
            format!("{WAS}{}", serde_json::Value::from(old.to_string()))
        }
        _ => ADDED.to_owned(),
    };
    new.decor_mut().set_prefix(" ");
    new.decor_mut().set_suffix(mark);
    match table.get_mut(key) {
        // The key keeps the comments before it.
        Some(item) => *item = Item::Value(new),
        None => drop(table.insert(key, Item::Value(new))),
    }
}

/// Removes comments, marks and positions.
fn bare(table: &mut Table) {
    table.set_position(None);
    table.decor_mut().clear();
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys {
        if let Some(mut key) = table.key_mut(&key) {
            key.leaf_decor_mut().clear();
        }
        match table.get_mut(&key) {
            Some(Item::Table(inner)) => bare(inner),
            Some(Item::Value(value)) => value.decor_mut().clear(),
            _ => {}
        }
    }
}

fn restore(table: &mut Table) {
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys {
        match table.get_mut(&key) {
            Some(Item::Table(inner)) => {
                let ours = inner
                    .decor()
                    .prefix()
                    .and_then(|prefix| prefix.as_str())
                    .is_some_and(|prefix| prefix.contains(TABLE.trim()));
                if ours {
                    table.remove(&key);
                } else {
                    restore(inner);
                }
            }
            Some(Item::Value(value)) => {
                let mark = value.decor().suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default().to_owned();
                if mark == ADDED {
                    table.remove(&key);
                } else if let Some(old) = mark.strip_prefix(WAS).and_then(former) {
                    *value = old;
                }
            }
            _ => {}
        }
    }
}

/// The value in a mark, with its own comment.
fn former(mark: &str) -> Option<Value> {
    let text: String = serde_json::from_str(mark).ok()?;
    let document: DocumentMut = format!("k ={text}\n").parse().ok()?;
    document.get("k")?.as_value().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: &str = r#"# kept
version = 3
root = "/var/lib/containerd" # as it was

[plugins]

  [plugins.'io.containerd.cri.v1.runtime']
    enable_cdi = true

    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
        # the usual one
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
          runtime_type = 'io.containerd.runc.v2' # shim
          pod_annotations = [
            "example.org/*", # theirs
          ]

          [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
            SystemdCgroup = true

  [plugins.'io.containerd.nri.v1.nri']
    disable = true # off for now
    plugin_request_timeout = '2s'
"#;

    const V2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";

    fn spec() -> &'static Path {
        Path::new("/etc/containerd/bpfman-hook-base.json")
    }

    fn handler<'a>(config: &'a [Handler], name: &str) -> &'a Handler {
        config.iter().find(|handler| handler.name == name).unwrap()
    }

    #[test]
    fn every_change_is_reverted_byte_for_byte() {
        for text in ["", V2, V3, "version = 3\n", "version = 2 # two\n\n[plugins]\n", "version = 3\n# end\n"] {
            let mut config = ContainerdConfig::parse_to_change(text).unwrap();
            config.enable_nri(true).unwrap();
            config.add_handler("bpfman-hook", spec()).unwrap();
            if text.contains("runtimes.runc]") {
                config.add_handler("runc", spec()).unwrap();
            }
            let changed = config.text();
            let again = ContainerdConfig::parse(&changed).unwrap();
            assert_eq!(again.nri().disabled, Some(false), "{changed}");
            let handlers = again.handlers();
            for handler in &handlers {
                assert_eq!(handler.base_spec.as_deref(), Some(spec()), "{changed}");
                assert!(handler.hands_on_annotations(), "{changed}");
            }
            assert!(handlers.iter().any(|handler| handler.name == "bpfman-hook"));

            let mut twice = again.clone();
            twice.enable_nri(true).unwrap();
            twice.add_handler("bpfman-hook", spec()).unwrap();
            assert_eq!(twice.text(), changed, "a second run changes nothing");

            let mut back = again;
            back.restore();
            assert_eq!(back.text(), text);
        }
    }

    #[test]
    fn texts_that_uninstall_could_not_restore_are_refused() {
        let dos = V3.replace('\n', "\r\n");
        let marked = format!("\u{feff}{V3}");
        for (text, said) in [
            (dos.as_str(), "its lines end with CR LF"),
            ("version = 3\r\nroot = 'x'\n", "its lines end with CR LF"),
            (&marked, "it begins with a byte order mark"),
            ("version = 3", "its last line has no line end"),
            ("version = 3\n# end", "its last line has no line end"),
        ] {
            let error = ContainerdConfig::parse_to_change(text).unwrap_err().to_string();
            assert!(error.starts_with("uninstall could not restore it byte for byte: ") && error.contains(said), "{error}");
        }
        assert_eq!(ContainerdConfig::parse(&dos).unwrap().nri(), ContainerdConfig::parse(V3).unwrap().nri(), "it can be read");
    }

    #[test]
    fn a_new_handler_runs_the_same_as_the_default_handler() {
        let mut config = ContainerdConfig::parse(V3).unwrap();
        config.add_handler("bpfman-hook", spec()).unwrap();
        let text = config.text();
        let read: toml::Table = toml::from_str(&text).unwrap();
        let runtimes = &read["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"];
        assert_eq!(runtimes["bpfman-hook"]["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert_eq!(runtimes["bpfman-hook"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(runtimes["runc"].get("base_runtime_spec"), None, "the other handler is unchanged");
        for comment in ["# kept", "# as it was", "# the usual one", "# shim", "# theirs", "# off for now"] {
            assert_eq!(text.matches(comment).count(), 1, "{comment}");
        }
    }

    #[test]
    fn other_settings_are_preserved() {
        let mut config = ContainerdConfig::parse(V3).unwrap();
        config.add_handler("runc", spec()).unwrap();
        assert_eq!(handler(&config.handlers(), "runc").pod_annotations, ["example.org/*", PATTERNS[0], PATTERNS[1]]);

        let taken = V2.to_owned() + "base_runtime_spec = \"/etc/other.json\"\n";
        let mut config = ContainerdConfig::parse(&taken).unwrap();
        for name in ["runc", "bpfman-hook"] {
            let error = config.add_handler(name, spec()).unwrap_err().to_string();
            assert!(error.contains("/etc/other.json"), "{error}");
        }
        assert_eq!(config.text(), taken);
    }

    #[test]
    fn nri_stays_enabled() {
        for (text, off_by_default) in
            [("version = 3\n", false), ("version = 2\n[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n", true)]
        {
            let mut config = ContainerdConfig::parse(text).unwrap();
            config.enable_nri(off_by_default).unwrap();
            assert_eq!(config.text(), text);
        }
        let closed = "version = 3\n[plugins.'io.containerd.nri.v1.nri']\ndisable_connections = true\n";
        let mut config = ContainerdConfig::parse(closed).unwrap();
        config.enable_nri(false).unwrap();
        assert!(!config.nri().no_connections);
    }

    #[test]
    fn the_validator_is_read() {
        let text = "version = 3\n[plugins.'io.containerd.nri.v1.nri'.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n\
                    required_plugins = [\"bpfman-hook\"]\n";
        let nri = ContainerdConfig::parse(text).unwrap().nri();
        assert!(nri.rejects_hooks && nri.required == ["bpfman-hook"]);
        let off = ContainerdConfig::parse(&text.replace("enable = true", "enable = false")).unwrap().nri();
        assert!(!off.rejects_hooks && off.required.is_empty());
        assert_eq!(ContainerdConfig::parse(V3).unwrap().nri().request_timeout, Some(Duration::from_secs(2)));
        for (text, wanted) in [("1m30s", Some(90_000)), ("500ms", Some(500)), ("2", None), ("x", None), ("-2s", None)] {
            assert_eq!(duration(text), wanted.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn unsupported_configurations_are_not_touched() {
        for (text, said) in
            [("root = \"/x\"\n", "versions 2 and 3"), ("version = 4\n", "its version is 4"), ("version = \n", "parse it")]
        {
            let error = ContainerdConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let inline = "version = 3\nplugins = { 'io.containerd.nri.v1.nri' = { disable = true } }\n";
        let mut config = ContainerdConfig::parse(inline).unwrap();
        let error = config.enable_nri(false).unwrap_err().to_string();
        assert!(error.contains("plugins is not written as a separate table"), "{error}");
        assert_eq!(config.text(), inline);
        // Below dotted keys, a handler would have no mark and could not be removed.
        let dotted = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\nruntimes.runc.runtime_type = 'io.containerd.runc.v2'\n";
        let mut config = ContainerdConfig::parse(dotted).unwrap();
        assert!(matches!(config.add_handler("bpfman-hook", spec()), Err(ConfigError::Shape(_))));
        let mut config = ContainerdConfig::parse("version = 3\nplugins.x.y = 1\n").unwrap();
        assert!(matches!(config.enable_nri(true), Err(ConfigError::Shape(_))));
    }
}
