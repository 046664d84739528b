// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Refuses IPv4 connections to one port, or to all where the port is 0, and counts the refusals.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u16 blocked_port;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} refused SEC(".maps");

SEC("cgroup/connect4")
int block_connect4(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	__u64 *value;

	if (blocked_port && ctx->user_port != bpf_htons(blocked_port))
		return 1;
	value = bpf_map_lookup_elem(&refused, &zero);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
