//! `load`, `attach`, `detach`, `unload`: convert arguments to tasks, and replies to tables.

use std::process::ExitCode;

use crate::cli::program::{
    AttachArgs, AttachTo, DetachArgs, DirectedArgs, InterfaceArgs, LinkArgs, LoadArgs, LoadCommand, LoadFileArgs,
    LoadImageArgs, UnloadArgs,
};
use crate::cli::registry::RegistryAuth;
use crate::commands::{load_and_attach, records, request_child};
use crate::model::annotations::program_entries;
use crate::model::attach_point::{Order, ProbedProcess, ProgramKind, UserProbe};
use crate::model::credentials::Credential;
use crate::model::manual::{
    APPLICATION, Attach, AttachNew, AttachPlace, CallerRights, Failure, FailureCode, ImageSource, LoadTask, ManualReply,
    ManualTask, ObjectSource, ProgramFilter, ProgramToLoad, ShownProgram,
};
use crate::model::reference::Reference;
use crate::output::try_print;
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::sys::error::chain;

/// Exit status for bad usage.
const BAD_INPUT: u8 = 2;

/// The caller of the command is root and decides for the host; images are still verified against the policy.
fn root() -> CallerRights {
    CallerRights {
        caller: "the command line".to_owned(),
        host_scope: true,
        any_file: true,
        own_only: false,
        images: None,
        limits: None,
        store: None,
    }
}

fn ask(paths: &Paths, task: &ManualTask) -> Result<ManualReply, Failure> {
    match request_child::run(paths, &root(), task) {
        ManualReply::Failed(failure) => Err(failure),
        reply => Ok(reply),
    }
}

/// Prints one error line; exit status 2 if the request itself was invalid.
fn failed(failure: &Failure) -> ExitCode {
    let status = fail(&failure.message);
    if failure.code == FailureCode::InvalidArgument { ExitCode::from(BAD_INPUT) } else { status }
}

fn wrong(message: String) -> Failure {
    Failure { code: FailureCode::InvalidArgument, message }
}

/// `load file` and `load image`: prints the programs that were loaded.
pub fn load(paths: &Paths, what: &LoadCommand) -> ExitCode {
    let (source, common) = match what {
        LoadCommand::File(args) => (file(args), &args.common),
        LoadCommand::Image(args) => (image(args), &args.common),
    };
    let done = source.and_then(|source| ask(paths, &ManualTask::Load(wanted(source, common)?)));
    match done {
        Ok(ManualReply::Programs(programs)) => {
            let ids: Vec<u32> = programs.iter().map(|program| program.kernel.id).collect();
            let all = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            answer(
                &format!("the programs {all} are loaded and remain loaded"),
                records::programs(paths, &ids, common.format.output),
            )
        }
        Ok(other) => unexpected(&other),
        Err(failure) => failed(&failure),
    }
}

/// Prints the result of work that is done. If it cannot be read or written, the work stays done: the exit status is 0,
/// and the message on standard error says so.
fn answer(done: &str, text: Result<String, String>) -> ExitCode {
    if let Err(problem) = text.and_then(|text| try_print(&text)) {
        let _ = fail(&format!("{done}; only its output is missing: {problem}"));
    }
    ExitCode::SUCCESS
}

fn unexpected(reply: &ManualReply) -> ExitCode {
    fail(&format!("run the request: the reply is of an unexpected type: {reply:?}"))
}

fn file(args: &LoadFileArgs) -> Result<ObjectSource, Failure> {
    // Records and messages use absolute paths.
    let path = std::path::absolute(&args.path).map_err(|err| wrong(format!("load {}: {err}", args.path.display())))?;
    Ok(ObjectSource::File(path))
}

fn image(args: &LoadImageArgs) -> Result<ObjectSource, Failure> {
    let reference =
        Reference::parse(&args.image_url).map_err(|err| wrong(format!("load {}: {}", args.image_url, chain(&err))))?;
    let login = args.registry_auth.as_ref().map(|RegistryAuth(text)| {
        let problem = "read --registry-auth: it is not user:password in base64";
        Credential::from_base64(text).ok_or_else(|| wrong(problem.to_owned()))
    });
    Ok(ObjectSource::Image(ImageSource { reference, pull: args.pull_policy, login: login.transpose()? }))
}

fn wanted(source: ObjectSource, args: &LoadArgs) -> Result<LoadTask, Failure> {
    let mut metadata: std::collections::BTreeMap<_, _> = args.metadata.iter().cloned().collect();
    if let Some(application) = &args.application {
        metadata.insert(APPLICATION.to_owned(), application.clone());
    }
    let program = |program: &crate::cli::program::ProgramArg| ProgramToLoad {
        function: program.function.clone(),
        kind: program.kind,
        target: program.target.clone(),
    };
    let mut programs: Vec<ProgramToLoad> = args.programs.iter().map(program).collect();
    let mut attach = Vec::new();
    let object = match &source {
        ObjectSource::File(path) => Reference::File { path: path.clone() },
        ObjectSource::Image(image) => image.reference.clone(),
    };
    for entry in &args.attach {
        let entries = program_entries(entry, &object).map_err(|problem| wrong(format!("attach {entry:?}: {problem}")))?;
        for entry in entries {
            let (wanted, place) = load_and_attach::program(entry).map_err(wrong)?;
            attach.push(AttachNew { program: programs.len(), place });
            programs.push(wanted);
        }
    }
    Ok(LoadTask {
        source,
        programs,
        globals: args.globals.iter().cloned().collect(),
        metadata,
        map_owner: args.map_owner_id,
        attach,
    })
}

/// `attach`: prints the link that was created.
pub fn attach(paths: &Paths, args: &AttachArgs) -> ExitCode {
    let (place, link) = match place(&args.place) {
        Ok(place) => place,
        Err(failure) => return failed(&failure),
    };
    let metadata = link.metadata.iter().cloned().collect();
    match ask(paths, &ManualTask::Attach(Attach { program: args.program, place, metadata })) {
        Ok(ManualReply::Attached { link: id }) => {
            answer(&format!("the link {id} is attached and remains attached"), records::new_link(paths, id, link.format.output))
        }
        Ok(other) => unexpected(&other),
        Err(failure) => failed(&failure),
    }
}

fn place(to: &AttachTo) -> Result<(AttachPlace, &LinkArgs), Failure> {
    let directed = |kind, args: &DirectedArgs| interface(kind, &args.interface, Some(args.direction));
    Ok(match to {
        AttachTo::Xdp(args) => (interface(ProgramKind::Xdp, args, None)?, &args.link),
        AttachTo::Tc(args) => (directed(ProgramKind::Tc, args)?, &args.interface.link),
        AttachTo::Tcx(args) => (directed(ProgramKind::Tcx, args)?, &args.interface.link),
        AttachTo::Tracepoint { tracepoint, link } => (AttachPlace::Tracepoint(tracepoint.clone()), link),
        AttachTo::Kprobe { fn_name, offset, retprobe, link } => {
            (AttachPlace::Kprobe { function: fn_name.clone(), offset: *offset, ret: *retprobe }, link)
        }
        AttachTo::Uprobe { target, fn_name, offset, pid, container_pid, retprobe, link } => {
            if fn_name.is_none() && *offset == 0 {
                return Err(wrong(format!(
                    "attach to {target}: name a function with --fn-name, or give an --offset in the file"
                )));
            }
            let probe = UserProbe {
                target: target.clone(),
                symbol: fn_name.clone(),
                offset: *offset,
                process: pid.map_or(ProbedProcess::Any, ProbedProcess::Pid),
                container_pid: *container_pid,
            };
            (AttachPlace::Uprobe { probe, ret: *retprobe }, link)
        }
        AttachTo::Fentry(link) => (AttachPlace::Trampoline(ProgramKind::Fentry), link),
        AttachTo::Fexit(link) => (AttachPlace::Trampoline(ProgramKind::Fexit), link),
        AttachTo::Lsm(link) => (AttachPlace::Trampoline(ProgramKind::Lsm), link),
    })
}

fn interface(
    kind: ProgramKind,
    args: &InterfaceArgs,
    direction: Option<crate::model::attach_point::Direction>,
) -> Result<AttachPlace, Failure> {
    let mut order = Order { priority: args.priority, ..Order::default_of(kind) };
    if !args.proceed_on.is_empty() {
        let verdicts: Result<_, _> = args.proceed_on.iter().map(|word| Order::verdict(kind, word)).collect();
        order.proceed_on = verdicts.map_err(|err| wrong(format!("attach to {}: {err}", args.iface)))?;
    }
    Ok(AttachPlace::Interface { kind, iface: args.iface.clone(), direction, order, netns: args.netns.clone() })
}

/// `detach`: removes the links in order, and stops at the first that cannot be removed.
pub fn detach(paths: &Paths, args: &DetachArgs) -> ExitCode {
    each(&args.links, args.ignore_missing, |link| ask(paths, &ManualTask::Detach { link }))
}

/// `unload`: programs by id, or all programs of an application.
pub fn unload(paths: &Paths, args: &UnloadArgs) -> ExitCode {
    let ids = match &args.application {
        None => args.programs.clone(),
        Some(application) => match of_application(paths, application) {
            Ok(ids) if ids.is_empty() && !args.ignore_missing => {
                return fail(&format!("unload application {application}: it has no programs; see `bpfman-hook list programs`"));
            }
            Ok(ids) => ids,
            Err(failure) => return failed(&failure),
        },
    };
    // With --application, a program that disappears meanwhile is not an error: no id was given.
    each(&ids, args.ignore_missing || args.application.is_some(), |program| ask(paths, &ManualTask::Unload { program }))
}

fn each(ids: &[u32], ignore_missing: bool, act: impl Fn(u32) -> Result<ManualReply, Failure>) -> ExitCode {
    for id in ids {
        match act(*id) {
            Ok(_) => {}
            Err(failure) if failure.code == FailureCode::NotFound && ignore_missing => {}
            Err(failure) => return failed(&failure),
        }
    }
    print("")
}

fn of_application(paths: &Paths, application: &str) -> Result<Vec<u32>, Failure> {
    let metadata = [(APPLICATION.to_owned(), application.to_owned())].into();
    match ask(paths, &ManualTask::List(ProgramFilter { program_type: None, ours_only: true, metadata }))? {
        ManualReply::Programs(programs) => Ok(programs.iter().map(|program: &ShownProgram| program.kernel.id).collect()),
        other => Err(Failure { code: FailureCode::Internal, message: format!("{other:?}") }),
    }
}
