// Every attribute of a map that BPF_MAP_CREATE takes.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
	__uint(map_flags, BPF_F_NUMA_NODE);
	__uint(numa_node, 0);
} near SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 64);
	__uint(map_extra, 3);
	__uint(value_size, 4);
} filter SEC(".maps");

SEC("tracepoint/sched/sched_switch")
int uses(void *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&near, &key) || !bpf_map_peek_elem(&filter, &key);
}

char LICENSE[] SEC("license") = "GPL";
