//! Receives the calls of one listener, has each executed or refused, and answers.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::lifecycle::proxy_account::ProxyAccount;
use crate::model::ids::ContainerId;
use crate::model::proxy::ProxyRefusal;
use crate::paths::Paths;
use crate::proxy::account::Account;
use crate::proxy::answers::{ThreadKey, Undelivered};
use crate::proxy::failure::FailedCall;
use crate::proxy::granted::GrantedContainer;
use crate::proxy::notified::{CopiedArguments, NotifiedKind};
use crate::proxy::outcome::Outcome;
use crate::proxy::watched::Reporter;
use crate::sys::SysError;
use crate::sys::seccomp_notify::{Answered, Notification, NotifiedThread, Reported, SeccompListener, thread_runs};

/// How long a container must make no call before what it has loaded is recorded.
const PAUSE: Duration = Duration::from_millis(100);
/// The time between two changes of the record by one process.
const RECORDED: Duration = Duration::from_secs(1);

/// The answer to calls that are not ours, and to those of other architectures.
const ENOSYS: i32 = 38;

/// What is known about the container of a listener.
pub(super) struct Agent {
    paths: Paths,
    id: ContainerId,
    shared: ProxyAccount,
    granted: Option<GrantedContainer>,
    /// True once the container's record was gone. A container of the same id may be started later: its grant is not for
    /// the tasks that are left of this one.
    ended: bool,
    undelivered: Undelivered,
    account: Account,
    reporter: Reporter,
}

impl Agent {
    pub(super) fn new(paths: &Paths, id: ContainerId, shared: ProxyAccount) -> Self {
        Self {
            paths: paths.clone(),
            account: Account::new(paths, &id),
            reporter: Reporter::new(paths, &id),
            id,
            shared,
            granted: None,
            ended: false,
            undelivered: Undelivered::default(),
        }
    }

    /// Serves a listener until its last task has ended.
    pub(super) fn run(mut self, listener: &SeccompListener) -> Result<(), SysError> {
        loop {
            match listener.next(self.patience())? {
                Reported::Call(call) => self.serve(listener, &call),
                Reported::Nothing => self.tidy(),
                Reported::End => {
                    self.record();
                    self.account.end(self.granted.as_ref().map(|granted| &granted.container));
                    self.shared.leave();
                    return Ok(());
                }
            }
        }
    }

    /// How long to wait for a call before there is something to tidy up. What was loaded is recorded once the container
    /// pauses, and not more often than once in [`RECORDED`]: a write takes longer than a call, and others wait for it.
    fn patience(&self) -> Option<Duration> {
        let recording = self.granted.as_ref().filter(|granted| granted.unrecorded).map(|granted| {
            let since = granted.recorded.map_or(RECORDED, |recorded| recorded.elapsed());
            PAUSE.max(RECORDED.saturating_sub(since))
        });
        let forgetting = (!self.undelivered.is_empty()).then_some(RECORDED);
        recording.into_iter().chain(forgetting).min()
    }

    /// Between calls: what is kept for threads that have ended is closed, and what was loaded is recorded.
    fn tidy(&mut self) {
        self.undelivered.prune(|key| thread_runs(key.tid, key.started));
        if self.granted.as_ref().is_some_and(|granted| granted.unrecorded) {
            self.record();
        }
    }

    /// Brings the container's record up to date, and learns what other processes made for it.
    fn record(&mut self) {
        let Some(granted) = &mut self.granted else { return };
        if granted.recorded.is_none() && !granted.unrecorded {
            return;
        }
        granted.recorded = Some(Instant::now());
        match granted.record(&self.paths) {
            Ok(true) => {}
            Ok(false) => {
                self.granted = None;
                self.ended = true;
            }
            Err(sentence) => self.account.note(&format!("its objects cannot be recorded: {sentence}")),
        }
    }

    fn serve(&mut self, listener: &SeccompListener, notified: &Notification) {
        let Some(kind) = NotifiedKind::of(notified) else {
            listener.refuse(notified.id, ENOSYS);
            return;
        };
        let copied = NotifiedThread::of(listener, notified).map_err(FailedCall::from).and_then(|caller| {
            let Some(caller) = caller else { return Ok(None) };
            let copied = CopiedArguments::of(kind, &caller, &notified.args)?;
            Ok(Some((caller, copied)))
        });
        let (mut caller, copied) = match copied {
            Ok(Some(copied)) => copied,
            Ok(None) => return,
            Err(failure) => {
                self.undelivered.forget(notified.tid);
                listener.refuse(notified.id, failure.errno);
                self.account.failed(
                    kind.counted(&notified.args),
                    self.granted.as_ref().map(|granted| &granted.container),
                    &failure,
                );
                return;
            }
        };
        let kept = if self.undelivered.concerns(notified.tid) { self.repeated(&caller, &copied) } else { None };
        let outcome = match kept {
            Some(kept) => kept,
            // The caller no longer waits for it.
            None if !listener.is_waiting(notified.id) => return,
            None => self.execute(&mut caller, &copied),
        };
        self.answer(listener, &caller, copied, notified.id, outcome);
        if let Some(granted) = &mut self.granted {
            self.account.made(&granted.container, std::mem::take(&mut granted.unreported));
            std::mem::take(&mut granted.unnoted).iter().for_each(|problem| self.account.note(problem));
        }
    }

    /// The answer of a call that this one repeats.
    fn repeated(&mut self, caller: &NotifiedThread<'_>, copied: &CopiedArguments) -> Option<Outcome> {
        let key = ThreadKey { tid: caller.tid(), started: caller.started_unless_gone()? };
        self.undelivered.take(key, copied)
    }

    /// Executes or refuses a call, and writes its log back.
    fn execute(&mut self, caller: &mut NotifiedThread<'_>, copied: &CopiedArguments) -> Outcome {
        let found = self.granted.take().map_or_else(|| self.find(), Ok);
        let performed = found.and_then(|granted| {
            let granted = self.granted.insert(granted);
            copied.perform(&mut self.shared, granted, caller)
        });
        if self.reporter.is_watched() {
            self.reporter.tell(caller, copied, &performed);
        }
        match performed {
            Ok(outcome) => {
                self.account.done(copied.counted());
                outcome
            }
            Err(failure) => {
                copied.write_refusal(caller, &failure);
                self.account.failed(copied.counted(), self.granted.as_ref().map(|granted| &granted.container), &failure);
                Outcome::Errno(failure.errno)
            }
        }
    }

    fn find(&self) -> Result<GrantedContainer, FailedCall> {
        if self.ended {
            let why = format!("container {} has ended: its record is gone", self.id);
            return Err(ProxyRefusal::NoGrant { why }.into());
        }
        GrantedContainer::find(&self.paths, &self.id)
    }

    fn answer(
        &mut self,
        listener: &SeccompListener,
        caller: &NotifiedThread<'_>,
        copied: CopiedArguments,
        id: u64,
        outcome: Outcome,
    ) {
        let answered = match &outcome {
            Outcome::Descriptor(fd) => listener.hand_over(id, fd.as_fd(), copied.close_on_exec()),
            Outcome::Done => listener.answer(id, 0),
            Outcome::Errno(errno) => listener.refuse(id, *errno),
        };
        match answered {
            Answered::Delivered => {}
            // Without an answer the thread would wait for ever: EMFILE, if it has no number left.
            Answered::NotInstalled(errno) => drop(listener.refuse(id, errno.raw_os_error())),
            Answered::Withdrawn => {
                // The start of the thread, while it is still there: its number alone could be another's by then.
                if let Some(started) = caller.started_unless_gone() {
                    self.undelivered.keep(ThreadKey { tid: caller.tid(), started }, copied, outcome);
                }
            }
        }
    }
}
