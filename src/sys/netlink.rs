//! Traffic control classifiers by rtnetlink, in the calling thread's network namespace, for kernels without tcx links.
//!
//! A filter is not an object with a descriptor: it exists until it is removed or its interface is. It is identified by
//! interface, direction, priority and handle. Its name ensures that only our own filters are removed.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::model::attach_point::Direction;

/// A cls_bpf filter on clsact.
#[derive(Debug, Clone, Copy)]
pub struct TcFilter<'a> {
    /// Index of the interface.
    pub interface: u32,
    /// The direction.
    pub direction: Direction,
    /// `pref`: filters with lower priorities run first.
    pub priority: u16,
    /// The handle within that priority.
    pub handle: u32,
    /// The name, shown by tc(8), by which we recognize our own filters.
    pub name: &'a str,
}

/// `RTM_*` of uapi/linux/rtnetlink.h
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// `NLM_F_*` of uapi/linux/netlink.h
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// `TCA_*` and `TCA_BPF_*`
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
/// TCA_BPF_FLAG_ACT_DIRECT: the program's return value is the verdict.
const DIRECT: u32 = 1;
/// Sizes of `struct nlmsghdr` and `struct tcmsg` in bytes.
const MESSAGE: usize = 16;
const TC_MESSAGE: usize = 20;

/// Creates the clsact qdisc, if it does not exist, and the filter. The qdisc is not removed later: it has no effect by
/// itself, and others may use it by then.
///
/// # Errors
/// EEXIST if the handle is in use; EINVAL if another kind of filter has the priority, or if the interface has the
/// `ingress` qdisc instead of clsact.
pub fn add_filter(filter: &TcFilter<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    /// TC_H_CLSACT, also the qdisc's handle
    const CLSACT: u32 = 0xffff_fff1;
    let mut qdisc = NetlinkMessage::new(NEW_QDISC, ACK | CREATE | EXCLUSIVE, filter.interface, 0xffff_0000, CLSACT, 0);
    qdisc.attribute(KIND, b"clsact\0");
    match qdisc.send() {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let mut message = filter.message(NEW_FILTER, ACK | CREATE | EXCLUSIVE);
    message.attribute(KIND, b"bpf\0");
    let mut options = Vec::new();
    put(&mut options, BPF_FD, &program.as_raw_fd().to_ne_bytes());
    put(&mut options, BPF_NAME, &[filter.name.as_bytes(), b"\0"].concat());
    put(&mut options, BPF_FLAGS, &DIRECT.to_ne_bytes());
    message.attribute(OPTIONS, &options);
    message.send().map(drop)
}

/// Removes the filter. Returns false if it does not exist, if it has another name, or if the interface is gone.
pub fn remove_filter(filter: &TcFilter<'_>) -> Result<bool, Errno> {
    match filter.message(GET_FILTER, 0).send() {
        Ok(Some(answer)) if named(&answer) == Some(filter.name.as_bytes()) => {}
        // The kernel has several errnos for a missing qdisc, priority or handle.
        Ok(_) | Err(Errno::NOENT | Errno::INVAL | Errno::NODEV) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    match filter.message(DELETE_FILTER, ACK).send() {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::INVAL | Errno::NODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
}

impl TcFilter<'_> {
    fn message(&self, kind: u16, flags: u16) -> NetlinkMessage {
        // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
        let parent = match self.direction {
            Direction::Ingress => 0xffff_fff2,
            Direction::Egress => 0xffff_fff3,
        };
        const ETH_P_ALL: u16 = 3;
        let info = u32::from(self.priority) << 16 | u32::from(ETH_P_ALL.to_be());
        NetlinkMessage::new(kind, flags, self.interface, self.handle, parent, info)
    }
}

struct NetlinkMessage(Vec<u8>);

impl NetlinkMessage {
    fn new(kind: u16, flags: u16, interface: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        // AF_UNSPEC and padding
        bytes.extend([0; 4]);
        bytes.extend([interface, handle, parent, info].iter().flat_map(|n| n.to_ne_bytes()));
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        put(&mut self.0, kind, value);
    }

    /// Sends the message and returns the answer, unless it is an acknowledgement.
    fn send(mut self) -> Result<Option<Vec<u8>>, Errno> {
        const ERROR: u16 = 2;
        let length = u32::try_from(self.0.len()).map_err(|_| Errno::MSGSIZE)?;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        // NETLINK_ROUTE is the default protocol, 0.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // The kernel queues its answer before send(2) returns.
        send(&socket, &self.0, SendFlags::empty())?;
        let mut answer = vec![0; 8192];
        let (got, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT)?;
        answer.truncate(got);
        let kind = answer.get(4..6).and_then(<[u8]>::first_chunk).copied().map(u16::from_ne_bytes);
        match (kind, number(&answer, MESSAGE)) {
            (Some(ERROR), Some(0)) => Ok(None),
            (Some(ERROR), Some(code)) => Err(Errno::from_raw_os_error(code.wrapping_neg().cast_signed())),
            (Some(_), _) => Ok(Some(answer)),
            (None, _) => Err(Errno::BADMSG),
        }
    }
}

/// The name of the filter in the answer to `GET_FILTER`.
fn named(answer: &[u8]) -> Option<&[u8]> {
    let options = attributes(answer.get(MESSAGE + TC_MESSAGE..)?).find(|(kind, _)| *kind == OPTIONS)?.1;
    attributes(options).find(|(kind, _)| *kind == BPF_NAME)?.1.split(|b| *b == 0).next()
}

/// Type and value of each complete attribute.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| rest.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes);
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER
        Some((kind & 0x3fff, value))
    })
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes contain names and numbers only");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_parsed() {
        let mut bytes = Vec::new();
        put(&mut bytes, BPF_NAME, b"abc\0d");
        put(&mut bytes, BPF_FLAGS, &1u32.to_ne_bytes());
        assert_eq!(bytes.len(), 12 + 8);
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(BPF_NAME, &b"abc\0d"[..]), (BPF_FLAGS, &1u32.to_ne_bytes()[..])]);
        let mut answer = vec![0; MESSAGE + TC_MESSAGE];
        put(&mut answer, KIND, b"bpf\0");
        put(&mut answer, OPTIONS | 0x8000, &bytes);
        assert_eq!(named(&answer), Some(&b"abc"[..]));
        for length in 0..answer.len() {
            let _ = named(&answer[..length]);
        }
    }
}
