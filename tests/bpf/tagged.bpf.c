// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Arguments of global functions with tags that the verifier believes: `arg:nonnull` is harmless, `arg:untrusted` is not.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u32 a, b;
};

__attribute__((noinline)) int checked(struct pair *pair __attribute__((btf_decl_tag("arg:nonnull"))))
{
	// Kernels before 6.8 do not know the tag and want the check.
	return pair && pair->a < pair->b;
}

__attribute__((noinline)) int believed(struct pair *pair __attribute__((btf_decl_tag("arg:untrusted"))))
{
	return pair ? 1 : 2;
}

SEC("xdp")
int nonnull(struct xdp_md *ctx)
{
	struct pair pair = { ctx->rx_queue_index, 8 };

	return checked(&pair) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int untrusted(struct xdp_md *ctx)
{
	struct pair pair = { ctx->rx_queue_index, 8 };

	return believed(&pair) == 1 ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
