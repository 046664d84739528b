//! Capabilities: checking them, and running code with fewer of them. They belong to threads, not to processes.

use std::panic::resume_unwind;
use std::thread;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities};

use crate::sys::SysError;
use crate::sys::netns::THREAD_STACK;

pub use caps::Capability;

/// True if the calling thread can use `capability` now. Also false if it cannot be determined.
pub fn has(capability: Capability) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(bit(capability)))
}

/// Runs `f` on a separate thread that holds exactly `wanted`, effective and permitted, and returns the result of `f`.
/// The caller's own capabilities do not change.
///
/// Programs are loaded this way: the verifier and the helpers check the loading thread's capabilities, so that without
/// CAP_PERFMON and CAP_SYS_ADMIN a program cannot read kernel memory. A panic of `f` is propagated to the caller.
///
/// # Errors
/// [`SysError::Capabilities`] if the process itself lacks one of `wanted`.
pub fn with_caps<T: Send>(wanted: &[Capability], f: impl FnOnce() -> T + Send) -> Result<T, SysError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("few-caps".into())
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, || {
                limit_thread(wanted)?;
                Ok(f())
            })
            .map_err(SysError::io("start", "a thread with fewer capabilities"))?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `f` on the calling thread with only `wanted` effective, and makes the former capabilities effective again. Unlike
/// with [`with_caps`] no thread is started, and `f` could take the capabilities back: it must be our own code.
///
/// # Errors
/// If the thread lacks one of `wanted`, or its capabilities cannot be changed; after `f` they may then be too few.
pub fn with_only_effective<T>(wanted: &[Capability], f: impl FnOnce() -> T) -> Result<T, SysError> {
    let fail = || SysError::io("change", "the capabilities of this thread");
    let held = capabilities(None).map_err(fail())?;
    let few = CapabilitySets { effective: set_of(wanted), ..held };
    set_capabilities(None, few).map_err(fail())?;
    let result = f();
    set_capabilities(None, held).map_err(fail())?;
    Ok(result)
}

/// Permanently drops everything except `wanted` from the effective, permitted, inheritable and ambient sets of the
/// process. Capabilities in `wanted` that the process lacks are ignored: they may have been withheld on purpose, and
/// the first call that needs one of them fails.
///
/// The bounding set is not changed, because it matters only when a program is executed: [`bound_children`] handles
/// that, and most hooks do not execute any. Emptying it takes 29 system calls and 0.3 ms.
///
/// # Errors
/// `Io` if the process already has a second thread, which would keep its capabilities, or if the kernel refuses.
pub fn limit_process(wanted: &[Capability]) -> Result<(), SysError> {
    // The directory has two links and one for each thread (fs/proc/base.c, proc_task_getattr).
    let stat = rustix::fs::stat("/proc/self/task").map_err(SysError::io("stat", "/proc/self/task"))?;
    let threads = stat.st_nlink.saturating_sub(2);
    if threads != 1 {
        let source = std::io::Error::other(format!("{threads} threads are running"));
        return Err(SysError::Io { doing: "drop the capabilities of", object: "the process".into(), source });
    }
    let held = capabilities(None).map_err(SysError::io("read the capabilities of", "the process"))?.permitted;
    let kept: Vec<_> = wanted.iter().copied().filter(|c| held.contains(bit(*c))).collect();
    limit_thread(&kept)
}

/// Makes sure that a program executed by this thread does not have capabilities that the thread does not hold: at
/// exec, root regains its whole bounding set (capabilities(7)). Without CAP_SETPCAP this is not possible, and nothing
/// is done.
pub fn bound_children() -> Result<(), SysError> {
    if !has(Capability::CAP_SETPCAP) {
        return Ok(());
    }
    let held = capabilities(None).map_err(SysError::io("read the capabilities of", "this thread"))?.permitted;
    drop_bounding_but(held)
}

/// Removes every capability except `keep` from the bounding set of the calling thread. Needs CAP_SETPCAP.
pub(crate) fn drop_bounding(keep: &[Capability]) -> Result<(), SysError> {
    drop_bounding_but(set_of(keep))
}

fn drop_bounding_but(keep: CapabilitySet) -> Result<(), SysError> {
    for number in 0..u64::BITS {
        if keep.bits() & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes one integer and touches no memory.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            // EINVAL: the first number that this kernel does not know, so all capabilities are done.
            if error.raw_os_error() == Some(libc::EINVAL) && number > 0 {
                return Ok(());
            }
            return Err(SysError::io("drop from the bounding set", format!("capability {number}"))(error));
        }
    }
    Ok(())
}

/// Sets the capabilities of the calling thread to exactly `wanted`.
fn limit_thread(wanted: &[Capability]) -> Result<(), SysError> {
    let fail = || SysError::io("change", "the capabilities of this thread");
    let wanted_set = set_of(wanted);
    let have = capabilities(None).map_err(fail())?;
    let missing: Vec<_> = wanted.iter().filter(|c| !have.permitted.contains(bit(**c))).map(|c| c.to_string()).collect();
    if !missing.is_empty() {
        let wanted = wanted.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(" ");
        return Err(SysError::Capabilities { wanted, missing: missing.join(" ") });
    }
    clear_ambient_capability_set().map_err(fail())?;
    let sets = CapabilitySets { effective: wanted_set, permitted: wanted_set, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(fail())
}

fn bit(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << capability.index())
}

fn set_of(wanted: &[Capability]) -> CapabilitySet {
    wanted.iter().fold(CapabilitySet::empty(), |set, c| set | bit(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_match_the_kernels_numbers() {
        assert_eq!(bit(Capability::CAP_CHOWN).bits(), 1);
        assert_eq!(bit(Capability::CAP_NET_ADMIN), CapabilitySet::NET_ADMIN);
        assert_eq!(bit(Capability::CAP_BPF).bits(), 1 << 39);
        assert_eq!(set_of(&[Capability::CAP_PERFMON, Capability::CAP_BPF]).bits(), (1 << 38) | (1 << 39));
    }

    #[test]
    fn a_thread_without_capabilities_does_not_affect_the_caller() {
        let before = capabilities(None).unwrap();
        let inside = with_caps(&[], || capabilities(None).unwrap()).unwrap();
        assert_eq!(inside.effective, CapabilitySet::empty());
        assert_eq!(inside.permitted, CapabilitySet::empty());
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn effective_capabilities_come_back() {
        let before = capabilities(None).unwrap();
        let inside = with_only_effective(&[], || capabilities(None).unwrap()).unwrap();
        assert_eq!((inside.effective, inside.permitted), (CapabilitySet::empty(), before.permitted));
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let error =
            with_caps(&[], || with_caps(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN], || ())).unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "run with the capabilities CAP_BPF CAP_NET_ADMIN: the process lacks CAP_BPF CAP_NET_ADMIN; grant it to the hook"
        );
    }

    #[test]
    fn limiting_a_multithreaded_process_is_an_error() {
        // The main thread of the test runner waits in parallel.
        let error = limit_process(&[]).unwrap_err();
        assert_eq!(error.to_string(), "drop the capabilities of the process");
    }
}
