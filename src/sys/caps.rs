//! Capabilities: asking for them, and doing work with fewer of them. They belong to threads, not to processes.

use std::fs;
use std::panic::resume_unwind;
use std::thread;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities};

use crate::sys::SysError;
use crate::sys::netns::THREAD_STACK;

pub use caps::Capability;

/// True where the calling thread may use `capability` now. False also where the kernel would not say.
pub fn has(capability: Capability) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(bit(capability)))
}

/// Runs `f` on a thread of its own that holds exactly `wanted`, effective and permitted, and nothing more, and returns what
/// `f` returned. The caller's own capabilities stay.
///
/// This is how programs are loaded: the verifier and the helpers look at the loading thread's capabilities, so that
/// without CAP_PERFMON and CAP_SYS_ADMIN a program cannot read kernel memory. A panic of `f` goes on in the caller.
///
/// # Errors
/// [`SysError::Capabilities`] where the process itself lacks one of `wanted`.
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

/// Drops everything but `wanted` from the whole process for good: effective, permitted, inheritable, ambient and bounding
/// set, so that a child that we execute has no more either. What of `wanted` the process lacks it goes on without: whoever
/// started it may have had reasons, and the first call that needs one of them says so. Without CAP_SETPCAP the bounding set
/// stays.
///
/// # Errors
/// `Io` where the process already has a second thread, which would keep its capabilities, or where the kernel refuses.
pub fn limit_process(wanted: &[Capability]) -> Result<(), SysError> {
    let threads = fs::read_dir("/proc/self/task").map_err(SysError::io("list", "/proc/self/task"))?.count();
    if threads != 1 {
        let source = std::io::Error::other(format!("{threads} threads are running"));
        return Err(SysError::Io { doing: "drop the capabilities of", object: "the process".into(), source });
    }
    if has(Capability::CAP_SETPCAP) {
        drop_bounding(wanted)?;
    }
    let held = capabilities(None).map_err(SysError::io("read the capabilities of", "the process"))?.permitted;
    let kept: Vec<_> = wanted.iter().copied().filter(|c| held.contains(bit(*c))).collect();
    limit_thread(&kept)
}

/// Takes every capability but `keep` out of the bounding set of the calling thread. Needs CAP_SETPCAP.
pub(crate) fn drop_bounding(keep: &[Capability]) -> Result<(), SysError> {
    let keep = set_of(keep);
    for number in 0..u64::BITS {
        if keep.bits() & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes one integer and touches no memory.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            // The first number that this kernel does not know: all before it are done.
            if error.raw_os_error() == Some(libc::EINVAL) && number > 0 {
                return Ok(());
            }
            return Err(SysError::io("drop from the bounding set", format!("capability {number}"))(error));
        }
    }
    Ok(())
}

/// Leaves the calling thread with exactly `wanted`.
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
    fn bits_are_the_kernels_numbers() {
        assert_eq!(bit(Capability::CAP_CHOWN).bits(), 1);
        assert_eq!(bit(Capability::CAP_NET_ADMIN), CapabilitySet::NET_ADMIN);
        assert_eq!(bit(Capability::CAP_BPF).bits(), 1 << 39);
        assert_eq!(set_of(&[Capability::CAP_PERFMON, Capability::CAP_BPF]).bits(), (1 << 38) | (1 << 39));
    }

    #[test]
    fn a_thread_can_have_none_and_the_caller_keeps_its_own() {
        let before = capabilities(None).unwrap();
        let inside = with_caps(&[], || capabilities(None).unwrap()).unwrap();
        assert_eq!(inside.effective, CapabilitySet::empty());
        assert_eq!(inside.permitted, CapabilitySet::empty());
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn what_a_thread_does_not_hold_is_named() {
        let error =
            with_caps(&[], || with_caps(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN], || ())).unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "run with the capabilities CAP_BPF CAP_NET_ADMIN: the process lacks CAP_BPF CAP_NET_ADMIN; grant it to the hook"
        );
    }

    #[test]
    fn the_process_is_not_limited_while_it_has_threads() {
        // The test runner's main thread waits beside this one.
        let error = limit_process(&[]).unwrap_err();
        assert_eq!(error.to_string(), "drop the capabilities of the process");
    }
}
