//! The structure of a policy file as serde reads it: its keys and their types. `parse` checks the values.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use toml::Spanned;

use super::{ClientAccount, Engine, OnMissed, Verb};
use crate::model::annotations::OnFailure;
use crate::model::attach_point::Scope;
use crate::model::bytecode::PullPolicy;
use crate::model::police::PoliceMode;
use crate::model::program_signing::KernelSigned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFile {
    #[serde(default)]
    pub(super) image: Vec<Spanned<RawImage>>,
    #[serde(default)]
    pub(super) container: Vec<Spanned<RawContainer>>,
    #[serde(default)]
    pub(super) client: Vec<Spanned<RawClient>>,
    pub(super) gate: Option<RawGate>,
    pub(super) limits: Option<RawLimits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawGate {
    pub(super) executables: Option<Vec<Spanned<String>>>,
    pub(super) images: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) kernel_signed: KernelSigned,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawImage {
    pub(super) name: Option<Spanned<String>>,
    pub(super) repository: Spanned<String>,
    pub(super) signed_by: Option<Spanned<OneOrMany<Spanned<RawSigner>>>>,
    pub(super) unsigned: Option<Spanned<bool>>,
    #[serde(default = "container_scope")]
    pub(super) scope: Scope,
    #[serde(default)]
    pub(super) kernel_signed: KernelSigned,
    #[serde(default)]
    pub(super) digests: Vec<Spanned<String>>,
    pub(super) globals: Option<Vec<Spanned<String>>>,
    pub(super) maps: Option<Vec<Spanned<String>>>,
}

fn container_scope() -> Scope {
    Scope::Container
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSigner {
    pub(super) key: Option<String>,
    pub(super) identity: Option<String>,
    pub(super) identity_regexp: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) issuer_regexp: Option<String>,
    pub(super) trusted_root: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawContainer {
    #[serde(default)]
    pub(super) r#match: RawMatch,
    pub(super) images: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) programs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) host_scope: bool,
    pub(super) delegate: Option<Spanned<RawDelegate>>,
    pub(super) proxy: Option<Spanned<RawProxy>>,
    pub(super) police: Option<Spanned<RawPolice>>,
    pub(super) gate: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) on_failure: Vec<OnFailure>,
    #[serde(default)]
    pub(super) on_missed: OnMissed,
    #[serde(default)]
    pub(super) grant: bool,
    pub(super) pull_policy: Option<PullPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawClient {
    pub(super) user: Option<ClientAccount>,
    pub(super) group: Option<ClientAccount>,
    pub(super) subject: Option<Spanned<String>>,
    pub(super) allow: Vec<Verb>,
    pub(super) images: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) paths: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) host_scope: bool,
    pub(super) programs: Option<u32>,
    pub(super) links: Option<u32>,
    pub(super) map_memory: Option<Spanned<RawSize>>,
    pub(super) store: Option<Spanned<RawSize>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawMatch {
    pub(super) engine: Option<Engine>,
    pub(super) namespace: Option<String>,
    pub(super) pod: Option<String>,
    pub(super) container: Option<String>,
    pub(super) labels: Option<Spanned<BTreeMap<String, String>>>,
    pub(super) runtime_user: Option<u32>,
    pub(super) userns: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawLimits {
    pub(super) programs: Option<u32>,
    pub(super) links: Option<u32>,
    pub(super) map_memory: Option<Spanned<RawSize>>,
    pub(super) store_per_load: Option<Spanned<RawSize>>,
    pub(super) store_per_client: Option<Spanned<RawSize>>,
    pub(super) store_clients: Option<Spanned<RawSize>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct DelegateTable {
    #[serde(default)]
    pub(super) presets: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) cmds: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) maps: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) progs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) attachs: Vec<Spanned<String>>,
}

/// A list of presets, or a table of presets and exact lists.
pub(super) enum RawDelegate {
    Presets(Vec<Spanned<String>>),
    Table(DelegateTable),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyTable {
    #[serde(default)]
    pub(super) presets: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) cmds: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) maps: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) progs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) attachs: Vec<Spanned<String>>,
    pub(super) helpers: Option<Vec<Spanned<String>>>,
    pub(super) kfuncs: Option<Vec<Spanned<String>>>,
    pub(super) instructions: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoliceTable {
    pub(super) mode: PoliceMode,
    #[serde(default)]
    pub(super) presets: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) cmds: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) maps: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) progs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) attachs: Vec<Spanned<String>>,
    pub(super) helpers: Option<Vec<Spanned<String>>>,
    pub(super) kfuncs: Option<Vec<Spanned<String>>>,
}

/// A mode, or a table of the mode and of what is allowed.
pub(super) enum RawPolice {
    Mode(PoliceMode),
    Table(PoliceTable),
}

/// A list of presets, or a table that also lists functions.
pub(super) struct RawProxy(pub(super) ProxyTable);

/// A table, or a list of them.
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

/// Bytes as a number, or as a text with a unit.
pub(super) enum RawSize {
    Bytes(u64),
    Text(String),
}

// Not `#[serde(untagged)]`: that would lose the line and the reason of an error inside.
impl<'de> Deserialize<'de> for OneOrMany<Spanned<RawSigner>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany<Spanned<RawSigner>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or a list of tables")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(OneOrMany(all))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = RawSigner::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(OneOrMany(vec![Spanned::new(0..0, one)]))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for RawDelegate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawDelegate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of presets, or a table of presets, cmds, maps, progs and attachs")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(RawDelegate::Presets(all))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                DelegateTable::deserialize(de::value::MapAccessDeserializer::new(map)).map(RawDelegate::Table)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for RawProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawProxy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a list of presets, or a table of presets, cmds, maps, progs, attachs, helpers, kfuncs and instructions",
                )
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut presets = Vec::new();
                while let Some(one) = seq.next_element()? {
                    presets.push(one);
                }
                Ok(RawProxy(ProxyTable { presets, ..ProxyTable::default() }))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                ProxyTable::deserialize(de::value::MapAccessDeserializer::new(map)).map(RawProxy)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for RawPolice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawPolice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"warn\", \"enforce\", or a table of mode, presets, cmds, maps, progs, attachs, helpers and kfuncs",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPolice, E> {
                PoliceMode::deserialize(de::value::StrDeserializer::new(text)).map(RawPolice::Mode)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                PoliceTable::deserialize(de::value::MapAccessDeserializer::new(map)).map(RawPolice::Table)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for RawSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RawSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size, as \"64MiB\" or a number of bytes")
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<RawSize, E> {
                u64::try_from(bytes).map(RawSize::Bytes).map_err(|_| E::custom("a size must not be negative"))
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<RawSize, E> {
                Ok(RawSize::Bytes(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawSize, E> {
                Ok(RawSize::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
