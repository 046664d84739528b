// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Loops: those that container scope allows, and those that could hold a processor.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} sums SEC(".maps");

static long add(__u32 n, void *sum)
{
	*(__u64 *)sum += n;
	return 0;
}

static long again(__u32 n, void *sum)
{
	bpf_loop(16, add, sum, 0);
	return 0;
}

static long each(void *map, const void *key, void *value, void *sum)
{
	*(__u64 *)sum += *(__u64 *)value;
	return 0;
}

static long each_again(void *map, const void *key, void *value, void *sum)
{
	bpf_loop(16, add, sum, 0);
	return 0;
}

SEC("xdp")
int bounded(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(65536, add, &sum, 0);
	bpf_for_each_map_elem(&sums, each, &sum, 0);
	for (int n = 0; n < 64; n++)
		sum += bpf_get_prandom_u32();
	return sum & 1 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int many(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(65537, add, &sum, 0);
	return XDP_PASS;
}

SEC("xdp")
int as_many_as_bytes(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(ctx->data_end - ctx->data, add, &sum, 0);
	return XDP_PASS;
}

SEC("xdp")
int nested(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(16, again, &sum, 0);
	return XDP_PASS;
}

SEC("xdp")
int nested_in_map(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_for_each_map_elem(&sums, each_again, &sum, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
