// A program that is a static function, as those of bpfman's own examples. libbpf refuses it; aya loads it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
static int counts(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
