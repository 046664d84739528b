//! Finds out what this kernel lets a program reach that is loaded with a BPF token, by submitting programs to the
//! verifier.
//!
//! `r0 = F(); exit` for each function in the table of [`crate::model::reach`] that reaches beyond the container, and
//! each program type: the verifier rejects a function that a type does not have as not allowed; any other answer counts
//! as offered. Three complete programs try to read the kernel's memory. None is ever run. Each probe has a control, a
//! similar program that every kernel with tokens loads: if the control fails, the answer is not used.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::kernel::btf::{Btf, BtfKind, Type};
use crate::kernel::features::KERNEL_BTF;
use crate::model::delegation::Category;
use crate::model::reach::{self, Call, MemoryRead, TokenReach, TypeAnswer, kernel_name};
use crate::sys::Errno;
use crate::sys::bpf::{self, ObjectKind};
use crate::sys::token::trial::{self, Trial, TrialAnswer};

pub(super) mod programs;

/// The program types that a token without CAP_PERFMON can load, with an attach type of each. A type that is listed
/// twice has a function if either attach type has it.
const TYPES: [(u32, u32); 22] = [
    (1, 0),
    (3, 0),
    (4, 0),
    (6, 37),
    (8, 0),
    (9, 2),
    (10, 0),
    (11, 0),
    (12, 0),
    (13, 3),
    (14, 5),
    (15, 6),
    (16, 7),
    (18, 10),
    (19, 0),
    (21, 39),
    (22, 17),
    (23, 18),
    (25, 21),
    (25, 22),
    (30, 36),
    (32, 45),
];

/// The result of the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The verdict for immediate use.
    pub reach: TokenReach,
    /// Whether the verdict is about the kernel alone, so that it may be stored for this boot: nothing is undecided, and
    /// no LSM program decides about loads.
    pub bare: bool,
}

/// The time limit of the probes. They take some tenths of a second.
const PATIENCE: Duration = Duration::from_secs(12);

/// Runs the probes. Needs the same rights as mounting a delegated bpffs; without them everything is undecided.
pub fn probe() -> Probed {
    let undecided = |why: String| TokenReach { undecided: vec![why], ..TokenReach::default() };
    let bytes = match fs::read(KERNEL_BTF) {
        Ok(bytes) => bytes,
        Err(error) => return Probed { reach: undecided(format!("read {KERNEL_BTF}: {error}")), bare: false },
    };
    let btf = match Btf::parse(&bytes) {
        Ok(btf) => btf,
        Err(error) => return Probed { reach: undecided(format!("read {KERNEL_BTF}: {error}")), bare: false },
    };
    let guarded_before = load_is_decided(&btf);
    let is_task = |ty: &Type<'_>| ty.kind == BtfKind::Struct && btf.string_bytes(ty.name_offset) == b"task_struct";
    let questions = Questions::new(&kfunc_ids(&btf), btf.types().find(is_task).map(|ty| ty.id));
    let reach = match trial::offer(&programs::btfs(), &questions.trials, Instant::now() + PATIENCE) {
        Ok(answers) => questions.decide(&answers),
        Err(error) => undecided(sentence(&error)),
    };
    let bare = reach.undecided.is_empty() && !guarded_before && !load_is_decided(&btf);
    Probed { reach, bare }
}

fn sentence(error: &crate::sys::SysError) -> String {
    let mut sentence = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        sentence.push_str(": ");
        sentence.push_str(&cause.to_string());
        source = cause.source();
    }
    sentence
}

/// The BTF ids of the kfuncs in the table that this kernel has.
fn kfunc_ids(btf: &Btf<'_>) -> HashMap<&'static str, u32> {
    let names: HashMap<&[u8], &'static str> = reach::beyond()
        .filter(|function| function.call == Call::Kfunc)
        .map(|function| (function.name.as_bytes(), function.name))
        .collect();
    let functions = btf.types().filter(|ty| ty.kind == BtfKind::Func);
    functions.filter_map(|ty| Some((*names.get(btf.string_bytes(ty.name_offset))?, ty.id))).collect()
}

/// Whether an LSM program is attached to `bpf_prog_load`, or could be: every program that is loaded for it counts. True
/// if that cannot be determined.
fn load_is_decided(btf: &Btf<'_>) -> bool {
    const LSM: u32 = 29;
    let is_hook = |id: u32| btf.ty(id).and_then(|ty| btf.name(&ty)).is_ok_and(|name| name == "bpf_lsm_bpf_prog_load");
    let Ok(ids) = bpf::ids(ObjectKind::Program) else { return true };
    ids.into_iter().any(|id| match bpf::program_by_id(id) {
        Ok(program) => match bpf::attach_function(program.as_fd()) {
            Ok((LSM, function)) => is_hook(function),
            Ok(_) => false,
            Err(_) => true,
        },
        // It was unloaded in the meantime.
        Err(Errno::NOENT) => false,
        Err(_) => true,
    })
}

/// What a submitted program tests.
enum Question {
    /// `r0 = 1; exit`
    Control,
    /// `call F`
    Offers(String),
    /// A program that reads memory.
    Memory(MemoryRead),
    /// The control of a [`Question::Memory`].
    MemoryControl(MemoryRead),
}

struct Questions {
    trials: Vec<Trial>,
    about: Vec<(u32, Question)>,
}

impl Questions {
    /// `kfuncs` are the BTF ids of the kernel's kfuncs, `structure` that of any structure.
    fn new(kfuncs: &HashMap<&'static str, u32>, structure: Option<u32>) -> Self {
        let mut all = Self { trials: Vec::new(), about: Vec::new() };
        let kfunc = |way: MemoryRead| kfuncs.get(way.to_string().as_str()).copied();
        for (program_type, attach_type) in TYPES {
            let mut ask = |question, program: Trial| {
                all.trials.push(Trial { program_type, attach_type, ..program });
                all.about.push((program_type, question));
            };
            ask(Question::Control, programs::smallest());
            for function in reach::beyond() {
                let call = match function.call {
                    Call::Helper(number) => programs::call_helper(number),
                    Call::Kfunc => match kfuncs.get(function.name) {
                        Some(id) => programs::call_kfunc(*id),
                        None => continue,
                    },
                };
                ask(Question::Offers(kernel_name(&function)), call);
            }
            for way in MemoryRead::ALL {
                let programs: Vec<(Trial, Trial)> = match (way, kfunc(way)) {
                    (MemoryRead::RdonlyCast, Some(id)) => {
                        let casts = [Some(0), structure].into_iter().flatten().map(|to| programs::rdonly_cast(id, to));
                        casts.map(|cast| (programs::smallest(), cast)).collect()
                    }
                    (MemoryRead::ProbeReadDynptr, Some(id)) => {
                        vec![(programs::probe_read_dynptr(None), programs::probe_read_dynptr(Some(id)))]
                    }
                    (MemoryRead::UntrustedArgument, _) => {
                        vec![(programs::global_function(false), programs::global_function(true))]
                    }
                    // The kernel does not have the kfunc.
                    (_, None) => Vec::new(),
                };
                for (control, program) in programs {
                    ask(Question::MemoryControl(way), control);
                    ask(Question::Memory(way), program);
                }
            }
        }
        all
    }

    fn decide(&self, answers: &[TrialAnswer]) -> TokenReach {
        let mut reach = TokenReach::default();
        let mut types: BTreeMap<u32, Option<Vec<String>>> = BTreeMap::new();
        for ((program_type, question), answer) in self.about.iter().zip(answers) {
            let name = || Category::Progs.name(*program_type).unwrap_or("?").to_owned();
            if let Question::Control = question {
                match control(answer) {
                    Control::Loads => {
                        types.entry(*program_type).or_insert_with(|| Some(Vec::new()));
                    }
                    Control::Absent => {
                        types.insert(*program_type, None);
                    }
                    Control::Unclear => {
                        types.insert(*program_type, None);
                        undecided(&mut reach, &name(), "the smallest program", answer);
                    }
                }
                continue;
            }
            let Some(Some(offered)) = types.get_mut(program_type) else { continue };
            match question {
                Question::Control => {}
                Question::Offers(function) => match is_offered(answer) {
                    Some(true) if !offered.contains(function) => offered.push(function.clone()),
                    Some(_) => {}
                    None => undecided(&mut reach, &name(), &format!("a call of {function}"), answer),
                },
                Question::MemoryControl(way) if !answer.loaded() => {
                    undecided(&mut reach, &name(), &format!("the control of {way}"), answer);
                }
                Question::MemoryControl(_) => {}
                Question::Memory(way) => match is_open(*way, answer) {
                    Some(true) if !reach.memory.contains(way) => reach.memory.push(*way),
                    Some(_) => {}
                    None => undecided(&mut reach, &name(), &way.to_string(), answer),
                },
            }
        }
        reach.memory.sort();
        reach.types = types
            .into_iter()
            .map(|(program_type, offered)| (program_type, offered.map_or(TypeAnswer::Absent, TypeAnswer::Offers)))
            .collect();
        reach
    }
}

/// The limit on messages about undecided probes: one is sufficient to act, a few more help to find the cause.
const UNDECIDED_MAX: usize = 8;

fn undecided(reach: &mut TokenReach, type_name: &str, what: &str, answer: &TrialAnswer) {
    if reach.undecided.len() < UNDECIDED_MAX {
        let errno = answer.errno.map_or("loaded".to_owned(), |errno| errno.to_string());
        let last = answer.log.lines().rfind(|line| !line.starts_with("processed ")).unwrap_or("no verifier log");
        let last: String = last.chars().take(120).collect();
        reach.undecided.push(format!("{type_name}: {what}: {errno} ({last})"));
    }
}

enum Control {
    Loads,
    /// The kernel does not have the type, or not without CAP_PERFMON.
    Absent,
    Unclear,
}

/// EINVAL without a verifier log is `find_prog_type` (kernel/bpf/syscall.c): the type is not configured.
fn control(answer: &TrialAnswer) -> Control {
    match answer.errno {
        None => Control::Loads,
        Some(Errno::INVAL) if answer.log.is_empty() => Control::Absent,
        Some(_) => Control::Unclear,
    }
}

/// What the verifier (kernel/bpf/verifier.c, `check_helper_call`, `check_kfunc_call`) reports for functions that a
/// program cannot call because of its type, because they may sleep (programs of these types never may), or because they
/// require CAP_SYS_BOOT outside any user namespace.
const NOT_OFFERED: [&str; 7] = [
    "unknown func ",
    "invalid func ",
    "program of this type cannot use helper ",
    " is not allowed\n",
    "helper call might sleep in a non-sleepable prog",
    "program must be sleepable to call sleepable kfunc",
    "destructive kfunc calls require CAP_SYS_BOOT",
];

/// Whether a called function is offered; None if the verifier did not decide.
fn is_offered(answer: &TrialAnswer) -> Option<bool> {
    match answer.loaded() {
        true => Some(true),
        false => verdict_of_the_verifier(answer).then(|| !NOT_OFFERED.iter().any(|said| answer.says(said))),
    }
}

/// False if a load failed before the verifier ran, or for lack of memory or time.
fn verdict_of_the_verifier(answer: &TrialAnswer) -> bool {
    let passing = [Errno::NOMEM, Errno::AGAIN, Errno::INTR, Errno::NOSPC, Errno::NFILE, Errno::MFILE];
    !answer.log.is_empty() && answer.errno.is_some_and(|errno| !passing.contains(&errno))
}

/// Whether a program that reads memory is accepted. A refusal counts only with a reason that kernels are known to give;
/// None for any other reason.
fn is_open(way: MemoryRead, answer: &TrialAnswer) -> Option<bool> {
    let reasons: &[&str] = match way {
        // 6.12 casts only to structures, and requires CAP_PERFMON to read one (`check_ptr_to_btf_access`).
        MemoryRead::RdonlyCast => &[
            " is not allowed\n",
            "type ID argument must be of a struct\n",
            "access is allowed only to CAP_PERFMON and CAP_SYS_ADMIN\n",
        ],
        MemoryRead::ProbeReadDynptr => &[" is not allowed\n"],
        // 6.12 does not support the tag (kernel/bpf/btf.c, `btf_prepare_func_args`).
        MemoryRead::UntrustedArgument => &["has unsupported set of tags\n"],
    };
    let refused = || verdict_of_the_verifier(answer) && reasons.iter().any(|said| answer.says(said));
    if answer.loaded() { Some(true) } else { refused().then_some(false) }
}

#[cfg(test)]
mod tests;
