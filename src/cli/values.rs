//! Values that several commands take: enumerations, which help, errors and completions list, and numbers.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::model::attach_point::{Direction, ProgramKind, TypeFilter};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::{ObjectLoader, Spelling};
use crate::model::policy::Engine;
use crate::model::text::nearest_hint;

/// One of `words`, which `read` knows. clap lists the words, and names the most similar one after a typo.
fn one_of<T: Clone + Send + Sync + 'static>(
    words: impl IntoIterator<Item = &'static str>,
    read: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words).map(move |word| read(&word).expect("every listed word is known"))
}

pub fn engine() -> impl TypedValueParser<Value = Engine> {
    one_of(Engine::ALL.map(Engine::word), Engine::from_word)
}

pub fn pull_policy() -> impl TypedValueParser<Value = PullPolicy> {
    one_of(["Always", "IfNotPresent", "Never"], PullPolicy::from_word)
}

pub fn spelling() -> impl TypedValueParser<Value = Spelling> {
    one_of(Spelling::ALL.map(|(_, word)| word), Spelling::from_word)
}

pub fn object_loader() -> impl TypedValueParser<Value = ObjectLoader> {
    one_of(["libbpf", "other"], |word| match word {
        "libbpf" => Some(ObjectLoader::Libbpf),
        "other" => Some(ObjectLoader::Other),
        _ => None,
    })
}

pub fn direction() -> impl TypedValueParser<Value = Direction> {
    one_of(["ingress", "egress"], |word| match word {
        "ingress" => Some(Direction::Ingress),
        "egress" => Some(Direction::Egress),
        _ => None,
    })
}

/// A type of ours, or a kernel type with dashes as in bpfman or with underscores as in the kernel.
pub fn type_filter(word: &str) -> Result<TypeFilter, String> {
    let known = || ProgramKind::ALL.map(|(_, word)| word).join(", ");
    let hint = || nearest_hint(word, TypeFilter::words());
    TypeFilter::from_word(word)
        .ok_or_else(|| format!("write one of {}, or a kernel program type as bpfman names it{}", known(), hint()))
}

/// The kernel's id of a program or link.
pub fn kernel_id(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "it is not a kernel id; write the number that `bpfman-hook list programs` or `list links` shows")
}

/// The number of a process.
pub fn process(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "it is not the number of a process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_type_is_written_with_dashes_or_underscores() {
        for word in ["socket-filter", "socket_filter"] {
            assert_eq!(type_filter(word), Ok(TypeFilter::Kernel(1)), "{word}");
        }
        assert!(type_filter("kprobe").is_ok() && type_filter("tc") == Ok(TypeFilter::Kernel(3)));
        assert!(type_filter("xpd").unwrap_err().ends_with("; the nearest is xdp"));
        assert!(kernel_id("abc").unwrap_err().contains("kernel id") && kernel_id("-1").is_err());
    }
}
