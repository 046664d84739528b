//! The gate: which executables may load BPF programs, by their contents. docs/gate.md explains it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::program_signing::KernelSigned;
use crate::model::text::quoted;

/// How an executable is identified, in the order of src/bpf/gate.bpf.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestKind {
    /// The sha256 of the file, which the kernel computes by reading it (IMA).
    Sha256,
    /// The digest of fs-verity, which the kernel has without reading the file.
    FsVerity,
}

impl DigestKind {
    const ALL: [(Self, &'static str); 2] = [(Self::Sha256, "sha256"), (Self::FsVerity, "fs-verity")];
}

/// The digest of an executable: `sha256:HEX` or `fs-verity:HEX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ExecutableDigest {
    /// What it is a digest of.
    pub kind: DigestKind,
    /// The digest.
    pub digest: [u8; 32],
}

impl ExecutableDigest {
    /// The sha256 of a file's contents.
    pub fn sha256(digest: [u8; 32]) -> Self {
        Self { kind: DigestKind::Sha256, digest }
    }

    /// Size of a key of the gate's map in bytes.
    pub const KEY_SIZE: usize = 48;

    /// The key of the gate's map (`struct listed`): the list is a cgroup's id, or 0 for the host's.
    pub fn key(&self, list: u64) -> [u8; Self::KEY_SIZE] {
        let mut key = [0; Self::KEY_SIZE];
        key[..8].copy_from_slice(&list.to_ne_bytes());
        key[8..16].copy_from_slice(&(self.kind as u64).to_ne_bytes());
        key[16..].copy_from_slice(&self.digest);
        key
    }

    /// The list and the digest of a key.
    pub fn from_key(key: &[u8]) -> Option<(u64, Self)> {
        let list = u64::from_ne_bytes(*key.first_chunk()?);
        let kind = u64::from_ne_bytes(*key.get(8..)?.first_chunk()?);
        let (kind, _) = DigestKind::ALL.into_iter().find(|(known, _)| *known as u64 == kind)?;
        Some((list, Self { kind, digest: key.get(16..)?.try_into().ok()? }))
    }
}

impl fmt::Display for ExecutableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = DigestKind::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        write!(f, "{name}:")?;
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not the digest of an executable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not sha256: or fs-verity: followed by 64 lower-case hex digits", quoted(.0))]
pub struct ExecutableDigestError(String);

impl FromStr for ExecutableDigest {
    type Err = ExecutableDigestError;

    fn from_str(text: &str) -> Result<Self, ExecutableDigestError> {
        let parsed = || {
            let (name, digits) = text.split_once(':')?;
            let (kind, _) = DigestKind::ALL.into_iter().find(|(_, known)| *known == name)?;
            if digits.len() != 64 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return None;
            }
            let mut digest = [0; 32];
            for (n, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok()?;
            }
            Some(Self { kind, digest })
        };
        parsed().ok_or_else(|| ExecutableDigestError(text.to_owned()))
    }
}

impl From<ExecutableDigest> for String {
    fn from(digest: ExecutableDigest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for ExecutableDigest {
    type Error = ExecutableDigestError;

    fn try_from(text: String) -> Result<Self, ExecutableDigestError> {
        text.parse()
    }
}

/// `[gate]` of the policy: the list of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostGate {
    /// The executables that may load, bpfman-hook itself besides; None if any may.
    pub executables: Option<BTreeSet<ExecutableDigest>>,
    /// Names of image rules: the executables that their images in the cache name may load too.
    pub images: BTreeSet<String>,
    /// Whether programs have to be signed by the node's keyring.
    pub kernel_signed: KernelSigned,
}

/// `gate` of a container rule: the list of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ContainerGate {
    /// The executables that may load in it.
    pub executables: BTreeSet<ExecutableDigest>,
    /// True if those that its images name may too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub images: bool,
}

/// A container that has a list of its own in the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatedContainer {
    /// The id of its cgroup. Ids are not used twice in a boot.
    pub cgroup: u64,
    /// The list.
    pub executables: BTreeSet<ExecutableDigest>,
}

/// What the gate is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateRules {
    /// True: refuse; false: only count.
    pub enforce: bool,
    /// How long it refuses, in seconds from when it is in force; None: without an end. Afterwards it only counts.
    pub seconds: Option<u64>,
    /// The list of the host; None if only containers with a list of their own are judged.
    pub executables: Option<BTreeSet<ExecutableDigest>>,
    /// True if containers may have lists of their own.
    pub containers: bool,
    /// The serial number of the keyring by which programs have to be signed; None if they need not be.
    pub keyring: Option<i32>,
}

/// Calls that were counted, in the order of src/bpf/gate.bpf.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateOutcome {
    /// Calls of listed executables.
    Allowed,
    /// Calls of others that were refused.
    Refused,
    /// Calls of others that were only counted.
    Counted,
    /// Attempts of others to open the gate's maps, or to change which executable they count as.
    Protected,
    /// How often the kernel read an executable.
    Hashed,
    /// Programs without a signature by the node's keyring that were refused.
    UnsignedRefused,
    /// Programs without a signature by the node's keyring that were only counted.
    UnsignedCounted,
}

impl GateOutcome {
    /// Every outcome, with its name in listings.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Allowed, "allowed"),
        (Self::Refused, "refused"),
        (Self::Counted, "counted"),
        (Self::Protected, "protected"),
        (Self::Hashed, "hashed"),
        (Self::UnsignedRefused, "unsigned refused"),
        (Self::UnsignedCounted, "unsigned counted"),
    ];

    /// Its index in the gate's counters.
    pub fn index(self) -> u32 {
        self as u32
    }
}

/// An executable that is not listed and called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnlistedExecutable {
    /// The sha256 of its contents; None if the kernel did not tell it.
    pub executable: Option<ExecutableDigest>,
    /// The name of the thread that called first.
    pub command: String,
    /// The id of the cgroup whose list was asked; 0 for the host's.
    pub list: u64,
    /// How often it called.
    pub calls: u64,
}

impl UnlistedExecutable {
    /// Reads an entry of the gate's map (`struct unlisted_executable`).
    pub fn from_entry(key: &[u8], value: &[u8]) -> Option<Self> {
        let digest: [u8; 32] = key.try_into().ok()?;
        let name = value.get(16..32)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some(Self {
            executable: (digest != [0; 32]).then(|| ExecutableDigest::sha256(digest)),
            command: String::from_utf8_lossy(&name[..end]).escape_debug().to_string(),
            list: u64::from_ne_bytes(*value.get(8..)?.first_chunk()?),
            calls: u64::from_ne_bytes(*value.first_chunk()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_parsed_and_printed() {
        let hex = "0123456789abcdef".repeat(4);
        for kind in ["sha256", "fs-verity"] {
            let text = format!("{kind}:{hex}");
            let digest: ExecutableDigest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(ExecutableDigest::from_key(&digest.key(7)), Some((7, digest)));
        }
        for wrong in
            ["", "sha256", &hex, &format!("sha512:{hex}"), &format!("sha256:{hex}0"), &format!("sha256:{}", hex.to_uppercase())]
        {
            let error = wrong.parse::<ExecutableDigest>().unwrap_err().to_string();
            assert!(error.ends_with("is not sha256: or fs-verity: followed by 64 lower-case hex digits"), "{error}");
        }
        assert_eq!(ExecutableDigest::from_key(&[9; 48]), None);
        assert_eq!(ExecutableDigest::from_key(&[0; 47]), None);
    }

    #[test]
    fn an_unlisted_executable_is_read() {
        let value = [&3_u64.to_ne_bytes()[..], &5_u64.to_ne_bytes(), b"a\nb\0\0\0\0\0\0\0\0\0\0\0\0\0"].concat();
        let found = UnlistedExecutable::from_entry(&[0; 32], &value).unwrap();
        assert_eq!((found.executable, found.command.as_str(), found.list, found.calls), (None, "a\\nb", 5, 3));
        assert_eq!(
            UnlistedExecutable::from_entry(&[1; 32], &value).unwrap().executable.map(|found| found.digest),
            Some([1; 32])
        );
        assert_eq!(UnlistedExecutable::from_entry(&[1; 32], &value[..31]), None);
    }
}
