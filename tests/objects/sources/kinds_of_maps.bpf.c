// Maps whose sizes a loader completes, maps that need the types of their values, and sections with names.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 5000);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} of_tasks SEC(".maps");

struct timed {
	struct bpf_timer timer;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct timed);
} timers SEC(".maps");

struct guarded {
	struct bpf_spin_lock lock;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct guarded);
} locked SEC(".maps");

__u64 seen;
__u64 in_section SEC(".data.mine") = 7;
const volatile __u32 fixed SEC(".rodata.mine") = 3;
__u64 empty SEC(".bss.mine");

SEC("tc")
int uses(struct __sk_buff *skb)
{
	__u32 key = fixed;
	__u64 *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	struct guarded *value = bpf_map_lookup_elem(&locked, &key);
	struct timed *timed = bpf_map_lookup_elem(&timers, &key);

	if (event) {
		*event = in_section + empty;
		bpf_ringbuf_submit(event, 0);
	}
	if (value) {
		bpf_spin_lock(&value->lock);
		value->count++;
		bpf_spin_unlock(&value->lock);
	}
	if (timed)
		bpf_timer_init(&timed->timer, &timers, 1);
	bpf_perf_event_output(skb, &perf, BPF_F_CURRENT_CPU, &key, sizeof(key));
	seen++;
	return 0;
}

SEC("raw_tp/sched_switch")
int stores(void *ctx)
{
	return !!bpf_task_storage_get(&of_tasks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

char LICENSE[] SEC("license") = "GPL";
