// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// What a program must not do at container scope: read kernel memory, and tell kernel addresses.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} loot SEC(".maps");

static __always_inline void steal(void *address)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&loot, &zero);

	if (value)
		bpf_probe_read_kernel(value, sizeof(*value), address);
}

SEC("xdp")
int read_kernel_xdp(struct xdp_md *ctx)
{
	steal((void *)0xffffffff81000000);
	return XDP_PASS;
}

SEC("cgroup_skb/egress")
int read_kernel_skb(struct __sk_buff *skb)
{
	steal((void *)0xffffffff81000000);
	return 1;
}

SEC("xdp")
int tell_address(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&loot, &zero);

	if (value)
		*value = (__u64)ctx;
	return XDP_PASS;
}

// Copies stack that it never wrote, here the padding of a structure: what was there before may be a kernel address.
SEC("xdp")
int copy_padding(struct xdp_md *ctx)
{
	union {
		__u64 whole;
		__u32 half;
	} mixed;
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&loot, &zero);

	mixed.half = ctx->rx_queue_index;
	asm volatile("" ::"r"(&mixed) : "memory");
	if (value)
		*value = mixed.whole;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
