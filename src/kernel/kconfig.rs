//! The values of `__kconfig` variables: of the running kernel's configuration, and those that the loader finds out. The
//! rules are libbpf's (tools/lib/bpf/libbpf.c of the Linux source, `bpf_object__resolve_externs`).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};

use flate2::read::GzDecoder;

use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::externs::{ConfigurationVariable, Externs};
use crate::kernel::features::{self, Feature, Support};
use crate::kernel::kallsyms;
use crate::sys::machine;

/// The limit on a configuration file: a distribution's has 300 kB.
const MAX_FILE: u64 = 16 << 20;

/// Why a value cannot be given to an object. The texts follow "read the kernel's configuration: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// No configuration file can be read.
    #[error("{name}: this kernel shows no configuration: neither {boot} nor /proc/config.gz can be read ({why})")]
    NoFile {
        /// The first variable that needs it.
        name: String,
        /// The file below /boot.
        boot: String,
        /// The error of the second file.
        why: String,
    },
    /// The configuration does not have it, and it is not weak.
    #[error("this kernel's configuration has no {0}; declare it __weak to read 0 then")]
    Missing(String),
    /// A name that the loader does not know.
    #[error("{0} is neither an option of the kernel's configuration (CONFIG_…) nor a value that loaders know")]
    Unknown(String),
    /// The value does not fit the type.
    #[error("{name} is {value} in this kernel's configuration, which the variable's type does not hold")]
    Type {
        /// The variable.
        name: String,
        /// The value as the file has it.
        value: String,
    },
}

/// The value of the map `.kconfig`.
///
/// # Errors
/// If a variable that is not weak has no value, or one does not fit.
pub fn image(externs: &Externs<'_>, btf: &Btf<'_>) -> Result<Vec<u8>, ConfigurationError> {
    let mut image = vec![0; externs.size as usize];
    let wanted: Vec<&str> =
        externs.configuration.iter().map(|variable| variable.name).filter(|name| name.starts_with("CONFIG_")).collect();
    let file = if wanted.is_empty() { Ok(HashMap::new()) } else { read(&wanted) };
    for variable in &externs.configuration {
        let name = variable.name.to_owned();
        let value = match variable.name {
            "LINUX_KERNEL_VERSION" => Some(kernel_version().to_string()),
            "LINUX_HAS_BPF_COOKIE" => Some(i32::from(features::probe(Feature::PerfLink) == Support::Yes).to_string()),
            "LINUX_HAS_SYSCALL_WRAPPER" => Some(i32::from(kallsyms::has_syscall_wrapper()).to_string()),
            option if option.starts_with("CONFIG_") => match &file {
                Ok(file) => file.get(option).cloned(),
                Err(_) if variable.weak => None,
                Err(why) => {
                    return Err(ConfigurationError::NoFile { name, boot: boot_file(), why: why.clone() });
                }
            },
            _ if variable.weak => None,
            _ => return Err(ConfigurationError::Unknown(name)),
        };
        let Some(value) = value else {
            if variable.weak {
                continue;
            }
            return Err(ConfigurationError::Missing(name));
        };
        let place = &mut image[variable.offset as usize..][..variable.size as usize];
        if encode(variable, btf, &value, place).is_none() {
            return Err(ConfigurationError::Type { name, value });
        }
    }
    Ok(image)
}

fn boot_file() -> String {
    format!("/boot/config-{}", machine::kernel_release())
}

/// The wanted options that are set, with their values as written. The error is that of /proc/config.gz.
fn read(wanted: &[&str]) -> Result<HashMap<String, String>, String> {
    let lines: Box<dyn Read> = match File::open(boot_file()) {
        Ok(file) => Box::new(file),
        Err(_) => Box::new(GzDecoder::new(File::open("/proc/config.gz").map_err(|error| error.to_string())?)),
    };
    options(BufReader::new(lines.take(MAX_FILE)), wanted).map_err(|error| error.to_string())
}

fn options(file: impl BufRead, wanted: &[&str]) -> std::io::Result<HashMap<String, String>> {
    let mut found = HashMap::new();
    for line in file.lines() {
        let line = line?;
        if let Some((name, value)) = line.split_once('=')
            && wanted.contains(&name)
        {
            found.insert(name.to_owned(), value.trim_end().to_owned());
        }
    }
    Ok(found)
}

/// KERNEL_VERSION(a, b, c). Distributions that keep one release through several versions show the true one elsewhere.
fn kernel_version() -> u32 {
    // Ubuntu: "Ubuntu 5.15.0-25.25-generic 5.15.30".
    let signature = fs::read_to_string("/proc/version_signature").ok();
    let ubuntu = signature.as_deref().and_then(|text| text.split_ascii_whitespace().nth(2)?.split('-').next());
    let version = machine::kernel_version();
    let debian = version.split_once("Debian ").map(|(_, rest)| rest);
    version_number(ubuntu.or(debian).unwrap_or(&machine::kernel_release()))
}

fn version_number(text: &str) -> u32 {
    let number = |part: &str| part.bytes().take_while(u8::is_ascii_digit).fold(0u32, |n, d| n * 10 + u32::from(d - b'0'));
    let mut parts = text.splitn(3, '.').map(|part| number(&part[..part.len().min(4)]));
    let (major, minor, patch) = (parts.next(), parts.next(), parts.next());
    major.unwrap_or_default() << 16 | (minor.unwrap_or_default() & 0xff) << 8 | patch.unwrap_or_default().min(255)
}

/// Writes a value as the type demands; None if it does not fit.
fn encode(variable: &ConfigurationVariable<'_>, btf: &Btf<'_>, value: &str, place: &mut [u8]) -> Option<()> {
    const BOOL: u8 = 4;
    let ty = &variable.ty;
    if let Some(text) = value.strip_prefix('"') {
        let text = text.strip_suffix('"')?.as_bytes();
        let (element, _) = ty.array()?;
        let is_text = btf.size(element) == Ok(1);
        // A text that is too long is cut off, and ends with a NUL (libbpf, `set_kcfg_value_str`).
        let length = text.len().min(place.len().saturating_sub(1));
        place[..length].copy_from_slice(&text[..length]);
        return is_text.then_some(());
    }
    let is_bool = ty.int().is_some_and(|(encoding, ..)| encoding & BOOL != 0);
    if let "y" | "n" | "m" = value {
        let tristate = matches!(ty.kind, BtfKind::Enum) && btf.string_bytes(ty.name_offset) == b"libbpf_tristate";
        let byte = match value {
            "m" if is_bool => return None,
            // enum libbpf_tristate: no, yes, module.
            "m" if tristate => 2,
            _ if is_bool || tristate => u8::from(value == "y"),
            other if ty.kind == BtfKind::Int && place.len() == 1 => other.as_bytes()[0],
            _ => return None,
        };
        return number(i128::from(byte), place);
    }
    let (encoding, ..) = ty.int()?;
    let digits = value.strip_prefix('-').unwrap_or(value);
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i128::from(u64::from_str_radix(hex, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    let value = if value.starts_with('-') { -magnitude } else { magnitude };
    let bits = 8 * place.len() as u32;
    let range = if is_bool {
        0..2
    } else if encoding & 1 != 0 {
        -(1i128 << (bits - 1))..1 << (bits - 1)
    } else {
        0..1 << bits
    };
    if range.contains(&value) { number(value, place) } else { None }
}

fn number(value: i128, place: &mut [u8]) -> Option<()> {
    let bytes = value.to_ne_bytes();
    let start = if cfg!(target_endian = "little") { 0 } else { bytes.len().checked_sub(place.len())? };
    place.copy_from_slice(bytes.get(start..start + place.len())?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_of_three_parts() {
        for (text, number) in [
            ("6.18.44-fc", 6 << 16 | 18 << 8 | 44),
            ("5.10.300", 5 << 16 | 10 << 8 | 255),
            ("6.1.0-13-amd64", 6 << 16 | 1 << 8),
            ("7.2", 7 << 16 | 2 << 8),
            ("6.12.48-1 (2026-01-01)", 6 << 16 | 12 << 8 | 48),
            ("", 0),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn only_wanted_options_are_read() {
        let text = "# CONFIG_X is not set\nCONFIG_HZ=250\nCONFIG_HZ_250=y\nCONFIG_LSM=\"a,b\"\n";
        let found = options(text.as_bytes(), &["CONFIG_HZ", "CONFIG_LSM", "CONFIG_X"]).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found["CONFIG_HZ"].as_str(), found["CONFIG_LSM"].as_str()), ("250", "\"a,b\""));
    }
}
