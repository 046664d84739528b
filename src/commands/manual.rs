//! `load`, `attach`, `detach`, `unload`: convert arguments to tasks, and replies to tables.

use std::process::ExitCode;

use crate::cli::program::{
    AttachArgs, AttachTo, DetachArgs, DirectedArgs, InterfaceArgs, LinkArgs, LoadArgs, LoadCommand, LoadFileArgs,
    LoadImageArgs, OtherArgs, UnloadArgs,
};
use crate::cli::registry::RegistryAuth;
use crate::commands::{load_and_attach, records, request_child};
use crate::model::annotations::{AttachRequest, program_entries};
use crate::model::attach_point::{Order, PlaceOptions, ProbedProcess, ProgramKind, UserProbe};
use crate::model::credentials::Credential;
use crate::model::manual::{
    APPLICATION, Attach, AttachNew, AttachPlace, CallerRights, Failure, FailureCode, ImageSource, LoadTask, ManualReply,
    ManualTask, ObjectSource, ProgramFilter, ProgramToLoad, ShownProgram,
};
use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::output::print;
use crate::paths::Paths;

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

/// Why a task failed; exit status 2 if the request itself was invalid.
fn failed(failure: Failure) -> CommandError {
    match failure.code {
        FailureCode::InvalidArgument => CommandError::bad_input(failure.message),
        _ => CommandError::new(failure.message),
    }
}

/// `load file` and `load image`: prints the programs that were loaded.
pub fn load(paths: &Paths, what: &LoadCommand) -> Result<ExitCode, CommandError> {
    let (source, common) = match what {
        LoadCommand::File(args) => (file(args)?, &args.common),
        LoadCommand::Image(args) => (image(args)?, &args.common),
    };
    let ids = program_ids(ask(paths, &ManualTask::Load(wanted(source, common)?)).map_err(failed)?)?;
    let all = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let shown = records::programs(paths, &ids, common.format.output);
    Ok(answer(&format!("the programs {all} are loaded and remain loaded"), shown))
}

/// Prints the result of work that is done. If it cannot be read or written, the work stays done: the exit status is 0,
/// and the message on standard error says so.
fn answer(done: &str, text: Result<String, CommandError>) -> ExitCode {
    if let Err(error) = text.and_then(|text| print(&text)) {
        CommandError::doing(format!("{done}; only its output is missing"))(error).print();
    }
    ExitCode::SUCCESS
}

fn unexpected(reply: &ManualReply) -> CommandError {
    CommandError::new(format!("run the request: the reply is of an unexpected type: {reply:?}"))
}

fn program_ids(reply: ManualReply) -> Result<Vec<u32>, CommandError> {
    match reply {
        ManualReply::Programs(programs) => Ok(programs.iter().map(|program: &ShownProgram| program.kernel.id).collect()),
        other => Err(unexpected(&other)),
    }
}

fn file(args: &LoadFileArgs) -> Result<ObjectSource, CommandError> {
    // Records and messages use absolute paths.
    let path = std::path::absolute(&args.path)
        .map_err(CommandError::doing(format!("load {}", args.path.display())))
        .map_err(CommandError::of_input)?;
    Ok(ObjectSource::File(path))
}

fn image(args: &LoadImageArgs) -> Result<ObjectSource, CommandError> {
    let reference = Reference::parse(&args.image_url)
        .map_err(CommandError::doing(format!("load {}", args.image_url)))
        .map_err(CommandError::of_input)?;
    let login = args.registry_auth.as_ref().map(|RegistryAuth(text)| {
        let problem = "read --registry-auth: it is not user:password in base64";
        Credential::from_base64(text).ok_or_else(|| CommandError::bad_input(problem))
    });
    Ok(ObjectSource::Image(ImageSource { reference, pull: args.pull_policy, login: login.transpose()? }))
}

fn wanted(source: ObjectSource, args: &LoadArgs) -> Result<LoadTask, CommandError> {
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
        let wrong = |problem| CommandError::bad_input(format!("attach {entry:?}: {problem}"));
        for entry in program_entries(entry, &object).map_err(wrong)? {
            let (wanted, place) = load_and_attach::program(entry)?;
            attach.push(AttachNew { program: programs.len(), place });
            programs.push(wanted);
        }
    }
    Ok(LoadTask {
        source,
        programs,
        globals: args.globals.iter().cloned().collect(),
        map_sizes: args.map_sizes.clone(),
        metadata,
        map_owner: args.map_owner_id,
        attach,
    })
}

/// `attach`: prints the link that was created.
pub fn attach(paths: &Paths, args: &AttachArgs) -> Result<ExitCode, CommandError> {
    let (place, link) = place(&args.place)?;
    let metadata = link.metadata.iter().cloned().collect();
    match ask(paths, &ManualTask::Attach(Attach { program: args.program, place, metadata })).map_err(failed)? {
        ManualReply::Attached { link: id } => {
            let shown = records::new_link(paths, id, link.format.output);
            Ok(answer(&format!("the link {id} is attached and remains attached"), shown))
        }
        other => Err(unexpected(&other)),
    }
}

fn place(to: &AttachTo) -> Result<(AttachPlace, &LinkArgs), CommandError> {
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
                return Err(CommandError::bad_input(format!(
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
        AttachTo::Other(args) => (other(args)?, &args.link),
    })
}

/// An entry as in the annotation, without the function.
fn other(args: &OtherArgs) -> Result<AttachPlace, CommandError> {
    let (head, options) = args.entry.split_first().expect("clap requires one");
    let (kind, target) = match head.split_once(':') {
        Some((kind, target)) => (kind, format!(":{target}")),
        None => (head.as_str(), String::new()),
    };
    let text = format!("{kind}:program{target} {}", options.join(" "));
    let wrong = |problem: String| CommandError::bad_input(format!("attach {:?}: {problem}", args.entry.join(" ")));
    // The object is known already; the reference only satisfies the syntax.
    let object = Reference::File { path: "/".into() };
    let entry = program_entries(&text, &object).map_err(wrong)?.remove(0);
    match (entry.attach, &args.cgroup) {
        (AttachRequest::Cgroup { attach: Some(attach), .. }, Some(cgroup)) => {
            Ok(AttachPlace::Cgroup { attach, cgroup: cgroup.clone() })
        }
        (AttachRequest::Cgroup { .. }, _) => Err(wrong("write attach= with its attach type, and --cgroup".to_owned())),
        (AttachRequest::Told { kind, target, options }, None) => {
            Ok(AttachPlace::Told { kind, target, options, netns: args.netns.clone() })
        }
        (AttachRequest::RawTracepoint { target }, None) => {
            let kind = ProgramKind::RawTracepoint;
            Ok(AttachPlace::Told { kind, target, options: PlaceOptions::default(), netns: None })
        }
        (request, _) => Err(wrong(format!("use `attach ID {}`, or leave out --cgroup", request.kind()))),
    }
}

fn interface(
    kind: ProgramKind,
    args: &InterfaceArgs,
    direction: Option<crate::model::attach_point::Direction>,
) -> Result<AttachPlace, CommandError> {
    let mut order = Order { priority: args.priority, ..Order::default_of(kind) };
    if !args.proceed_on.is_empty() {
        let verdicts: Result<_, _> = args.proceed_on.iter().map(|word| Order::verdict(kind, word)).collect();
        let doing = CommandError::doing(format!("attach to {}", args.iface));
        order.proceed_on = verdicts.map_err(doing).map_err(CommandError::of_input)?;
    }
    Ok(AttachPlace::Interface { kind, iface: args.iface.clone(), direction, order, netns: args.netns.clone() })
}

/// `detach`: removes the links in order, and stops at the first that cannot be removed.
pub fn detach(paths: &Paths, args: &DetachArgs) -> Result<ExitCode, CommandError> {
    each(&args.links, args.ignore_missing, |link| ask(paths, &ManualTask::Detach { link }))
}

/// `unload`: programs by id, or all programs of an application.
pub fn unload(paths: &Paths, args: &UnloadArgs) -> Result<ExitCode, CommandError> {
    let ids = match &args.application {
        None => args.programs.clone(),
        Some(application) => of_application(paths, application)?,
    };
    if let Some(application) = args.application.as_ref().filter(|_| ids.is_empty() && !args.ignore_missing) {
        let problem = "it has no programs; see `bpfman-hook list programs`";
        return Err(CommandError::new(format!("unload application {application}: {problem}")));
    }
    // With --application, a program that disappears meanwhile is not an error: no id was given.
    each(&ids, args.ignore_missing || args.application.is_some(), |program| ask(paths, &ManualTask::Unload { program }))
}

fn each(
    ids: &[u32],
    ignore_missing: bool,
    act: impl Fn(u32) -> Result<ManualReply, Failure>,
) -> Result<ExitCode, CommandError> {
    for id in ids {
        match act(*id) {
            Ok(_) => {}
            Err(failure) if failure.code == FailureCode::NotFound && ignore_missing => {}
            Err(failure) => return Err(failed(failure)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_application(paths: &Paths, application: &str) -> Result<Vec<u32>, CommandError> {
    let metadata = [(APPLICATION.to_owned(), application.to_owned())].into();
    let task = ManualTask::List(ProgramFilter { program_type: None, ours_only: true, metadata });
    program_ids(ask(paths, &task).map_err(failed)?)
}
