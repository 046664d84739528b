// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts what a cgroup receives and sends in one map.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} traffic SEC(".maps");

static __always_inline int count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&traffic, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
	return 1;
}

SEC("cgroup_skb/ingress")
int received(struct __sk_buff *skb)
{
	return count(0);
}

SEC("cgroup_skb/egress")
int sent(struct __sk_buff *skb)
{
	return count(1);
}

// Says no direction: the request has to.
SEC("cgroup/skb")
int either(struct __sk_buff *skb)
{
	return count(0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
