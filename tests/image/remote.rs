//! Registries: every image layout, which requests are made and which are not, and all errors.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use bpfman_hook::image::{ImageError, RemoteError};
use bpfman_hook::model::bytecode::PullPolicy;
use bpfman_hook::model::registries::RegistryConfig;

use crate::host::IMAGES;
use crate::registry::{Behaviour, Registry, Reply, Request};
use crate::world::{OBJECT, World, data, digest_of, repository};

fn registry(hook: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Registry {
    Registry::start(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() })
}

#[test]
fn every_image_from_a_registry_by_tag_and_by_digest() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    for (repo, tag, problem) in IMAGES {
        let digest = repository("images/registry", repo)["tags"][tag].as_str().unwrap().to_owned();
        for reference in [format!("{}/{repo}:{tag}", registry.host()), format!("{}/{repo}@{digest}", registry.host())] {
            let world = World::unsigned();
            match problem {
                None => {
                    let got = world.fetch(&reference).unwrap_or_else(|err| panic!("{}", crate::world::sentence(&err)));
                    assert_eq!((got.object.as_slice(), got.digest.to_string()), (OBJECT, digest.clone()), "{reference}");
                }
                Some(problem) => {
                    let (_, text) = world.error(&reference);
                    assert!(text.contains(problem), "{reference}: {text}");
                }
            }
        }
    }
}

#[test]
fn the_tag_is_resolved_once_and_everything_else_is_fetched_by_digest() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    let world = World::unsigned();
    world.fetch(&format!("{}/img/index:v1", registry.host())).unwrap();
    let requests = registry.requests();
    let by_tag: Vec<_> = requests.iter().filter(|target| !target.contains("sha256:")).collect();
    assert_eq!(by_tag, ["/v2/img/index/manifests/v1"]);
    assert_eq!(requests.len(), 4, "index, child, config, layer: {requests:?}");
    let signed = Registry::start(&data("signatures/registry"), Behaviour::default());
    World::signed(&["keys/cosign-v3.pub"]).fetch(&format!("{}/bpf/index:v1", signed.host())).unwrap();
    let requests = signed.requests();
    let tags: Vec<_> = requests.iter().filter(|target| !target.contains("sha256")).collect();
    assert_eq!(tags, ["/v2/bpf/index/manifests/v1"]);
}

/// A registry that answers the requests of a step only once all of them have arrived.
fn in_steps(store: &str, steps: &[&[&str]]) -> Registry {
    let steps: Vec<Vec<String>> = steps.iter().map(|step| step.iter().map(|part| (*part).to_owned()).collect()).collect();
    let (here, arrived) = (Mutex::new(vec![0; steps.len()]), Condvar::new());
    let hook = move |request: &Request| {
        let Some(step) = steps.iter().position(|step| step.iter().any(|part| request.target.contains(part))) else {
            return Reply::Status(500);
        };
        let mut here = here.lock().unwrap();
        here[step] += 1;
        arrived.notify_all();
        let all = arrived.wait_timeout_while(here, Duration::from_secs(15), |here| here[step] < steps[step].len());
        if all.unwrap().1.timed_out() { Reply::Status(500) } else { Reply::Normal }
    };
    Registry::start(&data(store), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() })
}

#[test]
fn requests_known_in_advance_are_sent_together() {
    let part = |digest: &serde_json::Value| digest["digest"].as_str().unwrap().to_owned();
    let document = |store: &str, digest: &str| -> serde_json::Value {
        let bytes = std::fs::read(data(store).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let tag = |store: &str, repo: &str, tag: &str| repository(store, repo)["tags"][tag].as_str().unwrap().to_owned();

    // An index without signatures: the index itself, the manifest in it, config and layer.
    let store = "images/registry";
    let child = tag(store, "img/index", "amd64");
    let manifest = document(store, &child);
    let parts = [part(&manifest["config"]), part(&manifest["layers"][0])];
    let registry = in_steps(store, &[&["/manifests/v1"], &[&child], &[&parts[0], &parts[1]]]);
    World::unsigned().fetch(&format!("{}/img/index:v1", registry.host())).unwrap();
    assert_eq!(registry.requests().len(), 4);

    // An image that cosign 2 signed: the signature locations together with config and layer, then the signature.
    let store = "signatures/registry";
    let digest = tag(store, "bpf/key-v2", "v1");
    let manifest = document(store, &digest);
    let parts = [part(&manifest["config"]), part(&manifest["layers"][0])];
    let fallback = digest.replace(':', "-");
    let signature = part(&document(store, &tag(store, "bpf/key-v2", &format!("{fallback}.sig")))["layers"][0]);
    let (signed, listed) = (format!("/manifests/{fallback}.sig"), format!("/referrers/{digest}"));
    let listed_by_tag = format!("/manifests/{fallback}");
    let second: &[&str] = &[&signed, &listed, &listed_by_tag, &parts[0], &parts[1]];
    // With a digest, the signature locations are known from the start.
    let exact = format!("/manifests/{digest}");
    let (by_tag, third, first) = (["/manifests/v1"], [signature.as_str()], [&exact, &signed, &listed, &listed_by_tag]);
    let (first, rest) = (first.map(String::as_str), [parts[0].as_str(), &parts[1], &signature]);
    let ways: [(String, &[&[&str]]); 2] =
        [(":v1".to_owned(), &[&by_tag, second, &third]), (format!("@{digest}"), &[&first, &rest])];
    for (name, steps) in ways {
        let registry = in_steps(store, steps);
        let got = World::signed(&["keys/cosign-v2.pub"]).fetch(&format!("{}/bpf/key-v2{name}", registry.host()));
        got.unwrap_or_else(|err| panic!("{name}: {}: {:?}", crate::world::sentence(&err), registry.requests()));
        assert_eq!(registry.requests().len(), 7, "{:?}", registry.requests());
    }
}

#[test]
fn an_image_fetched_with_its_signatures_is_kept_only_if_they_are_good() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    for image in ["key-v2", "index", "unsigned"] {
        let world = World::signed(&["keys/wrong.pub"]);
        world.error(&format!("{}/bpf/{image}:v1", registry.host()));
        assert!(registry.requests().iter().any(|target| target.contains("/blobs/")));
        let kept: Vec<_> = std::fs::read_dir(world.path("cache/blobs/sha256")).into_iter().flatten().collect();
        assert!(kept.is_empty(), "{image}: {kept:?}");
    }
}

#[test]
fn what_a_registry_sends_is_hashed_locally() {
    let repo = repository("images/registry", "img/index");
    let top = repo["tags"]["v1"].as_str().unwrap().to_owned();
    let child = repo["tags"]["amd64"].as_str().unwrap().to_owned();
    let text = std::fs::read(data("images/registry/blobs/sha256").join(&child[7..])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    for (digest, part) in [(&top, "manifest"), (&child, "manifest for this platform"), (&config, "config"), (&layer, "layer")] {
        let target = digest.clone();
        let liar =
            registry(
                move |request| {
                    if request.target.contains(&target) { Reply::Body(b"{\"other\": true}".to_vec()) } else { Reply::Normal }
                },
            );
        let world = World::unsigned();
        let (err, text) = world.error(&format!("{}/img/index@{top}", liar.host()));
        assert!(matches!(err, ImageError::Tampered { .. }), "{part}: {text}");
        assert!(
            text.contains(&format!("its {part} does not match its digest: ")) && text.contains(&format!("expected {digest}")),
            "{text}"
        );
        for blob in std::fs::read_dir(world.path("cache/blobs/sha256")).into_iter().flatten() {
            let blob = blob.unwrap().path();
            let digest = digest_of(&std::fs::read(&blob).unwrap());
            assert!(blob.ends_with(digest.hex()), "nothing of the false contents is kept: {}", blob.display());
        }
        assert!(world.images.cache().images().unwrap().is_empty());
    }
}

#[test]
fn sizes_are_capped_while_bytes_arrive() {
    let endless = || vec![b'x'; (16 << 20) + 1];
    for (part, announce, sentence) in [
        ("/manifests/v1", false, "its manifest is larger than the limit of 1048576 bytes"),
        ("/manifests/v1", true, "its manifest is larger than the limit of 1048576 bytes"),
        ("/blobs/", false, "is larger than the limit of 1048576 bytes"),
        ("/blobs/sha256:b55c", true, "its layer is larger than the limit of 16777216 bytes"),
    ] {
        let registry = registry(move |request| match request.target.contains(part) {
            true if announce => Reply::Announce(1 << 40, b"x".to_vec()),
            true => Reply::Body(endless()),
            false => Reply::Normal,
        });
        let world = World::unsigned();
        let (err, text) = world.error(&format!("{}/img/plain-tar:v1", registry.host()));
        assert!(matches!(err, ImageError::TooLarge { .. }) && text.contains(sentence), "{part}: {text}");
    }
}

#[test]
fn failures_name_the_host_and_the_request() {
    for (reply, sentence) in [
        (
            Reply::Status(401),
            "requires credentials, or the repository does not exist; put them into /etc/bpfman-hook/auth.json",
        ),
        (Reply::Status(403), "requires credentials"),
        (Reply::Status(429), "the registry answers 429 (TOOMANYREQUESTS test registry)"),
        (Reply::Status(500), "the registry answers 500"),
        (Reply::Status(204), "the registry answers 204"),
        (Reply::Headers(401, vec![("WWW-Authenticate".into(), "Basic realm=\"x\"".into())]), "requires credentials"),
        (Reply::Hangup, "from registry"),
        (Reply::Announce(100, b"short".to_vec()), "from registry"),
    ] {
        let fault = reply.clone();
        let registry = registry(move |_| fault.clone());
        let world = World::unsigned();
        let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
        assert!(matches!(err, ImageError::Remote { .. }), "{reply:?}: {text}");
        assert!(
            text.contains(sentence) && text.contains(&registry.host()) && text.contains("manifest v1 of img/gzip"),
            "{text}"
        );
    }
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    let host = registry.host();
    for missing in [format!("{host}/img/gzip:none"), format!("{host}/no/such:v1")] {
        assert!(matches!(World::unsigned().error(&missing).0, ImageError::NotFound { .. }));
    }
    drop(registry);
    let (err, text) = World::unsigned().error(&format!("{host}/img/gzip:v1"));
    assert!(matches!(err, ImageError::Remote { source: RemoteError::Network { .. }, .. }), "{text}");
    assert!(text.to_lowercase().contains("connection refused"), "{text}");
}

#[test]
fn a_registry_that_stalls_ends_at_the_deadline() {
    for part in ["/manifests/", "/blobs/"] {
        let registry = registry(move |request| if request.target.contains(part) { Reply::Stall } else { Reply::Normal });
        let mut world = World::unsigned();
        world.patience = Duration::from_millis(700);
        let start = Instant::now();
        let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
        assert!(matches!(err, ImageError::Timeout { .. }), "{text}");
        assert!(text.contains(&registry.host()) && text.contains("pull it beforehand"), "{text}");
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(700) && waited < Duration::from_secs(5), "{waited:?}");
    }
}

#[test]
fn https_is_the_default_and_plain_http_must_be_configured() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    let host = registry.host();
    let mut world = World::unsigned();
    // Loopback, but the administrator configured TLS.
    world.registries = RegistryConfig::parse(&format!("[[registry]]\nhost = \"{host}\"\nhttp = false\n")).unwrap();
    let (err, text) = world.error(&format!("{host}/img/gzip:v1"));
    assert!(matches!(err, ImageError::Remote { source: RemoteError::PlainHttp { .. }, .. }), "{text}");
    assert!(
        text.contains("the registry does not speak TLS; allow plain http for it in /etc/bpfman-hook/registries.toml"),
        "{text}"
    );
    world.registries = RegistryConfig::parse(&format!("[[registry]]\nhost = \"{host}\"\nhttp = true\n")).unwrap();
    assert!(world.fetch(&format!("{host}/img/gzip:v1")).is_ok());
}

#[test]
fn an_anonymous_token_is_fetched_on_request_and_sent_nowhere_else() {
    let digest = "sha256:69c686fb1561172b87d6bf99bd47434db8510a39d97c47aad7675db0f79b689d";
    for (token, sentence) in [
        (Reply::Body(br#"{"token":"secret"}"#.to_vec()), None),
        (Reply::Body(br#"{"access_token":"secret"}"#.to_vec()), None),
        (Reply::Body(br#"{"token":"other"}"#.to_vec()), Some("requires credentials")),
        (Reply::Body(b"{}".to_vec()), Some("its token service sent no token")),
        (Reply::Status(401), Some("requires credentials")),
        (Reply::Status(500), Some("the registry answers 500 (from its token service)")),
    ] {
        let host = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
        let known = host.clone();
        let registry = registry(move |request| match request.authorization.as_deref() {
            _ if request.target.starts_with("/token?") => {
                assert!(request.authorization.is_none());
                token.clone()
            }
            Some("Bearer secret") => Reply::Normal,
            _ => {
                let realm = format!("http://{}/token", known.get().map_or("", |host| host));
                Reply::Headers(401, vec![("WWW-Authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"s\""))])
            }
        });
        host.set(registry.host()).unwrap();
        let world = World::unsigned();
        match (world.fetch(&format!("{}/img/gzip:v1", registry.host())), sentence) {
            (Ok(got), None) => {
                assert_eq!(got.digest.to_string(), digest);
                let asked = registry.requests().iter().filter(|target| target.starts_with("/token")).count();
                assert_eq!(asked, 1, "one token serves the whole fetch");
                let token = registry.requests().into_iter().find(|target| target.starts_with("/token")).unwrap();
                assert_eq!(token, "/token?scope=repository%3Aimg%2Fgzip%3Apull&service=s");
            }
            (Err(err), Some(sentence)) => {
                let text = crate::world::sentence(&err);
                assert!(text.contains(sentence), "{text}");
            }
            (got, sentence) => panic!("{sentence:?}: {got:?}"),
        }
    }
}

#[test]
fn redirects_are_followed_to_blobs_and_limited() {
    let store = Registry::start(&data("images/registry"), Behaviour::default());
    let elsewhere = store.host();
    let front = registry(move |request| match request.target.contains("/blobs/") {
        true => Reply::Headers(307, vec![("Location".into(), format!("http://{elsewhere}{}", request.target))]),
        false => Reply::Normal,
    });
    let world = World::unsigned();
    assert_eq!(world.fetch(&format!("{}/img/gzip:v1", front.host())).unwrap().object, OBJECT);
    assert!(store.requests().iter().any(|target| target.contains("/blobs/")));
    let endless = registry(|request| Reply::Headers(307, vec![("Location".into(), request.target.clone())]));
    let (_, text) = World::unsigned().error(&format!("{}/img/gzip:v1", endless.host()));
    assert!(text.contains("redirects too often"), "{text}");
}

#[test]
fn never_uses_no_network() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    let reference = format!("{}/img/gzip:v1", registry.host());
    let mut world = World::unsigned();
    world.pull = PullPolicy::Never;
    let (err, text) = world.error(&reference);
    assert!(matches!(err, ImageError::NotCached { .. }) && text.contains("it is not in the cache"), "{text}");
    assert!(registry.requests().is_empty());
    world.pull = PullPolicy::IfNotPresent;
    world.fetch(&reference).unwrap();
    registry.clear();
    world.pull = PullPolicy::Never;
    assert_eq!(world.fetch(&reference).unwrap().object, OBJECT);
    assert!(registry.requests().is_empty());
}

/// A world that trusts the CA of tests/data/tls for this registry.
fn trusting(host: &str) -> World {
    let mut world = World::unsigned();
    crate::world::write(&world.path("ca.pem"), &std::fs::read(data("tls/ca.pem")).unwrap());
    let ca = world.path("ca.pem");
    let config = format!("[[registry]]\nhost = \"{host}\"\nca = \"{}\"\n", ca.display());
    world.registries = RegistryConfig::parse(&config).unwrap();
    world
}

#[test]
fn a_registry_with_a_certificate_of_a_configured_ca() {
    let registry = Registry::start_tls(&data("images/registry"), Behaviour::default());
    let port = registry.host().rsplit(':').next().unwrap().to_owned();
    for host in [registry.host(), format!("localhost:{port}")] {
        let world = trusting(&host);
        let got = world.fetch(&format!("{host}/img/gzip:v1"));
        assert_eq!(got.unwrap_or_else(|err| panic!("{host}: {}", crate::world::sentence(&err))).object, OBJECT);
    }
    // Without the CA, the certificate is not trusted.
    let mut world = World::unsigned();
    world.registries = RegistryConfig::parse(&format!("[[registry]]\nhost = \"{}\"\n", registry.host())).unwrap();
    let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(err, ImageError::Remote { source: RemoteError::Certificate { .. }, .. }), "{text}");
    // With the CA, the certificate is valid only for the names in it.
    let other = Registry::start_tls_at("127.0.0.2:0", &data("images/registry"), Behaviour::default());
    let (err, text) = trusting(&other.host()).error(&format!("{}/img/gzip:v1", other.host()));
    assert!(matches!(err, ImageError::Remote { source: RemoteError::Certificate { .. }, .. }), "{text}");
    assert!(text.contains("certificate not valid for name \"127.0.0.2\""), "{text}");
    assert_eq!((registry.requests().len(), other.requests().len()), (6, 0));
    // A CA file that other users could have written.
    let world = trusting(&registry.host());
    std::os::unix::fs::symlink(world.path("ca.pem"), world.path("link")).unwrap();
    std::fs::set_permissions(world.path("ca.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(err, ImageError::Access { .. }) && text.contains("ca.pem has mode 0666"), "{text}");
}

#[test]
fn https_is_never_redirected_to_plain_http() {
    let plain = Registry::start(&data("images/registry"), Behaviour::default());
    let to = plain.host();
    for part in ["/manifests/", "/blobs/"] {
        let to = to.clone();
        let hook = move |request: &Request| match request.target.contains(part) {
            true => Reply::Headers(302, vec![("Location".into(), format!("http://{to}{}", request.target))]),
            false => Reply::Normal,
        };
        let registry =
            Registry::start_tls(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
        let world = trusting(&registry.host());
        let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
        assert!(matches!(err, ImageError::Remote { source: RemoteError::Downgrade { .. }, .. }), "{part}: {text}");
        assert!(text.contains("the registry refers to 127.0.0.1 over plain http; only https is allowed"), "{text}");
    }
    let realm = format!("Bearer realm=\"http://{to}/token\"");
    let hook = move |_: &Request| Reply::Headers(401, vec![("WWW-Authenticate".into(), realm.clone())]);
    let registry =
        Registry::start_tls(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
    let (err, text) = trusting(&registry.host()).error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(err, ImageError::Remote { source: RemoteError::Downgrade { .. }, .. }), "{text}");
    assert_eq!(plain.requests(), Vec::<String>::new());
}
