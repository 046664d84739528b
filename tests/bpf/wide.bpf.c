// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// A map with the name that counter.bpf.c has, and another shape: not to be shared with it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u64 packets, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pair);
} counter SEC(".maps");

SEC("xdp")
int count_wide(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct pair *value = bpf_map_lookup_elem(&counter, &zero);

	if (value)
		__sync_fetch_and_add(&value->packets, 1);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
