//! Connections to a registry: certificates on both sides, proxies, what is sent along with a redirect, and silence at
//! any step.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bpfman_hook::image::{ImageError, RemoteError};
use bpfman_hook::model::credentials::{Credential, UserEnvironment};
use bpfman_hook::model::registries::RegistryConfig;

use crate::proxy::{Manners, Proxy};
use crate::registries::file;
use crate::registry::{Behaviour, Registry, Reply, Request};
use crate::world::{OBJECT, World, data, sentence};

const STORE: &str = "images/registry";

fn tls(name: &str) -> String {
    std::fs::read_to_string(data("tls").join(name)).unwrap()
}

fn hooked(hook: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Behaviour {
    Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() }
}

/// Files of a certs.d directory: name, source, mode.
type Files<'a> = &'a [(&'a str, &'a str, u32)];

/// A world with these files for a host.
fn with_certificates(base: &str, host: &str, files: Files<'_>) -> World {
    let world = World::unsigned();
    file(&world, &format!("{base}/{host}/ca.crt"), &tls("ca.pem"), 0o644);
    for (name, source, mode) in files {
        file(&world, &format!("{base}/{host}/{name}"), &tls(source), *mode);
    }
    world
}

fn remote(err: &ImageError) -> &RemoteError {
    let ImageError::Remote { source, .. } = err else { panic!("{err:?}") };
    source
}

#[test]
fn a_registry_that_requires_a_client_certificate() {
    let registry = Registry::start_mutual(&data(STORE), Behaviour::default());
    let host = registry.host();
    let image = format!("{host}/img/gzip:v1");
    for base in ["etc/containers/certs.d", "etc/docker/certs.d"] {
        for name in ["client", "acme"] {
            let (certificate, key) = (format!("{name}.cert"), format!("{name}.key"));
            let world = with_certificates(base, &host, &[(&certificate, "client.pem", 0o644), (&key, "client.key", 0o600)]);
            let got = world.fetch(&image).unwrap_or_else(|err| panic!("{base} {name}: {}", sentence(&err)));
            assert_eq!(got.object, OBJECT);
        }
    }
    // The same with registries.toml.
    let mut world = with_certificates("own", "x", &[("client.cert", "client.pem", 0o644), ("client.key", "client.key", 0o600)]);
    let own = world.path("own/x");
    let own = own.display();
    let config = format!(
        "[[registry]]\nhost = \"{host}\"\nca = \"{own}/ca.crt\"\nclient-cert = \"{own}/client.cert\"\nclient-key = \"{own}/client.key\"\n"
    );
    world.registries = RegistryConfig::parse(&config).unwrap();
    assert!(world.fetch(&image).is_ok());

    let base = "etc/containers/certs.d";
    let cases: [(Files<'_>, &str); 5] = [
        (&[], "the registry requires a client certificate; put one that it accepts into /etc/containers/certs.d/"),
        (&[("a.cert", "stranger.pem", 0o644), ("a.key", "stranger.key", 0o600)], "the registry refuses our client certificate"),
        (
            &[("a.cert", "client.pem", 0o644), ("a.key", "stranger.key", 0o600)],
            "our client certificate and its key do not match",
        ),
        (&[("a.cert", "client.pem", 0o644)], "a.key: it does not exist"),
        (&[("a.cert", "client.pem", 0o644), ("a.key", "client.key", 0o640)], "a.key has mode 0640 and contains secrets"),
    ];
    for (files, wanted) in cases {
        registry.clear();
        let (_, text) = with_certificates(base, &host, files).error(&image);
        assert!(text.contains(wanted), "{files:?}: {text}");
        assert!(registry.requests().is_empty(), "{files:?}");
    }
}

#[test]
fn the_client_certificate_is_not_sent_along_redirects() {
    // The other host rejects clients without a certificate: a client that presents one gets the blob.
    let store = Registry::start_mutual(&data(STORE), Behaviour::default());
    let elsewhere = store.host();
    let hook = move |request: &Request| match request.target.contains("/blobs/") {
        true => Reply::Headers(307, vec![("Location".into(), format!("https://{elsewhere}{}", request.target))]),
        false => Reply::Normal,
    };
    let registry = Registry::start_mutual(&data(STORE), hooked(hook));
    let files = [("a.cert", "client.pem", 0o644), ("a.key", "client.key", 0o600)];
    let world = with_certificates("etc/containers/certs.d", &registry.host(), &files);
    let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(remote(&err), RemoteError::ClientCertificate { .. }), "{text}");
    assert!(store.requests().is_empty());
}

#[test]
fn insecure_means_plain_http_and_never_unverified_tls() {
    let registry = Registry::start_tls(&data(STORE), Behaviour::default());
    let host = registry.host();
    let image = format!("{host}/img/gzip:v1");
    let conf = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let world = World::unsigned();
    file(&world, "etc/containers/registries.conf", &conf, 0o644);
    let (err, text) = world.error(&image);
    assert!(matches!(remote(&err), RemoteError::WantsTls { .. }), "{text}");
    assert!(text.contains("insecure = true in registries.conf, which does not mean unverified TLS here"), "{text}");
    // With its CA's certificate it is contacted with TLS, insecure or not.
    let world = with_certificates("etc/containers/certs.d", &host, &[]);
    file(&world, "etc/containers/registries.conf", &conf, 0o644);
    assert!(world.fetch(&image).is_ok());
    // With the certificate of another CA it is not.
    let world = World::unsigned();
    file(&world, &format!("etc/containers/certs.d/{host}/ca.crt"), &tls("stranger.pem"), 0o644);
    file(&world, "etc/containers/registries.conf", &conf, 0o644);
    let (err, text) = world.error(&image);
    assert!(matches!(remote(&err), RemoteError::Certificate { .. }), "{text}");
    assert!(text.contains(&format!("put its CA certificate into /etc/containers/certs.d/{host}/ca.crt")), "{text}");
}

/// A world that reaches registry.test, which only a proxy can resolve, by `url`.
fn behind(url: &str) -> World {
    let mut world = World::unsigned();
    file(&world, "etc/ca.pem", &tls("ca.pem"), 0o644);
    let ca = world.path("etc/ca.pem");
    let text = format!("[proxy]\nurl = \"{url}\"\n[[registry]]\nhost = \"registry.test:5000\"\nca = \"{}\"\n", ca.display());
    world.registries = RegistryConfig::parse(&text).unwrap();
    assert!(!format!("{:?}", world.registries).contains("hidden"));
    world
}

/// `user:hidden`
const LOGIN: &str = "Basic dXNlcjpoaWRkZW4=";

#[test]
fn through_a_proxy_to_a_registry_with_tls() {
    let registry = Registry::start_tls(&data(STORE), Behaviour::default());
    let image = "registry.test:5000/img/gzip:v1";
    for (manners, login) in [(Manners::Open, ""), (Manners::Login(LOGIN), "user:hidden@"), (Manners::Open, "user:hidden@")] {
        let proxy = Proxy::start(&registry.host(), manners);
        let world = behind(&format!("http://{login}{}", proxy.host()));
        let got = world.fetch(image).unwrap_or_else(|err| panic!("{}", sentence(&err)));
        assert_eq!(got.object, OBJECT);
        assert!(!proxy.asked().is_empty() && proxy.asked().iter().all(|target| target == "registry.test:5000"));
    }
    // A user's own proxy, from the environment.
    let proxy = Proxy::start(&registry.host(), Manners::Login(LOGIN));
    let mut world = behind("http://127.0.0.1:1");
    let https_proxy = Some(format!("http://user:hidden@{}", proxy.host()));
    world.registries = world.registries.clone().by(UserEnvironment { https_proxy, ..UserEnvironment::default() });
    assert!(world.fetch(image).is_ok());
    let mut world = world;
    let no_proxy = Some("registry.test".to_owned());
    let https_proxy = Some(format!("http://user:hidden@{}", proxy.host()));
    world.registries = world.registries.clone().by(UserEnvironment { https_proxy, no_proxy, ..UserEnvironment::default() });
    let asked = proxy.asked().len();
    std::fs::remove_dir_all(world.path("cache")).unwrap();
    world.error(image);
    assert_eq!(proxy.asked().len(), asked, "no request that bypasses the proxy goes through it");
}

#[test]
fn a_refusing_proxy_is_reported_without_the_password() {
    let registry = Registry::start_tls(&data(STORE), Behaviour::default());
    for (manners, login, wanted) in [
        (Manners::Login(LOGIN), "", "the proxy requires a user and password; write them into its url"),
        (Manners::Login(LOGIN), "user:hiddentoo@", "the proxy refuses the user and password in its url"),
        (Manners::Refuse(403), "user:hidden@", "the proxy refuses the connection"),
        (Manners::Refuse(502), "user:hidden@", "the proxy refuses the connection"),
        (Manners::Stall, "user:hidden@", "did not"),
    ] {
        let proxy = Proxy::start(&registry.host(), manners.clone());
        let mut world = behind(&format!("http://{login}{}", proxy.host()));
        world.patience = Duration::from_secs(2);
        let (_, text) = world.error("registry.test:5000/img/gzip:v1");
        assert!(text.contains(wanted) && !text.contains("hidden"), "{manners:?}: {text}");
        if !matches!(manners, Manners::Stall) {
            assert!(text.contains(&format!("through proxy {}", proxy.host())), "{text}");
        }
        assert!(registry.requests().is_empty());
    }
    let gone = Proxy::start(&registry.host(), Manners::Open).host();
    let (err, text) = behind(&format!("http://user:hidden@{gone}")).error("registry.test:5000/img/gzip:v1");
    assert!(matches!(remote(&err), RemoteError::Proxy { .. }) && !text.contains("hidden"), "{text}");
    // With plain HTTP, the proxy answers in place of the registry.
    let plain = Registry::start(&data(STORE), hooked(|_| Reply::Status(407)));
    let mut world = World::unsigned();
    let text = format!("[proxy]\nurl = \"http://{}\"\n[[registry]]\nhost = \"r.invalid\"\nhttp = true\n", plain.host());
    world.registries = RegistryConfig::parse(&text).unwrap();
    let (err, text) = world.error("r.invalid/img/gzip:v1");
    assert!(matches!(remote(&err), RemoteError::Proxy { .. }) && text.contains("requires a user and password"), "{text}");
}

#[test]
fn a_refresh_token_does_not_follow_a_redirect() {
    let thief = Registry::start(&data(STORE), hooked(|_| Reply::Body(br#"{"access_token":"t"}"#.to_vec())));
    let (to, host) = (thief.host(), Arc::new(OnceLock::<String>::new()));
    let known = host.clone();
    let registry = Registry::start(
        &data(STORE),
        hooked(move |request| {
            if request.target == "/token" {
                return Reply::Headers(307, vec![("Location".into(), format!("http://{to}/token"))]);
            }
            let realm = format!("http://{}/token", known.get().unwrap());
            Reply::Headers(401, vec![("WWW-Authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"s\""))])
        }),
    );
    host.set(registry.host()).unwrap();
    let mut world = World::unsigned();
    let login = Some(Credential::Identity("hidden".into()));
    world.registries = RegistryConfig::default().by(UserEnvironment { login, ..UserEnvironment::default() });
    let (_, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(text.contains("the registry answers 307") && !text.contains("hidden"), "{text}");
    assert!(thief.requests().is_empty());
}

/// The steps at which a fetch can be stalled, as a part of the request's target.
const STEPS: [&str; 8] = ["/manifests/v1", ".sig", "/referrers/", "FALLBACK", "REFERRER", "SIGNATURE", "CONFIG", "LAYER"];

#[test]
fn silence_at_any_step_ends_at_the_deadline_and_decides_nothing() {
    let store = "signatures/registry";
    let repo = crate::world::repository(store, "bpf/key-v3");
    let top = repo["tags"]["v1"].as_str().unwrap();
    let document = |digest: &str| -> serde_json::Value {
        let path = data(store).join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().to_owned();
    let manifest = document(top);
    let listed = document(repo["tags"][top.replace(':', "-")].as_str().unwrap());
    let referrer = digest(&listed["manifests"][0]);
    let parts = [
        referrer.clone(),
        digest(&document(&referrer)["layers"][0]),
        digest(&manifest["config"]),
        digest(&manifest["layers"][0]),
    ];
    for (nth, step) in STEPS.into_iter().enumerate() {
        for drips in [false, true] {
            let part = parts.get(nth.wrapping_sub(4)).cloned().unwrap_or_else(|| step.to_owned());
            let hook = move |request: &Request| {
                let hit = match step {
                    "FALLBACK" => request.target.contains("/manifests/sha256-") && !request.target.ends_with(".sig"),
                    _ => request.target.contains(&part),
                };
                match (hit, drips) {
                    (false, _) => Reply::Normal,
                    (true, false) => Reply::Stall,
                    (true, true) => Reply::Drip(vec![b' '; 1 << 19]),
                }
            };
            let registry = Registry::start(&data(store), hooked(hook));
            let mut world = World::signed(&["keys/cosign-v3.pub"]);
            world.rules.push(crate::world::rule("any", Vec::new()));
            world.patience = Duration::from_millis(900);
            let start = Instant::now();
            let (err, text) = world.error(&format!("{}/bpf/key-v3:v1", registry.host()));
            let told = format!("{step}, {}: {text}", if drips { "drip" } else { "stall" });
            assert!(matches!(err, ImageError::Timeout { .. }), "{told}");
            assert!(text.contains(&registry.host()) && text.contains("pull it beforehand"), "{told}");
            let waited = start.elapsed();
            assert!(waited >= Duration::from_millis(900) && waited < Duration::from_secs(7), "{told}: {waited:?}");
            assert!(world.images.cache().images().unwrap().is_empty(), "{told}");
        }
    }
}

#[test]
fn a_silent_token_service_ends_at_the_deadline_too() {
    let host = Arc::new(OnceLock::<String>::new());
    let known = host.clone();
    let registry = Registry::start(
        &data(STORE),
        hooked(move |request| match request.target.starts_with("/token") {
            true => Reply::Stall,
            false => {
                let realm = format!("http://{}/token", known.get().unwrap());
                Reply::Headers(401, vec![("WWW-Authenticate".into(), format!("Bearer realm=\"{realm}\""))])
            }
        }),
    );
    host.set(registry.host()).unwrap();
    let mut world = World::unsigned();
    world.patience = Duration::from_millis(700);
    let (err, text) = world.error(&format!("{}/img/gzip:v1", registry.host()));
    assert!(matches!(err, ImageError::Timeout { .. }), "{text}");
}

/// A client that can wait longer than the silence timeout gets an error that names the unanswered request.
#[test]
fn silence_has_its_own_timeout() {
    let stalls = Registry::start(&data(STORE), hooked(|_| Reply::Stall));
    let start = Instant::now();
    let (err, text) = World::unsigned().error(&format!("{}/img/gzip:v1", stalls.host()));
    assert!(matches!(remote(&err), RemoteError::Silent { seconds: 8, .. }), "{text}");
    assert!(text.contains("the registry did not answer within 8 s"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(15));
}
