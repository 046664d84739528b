//! The cache: what it saves, what it does not trust, and what other processes may do to it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bpfman_hook::image::{Cache, ImageError, SweepSelection};
use bpfman_hook::model::bytecode::{ImageVerdict, PullPolicy};
use bpfman_hook::model::ids::Digest;
use bpfman_hook::model::policy::PolicyId;

use crate::registry::{Behaviour, Registry, Reply};
use crate::world::{OBJECT, World, data, digest_of, layout_of, repository, rule};

fn signed_registry() -> Registry {
    Registry::start(&data("signatures/registry"), Behaviour::default())
}

fn policy(n: u8) -> PolicyId {
    PolicyId(Digest::from_bytes([n; 32]))
}

fn object_path(world: &World) -> PathBuf {
    world.path("cache/blobs/sha256").join(digest_of(OBJECT).hex())
}

#[test]
fn a_hit_uses_no_network_and_returns_the_same_result() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v3:v1", registry.host());
    let world = World::signed(&["keys/cosign-v3.pub"]);
    let first = world.fetch(&reference).unwrap();
    registry.clear();
    let again = world.fetch(&reference).unwrap();
    assert_eq!((again.digest, again.object_digest, &again.object), (first.digest, first.object_digest, &first.object));
    assert_eq!((again.rule, again.verdict), (first.rule, first.verdict));
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    let mode = std::fs::metadata(world.path("cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn always_requests_the_digest_and_nothing_that_is_cached() {
    let other = repository("images/registry", "img/plain-tar")["tags"]["v1"].as_str().unwrap().to_owned();
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (flag, store) = (moved.clone(), data("images/registry/blobs/sha256"));
    let registry = Registry::start(
        &data("images/registry"),
        Behaviour {
            hook: Some(Box::new(move |request| {
                let tag = request.target.ends_with("/manifests/v1") && flag.load(std::sync::atomic::Ordering::SeqCst);
                if tag { Reply::Body(std::fs::read(store.join(&other[7..])).unwrap()) } else { Reply::Normal }
            })),
            ..Behaviour::default()
        },
    );
    let reference = format!("{}/img/gzip:v1", registry.host());
    let mut world = World::unsigned();
    let first = world.fetch(&reference).unwrap();
    moved.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.fetch(&reference).unwrap().digest, first.digest, "IfNotPresent: the digest it had when it was pulled");
    world.pull = PullPolicy::Always;
    registry.clear();
    let second = world.fetch(&reference).unwrap();
    assert_ne!(second.digest, first.digest, "Always: the digest it has now");
    registry.clear();
    assert_eq!(world.fetch(&reference).unwrap().digest, second.digest);
    assert_eq!(registry.requests(), ["/v2/img/gzip/manifests/v1"]);
    moved.store(false, std::sync::atomic::Ordering::SeqCst);
    registry.clear();
    assert_eq!(world.fetch(&reference).unwrap().digest, first.digest, "and back, from the cache");
    assert_eq!(registry.requests(), ["/v2/img/gzip/manifests/v1"]);
    world.pull = PullPolicy::IfNotPresent;
    assert_eq!(world.fetch(&reference).unwrap().digest, first.digest, "the reference moved back too");
}

#[test]
fn a_damaged_object_is_fetched_again_and_an_error_under_never() {
    for damage in ["flip", "cut", "longer", "remove", "other"] {
        let registry = signed_registry();
        let reference = format!("{}/bpf/key-v2:v1", registry.host());
        let mut world = World::signed(&["keys/cosign-v2.pub"]);
        world.fetch(&reference).unwrap();
        let path = object_path(&world);
        let mut bytes = std::fs::read(&path).unwrap();
        match damage {
            "flip" => bytes[100] ^= 1,
            "cut" => bytes.truncate(100),
            "longer" => bytes.push(0),
            _ => bytes = b"something else".to_vec(),
        }
        std::fs::write(&path, bytes).unwrap();
        if damage == "remove" {
            std::fs::remove_file(&path).unwrap();
        }
        world.pull = PullPolicy::Never;
        let (err, text) = world.error(&reference);
        match damage {
            "remove" => assert!(matches!(err, ImageError::NotCached { .. }), "{text}"),
            _ => assert!(matches!(err, ImageError::Tampered { part: "cached object", .. }), "{damage}: {text}"),
        }
        world.pull = PullPolicy::IfNotPresent;
        assert_eq!(world.fetch(&reference).unwrap().object, OBJECT, "{damage}");
        world.pull = PullPolicy::Never;
        assert_eq!(world.fetch(&reference).unwrap().object, OBJECT, "{damage}: repaired");
    }
}

#[test]
fn a_verdict_is_of_one_digest_one_rule_and_one_policy() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v2:v1", registry.host());
    let mut world = World::signed(&["keys/cosign-v2.pub"]);
    world.fetch(&reference).unwrap();
    world.pull = PullPolicy::Never;

    // Another policy with a rule of the same name and another key: the cached signature does not satisfy it.
    let first = world.rules.clone();
    world.policy = policy(2);
    world.rules = vec![world.key_rule("signed", &["keys/wrong.pub"])];
    let (err, text) = world.error(&reference);
    assert!(matches!(err, ImageError::NotCached { .. }) && text.contains("has no verdict of this policy about it"), "{text}");
    world.pull = PullPolicy::IfNotPresent;
    assert!(matches!(world.error(&reference).0, ImageError::BadSignature { .. }), "and neither does the registry's");

    // Another policy that trusts the same key under another name: verified again, without the network.
    world.pull = PullPolicy::Never;
    world.policy = policy(3);
    world.rules = vec![world.key_rule("renamed", &["keys/wrong.pub", "keys/cosign-v2.pub"])];
    registry.clear();
    let got = world.fetch(&reference).unwrap();
    assert_eq!(got.rule, "renamed");
    assert!(registry.requests().is_empty());

    // A rule that names other digests, under the policy of the cached verdict.
    world.policy = policy(1);
    world.rules = first;
    assert!(world.fetch(&reference).is_ok());
    world.rules[0].digests.insert(Digest::from_bytes([7; 32]));
    assert!(matches!(world.error(&reference).0, ImageError::DigestNotListed { .. }));
}

#[test]
fn an_image_accepted_without_verification_is_not_known_to_be_unsigned() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v2:v1", registry.host());
    let mut world = World::unsigned();
    assert_eq!(world.fetch(&reference).unwrap().verdict, ImageVerdict::Unsigned);
    // The same policy, for a container whose rules require a signature as well.
    let unsigned = world.rules[0].clone();
    world.rules = vec![world.key_rule("signed", &["keys/wrong.pub"]), unsigned];
    world.pull = PullPolicy::Never;
    assert!(matches!(world.error(&reference).0, ImageError::NotCached { .. }));
    world.pull = PullPolicy::IfNotPresent;
    assert!(matches!(world.error(&reference).0, ImageError::BadSignature { .. }));
}

#[test]
fn a_missing_signature_is_remembered_for_that_policy() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/unsigned:v1", registry.host());
    let mut world = World::signed(&["keys/cosign-v2.pub"]);
    world.rules.push(rule("dev", Vec::new()));
    assert_eq!(world.fetch(&reference).unwrap().rule, "dev");
    registry.clear();
    assert_eq!(world.fetch(&reference).unwrap().verdict, ImageVerdict::Unsigned);
    assert!(registry.requests().is_empty());
    world.policy = policy(9);
    world.fetch(&reference).unwrap();
    assert!(!registry.requests().is_empty(), "another policy looks again");
}

#[test]
fn a_cache_that_other_users_can_write_is_refused() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v2:v1", registry.host());
    let world = World::signed(&["keys/cosign-v2.pub"]);
    world.fetch(&reference).unwrap();
    let digest = repository("signatures/registry", "bpf/key-v2")["tags"]["v1"].as_str().unwrap()[7..].to_owned();
    for name in ["cache", "cache/refs", "cache/images", "cache/blobs/sha256", &format!("cache/images/{digest}.json")] {
        let path = world.path(name);
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(before.mode() | 0o022)).unwrap();
        let (err, text) = world.error(&reference);
        assert!(
            matches!(err, ImageError::Cache { .. }) && text.contains("is writable by users other than root"),
            "{name}: {text}"
        );
        std::fs::set_permissions(&path, before).unwrap();
        assert!(world.fetch(&reference).is_ok(), "{name}");
    }
    // Owned by another user, if the test may change the owner.
    if std::os::unix::fs::chown(world.path("cache"), Some(12345), None).is_ok() {
        let (err, text) = world.error(&reference);
        assert!(matches!(err, ImageError::Cache { .. }) && text.contains("belongs to uid 12345"), "{text}");
    }
}

#[test]
fn junk_in_the_cache_is_a_miss_and_the_cache_may_disappear() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v2:v1", registry.host());
    let world = World::signed(&["keys/cosign-v2.pub"]);
    world.fetch(&reference).unwrap();
    for directory in ["refs", "images"] {
        for junk in ["", "{", "null", "{}", r#"{"reference":"other","digest":"sha256:00"}"#] {
            for file in std::fs::read_dir(world.path("cache").join(directory)).unwrap() {
                std::fs::write(file.unwrap().path(), junk).unwrap();
            }
            assert_eq!(world.fetch(&reference).unwrap().object, OBJECT, "{directory} {junk}");
        }
    }
    // A record under the name of another image, or a pointer under the name of another reference, is not trusted.
    let records: Vec<_> = std::fs::read_dir(world.path("cache/images")).unwrap().map(|file| file.unwrap().path()).collect();
    let other = repository("signatures/registry", "bpf/key-v3-oldformat")["tags"]["v1"].as_str().unwrap().to_owned();
    assert_eq!(records.len(), 1);
    let renamed = world.path("cache/images").join(format!("{}.json", "0".repeat(64)));
    std::fs::copy(&records[0], &renamed).unwrap();
    let mut never = World::signed(&["keys/cosign-v2.pub"]);
    never.pull = PullPolicy::Never;
    copy(&world.path("cache"), &never.path("cache"));
    let zeros = format!("{}/bpf/key-v2@sha256:{}", registry.host(), "0".repeat(64));
    assert!(matches!(never.error(&zeros).0, ImageError::NotCached { .. }), "{other}");

    std::fs::remove_dir_all(world.path("cache")).unwrap();
    assert_eq!(world.fetch(&reference).unwrap().object, OBJECT);
    std::fs::remove_dir_all(world.path("cache/blobs")).unwrap();
    assert_eq!(world.fetch(&reference).unwrap().object, OBJECT);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn an_unwritable_cache_only_slows_down() {
    let registry = signed_registry();
    let world = World::signed(&["keys/cosign-v2.pub"]);
    // A file in place of the cache directory: no cache can be created or read there.
    std::fs::write(world.path("cache"), "x").unwrap();
    let (err, _) = world.error(&format!("{}/bpf/key-v2:v1", registry.host()));
    assert!(matches!(err, ImageError::Cache { .. }), "it is not ours to replace");
    std::fs::remove_file(world.path("cache")).unwrap();
    // A file in place of a directory of the cache.
    std::fs::create_dir(world.path("cache")).unwrap();
    std::fs::set_permissions(world.path("cache"), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(world.path("cache/blobs"), "x").unwrap();
    std::fs::set_permissions(world.path("cache/blobs"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.fetch(&format!("{}/bpf/key-v2:v1", registry.host())).unwrap().object, OBJECT);
}

#[test]
fn many_at_once_agree() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/two-keys:v1", registry.host());
    let world = World::signed(&["keys/cosign-v2.pub"]);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (world, reference) = (&world, &reference);
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(world.fetch(reference).unwrap().object, OBJECT);
                    if n == 7 {
                        remove(world.images.cache(), reference);
                    }
                }
            });
        }
    });
    let leftovers: Vec<_> = walk(&world.path("cache")).into_iter().filter(|path| is_temporary(path)).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

/// Removes a reference as `image rm` does. False if it does not exist.
fn remove(cache: &Cache, reference: &str) -> bool {
    let selection = SweepSelection::References(BTreeSet::from([reference.to_owned()]));
    !cache.sweep(&selection, &BTreeSet::new(), false).unwrap().references.is_empty()
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn walk(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            all.extend(walk(&entry.unwrap().path()));
        }
    }
    all
}

#[test]
fn listing_and_removing() {
    let registry = signed_registry();
    let (one, two) = (format!("{}/bpf/key-v2:v1", registry.host()), format!("{}/bpf/two-keys:v1", registry.host()));
    let world = World::signed(&["keys/cosign-v2.pub"]);
    let cache = Cache::new(&world.path("cache"));
    assert_eq!(cache.images().unwrap(), []);
    assert!(!remove(&cache, &one));
    world.fetch(&one).unwrap();
    world.fetch(&two).unwrap();
    let images = cache.images().unwrap();
    assert_eq!(images.iter().map(|image| &image.reference).collect::<Vec<_>>(), [&one, &two]);
    let image = &images[0];
    assert_eq!(image.object, digest_of(OBJECT));
    assert!(image.size > OBJECT.len() as u64 && image.pulled > 1_700_000_000);
    assert_eq!((image.verdicts[0].rule.as_str(), image.verdicts[0].policy), ("signed", world.policy.0));
    // Other tools can read it: the index names both, and every blob has the digest of its name.
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(world.path("cache/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0]["size"], 346);
    let blobs = world.path("cache/blobs/sha256");
    let count = || {
        let files = walk(&blobs).into_iter().filter(|path| path.is_file());
        files
            .inspect(|path| {
                assert_eq!(digest_of(&std::fs::read(path).unwrap()).hex(), *path.file_name().unwrap().to_string_lossy())
            })
            .count()
    };
    // Both are the same image, so removing one reference keeps its blobs.
    let before = count();
    assert!(remove(&cache, &one));
    assert_eq!(count(), before);
    assert!(world.fetch(&two).is_ok());
    assert!(remove(&cache, &two));
    assert_eq!((count(), cache.images().unwrap().len()), (0, 0));
    assert!(!remove(&cache, &two));
}

/// Not a benchmark: it detects a network client, a runtime or a regex on the path of every start.
#[test]
fn a_hit_is_fast() {
    let registry = signed_registry();
    let reference = format!("{}/bpf/key-v2:v1", registry.host());
    let world = World::signed(&["keys/cosign-v2.pub"]);
    world.fetch(&reference).unwrap();
    let layout = world.path("layout");
    layout_of("signatures/registry", "bpf/key-v2", &layout);
    for (what, reference) in [("cached", reference), ("layout", format!("oci:{}:v1", layout.display()))] {
        let mut times: Vec<_> = (0..50)
            .map(|_| {
                let start = Instant::now();
                world.fetch(&reference).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{what}: median {:?}, best {:?}", times[25], times[0]);
        assert!(times[0].as_millis() < 20, "{what}: {:?}", times[0]);
    }
}
