//! Identifiers, each with its own type.

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid identifier of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not a container id.
    #[error("container id {0:?} is not 1 to 255 characters of A-Z a-z 0-9 _ + - .")]
    ContainerId(String),
    /// The text is not a digest of the form `sha256:<64 hex digits>`.
    #[error("digest {0:?} is not sha256: followed by 64 lower-case hex digits")]
    Digest(String),
    /// Zero is not a process id.
    #[error("0 is not a process id")]
    Pid,
}

/// The id that a runtime gave a container: 1 to 255 characters of `[A-Za-z0-9_+.-]`, and not `.` or `..`.
///
/// The alphabet is runc's (libcontainer/factory_linux.go, `idRegex`); crun, containerd, podman and CRI-O use subsets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The maximum length in characters.
    pub const MAX: usize = 255;

    /// The id as the runtime wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(legal) && text != "." && text != ".." {
            Ok(Self(text))
        } else {
            Err(IdError::ContainerId(text))
        }
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of an owner in the store. It is never reused within a boot, so it can name a pin directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnerNo(pub u64);

impl OwnerNo {
    /// The directory of this owner's pins below our bpffs: `owner_7`.
    pub fn directory(self) -> String {
        format!("owner_{}", self.0)
    }

    /// Parses the name of an owner's directory; None if it is not one.
    pub fn from_directory(name: &str) -> Option<Self> {
        number(name.strip_prefix("owner_")?).map(Self)
    }
}

/// Parses a number in canonical form, without sign and leading zeroes, so that each number has only one name.
fn number(digits: &str) -> Option<u64> {
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

impl fmt::Display for OwnerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A process id in the host's pid namespace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(NonZeroU32);

impl Pid {
    /// Converts a number that may be zero, which crun and podman write for "no process".
    pub fn new(raw: u32) -> Result<Self, IdError> {
        match NonZeroU32::new(raw) {
            Some(pid) if i32::try_from(raw).is_ok() => Ok(Self(pid)),
            _ => Err(IdError::Pid),
        }
    }

    /// The number, for a path below `/proc`.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The number as the kernel's `pid_t`.
    pub fn as_raw(self) -> i32 {
        i32::try_from(self.0.get()).expect("Pid::new checked the range")
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One process of this boot: a pid is reused, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id in the host's pid namespace.
    pub pid: Pid,
    /// Clock ticks from boot to the start of the process: field 22 of `/proc/<pid>/stat`, proc(5).
    pub start_time: u64,
}

/// The sha256 digest of some bytes, written `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// A digest from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hex digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Digest(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a pin below an owner's directory: `prog_1`, `map_2`, `link_3`.
///
/// bpfman-hook chooses the names: bpffs refuses dots, and untrusted text is never used as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PinName(String);

impl PinName {
    /// The pin of the owner's `n`th program.
    pub fn program(n: usize) -> Self {
        Self(format!("prog_{n}"))
    }

    /// The pin of the owner's `n`th map.
    pub fn map(n: usize) -> Self {
        Self(format!("map_{n}"))
    }

    /// The pin of the owner's `n`th link.
    pub fn link(n: usize) -> Self {
        Self(format!("link_{n}"))
    }

    /// The pin of one of the maps with the counters of a policed container.
    pub fn police(n: usize) -> Self {
        Self(format!("police_{n}"))
    }

    /// Parses a file name; None if it is not such a pin.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (kind, digits) = name.split_once('_')?;
        let ours = matches!(kind, "prog" | "map" | "link" | "police") && number(digits).is_some();
        ours.then(|| Self(name.to_owned()))
    }

    /// The file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pin's path below an owner's directory.
    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(&self.0)
    }
}

impl fmt::Display for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_follow_the_runtimes_rules() {
        for good in ["web", "a.b+c_d-e", "..a", &"x".repeat(255)] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(256)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_sha256_in_lower_case() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().map(|d| d.to_string()), Ok(text));
        for bad in ["", "sha256:", "sha256:0a", &format!("sha512:{}", "0a".repeat(32)), &format!("sha256:{}", "0A".repeat(32))]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn file_names_round_trip() {
        assert_eq!(OwnerNo::from_directory(&OwnerNo(7).directory()), Some(OwnerNo(7)));
        assert_eq!(PinName::from_file_name("link_3"), Some(PinName::link(3)));
        assert_eq!(PinName::from_file_name("police_1"), Some(PinName::police(1)));
        assert_eq!(PinName::from_file_name(PinName::map(0).as_str()), Some(PinName::map(0)));
        for bad in ["owner_", "owner_07", "owner_+7", "owner_x", "7", "owner_18446744073709551616"] {
            assert_eq!(OwnerNo::from_directory(bad), None, "{bad}");
        }
        for bad in ["prog", "prog_", "prog_01", "prog_-1", "link_1 ", "btf_1", "../link_1"] {
            assert_eq!(PinName::from_file_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn zero_and_negative_pids_are_rejected() {
        assert!(Pid::new(0).is_err());
        assert!(Pid::new(u32::MAX).is_err());
        assert_eq!(Pid::new(7).map(Pid::as_raw), Ok(7));
    }
}
