//! `[gate]` of policy files.

use std::collections::BTreeSet;

use toml::Spanned;

use super::PolicyError;
use super::parse::PolicyText;
use super::raw::RawGate;
use crate::model::gate::{ExecutableDigest, HostGate};
use crate::model::program_signing::KernelSigned;

/// Executables of one list.
const EXECUTABLES_MAX: usize = 1024;

/// Adds what one file says about the gate.
pub(super) fn add_gate(source: &PolicyText<'_>, raw: RawGate, gate: &mut HostGate) -> Result<(), PolicyError> {
    if let Some(executables) = raw.executables {
        add_executables(source, &executables, gate.executables.get_or_insert_default())?;
    }
    if raw.kernel_signed == KernelSigned::Required {
        gate.kernel_signed = KernelSigned::Required;
    }
    Ok(())
}

fn add_executables(
    source: &PolicyText<'_>,
    texts: &[Spanned<String>],
    list: &mut BTreeSet<ExecutableDigest>,
) -> Result<(), PolicyError> {
    for text in texts {
        let digest = text.get_ref().parse().map_err(|error| source.at(text, format!("executable {error}")))?;
        list.insert(digest);
        if list.len() > EXECUTABLES_MAX {
            return Err(source.at(text, format!("the gate has more than {EXECUTABLES_MAX} executables")));
        }
    }
    Ok(())
}
