//! Single mounts of another mount namespace: statmount(2) and listmount(2).
//!
//! mountinfo shows every mount of a namespace with every option. That takes long where there are many mounts, and each
//! bpffs among them makes the kernel search its own BTF (kernel/bpf/inode.c, `bpf_show_options`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::sys::SysError;
use crate::sys::mounts::{MountPoint, Propagation};
use crate::sys::token::last_errno;

/// The numbers of the calls, the same on every architecture; libc does not have them yet.
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;

/// `ioctl(2)` on an open mount namespace: its id. Linux 6.11; from that version on, both calls take the id.
const NS_GET_MNTNS_ID: libc::c_ulong = 0x8008_b705;
/// listmount(2): start at the namespace's root.
const LSMT_ROOT: u64 = u64::MAX;

/// What is asked of a mount: STATMOUNT_SB_BASIC, MNT_BASIC, MNT_ROOT, MNT_POINT and FS_TYPE.
const FIELDS: u64 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20;
/// STATMOUNT_FS_SUBTYPE, which is absent for a file system without a subtype.
const SUBTYPE: u64 = 0x100;
/// STATMOUNT_SB_SOURCE, Linux 6.13; it is absent for a mount without a source.
const SOURCE: u64 = 0x200;
/// `mnt_propagation` of a shared mount: MS_SHARED.
const SHARED: u64 = 1 << 20;

/// The size of the fixed part of `struct statmount`; the strings follow.
const HEADER: usize = 512;
/// Two paths and a source, each of at most PATH_MAX bytes, and the type.
const REPLY: usize = HEADER + 3 * 4096 + 512;
/// The mounts that one call lists.
const BATCH: usize = 256;

/// `struct mnt_id_req` of uapi/linux/mount.h, MNT_ID_REQ_SIZE_VER1.
#[repr(C)]
struct MountIdRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
    namespace: u64,
}

/// The mounts of one mount namespace, asked for one at a time by the ids that statx(2) returns for
/// STATX_MNT_ID_UNIQUE. The value holds nothing open; once the namespace is gone, every call fails with ENOENT.
#[derive(Debug, Clone, Copy)]
pub struct NamespaceMounts {
    namespace: u64,
}

impl NamespaceMounts {
    /// The mounts of an open mount namespace. None where the kernel does not show all that [`Self::get`] returns
    /// (before Linux 6.13), or where something refuses the calls: then mountinfo has to be read.
    pub fn of(namespace: BorrowedFd<'_>) -> Option<Self> {
        let mut id = 0u64;
        // SAFETY: writes one u64.
        let done = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_MNTNS_ID, &raw mut id) };
        let mounts = (done == 0).then_some(Self { namespace: id })?;
        let root = *mounts.list(LSMT_ROOT, 0, 1).ok()?.first()?;
        mounts.stat(root).ok()?.is_complete().then_some(mounts)
    }

    /// The mount with this id, without its options and those of its file system; None if it is not in the namespace.
    /// Its `id` and `parent` are those of mountinfo.
    pub fn get(&self, id: u64) -> Result<Option<MountPoint>, SysError> {
        match self.stat(id) {
            Err(Errno::NOENT) => Ok(None),
            other => Ok(Some(other.map_err(fail("stat"))?.mount().ok_or(Errno::INVAL).map_err(fail("stat"))?)),
        }
    }

    /// Calls `visit` with each mount beneath the mount with this id, at any depth.
    pub fn beneath(&self, id: u64, mut visit: impl FnMut(MountPoint) -> Result<(), SysError>) -> Result<(), SysError> {
        let mut after = 0;
        loop {
            let ids = self.list(id, after, BATCH).map_err(fail("list"))?;
            for id in &ids {
                // A mount that is gone by now is not on any path.
                if let Some(mount) = self.get(*id)? {
                    visit(mount)?;
                }
            }
            match ids.last() {
                Some(last) if ids.len() == BATCH => after = *last,
                _ => return Ok(()),
            }
        }
    }

    fn list(&self, beneath: u64, after: u64, count: usize) -> Result<Vec<u64>, Errno> {
        let request = self.request(beneath, after);
        let mut ids = Vec::with_capacity(count);
        // SAFETY: the kernel reads `request` and writes at most `count` ids.
        let found = unsafe { libc::syscall(LISTMOUNT, &raw const request, ids.as_mut_ptr(), count, 0) };
        let found = usize::try_from(found).map_err(|_| last_errno())?;
        // SAFETY: the kernel has written `found` ids, which is at most the capacity.
        unsafe { ids.set_len(found) };
        Ok(ids)
    }

    fn stat(&self, id: u64) -> Result<Reply, Errno> {
        let request = self.request(id, FIELDS | SUBTYPE | SOURCE);
        let mut reply = Reply(Box::new_uninit_slice(REPLY / 8));
        // SAFETY: the kernel reads `request` and writes at most the given number of bytes.
        let done = unsafe { libc::syscall(STATMOUNT, &raw const request, reply.0.as_mut_ptr(), REPLY, 0) };
        if done == 0 { Ok(reply) } else { Err(last_errno()) }
    }

    fn request(&self, mount: u64, param: u64) -> MountIdRequest {
        let size = size_of::<MountIdRequest>() as u32;
        MountIdRequest { size, spare: 0, mount, param, namespace: self.namespace }
    }
}

fn fail(doing: &'static str) -> impl Fn(Errno) -> SysError {
    move |errno| SysError::io(doing, "the mounts of the container")(io::Error::from(errno))
}

/// `struct statmount` of uapi/linux/mount.h, with its strings.
struct Reply(Box<[MaybeUninit<u64>]>);

impl Reply {
    /// The bytes that the kernel has written: the fixed part, then the strings.
    fn bytes(&self) -> &[u8] {
        // SAFETY: a successful call writes the whole fixed part (fs/namespace.c, copy_statmount_to_user).
        let header = unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), HEADER) };
        let size = u32_at(header, 0) as usize;
        // SAFETY: `size` counts the fixed part and the strings, all of which the kernel has written.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), size.clamp(HEADER, REPLY)) }
    }

    fn has(&self, fields: u64) -> bool {
        u64_at(self.bytes(), 8) & fields == fields
    }

    fn is_complete(&self) -> bool {
        self.has(FIELDS | SOURCE)
    }

    fn mount(&self) -> Option<MountPoint> {
        if !self.has(FIELDS) {
            return None;
        }
        let bytes = self.bytes();
        let string = |at: usize| {
            let rest = bytes.get(HEADER + u32_at(bytes, at) as usize..)?;
            Some(rest.split(|byte| *byte == 0).next()?.to_vec())
        };
        let path = |at| Some(PathBuf::from(std::ffi::OsString::from_vec(string(at)?)));
        let text = |at| Some(String::from_utf8_lossy(&string(at)?).into_owned());
        let mut kind = text(36)?;
        if self.has(SUBTYPE) {
            kind = format!("{kind}.{}", text(120)?);
        }
        let shared = (u64_at(bytes, 72) & SHARED != 0).then(|| u32::try_from(u64_at(bytes, 80)).unwrap_or(u32::MAX));
        Some(MountPoint {
            id: u32_at(bytes, 56),
            parent: u32_at(bytes, 60),
            device: (u32_at(bytes, 16), u32_at(bytes, 20)),
            root: path(104)?,
            point: path(108)?,
            options: Vec::new(),
            propagation: Propagation { shared, ..Propagation::default() },
            kind,
            source: if self.has(SOURCE) { text(124)? } else { String::new() },
            super_options: Vec::new(),
        })
    }
}

/// A field of the fixed part.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A field of the fixed part.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::mounts::own_mounts;

    /// Where the kernel has the calls, they show what mountinfo shows.
    #[test]
    fn mounts_are_those_of_mountinfo() {
        let namespace = File::open("/proc/self/ns/mnt").unwrap();
        let Some(mounts) = NamespaceMounts::of(namespace.as_fd()) else { return };
        let mut all = Vec::new();
        mounts
            .beneath(LSMT_ROOT, |mount| {
                all.push(mount);
                Ok(())
            })
            .unwrap();
        assert!(!all.is_empty());
        for listed in own_mounts().unwrap() {
            let Some(mount) = all.iter().find(|mount| mount.id == listed.id) else { continue };
            let propagation = Propagation { shared: listed.propagation.shared, ..Propagation::default() };
            let source = if listed.source == "none" { mount.source.clone() } else { listed.source };
            let expected = MountPoint { options: Vec::new(), super_options: Vec::new(), propagation, source, ..listed };
            assert_eq!(*mount, expected);
        }
        assert!(mounts.get(1 << 62).unwrap().is_none(), "no mount has this id");
    }
}
