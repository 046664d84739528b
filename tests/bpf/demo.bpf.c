// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// What the demonstration loads: packets that arrive on an interface and packets that a container's processes send, counted
// in one map.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum { ARRIVED, SENT, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&packets, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("xdp")
int count_packets(struct xdp_md *ctx)
{
	count(ARRIVED);
	return XDP_PASS;
}

SEC("cgroup_skb/egress")
int count_egress(struct __sk_buff *skb)
{
	count(SENT);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
