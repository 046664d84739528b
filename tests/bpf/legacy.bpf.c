// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// An object as old compilers and aya write it: maps as structs in a section "maps", types left out (built without -g).
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bpf_map_def {
	__u32 type, key_size, value_size, max_entries, map_flags;
};

struct bpf_map_def SEC("maps") first = { BPF_MAP_TYPE_HASH, 4, 8, 16, 0 };
struct bpf_map_def SEC("maps") counter = { BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0 };

const volatile __u32 step = 1;

SEC("xdp/count")
int count(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&counter, &zero);

	if (value)
		__sync_fetch_and_add(value, step);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
