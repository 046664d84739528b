//! `hooks` of config.json, if it names bpfman-hook.

use serde_json::Value;

/// Makes the runtime call our poststop: copies the entry that calls us at createRuntime to poststop. True if it was
/// added.
///
/// podman removes poststop from config.json and calls it itself, but not for a container whose creation failed after
/// createRuntime (another hook, a sysctl, a missing command). In that case runc calls what config.json names
/// (libcontainer/state_linux.go, `runPoststopHooks`), crun does not. After a normal stop our hook runs twice; the
/// second run finds nothing to do. podman writes `hooks` from the administrator's files, never from an image.
pub fn add_poststop(spec: &mut Value) -> bool {
    let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut) else { return false };
    let entry = |stage: &str| hooks.get(stage).and_then(Value::as_array)?.iter().find(|entry| runs_us(entry, stage));
    let (Some(ours), None) = (entry("createRuntime"), entry("poststop")) else { return false };
    let mut poststop = ours.clone();
    poststop["args"][2] = "poststop".into();
    match hooks.entry("poststop").or_insert(Value::Null) {
        Value::Array(present) => present.push(poststop),
        absent => *absent = Value::Array(vec![poststop]),
    }
    true
}

/// True for `bpfman-hook hook STAGE …`.
fn runs_us(entry: &Value, stage: &str) -> bool {
    let args = entry["args"].as_array().map(Vec::as_slice).unwrap_or_default();
    args.len() >= 3 && args.iter().zip(["bpfman-hook", "hook", stage]).all(|(arg, word)| arg == word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours(stage: &str) -> Value {
        json!({ "path": "/opt/b/bpfman-hook", "args": ["bpfman-hook", "hook", stage, "--root", "/srv/r"], "timeout": 30, "env": ["A=b"] })
    }

    #[test]
    fn the_create_runtime_entry_is_copied_to_poststop() {
        let other = json!({ "path": "/bin/other", "args": ["other", "hook", "createRuntime"] });
        for (name, hooks, expected) in [
            ("alone", json!({ "createRuntime": [other, ours("createRuntime")] }), Some(json!([ours("poststop")]))),
            (
                "beside others",
                json!({ "createRuntime": [ours("createRuntime")], "poststop": [other] }),
                Some(json!([other, ours("poststop")])),
            ),
            ("null", json!({ "createRuntime": [ours("createRuntime")], "poststop": null }), Some(json!([ours("poststop")]))),
            ("there already", json!({ "createRuntime": [ours("createRuntime")], "poststop": [ours("poststop")] }), None),
            ("without us", json!({ "createRuntime": [other] }), None),
            ("without arguments", json!({ "createRuntime": [{ "path": "/bin/x" }] }), None),
            ("without hooks", json!({}), None),
        ] {
            let mut spec = json!({ "hooks": hooks, "process": { "args": ["a"] } });
            let before = spec.clone();
            assert_eq!(add_poststop(&mut spec), expected.is_some(), "{name}");
            match expected {
                Some(expected) => {
                    assert_eq!(spec["hooks"]["poststop"], expected, "{name}");
                    spec["hooks"]["poststop"] = before["hooks"]["poststop"].clone();
                    assert_eq!(spec["hooks"]["createRuntime"], before["hooks"]["createRuntime"], "{name}");
                }
                None => assert_eq!(spec, before, "{name}"),
            }
        }
        for odd in [json!({}), json!([]), json!({ "hooks": [] }), json!({ "hooks": null })] {
            assert!(!add_poststop(&mut odd.clone()), "{odd}");
        }
    }
}
