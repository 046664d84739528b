// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Lookups of sockets: in the program's own network namespace, which container scope allows, and in others.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u64 netns;

static __always_inline void look(void *ctx, __u64 id)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), id, 0);

	if (sk)
		bpf_sk_release(sk);
}

SEC("xdp")
int own_xdp(struct xdp_md *ctx)
{
	look(ctx, BPF_F_CURRENT_NETNS);
	return XDP_PASS;
}

SEC("tcx/ingress")
int own_tcx(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;

	sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (sk)
		bpf_sk_release(sk);
	look(skb, BPF_F_CURRENT_NETNS);
	return 0;
}

SEC("cgroup_skb/egress")
int own_skb(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);

	if (sk)
		bpf_sk_release(sk);
	return 1;
}

SEC("xdp")
int first_xdp(struct xdp_md *ctx)
{
	look(ctx, 0);
	return XDP_PASS;
}

SEC("tcx/ingress")
int any_tcx(struct __sk_buff *skb)
{
	look(skb, netns);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
