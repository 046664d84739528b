// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Reads kernel memory by the helper that only does that. libbpf replaces it by probe_read where the kernel does not take it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} found SEC(".maps");

SEC("tracepoint/syscalls/sys_enter_getpid")
int reads_kernel(void *ctx)
{
	__u64 value = 0;
	__u32 key = 0;

	bpf_probe_read_kernel(&value, sizeof(value), ctx);
	bpf_map_update_elem(&found, &key, &value, BPF_ANY);
	return 0;
}

char _license[] SEC("license") = "GPL";
