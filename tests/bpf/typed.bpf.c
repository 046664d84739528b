// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Maps that the kernel creates only with the types of their values: a timer, a lock, and a storage of sockets.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct timed {
	struct bpf_timer timer;
	__u64 count;
};

struct locked {
	struct bpf_spin_lock lock;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct timed);
} timers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct locked);
} locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} storage SEC(".maps");

SEC("tc")
int typed(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct timed *timed = bpf_map_lookup_elem(&timers, &key);
	struct locked *locked = bpf_map_lookup_elem(&locks, &key);

	if (timed)
		bpf_timer_cancel(&timed->timer);
	if (locked) {
		bpf_spin_lock(&locked->lock);
		locked->count++;
		bpf_spin_unlock(&locked->lock);
	}
	return 0;
}

SEC("sockops")
int stored(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		bpf_sk_storage_get(&storage, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
