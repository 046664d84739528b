// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// A congestion control: a structure of functions, whose members are programs. It is never registered.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct sock;

/* The kernel's, reduced to what is set. libbpf finds the members by their names. */
struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	void (*set_state)(struct sock *sk, __u8 state);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

SEC("struct_ops/steady_ssthresh")
__u32 BPF_PROG(steady_ssthresh, struct sock *sk)
{
	return 2;
}

SEC("struct_ops/steady_avoid")
void BPF_PROG(steady_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
}

SEC("struct_ops")
void BPF_PROG(steady_state, struct sock *sk, __u8 state)
{
}

SEC("struct_ops/steady_undo")
__u32 BPF_PROG(steady_undo, struct sock *sk)
{
	return 10;
}

SEC(".struct_ops")
struct tcp_congestion_ops steady = {
	.ssthresh = (void *)steady_ssthresh,
	.cong_avoid = (void *)steady_avoid,
	.set_state = (void *)steady_state,
	.undo_cwnd = (void *)steady_undo,
	.name = "steady",
};

char _license[] SEC("license") = "Dual BSD/GPL";
