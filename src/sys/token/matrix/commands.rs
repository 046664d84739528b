//! The commands of bpf(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::attempts::{BTF_LOAD, MAP_CREATE, PROG_LOAD, Smallest, TOKEN_FD, btf, map, program};
use super::attr::RawAttr;
use super::{Lab, needs_token, smallest};
use crate::model::delegation::Category;
use crate::model::token_matrix::{MatrixOutcome, MatrixRow, MatrixSet};

/// `enum bpf_map_type`
const HASH: u32 = 1;
const ARRAY: u32 = 2;
/// `enum bpf_prog_type`
const SOCKET_FILTER: Smallest = Smallest { program_type: 1, attach_type: 0, attach_btf_id: 0 };
const CLASSIFIER: Smallest = Smallest { program_type: 3, attach_type: TCX_INGRESS, attach_btf_id: 0 };
const TRACING: u32 = 26;
const RAW_TRACEPOINT: Smallest = Smallest { program_type: 17, attach_type: 0, attach_btf_id: 0 };
/// `enum bpf_attach_type`
const TCX_INGRESS: u32 = 46;
const ITER: u32 = 28;
/// The interface lo.
const LOOPBACK: u32 = 1;
/// `BPF_F_PATH_FD`
const PATH_FD: u32 = 1 << 14;

/// One row for each known command.
pub(super) fn rows(lab: &Lab) -> Vec<MatrixRow> {
    let prepared = Prepared::make(lab);
    let commands = (0..64).map_while(|cmd| Some((cmd, Category::Cmds.name(cmd)?)));
    let row = |(cmd, name): (u32, &str)| {
        let outcome = match &prepared {
            Ok(prepared) => prepared.outcome(cmd),
            Err(errno) => MatrixOutcome::NotTried(format!("its objects cannot be created: {errno}")),
        };
        let token = needs_token(&outcome, || match (&prepared, name) {
            (Ok(prepared), "btf_get_fd_by_id") => prepared.by_id(cmd, name, None),
            _ => without(lab, cmd),
        });
        MatrixRow { set: MatrixSet::Cmds, name: name.to_owned(), program: None, token, outcome, attach: None }
    };
    commands.map(row).collect()
}

/// The commands that take a token, without one; the others never need it.
fn without(lab: &Lab, cmd: u32) -> Result<(), Errno> {
    match cmd {
        MAP_CREATE => map(lab, ARRAY, None).map(drop),
        PROG_LOAD => program(SOCKET_FILTER, None).map(drop),
        BTF_LOAD => btf(None).map(drop),
        _ => Ok(()),
    }
}

/// Objects that were created with every capability.
struct Prepared<'a> {
    lab: &'a Lab,
    hash: OwnedFd,
    frozen: OwnedFd,
    filter: OwnedFd,
    classifier: OwnedFd,
    types: OwnedFd,
    /// None where the kernel refuses such programs.
    traced: Option<OwnedFd>,
    iterator: Option<OwnedFd>,
}

impl<'a> Prepared<'a> {
    fn make(lab: &'a Lab) -> Result<Self, Errno> {
        let token = Some(lab.token());
        Ok(Self {
            lab,
            hash: map(lab, HASH, token)?,
            frozen: map(lab, HASH, token)?,
            filter: program(SOCKET_FILTER, token)?,
            classifier: program(CLASSIFIER, token)?,
            types: btf(token)?,
            traced: program(RAW_TRACEPOINT, token).ok(),
            iterator: lab.id("bpf_iter_task").and_then(|id| {
                let iterator = Smallest { program_type: TRACING, attach_type: ITER, attach_btf_id: id };
                program(iterator, token).ok()
            }),
        })
    }

    fn outcome(&self, cmd: u32) -> MatrixOutcome {
        let not = |why: &str| MatrixOutcome::NotTried(why.to_owned());
        let name = Category::Cmds.name(cmd).unwrap_or_default();
        match name {
            "map_create" => smallest(|| map(self.lab, ARRAY, Some(self.lab.token())).map(drop)),
            "prog_load" => smallest(|| program(SOCKET_FILTER, Some(self.lab.token())).map(drop)),
            "btf_load" => smallest(|| btf(Some(self.lab.token())).map(drop)),
            "token_create" => smallest(|| RawAttr::new().fd(4, self.lab.root.as_fd()).open(cmd).map(drop)),
            "map_lookup_elem" | "map_lookup_and_delete_elem" | "map_delete_elem" => smallest(|| self.with_element(cmd)),
            "map_update_elem" => smallest(|| self.update(cmd)),
            "map_get_next_key" => smallest(|| self.with_element(cmd)),
            "map_freeze" => smallest(|| match RawAttr::new().fd(0, self.frozen.as_fd()).call(cmd) {
                // It was frozen by the attempt before.
                Err(Errno::BUSY) | Ok(_) => Ok(()),
                Err(errno) => Err(errno),
            }),
            "map_lookup_batch" | "map_lookup_and_delete_batch" | "map_update_batch" | "map_delete_batch" => {
                smallest(|| self.batch(cmd))
            }
            "obj_pin" => smallest(|| self.pinned("pin", |_| Ok(()))),
            "obj_get" => smallest(|| {
                self.pinned("get", |path| {
                    RawAttr::new().reads(0, path).u32(12, PATH_FD).fd(16, self.lab.root.as_fd()).open(cmd).map(drop)
                })
            }),
            "prog_attach" | "prog_detach" | "prog_query" => smallest(|| self.on_interface(name)),
            "prog_test_run" => smallest(|| {
                let (packet, mut out) = ([0u8; 64], [0u8; 64]);
                RawAttr::new()
                    .fd(0, self.filter.as_fd())
                    .u32(8, 64)
                    .u32(12, 64)
                    .reads(16, &packet)
                    .writes(24, &mut out)
                    .call(cmd)
                    .map(drop)
            }),
            "obj_get_info_by_fd" => smallest(|| {
                let mut info = [0u8; 80];
                RawAttr::new().fd(0, self.hash.as_fd()).u32(4, 80).writes(8, &mut info).call(cmd).map(drop)
            }),
            "prog_get_next_id" | "map_get_next_id" | "btf_get_next_id" | "link_get_next_id" => {
                smallest(|| match RawAttr::new().call(cmd) {
                    // ENOENT: no object has a higher id.
                    Err(Errno::NOENT) | Ok(_) => Ok(()),
                    Err(errno) => Err(errno),
                })
            }
            "prog_get_fd_by_id" | "map_get_fd_by_id" | "btf_get_fd_by_id" | "link_get_fd_by_id" => {
                smallest(|| self.by_id(cmd, name, Some(self.lab.token())))
            }
            "raw_tracepoint_open" => match &self.traced {
                Some(traced) => smallest(|| {
                    let name = c"bpf_test_finish".to_bytes_with_nul();
                    RawAttr::new().reads(0, name).fd(8, traced.as_fd()).open(cmd).map(drop)
                }),
                None => not("the kernel loads no raw tracepoint program"),
            },
            "task_fd_query" => smallest(|| {
                let mut buffer = [0u8; 64];
                let attr = RawAttr::new().u32(0, std::process::id()).fd(4, self.filter.as_fd());
                match attr.u32(12, 64).writes(16, &mut buffer).call(cmd) {
                    // The descriptor is not one of a perf event, which is judged last.
                    Err(Errno::NOTSUP) | Ok(_) => Ok(()),
                    Err(errno) => Err(errno),
                }
            }),
            "link_create" | "link_update" | "link_detach" => smallest(|| self.link(name)),
            "enable_stats" => smallest(|| RawAttr::new().open(cmd).map(drop)),
            "iter_create" => match &self.iterator {
                Some(iterator) => smallest(|| iterate(cmd, iterator)),
                None => not("the kernel loads no iterator"),
            },
            "prog_bind_map" => {
                smallest(|| RawAttr::new().fd(0, self.filter.as_fd()).fd(4, self.hash.as_fd()).call(cmd).map(drop))
            }
            "prog_stream_read_by_fd" => smallest(|| {
                let mut buffer = [0u8; 64];
                let attr = RawAttr::new().writes(0, &mut buffer).u32(8, 64).u32(12, 1).fd(16, self.filter.as_fd());
                attr.call(cmd).map(drop)
            }),
            _ => not("needs a registered struct_ops map"),
        }
    }

    fn update(&self, cmd: u32) -> Result<(), Errno> {
        let (key, value) = ([7u32], [9u64]);
        RawAttr::new().fd(0, self.hash.as_fd()).reads(8, &key).reads(16, &value).call(cmd).map(drop)
    }

    /// A command about an element that is there.
    fn with_element(&self, cmd: u32) -> Result<(), Errno> {
        const MAP_UPDATE_ELEM: u32 = 2;
        self.update(MAP_UPDATE_ELEM)?;
        const MAP_DELETE_ELEM: u32 = 3;
        let key = [7u32];
        let mut value = [0u8; 8];
        let attr = RawAttr::new().fd(0, self.hash.as_fd()).reads(8, &key);
        let attr = if cmd == MAP_DELETE_ELEM { attr } else { attr.writes(16, &mut value) };
        match attr.call(cmd) {
            // There is no further key.
            Err(Errno::NOENT) | Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn batch(&self, cmd: u32) -> Result<(), Errno> {
        let (mut cursor, mut keys, mut values) = ([0u8; 4], [0u8; 64], [0u8; 64]);
        let attr = RawAttr::new().writes(8, &mut cursor).writes(16, &mut keys).writes(24, &mut values);
        match attr.u32(32, 1).fd(36, self.hash.as_fd()).call(cmd) {
            Err(Errno::NOENT | Errno::NOSPC) | Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Pins the hash in the bpffs, calls `f` with its path there, and removes the pin.
    fn pinned(&self, name: &str, f: impl Fn(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
        const OBJ_PIN: u32 = 6;
        let path = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
        let attr = RawAttr::new().reads(0, path.as_bytes_with_nul()).fd(8, self.hash.as_fd());
        attr.u32(12, PATH_FD).fd(16, self.lab.root.as_fd()).call(OBJ_PIN)?;
        let done = f(path.as_bytes_with_nul());
        rustix::fs::unlinkat(&self.lab.root, &path, rustix::fs::AtFlags::empty())?;
        done
    }

    /// Attaches the classifier to lo without a link, asks what is there, and detaches it.
    fn on_interface(&self, name: &str) -> Result<(), Errno> {
        const PROG_ATTACH: u32 = 8;
        const PROG_DETACH: u32 = 9;
        const PROG_QUERY: u32 = 16;
        let attr = || RawAttr::new().u32(0, LOOPBACK).u32(8, TCX_INGRESS);
        if name == "prog_query" {
            return RawAttr::new().u32(0, LOOPBACK).u32(4, TCX_INGRESS).call(PROG_QUERY).map(drop);
        }
        attr().fd(4, self.classifier.as_fd()).call(PROG_ATTACH)?;
        attr().fd(4, self.classifier.as_fd()).call(PROG_DETACH).map(drop)
    }

    fn by_id(&self, cmd: u32, name: &str, token: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        const OBJ_GET_INFO_BY_FD: u32 = 15;
        /// Offsets of the id in `bpf_prog_info` and `bpf_map_info`, and in `bpf_btf_info`.
        const ID: usize = 4;
        const BTF_ID: usize = 12;
        let (object, at) = match name {
            "prog_get_fd_by_id" => (&self.filter, ID),
            "map_get_fd_by_id" => (&self.hash, ID),
            "btf_get_fd_by_id" => (&self.types, BTF_ID),
            // A link of this process.
            _ => {
                let link = self.new_link()?;
                return open_id(cmd, link_id(&link)?, None);
            }
        };
        let mut info = [0u8; 80];
        let size = if name == "btf_get_fd_by_id" { 32 } else { 80 };
        RawAttr::new().fd(0, object.as_fd()).u32(4, size).writes(8, &mut info).call(OBJ_GET_INFO_BY_FD)?;
        let id = info.get(at..at + 4).and_then(|id| id.try_into().ok()).map_or(0, u32::from_ne_bytes);
        // Only this command takes a token, since about Linux 6.15.
        open_id(cmd, id, token.filter(|_| name == "btf_get_fd_by_id"))
    }

    fn new_link(&self) -> Result<OwnedFd, Errno> {
        const LINK_CREATE: u32 = 28;
        RawAttr::new().fd(0, self.classifier.as_fd()).u32(4, LOOPBACK).u32(8, TCX_INGRESS).open(LINK_CREATE)
    }

    fn link(&self, name: &str) -> Result<(), Errno> {
        const LINK_UPDATE: u32 = 29;
        const LINK_DETACH: u32 = 34;
        let link = self.new_link()?;
        match name {
            "link_update" => RawAttr::new().fd(0, link.as_fd()).fd(4, self.classifier.as_fd()).call(LINK_UPDATE).map(drop),
            "link_detach" => RawAttr::new().fd(0, link.as_fd()).call(LINK_DETACH).map(drop),
            _ => Ok(()),
        }
    }
}

fn iterate(cmd: u32, iterator: &OwnedFd) -> Result<(), Errno> {
    const LINK_CREATE: u32 = 28;
    let link = RawAttr::new().fd(0, iterator.as_fd()).u32(8, ITER).open(LINK_CREATE)?;
    RawAttr::new().fd(0, link.as_fd()).open(cmd).map(drop)
}

fn open_id(cmd: u32, id: u32, token: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let attr = RawAttr::new().u32(0, id);
    let attr = if let Some(token) = token { attr.u32(8, TOKEN_FD).fd(12, token) } else { attr };
    attr.open(cmd).map(drop)
}

/// The id in `bpf_link_info`.
fn link_id(link: &OwnedFd) -> Result<u32, Errno> {
    const OBJ_GET_INFO_BY_FD: u32 = 15;
    let mut info = [0u8; 48];
    RawAttr::new().fd(0, link.as_fd()).u32(4, 48).writes(8, &mut info).call(OBJ_GET_INFO_BY_FD)?;
    Ok(info.get(4..8).and_then(|id| id.try_into().ok()).map_or(0, u32::from_ne_bytes))
}
