//! Converts between the wire types and the lifecycle's types. Everything from the wire is validated here: what passes
//! is well-formed, though it may name objects that do not exist.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use tonic::Status;

use crate::grpc::wire::attach_info::Info;
use crate::grpc::wire::bytecode_location::Location;
use crate::grpc::wire::list_response::ListResult;
use crate::grpc::wire::prog_specific_info::Info as Specific;
use crate::grpc::wire::{
    AttachRequest, BpfmanProgramType, BytecodeImage, BytecodeLocation, KernelProgramInfo, ListRequest, LoadInfo, LoadRequest,
    LoadResponseInfo, ProgramInfo,
};
use crate::model::annotations::GlobalValue;
use crate::model::attach_point::{Direction, Order, ProbedProcess, ProgramKind, TracepointName, UserProbe};
use crate::model::bytecode::PullPolicy;
use crate::model::credentials::Credential;
use crate::model::manual::{
    Attach, AttachPlace, Failure, FailureCode, ImageSource, LoadTask, ObjectSource, ProgramFilter, ProgramToLoad, ShownProgram,
};
use crate::model::reference::Reference;
use crate::model::text::{is_normal_path, is_symbol, quoted};

/// Maximum number of programs per load.
const PROGRAMS_MAX: usize = 128;
/// Maximum number of metadata or globals entries.
const ENTRIES_MAX: usize = 1024;
/// Maximum size of a metadata key or value, in bytes.
const TEXT_MAX: usize = 4096;

fn invalid(problem: impl Into<String>) -> Status {
    Status::invalid_argument(problem.into())
}

/// The status for a failure, with the same message as on the command line.
pub fn status(failure: Failure) -> Status {
    let code = match failure.code {
        FailureCode::InvalidArgument => tonic::Code::InvalidArgument,
        FailureCode::NotFound => tonic::Code::NotFound,
        FailureCode::FailedPrecondition => tonic::Code::FailedPrecondition,
        FailureCode::PermissionDenied => tonic::Code::PermissionDenied,
        FailureCode::ResourceExhausted => tonic::Code::ResourceExhausted,
        FailureCode::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        FailureCode::Unavailable => tonic::Code::Unavailable,
        FailureCode::Internal => tonic::Code::Internal,
    };
    Status::new(code, failure.message)
}

/// Validates a kernel id; 0 is not an id.
pub fn id(what: &'static str, id: u32) -> Result<u32, Status> {
    if id == 0 { Err(invalid(format!("0 is not a {what} id"))) } else { Ok(id) }
}

/// Converts a Load request.
pub fn load(request: LoadRequest) -> Result<LoadTask, Status> {
    let location = request.bytecode.and_then(|bytecode| bytecode.location);
    let source = match location.ok_or_else(|| invalid("bytecode names neither a file nor an image"))? {
        Location::File(path) if is_normal_path(&path) => ObjectSource::File(PathBuf::from(path)),
        Location::File(path) => {
            return Err(invalid(format!("load {}: write an absolute path without ., .. and //", quoted(&path))));
        }
        Location::Image(wanted) => ObjectSource::Image(image(wanted)?),
    };
    if request.info.is_empty() {
        return Err(invalid("info names no program to load"));
    }
    if request.info.len() > PROGRAMS_MAX {
        return Err(Status::resource_exhausted(format!("load {} programs: at most {PROGRAMS_MAX}", request.info.len())));
    }
    let map_owner = request.map_owner_id.map(|owner| id("map owner", owner)).transpose()?;
    if request.global_data.len() > ENTRIES_MAX {
        return Err(Status::resource_exhausted(format!("set {} globals: at most {ENTRIES_MAX}", request.global_data.len())));
    }
    let globals: BTreeMap<_, _> =
        request.global_data.into_iter().map(|(name, bytes)| (name, GlobalValue::Bytes(bytes))).collect();
    if let Some(name) = globals.keys().find(|name| !is_symbol(name)) {
        return Err(invalid(format!("global {} is not the name of a symbol", quoted(name))));
    }
    Ok(LoadTask {
        map_sizes: Vec::new(),
        source,
        programs: request.info.into_iter().map(wanted).collect::<Result<_, _>>()?,
        globals,
        metadata: metadata(request.metadata)?,
        map_owner,
        attach: Vec::new(),
    })
}

fn wanted(info: LoadInfo) -> Result<ProgramToLoad, Status> {
    let function = info.name;
    if !is_symbol(&function) {
        return Err(invalid(format!("load {}: that is not the name of a function", quoted(&function))));
    }
    let kind = BpfmanProgramType::try_from(info.program_type)
        .map_err(|_| invalid(format!("load {function}: {} is not a program type", info.program_type)))?;
    let specific = info.info.and_then(|info| info.info);
    let kind = match kind {
        BpfmanProgramType::Xdp => ProgramKind::Xdp,
        BpfmanProgramType::Tc => ProgramKind::Tc,
        BpfmanProgramType::Tcx => ProgramKind::Tcx,
        BpfmanProgramType::Tracepoint => ProgramKind::Tracepoint,
        BpfmanProgramType::Kprobe => ProgramKind::Kprobe,
        BpfmanProgramType::Uprobe => ProgramKind::Uprobe,
        BpfmanProgramType::Fentry => ProgramKind::Fentry,
        BpfmanProgramType::Fexit => ProgramKind::Fexit,
    };
    let target = match (kind, specific) {
        (ProgramKind::Fentry, Some(Specific::FentryLoadInfo(info))) => Some(info.fn_name),
        (ProgramKind::Fexit, Some(Specific::FexitLoadInfo(info))) => Some(info.fn_name),
        (ProgramKind::Fentry | ProgramKind::Fexit, _) => {
            return Err(invalid(format!("load {function} as {}: its info names no kernel function", kind.word())));
        }
        _ => None,
    };
    if let Some(target) = target.as_ref().filter(|target| !is_symbol(target)) {
        return Err(invalid(format!("load {function}: {} is not the name of a kernel function", quoted(target))));
    }
    Ok(ProgramToLoad { function, kind, target })
}

/// Converts the image of a PullBytecode request.
pub fn image(image: BytecodeImage) -> Result<ImageSource, Status> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let login = match (given(image.username), given(image.password)) {
        (None, None) => None,
        (Some(user), password) if user.len() <= TEXT_MAX && password.as_ref().is_none_or(|text| text.len() <= TEXT_MAX) => {
            Some(Credential::Login { user, password: password.unwrap_or_default() })
        }
        (Some(_), _) => return Err(invalid(format!("username and password have at most {TEXT_MAX} bytes"))),
        (None, Some(_)) => return Err(invalid("a password needs a username")),
    };
    let reference = image.url.parse::<Reference>().map_err(|error| invalid(error.to_string()))?;
    let pull = match image.image_pull_policy {
        0 => PullPolicy::Always,
        1 => PullPolicy::IfNotPresent,
        2 => PullPolicy::Never,
        other => return Err(invalid(format!("image_pull_policy is 0 (Always), 1 (IfNotPresent) or 2 (Never), not {other}"))),
    };
    Ok(ImageSource { reference, pull, login })
}

fn metadata(given: HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    if given.len() > ENTRIES_MAX {
        return Err(Status::resource_exhausted(format!("keep {} metadata: at most {ENTRIES_MAX}", given.len())));
    }
    if let Some((key, _)) = given.iter().find(|(key, value)| key.is_empty() || key.len() > TEXT_MAX || value.len() > TEXT_MAX) {
        return Err(invalid(format!("metadata {}: keys have 1 to {TEXT_MAX} bytes, values at most the same", quoted(key))));
    }
    Ok(given.into_iter().collect())
}

/// Converts an Attach request. The position of a program among others is output only.
pub fn attach(request: AttachRequest) -> Result<Attach, Status> {
    let program = id("program", request.id)?;
    let info = request.attach.and_then(|attach| attach.info).ok_or_else(|| invalid("attach names no attach point"))?;
    let (place, given) = match info {
        Info::XdpAttachInfo(xdp) => {
            let place = AttachPlace::Interface {
                kind: ProgramKind::Xdp,
                iface: iface(xdp.iface)?,
                direction: None,
                order: order(ProgramKind::Xdp, xdp.priority, xdp.proceed_on)?,
                netns: netns(xdp.netns)?,
            };
            (place, xdp.metadata)
        }
        Info::TcAttachInfo(tc) => {
            let place = AttachPlace::Interface {
                kind: ProgramKind::Tc,
                iface: iface(tc.iface)?,
                direction: Some(direction(&tc.direction)?),
                order: order(ProgramKind::Tc, tc.priority, tc.proceed_on)?,
                netns: netns(tc.netns)?,
            };
            (place, tc.metadata)
        }
        Info::TcxAttachInfo(tcx) => {
            let place = AttachPlace::Interface {
                kind: ProgramKind::Tcx,
                iface: iface(tcx.iface)?,
                direction: Some(direction(&tcx.direction)?),
                order: order(ProgramKind::Tcx, tcx.priority, Vec::new())?,
                netns: netns(tcx.netns)?,
            };
            (place, tcx.metadata)
        }
        Info::TracepointAttachInfo(info) => match info.tracepoint.split_once('/') {
            Some((category, name)) if is_symbol(category) && is_symbol(name) => {
                let name = TracepointName { category: category.to_owned(), name: name.to_owned() };
                (AttachPlace::Tracepoint(name), info.metadata)
            }
            _ => return Err(invalid(format!("write a tracepoint as category/name, not {}", quoted(&info.tracepoint)))),
        },
        Info::KprobeAttachInfo(info) => {
            if info.container_pid.is_some() {
                return Err(invalid("a kprobe sees the whole kernel; omit container_pid"));
            }
            // Kernel symbols contain dots if the compiler cloned a function.
            if !is_symbol(&info.fn_name.replace('.', "_")) {
                return Err(invalid(format!("{} is not the name of a kernel function", quoted(&info.fn_name))));
            }
            (AttachPlace::Kprobe { function: info.fn_name, offset: info.offset, ret: false }, info.metadata)
        }
        Info::UprobeAttachInfo(info) => {
            let library = |text: &str| !text.is_empty() && !text.contains(['/', '\0']);
            if !is_normal_path(&info.target) && !library(&info.target) {
                return Err(invalid(format!(
                    "target {} is neither an absolute path nor the name of a library",
                    quoted(&info.target)
                )));
            }
            let symbol = info.fn_name.filter(|name| !name.is_empty());
            if symbol.as_ref().is_some_and(|name| name.contains('\0')) || symbol.is_none() && info.offset == 0 {
                return Err(invalid("a uprobe needs fn_name or an offset in the file"));
            }
            let process = info.pid.map(pid).transpose()?.map_or(ProbedProcess::Any, ProbedProcess::Pid);
            let container_pid = info.container_pid.map(pid).transpose()?;
            let probe = UserProbe { target: info.target, symbol, offset: info.offset, process, container_pid };
            (AttachPlace::Uprobe { probe, ret: false }, info.metadata)
        }
        Info::FentryAttachInfo(info) => (AttachPlace::Trampoline(ProgramKind::Fentry), info.metadata),
        Info::FexitAttachInfo(info) => (AttachPlace::Trampoline(ProgramKind::Fexit), info.metadata),
    };
    Ok(Attach { program, place, metadata: metadata(given)? })
}

fn pid(number: i32) -> Result<u32, Status> {
    match u32::try_from(number) {
        Ok(pid @ 1..) => Ok(pid),
        _ => Err(invalid(format!("{number} is not a pid"))),
    }
}

fn iface(name: String) -> Result<String, Status> {
    let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if name.is_empty() || name.len() > 15 || !name.bytes().all(legal) {
        return Err(invalid(format!("{} is not the name of an interface", quoted(&name))));
    }
    Ok(name)
}

fn direction(word: &str) -> Result<Direction, Status> {
    match word {
        "ingress" => Ok(Direction::Ingress),
        "egress" => Ok(Direction::Egress),
        other => Err(invalid(format!("direction must be ingress or egress, not {}", quoted(other)))),
    }
}

fn order(kind: ProgramKind, priority: i32, proceed_on: Vec<i32>) -> Result<Order, Status> {
    let mut order = Order::default_of(kind);
    // Clients that set no priority send 0.
    if priority != 0 {
        let inside = u16::try_from(priority).ok().filter(|priority| (1..=1000).contains(priority));
        order.priority = inside.ok_or_else(|| invalid(format!("priority must be a number from 1 to 1000, not {priority}")))?;
    }
    if let Some(wrong) = proceed_on.iter().find(|number| Order::verdict_word(kind, **number).is_none()) {
        return Err(invalid(format!("{wrong} is not a return value of {} programs", kind.word())));
    }
    if !proceed_on.is_empty() {
        order.proceed_on = proceed_on;
    }
    Ok(order)
}

fn netns(path: Option<String>) -> Result<Option<PathBuf>, Status> {
    match path.filter(|path| !path.is_empty()) {
        None => Ok(None),
        Some(path) if is_normal_path(&path) => Ok(Some(PathBuf::from(path))),
        Some(path) => Err(invalid(format!("netns {}: write an absolute path without ., .. and //", quoted(&path)))),
    }
}

/// Converts a List request.
pub fn filter(request: ListRequest) -> Result<ProgramFilter, Status> {
    Ok(ProgramFilter {
        program_type: request.program_type,
        ours_only: request.bpfman_programs_only.unwrap_or(false),
        metadata: metadata(request.match_metadata)?,
    })
}

/// One program of a Load response.
pub fn loaded(program: ShownProgram) -> LoadResponseInfo {
    let (info, kernel_info) = parts(program);
    LoadResponseInfo { info, kernel_info: Some(kernel_info) }
}

/// One program of a List response.
pub fn listed(program: ShownProgram) -> ListResult {
    let (info, kernel_info) = parts(program);
    ListResult { info, kernel_info: Some(kernel_info) }
}

/// The two parts of the description of a program.
pub fn parts(program: ShownProgram) -> (Option<ProgramInfo>, KernelProgramInfo) {
    let kernel = program.kernel;
    let info = program.ours.map(|ours| ProgramInfo {
        name: ours.function,
        bytecode: ours.reference.map(|reference| BytecodeLocation {
            location: Some(match reference {
                Reference::File { path } => Location::File(path.to_string_lossy().into_owned()),
                image => Location::Image(BytecodeImage {
                    url: image.to_string(),
                    image_pull_policy: match ours.pull {
                        Some(PullPolicy::Always) => 0,
                        Some(PullPolicy::IfNotPresent) | None => 1,
                        Some(PullPolicy::Never) => 2,
                    },
                    // Never returned, and never stored.
                    username: None,
                    password: None,
                }),
            }),
        }),
        links: ours.links,
        global_data: ours.globals.into_iter().collect(),
        map_owner_id: ours.map_owner,
        map_pin_path: ours.map_pin_path.to_string_lossy().into_owned(),
        map_used_by: ours.map_used_by.iter().map(u32::to_string).collect(),
        metadata: ours.metadata.into_iter().collect(),
    });
    let kernel_info = KernelProgramInfo {
        id: kernel.id,
        name: kernel.name,
        program_type: kernel.program_type,
        loaded_at: kernel.loaded_at,
        tag: kernel.tag,
        gpl_compatible: kernel.gpl_compatible,
        map_ids: kernel.map_ids,
        btf_id: kernel.btf_id,
        bytes_xlated: kernel.bytes_xlated,
        jited: kernel.bytes_jited > 0,
        bytes_jited: kernel.bytes_jited,
        bytes_memlock: kernel.bytes_memlock,
        verified_insns: kernel.verified_insns,
    };
    (info, kernel_info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::wire::{
        AttachInfo, KprobeAttachInfo, ProgSpecificInfo, TcAttachInfo, TracepointAttachInfo, UprobeAttachInfo, XdpAttachInfo,
    };

    fn request(change: impl FnOnce(&mut LoadRequest)) -> Result<LoadTask, String> {
        let location = Some(Location::File("/usr/lib/x.o".to_owned()));
        let mut request = LoadRequest {
            bytecode: Some(BytecodeLocation { location }),
            info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
            ..LoadRequest::default()
        };
        change(&mut request);
        load(request).map_err(|status| status.message().to_owned())
    }

    fn location(location: Location) -> Option<BytecodeLocation> {
        Some(BytecodeLocation { location: Some(location) })
    }

    #[test]
    fn a_load_is_validated_before_anything_is_opened() {
        let good = request(|_| {}).unwrap();
        assert_eq!(good.programs, [ProgramToLoad { function: "count".into(), kind: ProgramKind::Xdp, target: None }]);
        type Change = fn(&mut LoadRequest);
        let cases: &[(Change, &str)] = &[
            (|r| r.bytecode = None, "bytecode names neither"),
            (|r| r.bytecode = Some(BytecodeLocation { location: None }), "bytecode names neither"),
            (|r| r.bytecode = location(Location::File("x.o".into())), "write an absolute path"),
            (|r| r.bytecode = location(Location::File("/a/../etc/shadow".into())), "write an absolute path"),
            (|r| r.bytecode = location(Location::File("/a\0b".into())), "write an absolute path"),
            (
                |r| r.bytecode = location(Location::Image(BytecodeImage { url: "x".into(), ..Default::default() })),
                "has no registry",
            ),
            (|r| r.info.clear(), "names no program"),
            (|r| r.info = vec![LoadInfo::default(); 1000], "at most 128"),
            (|r| r.info[0].name = String::new(), "not the name of a function"),
            (|r| r.info[0].name = "a/b".into(), "not the name of a function"),
            (|r| r.info[0].program_type = 99, "99 is not a program type"),
            (|r| r.info[0].program_type = -1, "-1 is not a program type"),
            (|r| r.info[0].program_type = 5, "names no kernel function"),
            (|r| r.map_owner_id = Some(0), "0 is not a map owner id"),
            (|r| _ = r.global_data.insert("a b".into(), vec![1]), "not the name of a symbol"),
            (|r| _ = r.metadata.insert(String::new(), String::new()), "keys have 1 to 4096 bytes"),
            (|r| _ = r.metadata.insert("k".into(), "x".repeat(5000)), "keys have 1 to 4096 bytes"),
        ];
        for (change, expected) in cases {
            let error = request(change).unwrap_err();
            assert!(error.contains(expected), "{error} does not contain {expected}");
        }
    }

    #[test]
    fn fentry_takes_its_function_from_its_info() {
        let wanted = request(|r| {
            r.info[0].program_type = 5;
            let info = crate::grpc::wire::FentryLoadInfo { fn_name: "do_unlinkat".into() };
            r.info[0].info = Some(ProgSpecificInfo { info: Some(Specific::FentryLoadInfo(info)) });
        });
        assert_eq!(wanted.unwrap().programs[0].target.as_deref(), Some("do_unlinkat"));
    }

    #[test]
    fn an_attach_is_validated_before_anything_is_looked_up() {
        let ask = |id, info| {
            attach(AttachRequest { id, attach: Some(AttachInfo { info }) }).map_err(|status| status.message().to_owned())
        };
        let xdp = |iface: &str, priority, proceed_on| {
            ask(1, Some(Info::XdpAttachInfo(XdpAttachInfo { iface: iface.into(), priority, proceed_on, ..Default::default() })))
        };
        assert!(xdp("eth0", 50, vec![2, 31]).is_ok());
        let AttachPlace::Interface { order, .. } = xdp("eth0", 0, Vec::new()).unwrap().place else { panic!() };
        assert_eq!(order, Order::default_of(ProgramKind::Xdp));
        let tc = |direction: &str| {
            ask(
                1,
                Some(Info::TcAttachInfo(TcAttachInfo {
                    iface: "lo".into(),
                    direction: direction.into(),
                    ..Default::default()
                })),
            )
        };
        assert!(tc("egress").is_ok());
        let tracepoint = |name: &str| {
            ask(1, Some(Info::TracepointAttachInfo(TracepointAttachInfo { tracepoint: name.into(), ..Default::default() })))
        };
        assert!(tracepoint("sched/sched_switch").is_ok());
        let uprobe = |change: fn(&mut UprobeAttachInfo)| {
            let mut info = UprobeAttachInfo { fn_name: Some("main".into()), target: "/bin/sh".into(), ..Default::default() };
            change(&mut info);
            ask(1, Some(Info::UprobeAttachInfo(info)))
        };
        assert!(uprobe(|_| {}).is_ok());
        let kprobe = KprobeAttachInfo { fn_name: "x y".into(), ..Default::default() };
        for (answer, expected) in [
            (ask(0, None), "0 is not a program id"),
            (ask(1, None), "names no attach point"),
            (xdp("", 50, Vec::new()), "not the name of an interface"),
            (xdp("a/b", 50, Vec::new()), "not the name of an interface"),
            (xdp(&"x".repeat(16), 50, Vec::new()), "not the name of an interface"),
            (xdp("lo", -5, Vec::new()), "priority must be a number from 1 to 1000, not -5"),
            (xdp("lo", 1001, Vec::new()), "priority must be a number"),
            (xdp("lo", 1, vec![77]), "77 is not a return value of xdp programs"),
            (tc("sideways"), "ingress or egress"),
            (tracepoint("sched"), "category/name"),
            (tracepoint("../x/y"), "category/name"),
            (ask(1, Some(Info::KprobeAttachInfo(kprobe))), "not the name of a kernel function"),
            (uprobe(|u| u.target = "../x".into()), "neither an absolute path"),
            (uprobe(|u| u.pid = Some(-1)), "-1 is not a pid"),
            (uprobe(|u| u.container_pid = Some(0)), "0 is not a pid"),
            (uprobe(|u| u.fn_name = None), "needs fn_name"),
        ] {
            let error = answer.unwrap_err();
            assert!(error.contains(expected), "{error} does not contain {expected}");
        }
    }

    #[test]
    fn credentials_are_accepted_and_unknown_pull_policies_rejected() {
        let image = |policy, user: Option<&str>, password: Option<&str>| {
            image(BytecodeImage {
                url: "quay.io/a/b:c".into(),
                image_pull_policy: policy,
                username: user.map(str::to_owned),
                password: password.map(str::to_owned),
            })
        };
        // What bpfman's clients send without credentials.
        let nobody = image(1, Some(""), Some("")).unwrap();
        assert_eq!((nobody.pull, nobody.login), (PullPolicy::IfNotPresent, None));
        let login = image(0, Some("u"), Some("secret")).unwrap();
        assert_eq!(login.login, Some(Credential::Login { user: "u".into(), password: "secret".into() }));
        assert!(!format!("{login:?}").contains("secret"));
        for wrong in [image(3, None, None), image(1, None, Some("secret")), image(1, Some("u"), Some(&"x".repeat(5000)))] {
            let error = wrong.unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(!error.message().contains("secret"));
        }
    }
}
