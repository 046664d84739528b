// Inner maps without a number of entries: one for each CPU.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u64);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(__u32));
	});
} buffers SEC(".maps");

SEC("raw_tp/sys_enter")
int looks(void *ctx)
{
	__u64 key = 1;

	return !!bpf_map_lookup_elem(&buffers, &key);
}

char LICENSE[] SEC("license") = "GPL";
