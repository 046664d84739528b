// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Functions that are not inlined: global and static ones, one within the program's own section, one called from another
// function, and one that is given to a helper. Needs func_info, or the kernel refuses it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define ENTRIES 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
} parts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sum SEC(".maps");

struct bpf_map;

struct total {
	__u64 value;
};

static __attribute__((noinline)) __u64 twice(__u64 value)
{
	asm volatile("" : "+r"(value));
	return 2 * value;
}

__attribute__((noinline)) int four_times(int value)
{
	return twice(twice(value));
}

static long add(struct bpf_map *map, __u32 *key, __u64 *value, struct total *total)
{
	total->value += *value;
	return 0;
}

static __always_inline void keep(__u32 key)
{
	__u64 part = four_times(key);

	bpf_map_update_elem(&parts, &key, &part, BPF_ANY);
}

SEC("xdp")
int add_up(struct xdp_md *ctx)
{
	struct total total = {};
	__u32 zero = 0;
	__u64 *value;

	keep(1);
	keep(2);
	keep(3);
	bpf_for_each_map_elem(&parts, add, &total, 0);
	value = bpf_map_lookup_elem(&sum, &zero);
	if (value)
		*value = total.value;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
