//! Selects the annotations that apply to one container: our keys, for the pod or by container name.

use std::collections::BTreeMap;

use super::RequestError;
use crate::model::podman::ContainerNames;
use crate::model::text::{nearest_hint, quoted};

/// The domain of all our keys: the part before the slash.
const DOMAIN: &str = "hook.bpfman.io";

/// The known keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnnotationKey {
    Image,
    Programs,
    Globals,
    Maps,
    MapSize,
    PullPolicy,
    Bpffs,
    BpffsPath,
    Delegate,
    DelegateVia,
    DelegateCmds,
    DelegateMaps,
    DelegateProgs,
    DelegateAttachs,
    OnFailure,
}

impl AnnotationKey {
    const ALL: [(Self, &'static str); 15] = [
        (Self::Image, "image"),
        (Self::Programs, "programs"),
        (Self::Globals, "globals"),
        (Self::Maps, "maps"),
        (Self::MapSize, "map-size"),
        (Self::PullPolicy, "pull-policy"),
        (Self::Bpffs, "bpffs"),
        (Self::BpffsPath, "bpffs-path"),
        (Self::Delegate, "delegate"),
        (Self::DelegateVia, "delegate-via"),
        (Self::DelegateCmds, "delegate-cmds"),
        (Self::DelegateMaps, "delegate-maps"),
        (Self::DelegateProgs, "delegate-progs"),
        (Self::DelegateAttachs, "delegate-attachs"),
        (Self::OnFailure, "on-failure"),
    ];

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(key, _)| *key)
    }
}

/// Every key, without the domain.
pub fn key_words() -> [&'static str; AnnotationKey::ALL.len()] {
    AnnotationKey::ALL.map(|(_, word)| word)
}

/// True for a known key, without the domain.
pub(super) fn is_key(word: &str) -> bool {
    AnnotationKey::from_word(word).is_some()
}

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

/// The scope of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// `hook.bpfman.io/<key>`: every regular container of a pod, or the only container.
    Pod,
    /// `<container-name>.hook.bpfman.io/<key>`: only this container.
    Container,
}

/// The keys that apply to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience<'a> {
    /// A regular container: its own keys, then the pod's.
    Regular(Option<&'a str>),
    /// An init, ephemeral or sandbox container: only its own keys.
    OnlyNamed(&'a str),
    /// A podman container: its own keys, then the pod's, each also in the form that `generate kube` writes.
    Podman(&'a ContainerNames),
}

/// One annotation that applies to the container.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundAnnotation<'a> {
    /// The whole key, for messages.
    pub key: &'a str,
    pub value: &'a str,
    pub scope: KeyScope,
    /// Written for this container by `generate kube`.
    generated: bool,
}

impl FoundAnnotation<'_> {
    /// Of two annotations for one key, the one with the narrower scope wins.
    fn held_bytes(self) -> (bool, bool) {
        (self.scope == KeyScope::Container, self.generated)
    }
}

/// The annotations that apply to one container, at most one for each key.
#[derive(Debug, Default)]
pub(super) struct Annotations<'a>([Option<FoundAnnotation<'a>>; AnnotationKey::ALL.len()]);

impl<'a> Annotations<'a> {
    pub(super) fn get(&self, key: AnnotationKey) -> Option<FoundAnnotation<'a>> {
        self.0[key as usize]
    }

    /// Selects the annotations that apply to the container; None if there are none. Allocates only for errors.
    pub(super) fn gather(
        annotations: &'a BTreeMap<String, String>,
        audience: Audience<'_>,
    ) -> Result<Option<Self>, RequestError> {
        let mut found = Self::default();
        let mut any = false;
        for (key, value) in annotations {
            let Some((label, word)) = of_ours(key) else {
                if !matches!(audience, Audience::OnlyNamed(_)) && resembles_ours(key) {
                    return Err(RequestError::Misspelt { key: quoted(key) });
                }
                continue;
            };
            let (word, of) = match (audience, word.split_once('/')) {
                (Audience::Podman(_), Some((word, of))) => (word, Some(of)),
                _ => (word, None),
            };
            let Some(scope) = scope(key, label, word, audience)? else { continue };
            if let (Audience::Podman(names), Some(of)) = (audience, of)
                && !names.is(of)
            {
                continue;
            }
            if of.is_some() && value.len() >= GENERATED_MAX {
                return Err(RequestError::CutByGenerateKube { key: quoted(key) });
            }
            let known = AnnotationKey::from_word(word).ok_or_else(|| RequestError::UnknownKey {
                key: quoted(key),
                hint: nearest_hint(word, AnnotationKey::ALL.map(|(_, word)| word)),
                known: AnnotationKey::ALL.map(|(_, word)| word).join(", "),
            })?;
            any = true;
            let new = FoundAnnotation { key, value, scope, generated: of.is_some() };
            let slot = &mut found.0[known as usize];
            if slot.is_none_or(|other| other.held_bytes() <= new.held_bytes()) {
                *slot = Some(new);
            }
        }
        Ok(any.then_some(found))
    }
}

/// podman 4.3.1's `generate kube` cuts values after this many characters (pkg/specgen/generate/kube, "Truncation Annotation").
const GENERATED_MAX: usize = 63;

/// The scope of one of our keys; None if it is for another container.
fn scope(key: &str, label: Option<&str>, word: &str, audience: Audience<'_>) -> Result<Option<KeyScope>, RequestError> {
    let own = match (label, audience) {
        (None, Audience::Regular(_) | Audience::Podman(_)) => return Ok(Some(KeyScope::Pod)),
        (None, Audience::OnlyNamed(_)) => return Ok(None),
        (Some(label), _) if !is_label(label) => return Err(RequestError::ContainerLabel { key: quoted(key) }),
        (Some(_), Audience::Regular(None)) => {
            return Err(RequestError::NoContainerName { key: quoted(key), word: quoted(word) });
        }
        (Some(label), Audience::Regular(Some(name)) | Audience::OnlyNamed(name)) => label == name,
        (Some(label), Audience::Podman(names)) => names.is(label),
    };
    Ok(own.then_some(KeyScope::Container))
}

/// Container name, if any, and key of one of our annotations; None for all others.
fn of_ours(key: &str) -> Option<(Option<&str>, &str)> {
    let (domain, word) = key.split_once('/')?;
    match domain.strip_suffix(DOMAIN)? {
        "" => Some((None, word)),
        label => label.strip_suffix('.').map(|label| (Some(label), word)),
    }
}

/// True for one of our keys that names a container: before our domain, or after the key as podman's `generate kube`
/// writes it.
pub fn names_a_container(key: &str) -> bool {
    of_ours(key).is_some_and(|(label, word)| label.is_some() || word.contains('/'))
}

/// True for a DNS label. Every container name in Kubernetes is one.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Gathered = Vec<(AnnotationKey, String, KeyScope)>;

    fn gather(keys: &[(&str, &str)], audience: Audience<'_>) -> Result<Option<Gathered>, String> {
        let annotations = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let found = Annotations::gather(&annotations, audience).map_err(|error| error.to_string())?;
        Ok(found.map(|found| {
            let all =
                AnnotationKey::ALL.iter().filter_map(|(key, _)| found.get(*key).map(|f| (*key, f.value.to_owned(), f.scope)));
            all.collect()
        }))
    }

    #[test]
    fn each_key_has_its_own_slot() {
        for (at, (key, word)) in AnnotationKey::ALL.iter().enumerate() {
            assert_eq!(*key as usize, at, "{word}");
        }
    }

    #[test]
    fn other_annotations_are_not_ours() {
        let others =
            [("io.container.manager", "libpod"), ("webhook.bpfman.io/image", "x"), ("bpfman.io/image", "x"), ("image", "x")];
        assert_eq!(gather(&others, Audience::Regular(None)), Ok(None));
        assert_eq!(gather(&[("web.hook.bpfman.io/image", "x")], Audience::Regular(Some("db"))), Ok(None));
        assert_eq!(gather(&[("hook.bpfman.io/image", "x")], Audience::OnlyNamed("init")), Ok(None));
        assert_eq!(gather(&[("hook.bpfman.io.image", "x")], Audience::OnlyNamed("init")), Ok(None), "its containers say so");
    }

    #[test]
    fn the_containers_own_key_wins() {
        // In the map "db.…" sorts before "hook.…" and "web.…" after it: the order must not matter.
        for name in ["db", "web"] {
            let own = format!("{name}.hook.bpfman.io/image");
            let keys = [(own.as_str(), "own"), ("hook.bpfman.io/image", "pod"), ("hook.bpfman.io/bpffs", "token")];
            let both = vec![
                (AnnotationKey::Image, "own".to_owned(), KeyScope::Container),
                (AnnotationKey::Bpffs, "token".to_owned(), KeyScope::Pod),
            ];
            assert_eq!(gather(&keys, Audience::Regular(Some(name))), Ok(Some(both.clone())));
            assert_eq!(gather(&keys, Audience::OnlyNamed(name)), Ok(Some(both[..1].to_vec())));
            let pod = vec![
                (AnnotationKey::Image, "pod".to_owned(), KeyScope::Pod),
                (AnnotationKey::Bpffs, "token".to_owned(), KeyScope::Pod),
            ];
            assert_eq!(gather(&keys, Audience::Regular(Some("other"))), Ok(Some(pod)));
        }
    }

    #[test]
    fn podman_containers_match_both_names_and_the_generate_kube_form() {
        let names = ContainerNames::new("shop-web", Some("shop"));
        let image = |value: &str, scope| Ok(Some(vec![(AnnotationKey::Image, value.to_owned(), scope)]));
        let long = "x".repeat(63);
        for (keys, expected) in [
            (&[("hook.bpfman.io/image", "pod")][..], image("pod", KeyScope::Pod)),
            (&[("web.hook.bpfman.io/image", "own"), ("hook.bpfman.io/image", "pod")], image("own", KeyScope::Container)),
            (&[("shop-web.hook.bpfman.io/image", "own")], image("own", KeyScope::Container)),
            (&[("db.hook.bpfman.io/image", "other")], Ok(None)),
            (&[("hook.bpfman.io/image/shop-web", "a"), ("hook.bpfman.io/image/shop-db", "b")], image("a", KeyScope::Pod)),
            (&[("hook.bpfman.io/image/web", "a"), ("hook.bpfman.io/image", "pod")], image("a", KeyScope::Pod)),
            (&[("db.hook.bpfman.io/image/shop-web", "other")], Ok(None)),
            (&[("web.hook.bpfman.io/image/shop-web", "a")], image("a", KeyScope::Container)),
            (&[("web.hook.bpfman.io/image", "own"), ("hook.bpfman.io/image/web", "pod")], image("own", KeyScope::Container)),
            (&[("hook.bpfman.io/image/db", &long)], Ok(None)),
        ] {
            assert_eq!(gather(keys, Audience::Podman(&names)), expected, "{keys:?}");
        }
        let cut = gather(&[("hook.bpfman.io/image/web", &long)], Audience::Podman(&names)).unwrap_err();
        assert!(cut.contains("63 characters"), "{cut}");
        let elsewhere = gather(&[("hook.bpfman.io/image/web", "a")], Audience::Regular(Some("web"))).unwrap_err();
        assert!(elsewhere.contains("unknown"), "{elsewhere}");
        assert!(names_a_container("web.hook.bpfman.io/x") && names_a_container("hook.bpfman.io/image/web"));
        assert!(!names_a_container("hook.bpfman.io/image") && !names_a_container("a/b"));
    }

    #[test]
    fn invalid_keys_are_refused_with_one_sentence() {
        let known = "image, programs, globals, maps, map-size, pull-policy, bpffs, bpffs-path, delegate, delegate-via, delegate-cmds, \
                     delegate-maps, delegate-progs, delegate-attachs, on-failure";
        let cases = [
            (
                "hook.bpfman.io/imgae",
                None,
                format!("annotation \"hook.bpfman.io/imgae\" is unknown; the nearest is image; known keys: {known}"),
            ),
            ("hook.bpfman.io/", None, format!("annotation \"hook.bpfman.io/\" is unknown; known keys: {known}")),
            (
                "web.hook.bpfman.io/image",
                None,
                "annotation \"web.hook.bpfman.io/image\" names a container, but no container name is known here; write \
                 hook.bpfman.io/ before \"image\""
                    .to_owned(),
            ),
            (
                "Web.hook.bpfman.io/image",
                Some("web"),
                "annotation \"Web.hook.bpfman.io/image\" begins with something that is not a container name: 1 to 63 of a-z 0-9 -"
                    .to_owned(),
            ),
            (
                ".hook.bpfman.io/image",
                Some("web"),
                "annotation \".hook.bpfman.io/image\" begins with something that is not a container name: 1 to 63 of a-z 0-9 -"
                    .to_owned(),
            ),
        ];
        let misspelt = [
            "hook.bpfman.io",
            "hook.bpfman.io.programs",
            "hook.bpfman.io /programs",
            " hook.bpfman.io/programs",
            "hook.bpfman.iox/image",
            "Hook.bpfman.io/image",
            "bpfman.io/hook.bpfman.io/image",
        ];
        let cases = cases.into_iter().chain(misspelt.map(|key| {
            (key, None, format!("annotation {key:?} is misspelt: write hook.bpfman.io/KEY, or CONTAINER.hook.bpfman.io/KEY"))
        }));
        for (key, name, sentence) in cases {
            assert_eq!(gather(&[(key, "x")], Audience::Regular(name)), Err(sentence));
        }
    }
}
