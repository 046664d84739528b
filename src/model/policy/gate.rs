//! `[gate]` of policy files.

use std::collections::BTreeSet;

use toml::Spanned;

use super::PolicyError;
use super::parse::PolicyText;
use super::raw::RawGate;
use crate::model::gate::{ContainerGate, ExecutableDigest, HostGate};

/// Executables of one list.
const EXECUTABLES_MAX: usize = 1024;

/// Adds what one file says about the gate.
pub(super) fn add_gate(source: &PolicyText<'_>, raw: RawGate, gate: &mut HostGate) -> Result<(), PolicyError> {
    if let Some(executables) = raw.executables {
        add_executables(source, &executables, gate.executables.get_or_insert_default())?;
    }
    if let Some(names) = raw.images {
        gate.images.extend(names.into_iter().map(Spanned::into_inner));
        gate.executables.get_or_insert_default();
    }
    if !raw.kernel_signed.is_default() {
        gate.kernel_signed = raw.kernel_signed;
    }
    Ok(())
}

/// The list of a container: digests, and `images` for those that its images name.
pub(super) fn container_gate(source: &PolicyText<'_>, texts: Vec<Spanned<String>>) -> Result<ContainerGate, PolicyError> {
    let (images, digests): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text.get_ref() == "images");
    let mut gate = ContainerGate { images: !images.is_empty(), ..ContainerGate::default() };
    add_executables(source, &digests, &mut gate.executables)?;
    Ok(gate)
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
