// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// What the clients of tests/clients load: a program for each kind of place, with what libraries set up for one: constants and
// variables, a ring buffer, a function of its own.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { ARRIVED, RECEIVED, SENT, REFUSED, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} lengths SEC(".maps");

const volatile __u16 refused_port = 7;
__u64 seen;

static __noinline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("xdp")
int count_arrived(struct xdp_md *ctx)
{
	__u64 length = bpf_xdp_get_buff_len(ctx);

	count(ARRIVED);
	seen++;
	bpf_ringbuf_output(&lengths, &length, sizeof(length), 0);
	return XDP_PASS;
}

SEC("classifier")
int count_received(struct __sk_buff *skb)
{
	count(RECEIVED);
	return -1;
}

SEC("cgroup_skb/egress")
int count_sent(struct __sk_buff *skb)
{
	count(SENT);
	return 1;
}

SEC("cgroup/connect4")
int refuse_connect(struct bpf_sock_addr *ctx)
{
	if (ctx->user_port != bpf_htons(refused_port))
		return 1;
	count(REFUSED);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
