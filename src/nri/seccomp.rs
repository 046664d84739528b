//! The seccomp profile of a container that asks for the proxy of bpf(2), in NRI's form (NRI 0.10, containerd 2.2).
//!
//! An older runtime neither tells the container's profile nor takes another one. The hook then refuses the container, and
//! says what to do.

use protobuf::MessageField;
use serde_json::{Value, json};

use crate::model::proxy::profile;
use crate::nri::api::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, OptionalUInt32};

/// The container's profile with the listener at `socket` and the rules for bpf(2), with `perf_events` also that for
/// perf_event_open(2); None if it has another listener, or
/// needs no change.
pub(super) fn notifying(profile: Option<&LinuxSeccomp>, socket: &str, perf_events: bool) -> Option<LinuxSeccomp> {
    let mut spec = profile.map_or_else(profile::permissive, to_json);
    let before = spec.clone();
    profile::edit(&mut spec, socket, perf_events)?;
    (spec != before).then(|| of_json(&spec))
}

/// The same profile in the form of the runtime-spec.
fn to_json(profile: &LinuxSeccomp) -> Value {
    let syscalls = profile.syscalls.iter().map(|rule| {
        let args = rule.args.iter().map(|argument| {
            json!({ "index": argument.index, "value": argument.value, "valueTwo": argument.value_two, "op": argument.op })
        });
        let mut spec = json!({ "names": rule.names, "action": rule.action });
        if !rule.args.is_empty() {
            spec["args"] = args.collect();
        }
        if let Some(errno) = rule.errno_ret.as_ref() {
            spec["errnoRet"] = errno.value.into();
        }
        spec
    });
    let mut spec = json!({
        "defaultAction": profile.default_action,
        "architectures": profile.architectures,
        "flags": profile.flags,
        "listenerPath": profile.listener_path,
        "listenerMetadata": profile.listener_metadata,
        "syscalls": syscalls.collect::<Vec<_>>(),
    });
    if let Some(errno) = profile.default_errno.as_ref() {
        spec["defaultErrnoRet"] = errno.value.into();
    }
    spec
}

fn of_json(spec: &Value) -> LinuxSeccomp {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let errno = |value: &Value| {
        let value = value.as_u64().and_then(|value| u32::try_from(value).ok())?;
        Some(OptionalUInt32 { value, ..Default::default() })
    };
    let argument = |spec: &Value| LinuxSeccompArg {
        index: u32::try_from(number(&spec["index"])).unwrap_or_default(),
        value: number(&spec["value"]),
        value_two: number(&spec["valueTwo"]),
        op: text(&spec["op"]),
        ..Default::default()
    };
    let rule = |spec: &Value| LinuxSyscall {
        names: texts(&spec["names"]),
        action: text(&spec["action"]),
        errno_ret: MessageField::from_option(errno(&spec["errnoRet"])),
        args: spec["args"].as_array().into_iter().flatten().map(argument).collect(),
        ..Default::default()
    };
    LinuxSeccomp {
        default_action: text(&spec["defaultAction"]),
        default_errno: MessageField::from_option(errno(&spec["defaultErrnoRet"])),
        architectures: texts(&spec["architectures"]),
        flags: texts(&spec["flags"]),
        listener_path: text(&spec["listenerPath"]),
        listener_metadata: text(&spec["listenerMetadata"]),
        syscalls: spec["syscalls"].as_array().into_iter().flatten().map(rule).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;

    use super::*;
    use crate::model::policy::Engine;
    use crate::model::proxy::profile::ProxySockets;
    use crate::model::seccomp::Seccomp;

    const SOCKET: &str = "/run/bpfman-hook/proxy.sock";

    /// The form of containerd's default profile: one rule with many names, one with arguments, one with an errno.
    fn default_profile() -> LinuxSeccomp {
        let rule = |names: &[&str], action: &str| LinuxSyscall {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            action: action.to_owned(),
            ..Default::default()
        };
        let personality = LinuxSeccompArg { value: 8, op: "SCMP_CMP_EQ".to_owned(), ..Default::default() };
        LinuxSeccomp {
            default_action: "SCMP_ACT_ERRNO".to_owned(),
            default_errno: MessageField::some(OptionalUInt32 { value: 1, ..Default::default() }),
            architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
            flags: vec!["SECCOMP_FILTER_FLAG_LOG".to_owned()],
            syscalls: vec![
                rule(&["read", "bpf", "write"], "SCMP_ACT_ALLOW"),
                LinuxSyscall { args: vec![personality], ..rule(&["personality"], "SCMP_ACT_ALLOW") },
                LinuxSyscall {
                    errno_ret: MessageField::some(OptionalUInt32 { value: 38, ..Default::default() }),
                    ..rule(&["clone3"], "SCMP_ACT_ERRNO")
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_profile_survives_the_other_form() {
        assert_eq!(of_json(&to_json(&default_profile())), default_profile());
    }

    #[test]
    fn an_adjusted_profile_is_what_the_hook_accepts() {
        let sockets = ProxySockets { shared: SOCKET.into(), directory: "/run/bpfman-hook/proxy".into() };
        for before in [Some(default_profile()), None] {
            let after = notifying(before.as_ref(), SOCKET, false).unwrap();
            let seccomp: Seccomp = serde_json::from_value(to_json(&after)).unwrap();
            assert_eq!(profile::check(Some(&seccomp), Engine::Containerd, &sockets, false), Ok(()));
            assert_eq!(notifying(Some(&after), SOCKET, false), None, "nothing is left to change");
        }
        let after = notifying(Some(&default_profile()), SOCKET, false).unwrap();
        assert_eq!(after.syscalls[0].names, ["read", "write"]);
        assert_eq!(after.syscalls[1..3], default_profile().syscalls[1..3]);
        assert_eq!((after.default_errno.value, &after.flags), (1, &default_profile().flags));
        let other = LinuxSeccomp { listener_path: "/run/other.sock".to_owned(), ..default_profile() };
        assert_eq!(notifying(Some(&other), SOCKET, false), None);
    }

    /// The numbers of the fields are those of NRI's api.proto; a wrong one would be skipped by the runtime silently.
    #[test]
    fn the_message_has_nris_field_numbers() {
        let message = LinuxSeccomp {
            default_action: "a".to_owned(),
            default_errno: MessageField::some(OptionalUInt32 { value: 1, ..Default::default() }),
            architectures: vec!["b".to_owned()],
            flags: vec!["c".to_owned()],
            listener_path: "d".to_owned(),
            listener_metadata: "e".to_owned(),
            syscalls: vec![LinuxSyscall {
                names: vec!["f".to_owned()],
                action: "g".to_owned(),
                errno_ret: MessageField::some(OptionalUInt32 { value: 2, ..Default::default() }),
                args: vec![LinuxSeccompArg { index: 3, value: 4, value_two: 5, op: "h".to_owned(), ..Default::default() }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
        let argument = [&[1 << 3, 3, 2 << 3, 4, 3 << 3, 5][..], &field(4, b"h")].concat();
        let rule = [field(1, b"f"), field(2, b"g"), field(3, &[1 << 3, 2]), field(4, &argument)].concat();
        let expected = [
            field(1, b"a"),
            field(2, &[1 << 3, 1]),
            field(3, b"b"),
            field(4, b"c"),
            field(5, b"d"),
            field(6, b"e"),
            field(7, &rule),
        ]
        .concat();
        assert_eq!(message.write_to_bytes().unwrap(), expected);
    }
}
