//! The verdict from synthetic answers; tests/privileged/token_reach.rs uses the kernel's.

use super::*;

const SOCKET_FILTER: u32 = 1;
const XDP: u32 = 6;

/// A kernel with every kfunc of the table.
fn questions() -> Questions {
    let kfuncs = reach::beyond().filter(|function| function.call == Call::Kfunc).map(|function| function.name);
    Questions::new(&kfuncs.zip(100..).collect(), Some(7))
}

fn refused(errno: Errno, log: &str) -> TrialAnswer {
    TrialAnswer { errno: Some(errno), log: log.to_owned() }
}

fn loaded() -> TrialAnswer {
    TrialAnswer { errno: None, log: String::new() }
}

/// Answers of a kernel that offers nothing and has no way to memory, except where `other` says otherwise.
fn answers(questions: &Questions, other: impl Fn(u32, &Question) -> Option<TrialAnswer>) -> Vec<TrialAnswer> {
    let closed = |question: &Question| match question {
        Question::Control | Question::MemoryControl(_) => loaded(),
        Question::Offers(_) => refused(Errno::INVAL, "0: (85) call bpf_x#4\nprogram of this type cannot use helper bpf_x#4\n"),
        Question::Memory(MemoryRead::UntrustedArgument) => refused(Errno::INVAL, "arg#0 has unsupported set of tags\n"),
        Question::Memory(_) => refused(Errno::ACCESS, "calling kernel function bpf_x is not allowed\n"),
    };
    questions.about.iter().map(|(at, question)| other(*at, question).unwrap_or_else(|| closed(question))).collect()
}

#[test]
fn a_kernel_that_offers_nothing_allows_container_scope() {
    let questions = questions();
    let reach = questions.decide(&answers(&questions, |_, _| None));
    assert_eq!((reach.undecided.clone(), reach.memory.clone()), (Vec::new(), Vec::new()));
    assert!(reach.keep("boot", "kernel").is_some());
    for (program_type, _) in TYPES {
        assert_eq!(reach.type_beyond(program_type), None, "{program_type}");
    }
}

#[test]
fn accepted_or_otherwise_refused_functions_count_as_offered() {
    let questions = questions();
    let said = [loaded(), refused(Errno::ACCESS, "0: (85) call bpf_sk_lookup_tcp#84\nR2 !read_ok\n")];
    for answer in said {
        let reach = questions.decide(&answers(&questions, |at, question| {
            matches!(question, Question::Offers(name) if at == XDP && name == "bpf_sk_lookup_tcp").then(|| answer.clone())
        }));
        assert_eq!(reach.types[&XDP], TypeAnswer::Offers(vec!["bpf_sk_lookup_tcp".to_owned()]));
        assert_eq!(reach.types[&SOCKET_FILTER], TypeAnswer::Offers(Vec::new()));
        assert!(reach.keep("boot", "kernel").is_some());
    }
    for said in NOT_OFFERED {
        assert_eq!(is_offered(&refused(Errno::INVAL, said)), Some(false), "{said}");
    }
}

#[test]
fn a_load_that_fails_before_the_verifier_runs_is_undecided() {
    let questions = questions();
    type Which = fn(&Question) -> bool;
    let whiches: [(&str, Which); 4] = [
        ("the smallest program", |question| matches!(question, Question::Control)),
        ("a call of bpf_probe_read", |question| matches!(question, Question::Offers(name) if name == "bpf_probe_read")),
        ("the control of arg:untrusted", |question| matches!(question, Question::MemoryControl(MemoryRead::UntrustedArgument))),
        ("bpf_rdonly_cast", |question| matches!(question, Question::Memory(MemoryRead::RdonlyCast))),
    ];
    // An LSM program refuses with EPERM and no log; ENOMEM can occur at any time.
    for (what, which) in whiches {
        for answer in [refused(Errno::PERM, ""), refused(Errno::NOMEM, ""), refused(Errno::NOMEM, "0: R1=ctx()\n")] {
            let reach = questions
                .decide(&answers(&questions, |at, question| (at == SOCKET_FILTER && which(question)).then(|| answer.clone())));
            assert!(!reach.undecided.is_empty(), "{what} {answer:?}");
            assert!(reach.undecided[0].contains(what), "{:?}", reach.undecided);
            assert_eq!(reach.keep("boot", "kernel"), None, "{what}");
            assert!(reach.type_beyond(XDP).is_some(), "{what}: every type is host scope");
        }
    }
}

#[test]
fn a_way_to_memory_is_closed_only_for_a_known_reason() {
    let questions = questions();
    for way in MemoryRead::ALL {
        let with = |answer: TrialAnswer| {
            let reach = questions.decide(&answers(&questions, |at, question| {
                matches!(question, Question::Memory(asked) if at == XDP && *asked == way).then(|| answer.clone())
            }));
            (reach.memory, reach.undecided.is_empty())
        };
        assert_eq!(with(loaded()), (vec![way], true));
        assert_eq!(with(refused(Errno::INVAL, "some new reason\n")), (Vec::new(), false));
    }
}

#[test]
fn a_missing_type_is_distinguished_from_a_refused_one() {
    let questions = questions();
    let control = |answer: TrialAnswer| {
        let control = |at, question: &Question| at == XDP && matches!(question, Question::Control);
        questions.decide(&answers(&questions, |at, question| control(at, question).then(|| answer.clone())))
    };
    let absent = control(refused(Errno::INVAL, ""));
    assert_eq!((&absent.types[&XDP], absent.undecided.len()), (&TypeAnswer::Absent, 0));
    assert!(absent.type_beyond(XDP).is_some() && absent.keep("boot", "kernel").is_some());
    assert_eq!(control(refused(Errno::PERM, "")).undecided.len(), 1);
}

#[test]
fn missing_kfuncs_are_not_probed() {
    let none = Questions::new(&HashMap::new(), None);
    let asks =
        |wanted: &str| none.about.iter().any(|(_, question)| matches!(question, Question::Offers(name) if name == wanted));
    assert!(asks("bpf_probe_read_kernel") && !asks("bpf_send_signal_task"));
    let reach = none.decide(&answers(&none, |_, _| None));
    assert!(reach.undecided.is_empty() && reach.memory.is_empty());
    let without = |way| none.about.iter().all(|(_, question)| !matches!(question, Question::Memory(asked) if *asked == way));
    assert!(without(MemoryRead::RdonlyCast) && without(MemoryRead::ProbeReadDynptr));
}

#[test]
fn programs_fit_the_child_and_their_btf_is_complete() {
    for trial in questions().trials {
        assert!(trial.instructions.len() <= trial::MAX_INSTRUCTIONS);
    }
    for bytes in programs::btfs() {
        let btf = Btf::parse(&bytes).unwrap();
        let name = |id| btf.name(&btf.ty(id).unwrap()).unwrap().to_owned();
        assert_eq!((name(4), name(6)), ("main".to_owned(), "function".to_owned()));
    }
}
