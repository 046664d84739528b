//! The helpers that programs of container scope may call, by program type.
//!
//! This is an allow list: each helper in it was reviewed; every other helper is refused, including those of newer
//! kernels. Each list is what Linux 6.18 offers to the type without CAP_PERFMON (determined by loading `call F; exit`),
//! without helpers that reach beyond the container and without helpers that are useless unless a kfunc provides their
//! argument (task_storage_*, cgrp_storage_*, kptr_xchg). Added are `get_current_comm`, which Linux 6.12 still offers
//! where the current task is a process of the container, and the socket options that Linux 7.2 offers to cgroup_sock.

/// A set of helper numbers below 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Helpers([u64; 4]);

impl Helpers {
    const fn of(lists: &[&[u8]]) -> Self {
        let mut bits = [0; 4];
        let mut list = 0;
        while list < lists.len() {
            let mut at = 0;
            while at < lists[list].len() {
                let number = lists[list][at];
                bits[number as usize / 64] |= 1 << (number % 64);
                at += 1;
            }
            list += 1;
        }
        Self(bits)
    }

    pub(super) fn contains(self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }
}

/// Maps, clocks, random numbers, ring buffers, timers, loops, strings, dynptrs, and the current task's name: every
/// type.
const BASE: &[u8] = &[
    1, 2, 3, 5, 7, 8, 12, 14, 15, 17, 37, 42, 80, 87, 88, 89, 93, 94, 105, 106, 118, 120, 123, 125, 130, 131, 132, 133, 134,
    160, 164, 169, 170, 171, 172, 181, 182, 195, 197, 198, 199, 200, 201, 202, 203, 208, 209,
];
/// perf_event_output: into the buffers that the map's owner installed.
const OUTPUT: &[u8] = &[25];
/// Sockets of the program's own network namespace: lookups (only with BPF_F_CURRENT_NETNS), and releasing their result.
const LOOKUP: &[u8] = &[84, 85, 86, 99];
/// The packet's socket and its storage, cookies, uid, cgroup and network namespace's cookie.
const PACKET_SOCKET: &[u8] = &[46, 47, 79, 83, 95, 96, 97, 98, 107, 108, 122];
/// Reading and changing a packet, its tunnel key, checksums and route; redirecting it within the network namespace;
/// checking SYN cookies.
const CLASSIFIER: &[u8] = &[
    9, 10, 11, 13, 18, 19, 20, 21, 23, 24, 26, 28, 29, 30, 31, 32, 33, 34, 38, 39, 40, 41, 43, 48, 50, 66, 68, 69, 100, 124,
    135, 151, 152, 155, 163, 192, 206, 207,
];
/// The same for XDP.
const XDP: &[u8] = &[23, 28, 44, 51, 54, 65, 69, 100, 163, 188, 189, 190, 206, 207];
/// The operations of a light-weight tunnel on a packet.
const TUNNEL: &[u8] = &[24, 26, 28, 33, 34, 39];
/// Changing a packet that leaves through a light-weight tunnel.
const TUNNEL_XMIT: &[u8] = &[9, 10, 11, 13, 20, 21, 23, 29, 30, 38, 40, 41, 43, 73, 135];
/// Local storage, the hook's return value, the name of the calling process.
const CGROUP_CALL: &[u8] = &[16, 81, 186, 187];

/// The lists by `enum bpf_prog_type`; None for types that container scope never loads.
pub(super) const fn helpers(program_type: u32) -> Option<Helpers> {
    const SOCKET_FILTER: Helpers = Helpers::of(&[BASE, OUTPUT, &[26, 46, 47, 68, 122]]);
    const SCHED: Helpers = Helpers::of(&[BASE, OUTPUT, LOOKUP, PACKET_SOCKET, CLASSIFIER]);
    const XDPS: Helpers = Helpers::of(&[BASE, OUTPUT, LOOKUP, XDP]);
    const CGROUP_SKB: Helpers = Helpers::of(&[BASE, OUTPUT, LOOKUP, PACKET_SOCKET, &[26, 68, 81, 128, 129]]);
    const CGROUP_SOCK: Helpers = Helpers::of(&[BASE, OUTPUT, CGROUP_CALL, &[46, 49, 57, 107, 122]]);
    const LWT_IN: Helpers = Helpers::of(&[BASE, OUTPUT, TUNNEL, &[73]]);
    const LWT_OUT: Helpers = Helpers::of(&[BASE, OUTPUT, TUNNEL]);
    const LWT_XMIT: Helpers = Helpers::of(&[BASE, OUTPUT, TUNNEL, TUNNEL_XMIT]);
    const SOCK_OPS: Helpers = Helpers::of(&[BASE, OUTPUT, &[46, 49, 53, 57, 59, 70, 81, 96, 107, 108, 122, 142, 143, 144]]);
    const SK_SKB: Helpers = Helpers::of(&[BASE, OUTPUT, LOOKUP, &[9, 26, 38, 39, 43, 46, 47, 50, 52, 72]]);
    const CGROUP_DEVICE: Helpers = Helpers::of(&[BASE, OUTPUT, CGROUP_CALL]);
    const SK_MSG: Helpers = Helpers::of(&[BASE, OUTPUT, &[60, 61, 62, 63, 71, 90, 91, 107, 108, 122]]);
    const SOCK_ADDR: Helpers = Helpers::of(&[BASE, OUTPUT, LOOKUP, CGROUP_CALL, &[46, 49, 57, 64, 107, 108, 122]]);
    const LWT_SEG6: Helpers = Helpers::of(&[BASE, OUTPUT, TUNNEL, &[74, 75, 76]]);
    const SK_REUSEPORT: Helpers = Helpers::of(&[BASE, &[26, 46, 68, 82]]);
    const FLOW_DISSECTOR: Helpers = Helpers::of(&[BASE, &[26]]);
    const CGROUP_SYSCTL: Helpers = Helpers::of(&[BASE, OUTPUT, CGROUP_CALL, &[101, 102, 103, 104]]);
    const CGROUP_SOCKOPT: Helpers = Helpers::of(&[BASE, OUTPUT, CGROUP_CALL, &[49, 57, 96, 107, 108, 122]]);
    const SK_LOOKUP: Helpers = Helpers::of(&[BASE, OUTPUT, &[86, 124]]);
    const NETFILTER: Helpers = Helpers::of(&[BASE]);
    Some(match program_type {
        1 => SOCKET_FILTER,
        3 | 4 => SCHED,
        6 => XDPS,
        8 => CGROUP_SKB,
        9 => CGROUP_SOCK,
        10 => LWT_IN,
        11 => LWT_OUT,
        12 => LWT_XMIT,
        13 => SOCK_OPS,
        14 => SK_SKB,
        15 => CGROUP_DEVICE,
        16 => SK_MSG,
        18 => SOCK_ADDR,
        19 => LWT_SEG6,
        21 => SK_REUSEPORT,
        22 => FLOW_DISSECTOR,
        23 => CGROUP_SYSCTL,
        25 => CGROUP_SOCKOPT,
        30 => SK_LOOKUP,
        32 => NETFILTER,
        _ => return None,
    })
}
