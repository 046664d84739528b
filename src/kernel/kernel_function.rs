//! Programs that are loaded for one kernel function: fentry, fexit and lsm.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::kernel::core_relo::CoreTarget;
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, Support};
use crate::model::attach_point::ProgramKind;
use crate::model::plan::PlannedProgram;

/// The kernel feature that a kind requires.
pub(crate) fn feature(kind: ProgramKind) -> Feature {
    if kind == ProgramKind::Lsm { Feature::Lsm } else { Feature::Tracing }
}

/// Refuses an LSM program that would load and attach but never be called, because bpf is not an active LSM.
pub(crate) fn check(planned: &PlannedProgram) -> Result<(), KernelError> {
    if planned.kind != ProgramKind::Lsm {
        return Ok(());
    }
    match features::probe(Feature::Lsm) {
        found @ Support::No(_) => Err(KernelError::feature(format!("load program {}", planned.function), Feature::Lsm, found)),
        // Loading the program reports this itself.
        Support::Yes | Support::Unknown(_) => Ok(()),
    }
}

/// The type id of the function that a program is loaded for.
pub(crate) fn find(planned: &PlannedProgram, target: Option<&CoreTarget<'_>>) -> Result<u32, KernelError> {
    let missing = |what: String, module| KernelError::NoKernelFunction {
        kind: planned.kind,
        program: planned.function.clone(),
        what,
        module,
    };
    let name = planned.target.as_deref().unwrap_or_default();
    let function = match planned.kind {
        ProgramKind::Lsm => format!("bpf_lsm_{name}"),
        _ => name.to_owned(),
    };
    if let Some(id) = target.and_then(|target| target.function(&function)) {
        return Ok(id);
    }
    Err(match planned.kind {
        ProgramKind::Lsm => missing(format!("LSM hook {name:?}"), String::new()),
        _ => missing(format!("function {name:?} that programs can attach to"), module_of(name)),
    })
}

/// The end of the message for a function of a module. Failing to read the file is not an error.
fn module_of(function: &str) -> String {
    let Ok(symbols) = File::open("/proc/kallsyms") else { return String::new() };
    let lines = BufReader::new(symbols).lines().map_while(Result::ok);
    let module = lines.filter_map(|line| module_in(&line, function).map(str::to_owned)).next();
    module.map_or(String::new(), |module| format!("; it is in the module {module}, and functions of modules are not supported"))
}

/// The module on a line `address type name [module]` of /proc/kallsyms, if the line is about this function.
fn module_in<'l>(line: &'l str, function: &str) -> Option<&'l str> {
    let mut words = line.split_ascii_whitespace().skip(2);
    (words.next()? == function).then(|| words.next()?.strip_prefix('[')?.strip_suffix(']')).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_from_brackets() {
        for (line, module) in [
            ("ffffffffc0a1 t nf_hook\t[nf_tables]", Some("nf_tables")),
            ("ffffffff81a1 T nf_hook", None),
            ("ffffffffc0a1 t nf_hook_slow\t[nf_tables]", None),
            ("", None),
        ] {
            assert_eq!(module_in(line, "nf_hook"), module, "{line:?}");
        }
    }
}
