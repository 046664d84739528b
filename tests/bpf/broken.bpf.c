// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Reads a packet without looking where it ends: the verifier refuses it. Its neighbour is fine.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int reads_too_far(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data[100] ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int passes(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
