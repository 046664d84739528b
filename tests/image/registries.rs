//! Registries as deployed: credentials, mirrors, private CAs, proxies; and the effect of their faults on a verdict.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bpfman_hook::image::{ImageError, RemoteError};
use bpfman_hook::model::bytecode::ImageVerdict;
use bpfman_hook::model::credentials::UserEnvironment;
use bpfman_hook::model::registries::RegistryConfig;

use crate::registry::{Behaviour, Registry, Reply, Request};
use crate::world::{OBJECT, World, data, rule, sentence};

fn registry(store: &str, hook: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Registry {
    Registry::start(&data(store), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() })
}

fn plain() -> Registry {
    Registry::start(&data("images/registry"), Behaviour::default())
}

/// An administrator's file below the world's root.
pub fn file(world: &World, name: &str, text: &str, mode: u32) {
    let path = world.path(name);
    let above: Vec<_> = Path::new(name).ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
    for dir in above.into_iter().rev() {
        std::fs::create_dir_all(world.path(&dir.display().to_string())).unwrap();
        std::fs::set_permissions(world.dir.path().join(dir), PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
}

/// An auth file with `user:secret` under a key.
fn auths(key: &str) -> String {
    format!("{{\"auths\": {{\"{key}\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}")
}

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry that requires credentials, and stores its blobs on another host.
fn asking(elsewhere: &str) -> Registry {
    let elsewhere = elsewhere.to_owned();
    registry("images/registry", move |request| match request.authorization.as_deref() {
        Some(BASIC) if request.target.contains("/blobs/") => {
            Reply::Headers(307, vec![("Location".into(), format!("http://{elsewhere}{}", request.target))])
        }
        Some(BASIC) => Reply::Normal,
        _ => Reply::Headers(401, vec![("WWW-Authenticate".into(), "Basic realm=\"x\"".into())]),
    })
}

#[test]
fn credentials_go_to_their_registry_and_not_along_redirects() {
    let store = registry("images/registry", |request| match request.authorization {
        Some(_) => Reply::Status(500),
        None => Reply::Normal,
    });
    let registry = asking(&store.host());
    let image = format!("{}/img/gzip:v1", registry.host());
    let world = World::unsigned();
    let (err, text) = world.error(&image);
    assert!(matches!(err, ImageError::Remote { source: RemoteError::Credentials { shown: false, .. }, .. }), "{text}");
    for key in [registry.host(), format!("{}/img", registry.host()), format!("{}/img/gzip", registry.host())] {
        let world = World::unsigned();
        file(&world, "etc/bpfman-hook/auth.json", &auths(&key), 0o600);
        let got = world.fetch(&image).unwrap_or_else(|err| panic!("{key}: {}", sentence(&err)));
        assert_eq!(got.object, OBJECT);
    }
    // Credentials of another registry or repository are not used.
    for key in [store.host(), format!("{}/other", registry.host())] {
        let world = World::unsigned();
        file(&world, "etc/bpfman-hook/auth.json", &auths(&key), 0o600);
        assert!(world.error(&image).1.contains("requires credentials"), "{key}");
    }
    let world = World::unsigned();
    let wrong = auths(&registry.host()).replace("dXNlcjpzZWNyZXQ=", "dXNlcjpoaWRkZW4=");
    file(&world, "etc/bpfman-hook/auth.json", &wrong, 0o600);
    let (_, text) = world.error(&image);
    assert!(text.contains("refuses our credentials") && !text.contains("hidden") && !text.contains("dXNl"), "{text}");
}

#[test]
fn an_auth_file_that_other_users_can_read_is_refused() {
    let registry = asking("127.0.0.1:1");
    let world = World::unsigned();
    file(&world, "etc/bpfman-hook/auth.json", &auths(&registry.host()), 0o644);
    let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(err, ImageError::Access { .. }) && text.contains("auth.json has mode 0644"), "{text}");
    assert!(registry.requests().is_empty());
}

#[test]
fn a_users_auth_files_and_helpers_are_only_for_user_commands() {
    let store = plain();
    let registry = asking(&store.host());
    let image = format!("{}/img/gzip:v1", registry.host());
    let mut world = World::unsigned();
    let helper = "#!/bin/sh\necho '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n";
    file(&world, "bin/docker-credential-test", helper, 0o755);
    let config = format!("{{\"credHelpers\": {{\"{}\": \"test\"}}}}", registry.host());
    file(&world, "home/.docker/config.json", &config, 0o644);
    file(&world, "etc/bpfman-hook/auth.json", &config, 0o600);
    assert!(world.error(&image).1.contains("requires credentials"), "no helper runs unless a user's command asks for it");
    let path = Some(format!("{}:/usr/bin:/bin", world.path("bin").display()));
    world.registries =
        RegistryConfig::default().by(UserEnvironment { home: Some(world.path("home")), path, ..UserEnvironment::default() });
    assert_eq!(world.fetch(&image).unwrap_or_else(|err| panic!("{}", sentence(&err))).object, OBJECT);
}

#[test]
fn tokens_by_password_by_identity_and_after_expiry() {
    for (auth, asked) in [
        (auths("HOST"), "/token?scope=repository%3Aimg%2Fgzip%3Apull&service=s"),
        ("{\"auths\": {\"HOST\": {\"identitytoken\": \"idt\"}}}".to_owned(), "/token"),
    ] {
        let host = Arc::new(OnceLock::<String>::new());
        let known = host.clone();
        let served = std::sync::atomic::AtomicUsize::new(0);
        let identity = auth.contains("identitytoken");
        let registry = registry("images/registry", move |request| {
            let challenge = || {
                let realm = format!("http://{}/token", known.get().map_or("", |host| host));
                Reply::Headers(401, vec![("WWW-Authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"s\""))])
            };
            let now = served.load(std::sync::atomic::Ordering::SeqCst);
            match request.authorization.as_deref() {
                Some(BASIC) if request.target.starts_with("/token") && !identity => {
                    served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Reply::Body(format!("{{\"token\":\"t{}\"}}", now + 1).into_bytes())
                }
                None if request.target == "/token" && identity => {
                    served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Reply::Body(format!("{{\"access_token\":\"t{}\"}}", now + 1).into_bytes())
                }
                // The first token has expired for blobs.
                Some("Bearer t1") if !request.target.contains("/blobs/") => Reply::Normal,
                Some("Bearer t2") => Reply::Normal,
                _ => challenge(),
            }
        });
        host.set(registry.host()).unwrap();
        let world = World::unsigned();
        file(&world, "etc/bpfman-hook/auth.json", &auth.replace("HOST", &registry.host()), 0o600);
        let got = world.fetch(&format!("{}/img/gzip:v1", registry.host()));
        assert_eq!(got.unwrap_or_else(|err| panic!("{asked}: {}", sentence(&err))).object, OBJECT);
        let tokens = registry.requests().iter().filter(|target| target.as_str() == asked).count();
        assert_eq!(tokens, 2, "{:?}", registry.requests());
    }
}

#[test]
fn mirrors_are_tried_first_and_blocked_names_never() {
    let (own, mirror) = (plain(), plain());
    let conf = |world: &World, more: &str| {
        let text = format!(
            "[[registry]]\nprefix = \"{}\"\n{more}[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
            own.host(),
            mirror.host()
        );
        file(world, "etc/containers/registries.conf.d/test.conf", &text, 0o644);
    };
    let image = format!("{}/img/gzip:v1", own.host());
    let world = World::unsigned();
    conf(&world, "");
    let got = world.fetch(&image).unwrap();
    assert_eq!(
        (got.object.as_slice(), got.reference.to_string()),
        (OBJECT, image.clone()),
        "the name stays what was asked for"
    );
    assert!(own.requests().is_empty() && !mirror.requests().is_empty());
    mirror.clear();
    let world = World::unsigned();
    conf(&world, "blocked = true\n");
    let (err, text) = world.error(&image);
    assert!(matches!(err, ImageError::Access { .. }) && text.contains("registries.conf blocks"), "{text}");
    let world = World::unsigned();
    conf(&world, "mirror-by-digest-only = true\n");
    world.fetch(&image).unwrap();
    assert!(mirror.requests().is_empty() && !own.requests().is_empty());
    let world = World::unsigned();
    conf(&world, "");
    drop(mirror);
    assert_eq!(world.fetch(&image).unwrap().object, OBJECT, "a mirror that is gone is skipped");
}

#[test]
fn a_mirror_without_signatures_does_not_make_images_unsigned() {
    let own = Registry::start(&data("signatures/registry"), Behaviour::default());
    for native in [None, Some(10)] {
        let hook = |request: &Request| if request.target.contains("sha256-") { Reply::Status(404) } else { Reply::Normal };
        let behaviour = Behaviour { native, hook: Some(Box::new(hook)) };
        // Without its own referrers: the fallback tag of an image is not that of its signatures.
        let mirror = Registry::start(&data("signatures/registry"), behaviour);
        for (key, verified) in [("keys/cosign-v2.pub", true), ("keys/wrong.pub", false)] {
            let mut world = World::new();
            world.rules = vec![world.key_rule("signed", &[key]), rule("any", Vec::new())];
            let text =
                format!("[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n", own.host(), mirror.host());
            file(&world, "etc/containers/registries.conf", &text, 0o644);
            match world.fetch(&format!("{}/bpf/key-v2:v1", own.host())) {
                Ok(got) => {
                    assert!(verified && matches!(got.verdict, ImageVerdict::Verified { .. }), "{key}: {:?}", got.verdict)
                }
                Err(err) => assert!(!verified, "{key}: {}", sentence(&err)),
            }
        }
    }
}

#[test]
fn authorities_of_certs_d() {
    let registry = Registry::start_tls(&data("images/registry"), Behaviour::default());
    let ca = std::fs::read_to_string(data("tls/ca.pem")).unwrap();
    for base in ["etc/containers/certs.d", "etc/docker/certs.d"] {
        let world = World::unsigned();
        file(&world, &format!("{base}/{}/ca.crt", registry.host()), &ca, 0o644);
        let got = world.fetch(&format!("{}/img/gzip:v1", registry.host()));
        assert_eq!(got.unwrap_or_else(|err| panic!("{base}: {}", sentence(&err))).object, OBJECT);
        let key = format!("{base}/{}/client", registry.host());
        file(&world, &format!("{key}.cert"), "x", 0o644);
        file(&world, &format!("{key}.key"), "x", 0o644);
        let (_, text) = world.error(&format!("{}/img/plain-tar:v1", registry.host()));
        assert!(text.contains("client.key has mode 0644"), "{text}");
    }
}

#[test]
fn a_proxy_is_used_for_other_hosts_and_not_for_loopback() {
    let proxy = registry("images/registry", |_| Reply::Status(404));
    let own = plain();
    let mut world = World::unsigned();
    let text = format!(
        "[proxy]\nurl = \"http://u:hidden@{}\"\nno-proxy = [\".direct.invalid\"]\n[[registry]]\nhost = \"r.invalid\"\nhttp = true\n\
         [[registry]]\nhost = \"r.direct.invalid\"\nhttp = true\n",
        proxy.host()
    );
    world.registries = RegistryConfig::parse(&text).unwrap();
    let (err, text) = world.error("r.invalid/img/gzip:v1");
    assert!(matches!(err, ImageError::NotFound { .. }), "{text}");
    assert_eq!(proxy.requests(), ["http://r.invalid/v2/img/gzip/manifests/v1"]);
    assert!(world.fetch(&format!("{}/img/gzip:v1", own.host())).is_ok());
    let (_, text) = world.error("r.direct.invalid/img/gzip:v1");
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(proxy.requests().len(), 1);
    drop(proxy);
    let (_, text) = world.error("r.invalid/img/gzip:v1");
    assert!(!text.contains("hidden"), "{text}");
}

#[test]
fn an_overloaded_registry_is_retried_within_the_deadline() {
    let left = std::sync::atomic::AtomicUsize::new(2);
    let busy = registry("images/registry", move |_| {
        match left.fetch_update(std::sync::atomic::Ordering::SeqCst, std::sync::atomic::Ordering::SeqCst, |n| n.checked_sub(1))
        {
            Ok(_) => Reply::Headers(429, vec![("Retry-After".into(), "0".into())]),
            Err(_) => Reply::Normal,
        }
    });
    assert_eq!(World::unsigned().fetch(&format!("{}/img/gzip:v1", busy.host())).unwrap().object, OBJECT);
    // A registry that says "in an hour" is not waited for.
    let later = registry("images/registry", |_| Reply::Headers(503, vec![("Retry-After".into(), "3600".into())]));
    let start = Instant::now();
    let (_, text) = World::unsigned().error(&format!("{}/img/gzip:v1", later.host()));
    assert!(text.contains("the registry answers 503") && start.elapsed() < Duration::from_secs(5), "{text}");
    assert_eq!(later.requests().len(), 1);
}

#[test]
fn a_connection_that_ends_early_is_retried_once() {
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let moody = registry("images/registry", move |_| match seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::Hangup,
        _ => Reply::Normal,
    });
    assert_eq!(World::unsigned().fetch(&format!("{}/img/gzip:v1", moody.host())).unwrap().object, OBJECT);
    let gone = registry("images/registry", |_| Reply::Hangup);
    let (_, text) = World::unsigned().error(&format!("{}/img/gzip:v1", gone.host()));
    assert_eq!(gone.requests().len(), 2, "{text}");
}

/// Every fault of a request that shows quickly.
fn faults() -> Vec<(&'static str, Reply)> {
    let now = || vec![("Retry-After".to_owned(), "0".to_owned())];
    vec![
        ("401", Reply::Status(401)),
        ("401 with a challenge", Reply::Headers(401, vec![("WWW-Authenticate".into(), "Basic realm=\"x\"".into())])),
        ("403", Reply::Status(403)),
        ("429", Reply::Headers(429, now())),
        ("500", Reply::Headers(500, now())),
        ("503", Reply::Headers(503, now())),
        ("204", Reply::Status(204)),
        ("hang-up", Reply::Hangup),
        ("truncated", Reply::Announce(100, b"short".to_vec())),
        ("announced too large", Reply::Announce(1 << 40, b"x".to_vec())),
        ("too large", Reply::Body(vec![b'x'; (16 << 20) + 1])),
        ("another document", Reply::Body(b"{}".to_vec())),
        ("no JSON", Reply::Body(b"<html>".to_vec())),
        ("redirect to itself", Reply::Headers(307, vec![("Location".into(), "/v2/loop".into())])),
        ("redirect to nowhere", Reply::Headers(307, vec![("Location".into(), "ftp://x/".into())])),
    ]
}

#[test]
fn no_fault_of_any_endpoint_makes_a_signed_image_unsigned() {
    let endpoints = ["/referrers/", "SIG-FALLBACK", ".sig"];
    for (fault, reply) in faults() {
        for endpoint in endpoints {
            let failing = reply.clone();
            let hook = move |request: &Request| {
                let hit = match endpoint {
                    "SIG-FALLBACK" => request.target.contains("/manifests/sha256-") && !request.target.ends_with(".sig"),
                    part => request.target.contains(part),
                };
                if hit || request.target == "/v2/loop" { failing.clone() } else { Reply::Normal }
            };
            let registry = registry("signatures/registry", hook);
            let verdict = |image: &str, key: Option<&str>, unsigned: bool| {
                let mut world = World::new();
                world.rules = key.map(|key| world.key_rule("signed", &[key])).into_iter().collect();
                world.rules.extend(unsigned.then(|| rule("any", Vec::new())));
                world.fetch(&format!("{}/bpf/{image}:v1", registry.host())).map(|got| got.verdict)
            };
            let told = format!("{fault} at {endpoint}");
            // Signed by another key, or apparently not at all: not "unsigned".
            for image in ["key-v2", "key-v3", "unsigned"] {
                let got = verdict(image, Some("keys/wrong.pub"), true);
                assert!(got.is_err(), "{told}: {image} is accepted: {got:?}");
            }
            // A good signature that can be read still counts.
            for (image, key, at) in [("key-v2", "keys/cosign-v2.pub", ".sig"), ("key-v3", "keys/cosign-v3.pub", "SIG-FALLBACK")]
            {
                let got = verdict(image, Some(key), true);
                match endpoint == at {
                    true => assert!(got.is_err(), "{told}: {image}: {got:?}"),
                    false => assert!(matches!(got, Ok(ImageVerdict::Verified { .. })), "{told}: {image}: {got:?}"),
                }
            }
            // If no rule requires signatures, they are not looked for.
            assert!(matches!(verdict("unsigned", None, true), Ok(ImageVerdict::Unsigned)), "{told}");
        }
    }
}

#[test]
fn no_fault_of_manifests_and_blobs_is_accepted_as_an_image() {
    for (fault, reply) in faults() {
        for endpoint in ["/manifests/v1", "/manifests/sha256:", "/blobs/"] {
            let failing = reply.clone();
            let hook = move |request: &Request| match request.target.contains(endpoint) || request.target == "/v2/loop" {
                true => failing.clone(),
                false => Reply::Normal,
            };
            let registry = registry("images/registry", hook);
            let world = World::unsigned();
            let start = Instant::now();
            let got = world.fetch(&format!("{}/img/index:v1", registry.host()));
            assert!(got.is_err(), "{fault} at {endpoint}: accepted");
            assert!(start.elapsed() < Duration::from_secs(15), "{fault} at {endpoint}: {:?}", start.elapsed());
            assert!(world.images.cache().images().unwrap().is_empty(), "{fault} at {endpoint}");
        }
    }
}
