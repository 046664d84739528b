//! Tests of the store on real directories, with other processes that write, read and are killed.

mod damage;
mod listing;
mod opening;
mod processes;
mod space;
mod transactions;
mod upgrade;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::helper_process;
use crate::model::ids::{Digest, OwnerNo, Pid, ProcessIdentity};
use crate::model::policy::Engine;
use crate::model::record::{Actor, ContainerOwner, NetnsOwner, Owner, OwnerRecord, Phase, Workload};

const BOOT: &str = "918e815e-d76e-4f50-946b-1d55d20e4d8a";
const ROLE: &str = "STORE_TEST_ROLE";
const STORES: &str = "STORE_TEST_STORES";

fn process() -> ProcessIdentity {
    ProcessIdentity { pid: Pid::new(4242).unwrap(), start_time: 99 }
}

fn record(no: OwnerNo, owner: Owner, phase: Phase, changed: u64) -> OwnerRecord {
    OwnerRecord { changed, ..OwnerRecord::new(no, owner, phase, Actor { process: process(), deadline: 30 }, 1) }
}

fn container(id: &str) -> Owner {
    let container = ContainerOwner::new(id.parse().unwrap(), "/srv/bundle".into(), 0, Engine::Podman, Workload::default());
    Owner::Container(ContainerOwner { init: Some(process()), ..container })
}

fn netns(cookie: u64) -> Owner {
    Owner::Netns(NetnsOwner {
        cookie,
        sandbox: None,
        engine: Engine::CriO,
        workload: Workload::default(),
        request: Digest::from_bytes([1; 32]),
        holders: Vec::new(),
        keeper: None,
    })
}

/// Puts a new record and returns its number.
fn add(store: &Store, owner: Owner, phase: Phase, changed: u64) -> Result<OwnerNo, StoreError> {
    store.write(|txn| {
        let no = txn.next_no()?;
        txn.put(&record(no, owner, phase, changed))?;
        Ok(no)
    })
}

fn numbers(store: &Store) -> Vec<u64> {
    store.read(|txn| txn.owners()?.map(|record| Ok(record?.no.0)).collect::<Result<_, StoreError>>()).unwrap()
}

/// Creates a store with some owners and closes it.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for at in 0..60 {
        let mut record = record(OwnerNo(0), container(&format!("c{at}")), Phase::Ready, at);
        record.failure = Some("x".repeat(if at % 10 == 0 { 6000 } else { 900 }));
        store
            .write(|txn| {
                record.no = txn.next_no()?;
                txn.put(&record)
            })
            .unwrap();
    }
    for no in 1..20 {
        store.write(|txn| txn.delete(OwnerNo(no))).unwrap();
    }
    dir
}

fn role(role: &str, stores: &Path) -> Command {
    let mut command = helper_process::command("store::tests::store_process", ROLE, role);
    command.env(STORES, stores);
    command
}

/// Starts a child process in a role and waits until it prints `ready`.
fn start(name: &str, stores: &Path) -> Child {
    let mut child = role(name, stores).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the child in role {name} ended early");
    child
}

/// A helper process, not a test: it uses the store as its role says.
#[test]
fn store_process() {
    let Some(role) = helper_process::task(ROLE) else { return };
    let stores = PathBuf::from(std::env::var(STORES).unwrap());
    let hold = || {
        println!("ready");
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read_line(&mut String::new());
    };
    match role.to_str().unwrap() {
        "add" => {
            let store = Store::open(&stores, BOOT).unwrap();
            for round in 0..25 {
                add(&store, container(&format!("c{}", std::process::id())), Phase::Ready, round).unwrap();
            }
        }
        "write and hold" => {
            let store = Store::open(&stores, BOOT).unwrap();
            let _: Result<(), StoreError> = store.write(|txn| {
                let no = txn.next_no()?;
                txn.put(&record(no, container("half"), Phase::Pending, 1))?;
                hold();
                Ok(())
            });
        }
        "read and hold" => {
            let store = Store::open(&stores, BOOT).unwrap();
            let _: Result<(), StoreError> = store.read(|txn| {
                assert!(txn.get(OwnerNo(1))?.is_some());
                hold();
                Ok(())
            });
        }
        "use" => {
            let used = Store::open(&stores, BOOT).and_then(|store| {
                store.read(|txn| {
                    for record in txn.owners()? {
                        record?;
                    }
                    txn.phases(Phase::Ready)?;
                    Ok::<_, StoreError>(())
                })?;
                for _ in 0..3 {
                    add(&store, container("late"), Phase::Ready, 7)?;
                }
                Ok(())
            });
            if let Err(err) = used {
                eprintln!("bpfman-hook: {err}");
                std::process::exit(1);
            }
        }
        other => panic!("unknown role {other}"),
    }
}
