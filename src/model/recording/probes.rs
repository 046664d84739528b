//! Probes of the kernel by loader libraries, told apart from the programs of a workload.
//!
//! Read in libbpf 1.5 (features.c, `bpf_object__probe_loading`), aya 0.13 (sys/bpf.rs) and cilium/ebpf 0.17
//! (syscalls.go). A probe has no name of its own, so a program without a name counts as one only after the same thread has
//! done something that only such a library does.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What a library's probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LibraryProbe {
    /// A trial program. libbpf loads nothing without it, unless it has a token.
    Loading,
    /// Global variables. Without it no object that has some is loaded.
    GlobalData,
    /// Attach types of programs. Without it libbpf sends 0 for some sections.
    AttachTypes,
    /// bpf_probe_read_kernel. Without it the library calls bpf_probe_read instead.
    ReadKernel,
    /// Any other; the library does without what it tests.
    Other,
}

impl LibraryProbe {
    /// For a listing.
    pub fn what(self) -> &'static str {
        match self {
            Self::Loading => "a trial program",
            Self::GlobalData => "global variables",
            Self::AttachTypes => "attach types",
            Self::ReadKernel => "bpf_probe_read_kernel",
            Self::Other => "other features",
        }
    }
}

/// The part of a submitted program that tells whether it is a probe.
#[derive(Debug, Clone, Copy)]
pub struct SubmittedProgram<'a> {
    /// Its name.
    pub name: &'a str,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`
    pub attach_type: u32,
    /// The number of its instructions.
    pub instructions: usize,
    /// The helpers that it calls.
    pub helpers: &'a BTreeSet<u32>,
    /// True if it refers to the value of a map: a global variable.
    pub global_data: bool,
}

/// Names of programs and maps that only probes have.
const NAMES: [&str; 7] =
    ["libbpf_nametest", "libbpf_global", "libbpf_mmap", "libbpf_det_bind", "det_arg_ctx", "aya_name_check", "feature_test"];
/// bpf_ktime_get_coarse_ns: libbpf's and bpftool's first probe is a program that calls it and returns.
const COARSE_CLOCK: u32 = 160;
/// bpf_probe_read_kernel
const READ_KERNEL: u32 = 113;
/// The longest probe is one that reads a kernel's address.
const INSTRUCTIONS_MAX: usize = 8;
/// `enum bpf_prog_type`
const SOCKET_FILTER: u32 = 1;
const TRACEPOINT: u32 = 5;
const CGROUP_SOCK: u32 = 9;

/// True if a name of a program or map tells that a library probes the kernel.
pub fn marks_library(name: &str) -> bool {
    NAMES.contains(&name)
}

impl SubmittedProgram<'_> {
    /// True if it tells that a library probes the kernel.
    pub fn marks_library(&self) -> bool {
        marks_library(self.name) || self.is_clock()
    }

    fn is_clock(&self) -> bool {
        let calls = self.helpers.len() == 1 && self.helpers.contains(&COARSE_CLOCK);
        self.name.is_empty() && calls && self.instructions == 2
    }

    /// The probe that it is; `of_library` if the thread's library has been seen to probe.
    pub fn probe(&self, of_library: bool) -> Option<LibraryProbe> {
        if self.marks_library() {
            return Some(LibraryProbe::Other);
        }
        if !of_library || !self.name.is_empty() || self.instructions > INSTRUCTIONS_MAX {
            return None;
        }
        Some(match self.program_type {
            SOCKET_FILTER if self.global_data => LibraryProbe::GlobalData,
            SOCKET_FILTER if self.helpers.is_empty() => LibraryProbe::Loading,
            TRACEPOINT if self.helpers.contains(&READ_KERNEL) => LibraryProbe::ReadKernel,
            CGROUP_SOCK => LibraryProbe::AttachTypes,
            _ => LibraryProbe::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_told_apart() {
        use LibraryProbe::{AttachTypes, GlobalData, Loading, Other, ReadKernel};
        // Name, type, instructions, helper, global data; the probe in a library, and elsewhere.
        let cases = [
            ("", 1, 2, Some(160), false, Some(Other), Some(Other)),
            ("", 1, 2, None, false, Some(Loading), None),
            ("", 1, 5, None, true, Some(GlobalData), None),
            ("", 9, 2, None, false, Some(AttachTypes), None),
            ("", 5, 7, Some(113), false, Some(ReadKernel), None),
            ("", 5, 2, None, false, Some(Other), None),
            ("", 2, 2, None, false, Some(Other), None),
            ("det_arg_ctx", 2, 4, None, false, Some(Other), Some(Other)),
            ("libbpf_nametest", 1, 2, None, false, Some(Other), Some(Other)),
            ("count", 6, 2, None, false, None, None),
            ("", 6, 40, None, false, None, None),
            ("", 1, 12, Some(160), false, None, None),
        ];
        for (name, program_type, instructions, helper, global_data, in_library, elsewhere) in cases {
            let helpers = helper.into_iter().collect();
            let program = SubmittedProgram { name, program_type, attach_type: 0, instructions, helpers: &helpers, global_data };
            assert_eq!((program.probe(true), program.probe(false)), (in_library, elsewhere), "{program:?}");
        }
        assert!(marks_library("libbpf_global") && !marks_library("packets"));
    }
}
