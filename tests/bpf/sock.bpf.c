// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts the sockets that a cgroup makes and refuses those of one family; counts TCP connections that it opens.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 refused_family;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&sockets, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("cgroup/sock_create")
int made(struct bpf_sock *sock)
{
	count(0);
	return sock->family != refused_family;
}

SEC("sockops")
int connected(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		count(1);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
