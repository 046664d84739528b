// Section names of before libbpf 1.0, as xdp-tutorial and xdp-tools have them. libbpf refuses them.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp_pass")
int passes(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
