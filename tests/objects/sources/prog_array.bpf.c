// An array of programs that the loader fills with programs of the object (tail calls).
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int last(struct xdp_md *ctx);
int middle(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, int(void *));
} stages SEC(".maps") = {
	.values = { [1] = (void *)&middle, [3] = (void *)&last },
};

__u64 passed_by_last;

SEC("xdp")
int last(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&passed_by_last, 1);
	return XDP_DROP;
}

SEC("xdp")
int middle(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &stages, 3);
	return XDP_ABORTED;
}

SEC("xdp")
int first(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &stages, 1);
	return XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
