// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// One program of each networking type that the other objects do not have. Each does nothing.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	return SK_PASS;
}

SEC("sk_reuseport/migrate")
int reuseport(struct sk_reuseport_md *ctx)
{
	return SK_PASS;
}

SEC("flow_dissector")
int dissector(struct __sk_buff *skb)
{
	return 0; /* BPF_OK */
}

SEC("lwt_xmit")
int xmit(struct __sk_buff *skb)
{
	return 0;
}

SEC("sk_msg")
int message(struct sk_msg_md *msg)
{
	return SK_PASS;
}

SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *skb)
{
	return SK_PASS;
}

SEC("action")
int act(struct __sk_buff *skb)
{
	return 0;
}

SEC("socket")
int filter(struct __sk_buff *skb)
{
	return 0;
}

SEC("xdp.frags")
int frags(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
