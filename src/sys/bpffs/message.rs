//! The protocol between the forked child and its parent: messages of fixed size, built without memory allocation.

/// Size of a report in bytes.
pub(super) const REPORT_SIZE: usize = 16;

/// The step in which a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BpffsStep {
    CloseFiles,
    Confine,
    EnterMountNs,
    EnterUserNs,
    BecomeRoot,
    OpenFs,
    Find,
    Stat,
    Receive,
    MakeDirectory,
    Mount,
    Reopen,
    Covered,
    Pin,
    Give,
    Mint,
    Send,
}

impl BpffsStep {
    const ALL: [Self; 17] = [
        Self::CloseFiles,
        Self::Confine,
        Self::EnterMountNs,
        Self::EnterUserNs,
        Self::BecomeRoot,
        Self::OpenFs,
        Self::Find,
        Self::Stat,
        Self::Receive,
        Self::MakeDirectory,
        Self::Mount,
        Self::Reopen,
        Self::Covered,
        Self::Pin,
        Self::Give,
        Self::Mint,
        Self::Send,
    ];

    /// The verb of an error message.
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::CloseFiles => "close the other files of",
            Self::Confine => "limit the system calls of",
            Self::EnterMountNs => "enter the mount namespace of",
            Self::EnterUserNs => "enter the user namespace of",
            Self::BecomeRoot => "become root of",
            Self::OpenFs => "open a bpffs for",
            Self::Find | Self::Reopen => "open the container's",
            Self::Stat => "stat the container's",
            Self::Receive | Self::Send => "communicate with",
            Self::MakeDirectory => "create the container's",
            Self::Mount => "mount a bpffs at",
            Self::Covered => "find the bpffs at",
            Self::Pin => "pin a map at",
            Self::Give => "change the owner of a map at",
            Self::Mint => "mint a token from",
        }
    }

    /// The object of an error message.
    pub(super) fn object(self, target: &str) -> String {
        match self {
            Self::CloseFiles | Self::Confine | Self::Receive | Self::Send => "the bpffs process".into(),
            Self::EnterMountNs | Self::EnterUserNs | Self::BecomeRoot | Self::OpenFs => "the container".into(),
            _ => target.to_owned(),
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallFailure {
    pub step: BpffsStep,
    pub errno: i32,
    /// The index of the map, if the step concerns one.
    pub index: u32,
    /// True if undoing failed as well.
    pub left: bool,
}

/// The directory that was found: the target, or the one in which its first missing component will be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenedTarget {
    /// The id of the mount that the directory is on, as [`super::inside::Job`] asks for it.
    pub mount_id: u64,
    /// True if the directory is the root of its mount.
    pub at_mount_root: bool,
    /// Number of missing components.
    pub missing: u8,
}

/// A message from the child. The fs context comes with `OpenedTarget`, the minted token with `Done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChildReport {
    /// The child is in the namespaces, and has not followed the target's path yet.
    Inside,
    Opened(OpenedTarget),
    Done,
    Failed(CallFailure),
}

/// A message to the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ParentVerdict {
    Keep = 1,
}

/// The exit status of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Exit {
    /// The changes stay.
    Kept = 0,
    /// Something could not be removed.
    Left = 1,
    /// Nothing is left, or a report has said what is.
    Undone = 2,
}

impl ChildReport {
    pub(super) fn encode(self) -> [u8; REPORT_SIZE] {
        let (tag, flag, byte, small, a) = match self {
            Self::Opened(o) => (1, u8::from(o.at_mount_root), o.missing, 0, o.mount_id),
            Self::Done => (2, 0, 0, 0, 0),
            Self::Inside => (4, 0, 0, 0, 0),
            Self::Failed(f) => (3, u8::from(f.left), f.step as u8, f.errno, u64::from(f.index)),
        };
        let [s0, s1, s2, s3] = small.to_ne_bytes();
        let [a0, a1, a2, a3, a4, a5, a6, a7] = a.to_ne_bytes();
        [tag, flag, byte, 0, s0, s1, s2, s3, a0, a1, a2, a3, a4, a5, a6, a7]
    }

    pub(super) fn decode(bytes: &[u8; REPORT_SIZE]) -> Option<Self> {
        let [tag, flag, byte, _, s @ .., _, _, _, _, _, _, _, _] = bytes;
        let small = i32::from_ne_bytes(*s);
        let a = bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes)?;
        let flag = *flag != 0;
        match tag {
            1 => Some(Self::Opened(OpenedTarget { mount_id: a, at_mount_root: flag, missing: *byte })),
            2 => Some(Self::Done),
            3 => {
                let step = *BpffsStep::ALL.get(usize::from(*byte))?;
                Some(Self::Failed(CallFailure { step, errno: small, index: u32::try_from(a).ok()?, left: flag }))
            }
            4 => Some(Self::Inside),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_decoded_as_encoded() {
        let opened = OpenedTarget { mount_id: u64::MAX - 7, at_mount_root: true, missing: 3 };
        let mut reports = vec![ChildReport::Inside, ChildReport::Done, ChildReport::Opened(opened)];
        for step in BpffsStep::ALL {
            reports.push(ChildReport::Failed(CallFailure { step, errno: 95, index: 7, left: true }));
            reports.push(ChildReport::Failed(CallFailure { step, errno: 1, index: 0, left: false }));
        }
        for report in reports {
            assert_eq!(ChildReport::decode(&report.encode()), Some(report));
        }
    }

    #[test]
    fn steps_are_numbered_in_the_order_of_all() {
        for (index, step) in BpffsStep::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index);
        }
    }

    #[test]
    fn malformed_reports_are_refused() {
        let mut bytes = [0; REPORT_SIZE];
        assert_eq!(ChildReport::decode(&bytes), None);
        bytes[0] = 3;
        bytes[2] = BpffsStep::ALL.len() as u8;
        assert_eq!(ChildReport::decode(&bytes), None);
        bytes[2] = 0;
        bytes[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert_eq!(ChildReport::decode(&bytes), None);
    }
}
