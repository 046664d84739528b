// One good program, besides programs and maps that no kernel takes. libbpf refuses the whole object.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(no_such_attribute, 8);
	__type(key, __u32);
	__type(value, __u64);
} unknown_attribute SEC(".maps");

struct {
	__uint(type, 4242);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} unknown_type SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 0);
	__type(key, __u32);
	__type(value, __u64);
} unsized_array SEC(".maps");

extern int there_is_no_such_function(void) __ksym;
extern int CONFIG_NO_SUCH_OPTION __kconfig;
__u64 runs;

SEC("xdp")
int good(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&runs, 1);
	return XDP_PASS;
}

SEC("xdp")
int uses_unknown_attribute(struct xdp_md *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&unknown_attribute, &key) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int uses_unknown_type(struct xdp_md *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&unknown_type, &key) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int uses_unsized_array(struct xdp_md *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&unsized_array, &key) ? XDP_PASS : XDP_DROP;
}

SEC("tc")
int calls_nowhere(struct __sk_buff *skb)
{
	return there_is_no_such_function();
}

SEC("xdp")
int reads_no_option(struct xdp_md *ctx)
{
	return CONFIG_NO_SUCH_OPTION ? XDP_PASS : XDP_DROP;
}

SEC("no/such/section")
int nowhere(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
