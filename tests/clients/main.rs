//! Unmodified clients in containers without capabilities, under the proxy: each one of clients.toml is run, what it prints
//! is checked, and the table of docs/proxy.md says the same.
//!
//! `cargo test --test clients` runs those of Debian 12's packages. `CLIENTS=all` runs all (`make test-clients`). `BLESS=1`
//! writes what was found to results.tsv and the table.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/tools.rs"]
#[allow(dead_code, reason = "only what reports skipped tests is used")]
mod tools;

mod client;
mod results;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use client::Client;
use results::{Line, Results};
use support::lab::{BINARY, Hooks};
use support::world::World;

/// The exit status of a script that says that something cannot be fetched.
const CANNOT_FETCH: i32 = 77;

/// A directory below tests/clients, or a file in it.
fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Runs a script of this directory: the last line of its output, or why something cannot be fetched.
fn script(name: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = std::process::Command::new(here(name));
    // Building takes longer than what tests wait for otherwise.
    let output = command.args(arguments).stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|e| harness!("start {name}: {e}"));
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(0) => Ok(last),
        Some(CANNOT_FETCH) => Err(last),
        _ => harness!("{name} {arguments:?}: {last}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Whether all clients are asked for, or those of Debian 12.
fn all() -> bool {
    std::env::var("CLIENTS").is_ok_and(|which| which == "all")
}

/// The directory of the clients that build.sh builds, or why they cannot be fetched. The tests share one build: they run at the
/// same time.
fn built() -> Result<&'static Path, &'static str> {
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let directory = Path::new(BINARY).parent().unwrap().join("clients");
        script("build.sh", &[&directory.display().to_string(), if all() { "all" } else { "some" }])?;
        Ok(directory)
    });
    BUILT.as_deref().map_err(String::as_str)
}

#[test]
fn clients_work_as_the_table_says() {
    let built = match built() {
        Ok(built) => built,
        Err(reason) => return tools::skipped("the clients of the proxy", reason),
    };
    let kernel = results::kernel();
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for client in client::all().into_iter().filter(|client| all() || client.always) {
        let root = match client.root() {
            Ok(root) => root,
            Err(reason) => {
                tools::skipped(&client.name, &reason);
                continue;
            }
        };
        let world = World::new(Hooks::Ours);
        match client.run(&world, &root, built) {
            Ok(version) => lines.push(Line::of(&client, &version, &kernel)),
            Err(said) => wrong.push(format!("{} ({}): {said}", client.name, client.does)),
        }
        world.lab.residue();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(!lines.is_empty(), "no client ran");
    let mut results = Results::read();
    if std::env::var_os("BLESS").is_some() {
        results.replace(&lines);
        results.write();
    }
    let missing: Vec<_> = lines.iter().filter(|line| !results.has(line)).collect();
    assert!(missing.is_empty(), "results.tsv lacks these, BLESS=1 writes it: {missing:#?}");
}

#[test]
fn the_table_of_the_documentation_is_that_of_the_results() {
    let results = Results::read();
    if std::env::var_os("BLESS").is_some() {
        results.write();
    }
    assert_eq!(results::documented(), results.table(), "run the test with BLESS=1");
}

/// Of so many clients so many work on one kernel at least, with programs that are loaded there natively: the guests' tracers
/// do not count.
const WORKING: (usize, usize) = (15, 20);

fn is_enough((working, all): (usize, usize)) -> bool {
    all >= WORKING.1 && working >= WORKING.0 && working * WORKING.1 >= all * WORKING.0
}

#[test]
fn three_of_four_clients_work() {
    let results = Results::read();
    let clients = client::all();
    let kernels: Vec<String> = results.kernels().into_iter().map(str::to_owned).collect();
    assert!(!kernels.is_empty(), "results.tsv is empty");
    for kernel in &kernels {
        assert!(is_enough(results.count_on(kernel)), "Linux {kernel}: {:?} work", results.count_on(kernel));
        assert_eq!(results.untried(&clients, kernel), [""; 0], "Linux {kernel}");
    }
    // It would fail with fewer.
    for few in [(14, 20), (15, 19), (0, 0), (15, 21)] {
        assert!(!is_enough(few), "{few:?}");
    }
    let kernel = &kernels[0];
    let none = results.without(kernel);
    assert_eq!((none.count_on(kernel), none.untried(&clients, kernel).len()), ((0, 0), clients.len()));
}

#[test]
fn a_client_that_fails_is_noticed() {
    // The container asks for nothing, so that the proxy passes no call on.
    let client = client::all().into_iter().find(|client| client.always && client.fails.is_none()).unwrap();
    let (Ok(built), Ok(root)) = (built(), client.root()) else { return };
    let world = World::new(Hooks::Ours);
    let unasked = Client { delegate: [("delegate".to_owned(), "maps".to_owned())].into(), ..client };
    let said = unasked.run(&world, &root, built).unwrap_err();
    assert!(said.contains("expected"), "{said}");
    world.lab.residue();
}
