//! `image sign`, `image keyring`, and the signing part of `image build`: signatures of programs that the kernel checks.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Format;
use crate::cli::image::{ImageKeyringArgs, ImageSignArgs};
use crate::image::MAX_OBJECT;
use crate::image::program_key::ProgramKey;
use crate::kernel::{ProgramSignatures, signable, with_signatures};
use crate::lifecycle::{gate, program_keyring};
use crate::model::gate::ExecutableDigest;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;
use crate::sys::fsutil::{self, read_capped};

/// Size limit of a file with a key and its certificate.
const KEY_MAX: usize = 64 << 10;

/// What `image sign` prints with `-o json`.
#[derive(Debug, Serialize)]
struct SignedObject {
    object: String,
    programs: Vec<String>,
    exclusive_maps: BTreeSet<String>,
}

/// `image sign --key FILE OBJECT`
pub fn run(args: &ImageSignArgs) -> Result<ExitCode, CommandError> {
    let key = key(&args.key)?;
    let path = args.object.display().to_string();
    let doing = format!("sign {}", printable(&path));
    let object = read(&args.object, MAX_OBJECT).map_err(CommandError::doing(&doing))?;
    let (signed, programs) = sign(&object, Some(&key), &Additions::read(&args.exclusive_maps, &args.executables)?)
        .map_err(CommandError::doing(&doing))?;
    let to = args.output_file.as_deref().unwrap_or(&args.object);
    fsutil::write_atomically(to, &signed, 0o644)?;
    let done = SignedObject {
        object: to.display().to_string(),
        programs,
        exclusive_maps: args.exclusive_maps.iter().cloned().collect(),
    };
    print(&match args.output {
        Format::Json => json(&done),
        Format::Table => format!("{}: signed {}\n", printable(&done.object), done.programs.join(", ")),
    })
}

/// `image keyring`: makes the node's keyring.
pub fn keyring(paths: &Paths, args: &ImageKeyringArgs) -> Result<ExitCode, CommandError> {
    let made = program_keyring::make(paths)?.ok_or_else(|| {
        CommandError::new(format!(
            "make the node's keyring for programs: {} has no certificates (*.pem)",
            paths.program_keys().display()
        ))
    })?;
    print(&match args.format.output {
        Format::Json => json(&serde_json::json!({ "serial": made.serial, "certificates": made.certificates })),
        Format::Table => format!("keyring {} with {} certificates\n", made.serial, made.certificates),
    })
}

/// Reads a private key with its certificate.
pub(super) fn key(path: &Path) -> Result<ProgramKey, CommandError> {
    let reading = format!("read {}", printable(&path.display().to_string()));
    let pem = read(path, KEY_MAX).map_err(CommandError::doing(&reading))?;
    ProgramKey::parse(&pem).map_err(CommandError::doing(&reading))
}

/// What is added to an object beside signatures.
pub(super) struct Additions<'a> {
    exclusive_maps: &'a [String],
    executables: BTreeSet<ExecutableDigest>,
}

impl<'a> Additions<'a> {
    /// Reads the executables.
    pub(super) fn read(exclusive_maps: &'a [String], executables: &[PathBuf]) -> Result<Self, CommandError> {
        let digest = |path: &PathBuf| {
            let reading = format!("read {}", printable(&path.display().to_string()));
            let digest = File::open(path).and_then(gate::sha256).map_err(CommandError::doing(reading))?;
            Ok::<_, CommandError>(ExecutableDigest::sha256(digest))
        };
        Ok(Self { exclusive_maps, executables: executables.iter().map(digest).collect::<Result<_, _>>()? })
    }
}

/// The object with signatures of its programs, if there is a key, and the names of those that were signed.
pub(super) fn sign(
    object: &[u8],
    key: Option<&ProgramKey>,
    additions: &Additions<'_>,
) -> Result<(Vec<u8>, Vec<String>), CommandError> {
    let executables = additions.executables.clone();
    let mut section = ProgramSignatures { executables, ..ProgramSignatures::default() };
    let programs = signable(object)?;
    for map in additions.exclusive_maps {
        let users: Vec<&str> =
            programs.iter().filter(|program| program.maps.contains(map)).map(|program| program.function.as_str()).collect();
        match users.as_slice() {
            [_] => _ = section.exclusive.insert(map.clone()),
            [] => return Err(CommandError::new(format!("no program uses a map {}", printable(map)))),
            _ => {
                let problem = format!("map {} cannot be exclusive: {} use it", printable(map), users.join(", "));
                return Err(CommandError::new(problem));
            }
        }
    }
    if let Some(key) = key {
        for program in &programs {
            section.signatures.insert(program.function.clone(), key.sign(&program.instructions)?);
        }
    }
    let names = section.signatures.keys().cloned().collect();
    Ok((with_signatures(object, &section)?, names))
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, CommandError> {
    Ok(read_capped(File::open(path)?, max)?)
}
