//! What this kernel lets a program reach that is loaded with a BPF token, found out by offering programs to the verifier.
//!
//! `r0 = F(); exit` for each function of the table of [`crate::model::reach`] that reaches beyond, and each program type: the
//! verifier says of a function that a type does not have that it is not allowed, and anything else counts as offered. Three
//! programs that would read the kernel's memory are offered whole. None is ever run. Beside each stands a control, a program like it
//! that every kernel with tokens loads: where that one fails, the answers are worth nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::kernel::btf::{Btf, BtfKind, Type};
use crate::kernel::load::KERNEL_BTF;
use crate::model::delegation::Category;
use crate::model::reach::{self, Call, MemoryRead, TokenReach, TypeAnswer, kernel_name};
use crate::sys::Errno;
use crate::sys::bpf::{self, ObjectKind};
use crate::sys::token::trial::{self, Trial, TrialAnswer};

mod programs;

/// The program types that a token without CAP_PERFMON can load, with an attach type of each. A type with two stands for both: what one
/// of them is offered counts.
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

/// What the probes found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The verdict, to act upon now.
    pub reach: TokenReach,
    /// Whether it speaks of the bare kernel, so that it may be kept for the boot: nothing is undecided, and no LSM program judges what is
    /// loaded.
    pub bare: bool,
}

/// How long the probes may take. They take some tenths of a second.
const PATIENCE: Duration = Duration::from_secs(12);

/// Runs the probes. Needs what making a delegated bpffs needs; without it everything is undecided.
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

/// Whether an LSM program hangs on `bpf_prog_load`, or could: any that is loaded for it counts, attached or not. True where that cannot
/// be found out.
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
        // It was unloaded meanwhile.
        Err(Errno::NOENT) => false,
        Err(_) => true,
    })
}

/// What an offered program is about.
enum Question {
    /// `r0 = 1; exit`
    Control,
    /// `call F`
    Offers(String),
    /// A program that reads memory.
    Memory(MemoryRead),
    /// What stands beside it.
    MemoryControl(MemoryRead),
}

struct Questions {
    trials: Vec<Trial>,
    about: Vec<(u32, Question)>,
}

impl Questions {
    /// `kfuncs` are the BTF ids of those that the kernel has, `structure` that of some structure.
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

/// Sentences that are kept of what was not decided: one is enough to act, some more to find out why.
const UNDECIDED_MAX: usize = 8;

fn undecided(reach: &mut TokenReach, type_name: &str, what: &str, answer: &TrialAnswer) {
    if reach.undecided.len() < UNDECIDED_MAX {
        let errno = answer.errno.map_or("loaded".to_owned(), |errno| errno.to_string());
        let last = answer.log.lines().rfind(|line| !line.starts_with("processed ")).unwrap_or("no word of the verifier");
        let last: String = last.chars().take(120).collect();
        reach.undecided.push(format!("{type_name}: {what}: {errno} ({last})"));
    }
}

enum Control {
    Loads,
    /// The kernel has no such type, or none without CAP_PERFMON.
    Absent,
    Unclear,
}

/// EINVAL before the verifier speaks is `find_prog_type` (kernel/bpf/syscall.c): the type is not configured.
fn control(answer: &TrialAnswer) -> Control {
    match answer.errno {
        None => Control::Loads,
        Some(Errno::INVAL) if answer.log.is_empty() => Control::Absent,
        Some(_) => Control::Unclear,
    }
}

/// What the verifier (kernel/bpf/verifier.c, `check_helper_call`, `check_kfunc_call`) says of functions that a program cannot have
/// because of its type, or because it may not sleep, which programs of the types here never may, or asks for CAP_SYS_BOOT outside
/// any user namespace for.
const NOT_OFFERED: [&str; 7] = [
    "unknown func ",
    "invalid func ",
    "program of this type cannot use helper ",
    " is not allowed\n",
    "helper call might sleep in a non-sleepable prog",
    "program must be sleepable to call sleepable kfunc",
    "destructive kfunc calls require CAP_SYS_BOOT",
];

/// Whether a called function is offered; None where the verifier did not come to say.
fn is_offered(answer: &TrialAnswer) -> Option<bool> {
    match answer.loaded() {
        true => Some(true),
        false => verdict_of_the_verifier(answer).then(|| !NOT_OFFERED.iter().any(|said| answer.says(said))),
    }
}

/// False where a load failed before the verifier spoke, or for want of memory or time.
fn verdict_of_the_verifier(answer: &TrialAnswer) -> bool {
    let passing = [Errno::NOMEM, Errno::AGAIN, Errno::INTR, Errno::NOSPC, Errno::NFILE, Errno::MFILE];
    !answer.log.is_empty() && answer.errno.is_some_and(|errno| !passing.contains(&errno))
}

/// Whether a program that reads memory is accepted. Refused counts only with the reasons that kernels are known to have; None for any
/// other.
fn is_open(way: MemoryRead, answer: &TrialAnswer) -> Option<bool> {
    let reasons: &[&str] = match way {
        // 6.12 casts to structures alone, and asks for CAP_PERFMON where one is read (`check_ptr_to_btf_access`).
        MemoryRead::RdonlyCast => &[
            " is not allowed\n",
            "type ID argument must be of a struct\n",
            "access is allowed only to CAP_PERFMON and CAP_SYS_ADMIN\n",
        ],
        MemoryRead::ProbeReadDynptr => &[" is not allowed\n"],
        // 6.12 does not know the tag (kernel/bpf/btf.c, `btf_prepare_func_args`).
        MemoryRead::UntrustedArgument => &["has unsupported set of tags\n"],
    };
    let refused = || verdict_of_the_verifier(answer) && reasons.iter().any(|said| answer.says(said));
    if answer.loaded() { Some(true) } else { refused().then_some(false) }
}

#[cfg(test)]
mod tests;
