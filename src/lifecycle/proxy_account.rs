//! The account of a container whose bpf(2) calls are proxied: the processes that serve it, and the objects that they have
//! made for it. A container and each exec in it have a process of their own; limits and owners are those of all.
//!
//! A file for each container id, which the processes change under its lock. The last process removes it; gc removes the
//! files of processes that were killed. The layout: the generation and the number of the owner (64 bits each), a slot for
//! each process (its pid and start time), then one JSON document per line and object. Objects are only added, until a
//! process writes those anew that still exist and begins another generation.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::model::ids::{ContainerId, OwnerNo, Pid, ProcessIdentity};
use crate::model::proxy::usage::HeldObject;
use crate::paths::Paths;
use crate::sys::SysError;
use crate::sys::fsutil::TrustError;
use crate::sys::fsutil::{self, FileLock};
use crate::sys::pid::{self, ProcessError};

/// Processes that serve one container at the same time: its own, and one for each exec. The socket has a limit for all
/// containers of the host, and one container must not use it up.
pub const PROCESSES_MAX: usize = 64;

/// Where the slots begin: behind generation and owner.
const SLOTS: u64 = 16;
/// Size in bytes of a slot: a pid and a start time, 64 bits each.
const SLOT: usize = 16;
/// Where the objects begin.
const OBJECTS: u64 = SLOTS + (PROCESSES_MAX * SLOT) as u64;

/// Objects in bytes that are kept before those that are gone are left out.
const WHOLE_MAX: u64 = 512 << 10;

/// An account cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The directory of accounts cannot be used.
    #[error(transparent)]
    Directory(#[from] TrustError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The container is served by as many processes as are allowed.
    #[error(
        "container {id} has {PROCESSES_MAX} processes of the proxy already, one for itself and one for each exec: bpf(2) in this one gets ENOSYS"
    )]
    TooMany {
        /// The container.
        id: ContainerId,
    },
    /// Another container has the id now.
    #[error("container {id} has ended, and its id belongs to another one")]
    Ended {
        /// The container.
        id: ContainerId,
    },
}

/// This process's place in the account of a container.
#[derive(Debug)]
pub struct ProxyAccount {
    id: ContainerId,
    path: PathBuf,
    file: File,
    lock: Rc<OwnedFd>,
    slot: usize,
    /// What of the file was read: the generation, and where the next object begins.
    generation: u64,
    position: u64,
}

/// The account of a container, while other processes wait.
#[derive(Debug)]
pub struct LockedAccount<'a> {
    account: &'a mut ProxyAccount,
    /// Objects that other processes have made since the account was last locked.
    pub learned: Vec<HeldObject>,
}

impl ProxyAccount {
    /// Enters this process into the account of a container.
    ///
    /// # Errors
    /// If [`PROCESSES_MAX`] of them are in it, or the file cannot be used.
    pub fn join(paths: &Paths, id: &ContainerId) -> Result<Self, AccountError> {
        let directory = paths.proxy_accounts();
        fsutil::ensure_directory(&paths.run, 0o755)?;
        fsutil::ensure_directory(&directory, 0o700)?;
        let path = directory.join(id.as_str());
        loop {
            let (file, lock) = open(&path, true).map_err(SysError::io("open", path.display().to_string()))?;
            let lock = Rc::new(lock);
            let held = FileLock::wait(&lock, &path)?;
            if !is_at(&file, &path) {
                // The last process has removed it in between.
                continue;
            }
            let mut account =
                Self { id: id.clone(), path, file, lock: Rc::clone(&lock), slot: 0, generation: 0, position: OBJECTS };
            let slots = account.slots()?;
            let free = slots.iter().position(Option::is_none);
            account.slot = free.ok_or_else(|| AccountError::TooMany { id: id.clone() })?;
            let own = pid::own_identity()?;
            account.write_slot(own.pid.get().into(), own.start_time)?;
            drop(held);
            return Ok(account);
        }
    }

    /// Runs `work` while no other process adds to the account. The container is that of the owner's record: with another
    /// one of the same id, nothing is shared.
    ///
    /// # Errors
    /// If the file cannot be read, or the id belongs to a newer container.
    pub fn locked<T>(&mut self, owner: OwnerNo, work: impl FnOnce(LockedAccount<'_>) -> T) -> Result<T, AccountError> {
        let lock = Rc::clone(&self.lock);
        let _held = FileLock::wait(&lock, &self.path)?;
        let mut header = [0; SLOTS as usize];
        let length = self.read_at(&mut header, 0)?;
        let word = |at: usize| header[at..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
        let (mut generation, recorded) = if length == header.len() { (word(0), word(8)) } else { (0, 0) };
        if recorded > owner.0 {
            return Err(AccountError::Ended { id: self.id.clone() });
        }
        if recorded < owner.0 {
            // What is there belongs to a container of the same id that has ended.
            generation += 1;
            self.file.set_len(OBJECTS).map_err(self.failed("shorten"))?;
            self.write_at(&[generation.to_ne_bytes(), owner.0.to_ne_bytes()].concat(), 0)?;
        }
        if generation != self.generation {
            (self.generation, self.position) = (generation, OBJECTS);
        }
        let learned = self.read_objects()?;
        Ok(work(LockedAccount { account: self, learned }))
    }

    /// Leaves the account; the last process removes it.
    pub fn leave(mut self) {
        let lock = Rc::clone(&self.lock);
        let Ok(_held) = FileLock::wait(&lock, &self.path) else { return };
        let left = self.write_slot(0, 0);
        let is_last = left.is_ok() && self.slots().is_ok_and(|slots| slots.iter().all(Option::is_none));
        if is_last && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// The objects behind what was read.
    fn read_objects(&mut self) -> Result<Vec<HeldObject>, AccountError> {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        loop {
            let length = self.read_at(&mut part, self.position + bytes.len() as u64)?;
            bytes.extend_from_slice(&part[..length]);
            if length < part.len() {
                break;
            }
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.position += whole as u64;
        if whole < bytes.len() {
            // A process was killed while it wrote.
            self.file.set_len(self.position).map_err(self.failed("shorten"))?;
        }
        let lines = bytes[..whole].split(|byte| *byte == b'\n');
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// The living processes in the slots.
    fn slots(&self) -> Result<Vec<Option<ProcessIdentity>>, AccountError> {
        let mut bytes = vec![0; PROCESSES_MAX * SLOT];
        self.read_at(&mut bytes, SLOTS)?;
        let mut slots = Vec::new();
        for slot in bytes.as_chunks::<SLOT>().0 {
            let word = |at: usize| slot[at..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
            let pid = u32::try_from(word(0)).ok().and_then(|pid| Pid::new(pid).ok());
            let process = pid.map(|pid| ProcessIdentity { pid, start_time: word(8) });
            slots.push(process.filter(|process| pid::is_alive(process).unwrap_or(true)));
        }
        Ok(slots)
    }

    fn write_slot(&mut self, pid: u64, start_time: u64) -> Result<(), AccountError> {
        let at = SLOTS + (self.slot * SLOT) as u64;
        self.write_at(&[pid.to_ne_bytes(), start_time.to_ne_bytes()].concat(), at)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<usize, AccountError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read")(error).into()),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), AccountError> {
        Ok(self.file.write_all_at(bytes, at).map_err(self.failed("write"))?)
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> SysError + use<> {
        SysError::io(doing, self.path.display().to_string())
    }
}

impl LockedAccount<'_> {
    /// Adds an object. `all` are the container's objects with it; now and then, those of them are written anew that
    /// `exists`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(
        &mut self,
        object: &HeldObject,
        all: &[HeldObject],
        exists: impl Fn(&HeldObject) -> bool,
    ) -> Result<(), AccountError> {
        let account = &mut *self.account;
        if account.position < OBJECTS + WHOLE_MAX {
            let line = line(object);
            account.write_at(&line, account.position)?;
            account.position += line.len() as u64;
            return Ok(());
        }
        let lines: Vec<u8> = all.iter().filter(|object| exists(object)).flat_map(line).collect();
        account.generation += 1;
        account.file.set_len(OBJECTS).map_err(account.failed("shorten"))?;
        account.write_at(&account.generation.to_ne_bytes(), 0)?;
        account.write_at(&lines, OBJECTS)?;
        account.position = OBJECTS + lines.len() as u64;
        Ok(())
    }
}

fn line(object: &HeldObject) -> Vec<u8> {
    let mut line = serde_json::to_vec(object).unwrap_or_default();
    line.push(b'\n');
    line
}

fn open(path: &Path, create: bool) -> io::Result<(File, OwnedFd)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600);
    let file = options.open(path)?;
    let lock = file.try_clone()?.into();
    Ok((file, lock))
}

/// True if a file is still the one at its path.
fn is_at(file: &File, path: &Path) -> bool {
    let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    inode(file.metadata()) == inode(fs::symlink_metadata(path))
}

/// Removes the accounts whose processes were all killed.
///
/// # Errors
/// If the directory cannot be read. A file that cannot be removed is left.
pub fn remove_dead(paths: &Paths) -> Result<(), AccountError> {
    let directory = paths.proxy_accounts();
    let names = match fsutil::names_in(&directory) {
        Err(_) if !directory.exists() => return Ok(()),
        names => names?,
    };
    for name in names {
        let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else { continue };
        let path = directory.join(&name);
        let Ok((file, lock)) = open(&path, false) else { continue };
        let account = ProxyAccount { id, path, file, lock: Rc::new(lock), slot: 0, generation: 0, position: OBJECTS };
        let lock = Rc::clone(&account.lock);
        let _held = FileLock::wait(&lock, &account.path)?;
        let is_dead = account.slots()?.iter().all(Option::is_none);
        if is_dead && is_at(&account.file, &account.path) {
            let _ = fs::remove_file(&account.path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proxy::usage::UsedKind;

    fn object(id: u32) -> HeldObject {
        HeldObject { kind: UsedKind::Map, id, kernel_type: 2, name: "m".to_owned(), bytes: 8, digest: None, place: None }
    }

    fn add(account: &mut ProxyAccount, owner: u64, id: u32) -> Vec<u32> {
        let added = account.locked(OwnerNo(owner), |mut locked| {
            let learned = std::mem::take(&mut locked.learned);
            locked.add(&object(id), &[object(id)], |_| true).unwrap();
            learned.iter().map(|object| object.id).collect()
        });
        added.unwrap()
    }

    fn lab() -> (tempfile::TempDir, Paths, ContainerId) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::below(directory.path());
        fs::create_dir_all(&paths.run).unwrap();
        (directory, paths, "web".parse().unwrap())
    }

    #[test]
    fn processes_of_a_container_see_what_the_others_made() {
        let (_directory, paths, id) = lab();
        let [mut one, mut two] = [(); 2].map(|()| ProxyAccount::join(&paths, &id).unwrap());
        assert_eq!(add(&mut one, 7, 1), [0; 0]);
        assert_eq!(add(&mut two, 7, 2), [1]);
        assert_eq!(add(&mut one, 7, 3), [2]);
        // Another container of the same id begins anew, and the old one's processes are told.
        let mut new = ProxyAccount::join(&paths, &id).unwrap();
        assert_eq!(add(&mut new, 8, 4), [0; 0]);
        assert!(matches!(one.locked(OwnerNo(7), |_| ()), Err(AccountError::Ended { .. })));
        let path = paths.proxy_accounts().join("web");
        for account in [one, two, new] {
            assert!(path.exists());
            account.leave();
        }
        assert!(!path.exists());
    }

    #[test]
    fn what_is_gone_is_left_out_now_and_then() {
        let (_directory, paths, id) = lab();
        let [mut one, mut two] = [(); 2].map(|()| ProxyAccount::join(&paths, &id).unwrap());
        let mut largest = 0;
        for id in 0..20_000 {
            add(&mut one, 7, id);
            largest = fs::metadata(paths.proxy_accounts().join("web")).unwrap().len().max(largest);
        }
        assert!(largest < OBJECTS + WHOLE_MAX + 4096, "{largest}");
        let learned = add(&mut two, 7, 1);
        assert_eq!(learned.last(), Some(&19_999));
        assert!(learned.len() < 20_000, "{}", learned.len());
    }

    #[test]
    fn an_object_that_was_half_written_is_overwritten() {
        let (_directory, paths, id) = lab();
        let [mut one, mut two] = [(); 2].map(|()| ProxyAccount::join(&paths, &id).unwrap());
        add(&mut one, 7, 1);
        one.write_at(&vec![b'x'; 300], one.position).unwrap();
        assert_eq!(add(&mut two, 7, 2), [1]);
        assert_eq!(add(&mut one, 7, 3), [2]);
    }

    #[test]
    fn the_number_of_processes_is_limited_and_dead_ones_do_not_count() {
        let (_directory, paths, id) = lab();
        let mut all: Vec<_> = (0..PROCESSES_MAX).map(|_| ProxyAccount::join(&paths, &id).unwrap()).collect();
        assert!(matches!(ProxyAccount::join(&paths, &id), Err(AccountError::TooMany { .. })));
        // The start time of no process.
        all[5].write_slot(1, u64::MAX).unwrap();
        let again = ProxyAccount::join(&paths, &id).unwrap();
        assert_eq!(again.slot, 5);
        remove_dead(&paths).unwrap();
        assert!(paths.proxy_accounts().join("web").exists());
        for account in &mut all {
            account.write_slot(1, u64::MAX).unwrap();
        }
        remove_dead(&paths).unwrap();
        assert!(!paths.proxy_accounts().join("web").exists());
    }
}
