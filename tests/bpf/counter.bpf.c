// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts packets by a step that a request may set, and shows every kind of variable that it may set.
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "facts.h"

enum mode { QUIET = 0, LOUD = 7 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counter SEC(".maps");

const volatile __u32 step = 1;
const volatile __s16 offset = -3;
const volatile bool drop = false;
const volatile enum mode mode = QUIET;
const volatile __u16 ports[4] = { 80 };
const volatile char label[16] = "none";
const volatile struct { __u32 a, b; } pair;
__u64 base = 100;
__u64 seen;
static volatile __u32 touched = 5;

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&counter, &zero);

	seen++;
	touched++;
	if (value)
		__sync_fetch_and_add(value, step + ports[1] + (mode == LOUD ? 1000 : 0) + (label[0] == 'x' ? 10000 : 0));
	base += offset;
	base += pair.a;
	return drop ? XDP_DROP : XDP_PASS;
}

// Reads the facts, so that the compiler keeps them.
SEC("xdp")
int facts(struct xdp_md *ctx)
{
	if (bpfman_container_id[0] && bpfman_cgroup_id + bpfman_init_pid + bpfman_mntns + bpfman_pidns + bpfman_netns + bpfman_userns)
		seen++;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
