//! Annotations that are not ours but were meant to be: misspelt keys, and the rest of a value that was cut at a comma.
//!
//! podman's `--annotation` is a list of comma-separated values (spf13/pflag, `StringSlice`):
//! `hook.bpfman.io/programs=a, b=c` becomes two annotations, the second with the key ` b`. Without this check the
//! container would start with only a part of its request.

use super::keys::is_key;
use super::programs::OPTIONS;
use crate::model::attach_point::ProgramKind;

/// True for our keys and everything that resembles one: `hook` or `hooks`, then `bpfman`, in any case, with anything
/// but letters, digits and slashes in between. The pattern in the hook files is the same (`setup/hook_files.rs`).
/// Allocates nothing.
pub fn resembles_ours(key: &str) -> bool {
    let bytes = key.as_bytes();
    let is = |at: usize, word: &[u8]| bytes.get(at..at + word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word));
    (0..bytes.len()).filter(|at| is(*at, b"hook") && (*at == 0 || !bytes[at - 1].is_ascii_alphanumeric())).any(|at| {
        let end = at + if is(at, b"hooks") { 5 } else { 4 };
        let gap = bytes[end..].iter().take_while(|b| !b.is_ascii_alphanumeric() && **b != b'/').count();
        is(end + gap, b"bpfman")
    })
}

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
