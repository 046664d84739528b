// Maps of maps that the loader fills with maps of the object.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} one SEC(".maps"), two SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { [0] = &one, [2] = &two },
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct inner);
} hashed SEC(".maps") = {
	.values = { [1] = &two },
};

static int add(void *maps, __u32 index)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(maps, &index);
	__u64 *value = inner ? bpf_map_lookup_elem(inner, &zero) : 0;

	if (!value)
		return 0;
	__sync_fetch_and_add(value, 1);
	return 1;
}

SEC("xdp")
int counts(struct xdp_md *ctx)
{
	return add(&outer, 2) && add(&hashed, 1) && !add(&outer, 1) ? XDP_DROP : XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
