// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Kinds of maps that want more than type and sizes: a ring buffer of any size, one entry for each CPU, a map of maps, one
// that other loaders would share with the host.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct event {
	__u64 time;
	__u64 from;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 10000);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct event);
} shared SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, struct inner);
} outer SEC(".maps");

struct inner first SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, struct inner);
} filled SEC(".maps") = { .values = { [0] = &first } };

SEC("xdp")
int use_all(struct xdp_md *ctx)
{
	struct event event = { .time = bpf_ktime_get_ns(), .from = ctx->ingress_ifindex };
	struct event *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	__u32 zero = 0;
	__u64 *value;
	void *inner;

	if (record) {
		*record = event;
		bpf_ringbuf_submit(record, 0);
	}
	bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &event, sizeof(event));
	bpf_map_update_elem(&shared, &zero, &event, BPF_ANY);
	value = bpf_map_lookup_elem(&per_cpu, &zero);
	if (value)
		++*value;
	inner = bpf_map_lookup_elem(&outer, &zero);
	if (inner) {
		value = bpf_map_lookup_elem(inner, &zero);
		if (value)
			++*value;
	}
	return XDP_PASS;
}

SEC("xdp")
int use_filled(struct xdp_md *ctx)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&filled, &zero) ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
