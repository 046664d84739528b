// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// One program that is asked for, among sections that other loaders know and we do not.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(section, name) \
	SEC(section) int name(void *ctx) { return 0; }

SEC("?xdp")
int wanted(struct xdp_md *ctx)
{
	return XDP_PASS;
}

PROGRAM("action", in_action)
PROGRAM("cgroup/connect_unix", in_connect_unix)
PROGRAM("fmod_ret/bpf_modify_return_test", in_fmod_ret)
PROGRAM("kprobe.multi/tcp_*", in_kprobe_multi)
PROGRAM("ksyscall/openat", in_ksyscall)
PROGRAM("lwt_xmit", in_lwt_xmit)
PROGRAM("made/up/by/nobody", in_made_up)
PROGRAM("netfilter", in_netfilter)
PROGRAM("netkit/primary", in_netkit)
PROGRAM("raw_tracepoint.w/sched_switch", in_writable)
PROGRAM("sk_skb", in_sk_skb)
PROGRAM("struct_ops/congestion", in_struct_ops)
PROGRAM("syscall", in_syscall)
PROGRAM("tc/egress", in_tc_egress)
PROGRAM("usdt", in_usdt)

char _license[] SEC("license") = "Dual BSD/GPL";
