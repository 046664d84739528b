// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts what an interface receives and sends, and leaves the verdict to others.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define VERDICT_NEXT -1

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
	return VERDICT_NEXT;
}

SEC("tcx/ingress")
int ingress(struct __sk_buff *skb)
{
	return count(0);
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	return count(1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
