// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts the programs that one container executes, seen from a tracepoint and from a raw tracepoint.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "facts.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} executed SEC(".maps");

static __always_inline int count(__u32 which)
{
	__u64 *value;

	if (!bpfman_cgroup_id || bpf_get_current_cgroup_id() != bpfman_cgroup_id)
		return 0;
	value = bpf_map_lookup_elem(&executed, &which);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int trace_exec(void *ctx)
{
	return count(0);
}

SEC("raw_tp/sched_process_exec")
int raw_trace_exec(void *ctx)
{
	return count(1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
