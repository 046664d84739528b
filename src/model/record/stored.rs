//! Reading stored records: those of this program, those of an earlier one of the same boot, and damaged ones.

use serde_json::{Map, Value, json};

use crate::model::ids::{ContainerId, ProcessIdentity};
use crate::model::record::OwnerRecord;

/// Reads a record of the current schema or of schema 2.
///
/// # Errors
/// If it is neither: the error of reading it in the current schema.
pub fn decode(record: &[u8]) -> Result<OwnerRecord, serde_json::Error> {
    serde_json::from_slice(record).or_else(|error| of_schema_2(record).ok_or(error))
}

/// Reads a record of schema 2, so that an upgrade while containers run keeps their records. In schema 2, the fields of
/// every kind of owner are fields of the record, and an object has an `id` in place of a state: null while a process
/// works on the object, and for a filter of the traffic control layer.
fn of_schema_2(record: &[u8]) -> Option<OwnerRecord> {
    let mut record: Map<String, Value> = serde_json::from_slice(record).ok()?;
    let ready = record.get("phase")? == "ready";
    let mut owner = record.remove("owner")?;
    let of_container = ["init", "request", "engine", "workload", "cgroup", "bpffs", "holds", "missed"];
    let of_netns = ["request", "engine", "workload", "holders", "keeper"];
    let (fields, filters) = match owner.get("kind")?.as_str()? {
        "container" => (&of_container[..], ready),
        "netns" => (&of_netns[..], ready),
        // The filters of a manual load have numbers.
        _ => (&[][..], false),
    };
    for field in fields {
        if let Some(value) = record.remove(*field) {
            owner.as_object_mut()?.insert((*field).to_owned(), value);
        }
    }
    record.insert("owner".to_owned(), owner);
    for (objects, unfinished, finished) in
        [("programs", "loading", "loaded"), ("maps", "creating", "created"), ("links", "attaching", "attached")]
    {
        for object in record.get_mut(objects)?.as_array_mut()? {
            let object = object.as_object_mut()?;
            let state = match object.remove("id")? {
                Value::Null if objects != "links" || !filters => json!(unfinished),
                id => json!({ finished: id }),
            };
            object.insert("state".to_owned(), state);
        }
    }
    serde_json::from_value(Value::Object(record)).ok()
}

/// The init in a record that cannot be decoded, so that its container keeps what it has while it lives. It is found by
/// its text, whatever is wrong elsewhere. A quote within a string of the record is written `\"`, so no string can
/// imitate it.
pub fn init_of_damaged(record: &[u8]) -> Option<ProcessIdentity> {
    const KEY: &[u8] = b"\"init\":{";
    let begin = record.windows(KEY.len()).position(|part| part == KEY)? + KEY.len() - 1;
    let rest = record.get(begin..)?;
    let end = rest.iter().position(|byte| *byte == b'}')?;
    serde_json::from_slice(rest.get(..=end)?).ok()
}

/// The container id in a record that is valid JSON but does not match [`OwnerRecord`]: `poststop` knows a container
/// only by its id.
pub fn container_of_damaged(record: &[u8]) -> Option<ContainerId> {
    let record: Value = serde_json::from_slice(record).ok()?;
    record.get("owner")?.get("id")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::OwnerNo;
    use crate::model::record::{Keeper, LinkState, Owner, ProgramState};

    /// A record of a container as schema 2 wrote it. `@` is a digest.
    const CONTAINER_2: &str = r#"{"no":3,"owner":{"kind":"container","id":"web","bundle":"/srv/bundle","runtime_user":0},
"phase":"ready","actor":{"process":{"pid":4242,"start_time":98},"deadline":30},"created":1,"changed":1701,
"init":{"pid":4243,"start_time":99},"request":"@","engine":"containerd",
"workload":{"namespace":"shop","pod":"front","container":"web"},"cgroup":{"path":"/pods/web","id":77},
"programs":[{"pin":"prog_1","function":"f","kind":"xdp","scope":"container","image":0,"id":71}],
"maps":[{"pin":"map_1","name":"packets","image":0,"id":61,"shown":{"file_name":"packets","access":"ro"},"frozen":true}],
"links":[{"pin":"link_1","program":"prog_1","at":{"type":"fentry","function":"f"},"id":81},
{"pin":"link_2","program":"prog_1","at":{"type":"tc","iface":{"name":"eth0","index":2},"direction":"ingress","priority":50},
"netns":{"cookie":9},"id":null}],
"bpffs":{"path":"/sys/fs/bpf","delegation":{"cmds":0,"maps":0,"progs":0,"attachs":0}},
"images":[{"reference":"oci:/images/count:v1","digest":"@","object":"@","rule":"all","verdict":{"verdict":"unsigned"}}],
"holds":[4],"holders":[],"failure":null,"leftovers":[]}"#;

    /// The same record in the current schema. A change here needs a new schema number.
    const CONTAINER: &str = r#"{"no":3,"owner":{"kind":"container","id":"web","bundle":"/srv/bundle","runtime_user":0,
"engine":"containerd","workload":{"namespace":"shop","pod":"front","container":"web"},
"init":{"pid":4243,"start_time":99},"request":"@","cgroup":{"path":"/pods/web","id":77},
"bpffs":{"path":"/sys/fs/bpf","delegation":{"cmds":0,"maps":0,"progs":0,"attachs":0}},"holds":[4]},
"phase":"ready","actor":{"process":{"pid":4242,"start_time":98},"deadline":30},"created":1,"changed":1701,
"programs":[{"pin":"prog_1","function":"f","kind":"xdp","scope":"container","image":0,"state":{"loaded":71}}],
"maps":[{"pin":"map_1","name":"packets","image":0,"state":{"created":61},"shown":{"file_name":"packets","access":"ro"},
"frozen":true}],
"links":[{"pin":"link_1","program":"prog_1","at":{"type":"fentry","function":"f"},"state":{"attached":81}},
{"pin":"link_2","program":"prog_1","at":{"type":"tc","iface":{"name":"eth0","index":2},"direction":"ingress","priority":50},
"netns":{"cookie":9},"state":{"attached":null}}],
"images":[{"reference":"oci:/images/count:v1","digest":"@","object":"@","rule":"all","verdict":{"verdict":"unsigned"}}],
"failure":null,"leftovers":[]}"#;

    /// A record of a pod's network namespace as schema 2 wrote it.
    const NETNS_2: &str = r#"{"no":4,"owner":{"kind":"netns","cookie":9,"sandbox":"box"},"phase":"ready",
"actor":{"process":{"pid":4242,"start_time":98},"deadline":30},"created":1,"changed":1701,"init":null,"request":"@",
"engine":"containerd","workload":{"namespace":"shop","pod":"front","container":"web"},"cgroup":null,
"programs":[],"maps":[],"links":[],"bpffs":null,"images":[],"holds":[],"holders":[3],
"keeper":{"process":{"pid":4244,"start_time":97}},"failure":null,"leftovers":[]}"#;

    /// A record of a load without a container as schema 2 wrote it, while a program and a link were being removed.
    const HOST_2: &str = r#"{"no":5,"owner":{"kind":"host","application":"shop",
"loaded":{"caller":"uid 7","reference":null,"globals":{},"metadata":{},"map_memory":0}},"phase":"ready",
"actor":{"process":{"pid":4242,"start_time":98},"deadline":30},"created":1,"changed":1701,"init":null,"request":null,
"engine":null,"workload":null,"cgroup":null,
"programs":[{"pin":"prog_1","function":"f","kind":"fentry","scope":"host","target":"f","image":0,"id":73},
{"pin":"prog_2","function":"g","kind":"fentry","scope":"host","target":"g","image":0,"id":null}],"maps":[],
"links":[{"pin":"link_1","program":"prog_1","at":{"type":"fentry","function":"f"},"id":83},
{"pin":"link_2","program":"prog_2","at":{"type":"fentry","function":"g"},"id":null}],
"bpffs":null,"images":[],"holds":[],"holders":[],"failure":null,"leftovers":[]}"#;

    fn text(literal: &str) -> String {
        literal.replace('\n', "").replace('@', &format!("sha256:{}", "03".repeat(32)))
    }

    #[test]
    fn records_of_schema_2_are_read() {
        let decoded = |literal: &str| decode(text(literal).as_bytes()).unwrap();
        let container = decoded(CONTAINER_2);
        assert_eq!(serde_json::to_string(&container).unwrap(), text(CONTAINER));
        assert_eq!(decoded(CONTAINER), container);

        let netns = decoded(NETNS_2);
        let Owner::Netns(pod) = &netns.owner else { panic!("{netns:?}") };
        assert_eq!((pod.cookie, pod.holders.as_slice(), pod.sandbox.as_deref()), (9, &[OwnerNo(3)][..], Some("box")));
        assert!(matches!(pod.keeper, Some(Keeper::Process(pause)) if pause.pid.get() == 4244));

        let host = decoded(HOST_2);
        assert!(matches!(&host.owner, Owner::Host(host) if host.loaded.caller == "uid 7"));
        let programs: Vec<_> = host.programs.iter().map(|program| program.state).collect();
        assert_eq!(programs, [ProgramState::Loaded(73), ProgramState::Loading]);
        let links: Vec<_> = host.links.iter().map(|link| link.state).collect();
        assert_eq!(links, [LinkState::Attached(Some(83)), LinkState::Attaching]);
        assert!(host.has_unfinished() && !container.has_unfinished());
        for record in [netns, host] {
            assert_eq!(decode(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn the_container_of_a_damaged_record_is_found_in_every_schema() {
        for literal in [CONTAINER_2, CONTAINER] {
            for (part, damaged) in [("bundle", "bXndle"), ("\"kind\":\"xdp\"", "\"kind\":\"xXp\""), ("\"pin\"", "\"pXn\"")] {
                let text = text(literal).replace(part, damaged);
                decode(text.as_bytes()).unwrap_err();
                assert_eq!(container_of_damaged(text.as_bytes()).unwrap().as_str(), "web", "{text}");
                assert_eq!(init_of_damaged(text.as_bytes()).unwrap().start_time, 99, "{text}");
            }
        }
        for literal in [NETNS_2, HOST_2] {
            assert_eq!(container_of_damaged(text(literal).as_bytes()), None);
            assert_eq!(init_of_damaged(text(literal).as_bytes()), None);
        }
    }

    #[test]
    fn the_init_of_a_damaged_record_is_found_by_its_text() {
        let cases: [(&str, Option<(u32, u64)>); 8] = [
            (r#"{"no":1,"owner":{"id":"a","init":{"pid":7,"start_time":99},"request":null}}"#, Some((7, 99))),
            // Errors before or after it do not matter.
            ("{\"no\":\u{1},,\"init\":{\"pid\":7,\"start_time\":99},\"requ", Some((7, 99))),
            // A string is not a key.
            (r#"{"bundle":"\"init\":{\"pid\":8,\"start_time\":1}","init":{"pid":7,"start_time":99}}"#, Some((7, 99))),
            (r#"{"no":1,"init":null}"#, None),
            (r#"{"init":{"pid":0,"start_time":99}}"#, None),
            (r#"{"init":{"pid":7,"start_"#, None),
            (r#"{"init":{"pid":7,"start_tXme":99}}"#, None),
            ("", None),
        ];
        for (text, expected) in cases {
            let found = init_of_damaged(text.as_bytes()).map(|init| (init.pid.get(), init.start_time));
            assert_eq!(found, expected, "{text}");
        }
    }
}
