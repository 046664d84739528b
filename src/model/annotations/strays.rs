//! Annotations that are not ours but were meant to be: misspelt keys, and the rest of a value that was cut at a comma.
//!
//! podman's `--annotation` is a list of comma-separated values (spf13/pflag, `StringSlice`):
//! `hook.bpfman.io/programs=a, b=c` becomes two annotations, the second with the key ` b`. Without this check the
//! container would start with only a part of its request.

use super::keys::is_key;
use super::programs::OPTIONS;
use crate::model::attach_point::ProgramKind;

/// True for a key that may be the rest of a cut value: it contains a blank, or has the name of one of our keys, of an
/// option or the form `TYPE:FUNCTION`.
pub(super) fn is_cut_off(key: &str) -> bool {
    key.contains(char::is_whitespace)
        || is_key(key)
        || OPTIONS.contains(&key)
        || key.split_once(':').is_some_and(|(kind, _)| ProgramKind::from_word(kind).is_some())
}

/// True for a key that may be the name of a variable, cut off from `globals`.
pub(super) fn is_variable(key: &str) -> bool {
    !key.is_empty()
        && !key.starts_with(|c: char| c.is_ascii_digit())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_cut_value_is_recognised_by_its_key() {
        for (key, cut) in [
            (" iface", true),
            ("tcx:egress direction", true),
            ("xdp:count", true),
            ("netfilter:x", true),
            ("iface", true),
            ("proceed-on", true),
            ("programs", true),
            ("stats as", true),
            ("io.kubernetes.cri-o.Created", false),
            ("team", false),
            ("run.oci.keep_original_groups", false),
            ("bind-mount-options:/srv", false),
        ] {
            assert_eq!(is_cut_off(key), cut, "{key:?}");
        }
        assert!(is_variable("ports_2") && !is_variable("2x") && !is_variable("a.b") && !is_variable(""));
    }
}
