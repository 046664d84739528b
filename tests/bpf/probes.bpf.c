// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Counts calls of functions: of the kernel by kprobes and trampolines, of user space by uprobes. Only one process is counted,
// so that a test sees its own calls alone.
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

const volatile __u32 counted_pid = 0;

static __always_inline int count(__u32 which)
{
	__u64 *value;

	if (counted_pid && bpf_get_current_pid_tgid() >> 32 != counted_pid)
		return 0;
	value = bpf_map_lookup_elem(&calls, &which);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 1;
}

SEC("kprobe/vfs_unlink")
int enter_function(void *ctx)
{
	count(0);
	return 0;
}

SEC("kretprobe")
int leave_function(void *ctx)
{
	count(1);
	return 0;
}

SEC("fentry/vfs_unlink")
int enter_traced(void *ctx)
{
	count(2);
	return 0;
}

SEC("fexit")
int leave_traced(void *ctx)
{
	count(3);
	return 0;
}

SEC("uprobe")
int enter_user(void *ctx)
{
	count(4);
	return 0;
}

SEC("uretprobe")
int leave_user(void *ctx)
{
	count(5);
	return 0;
}

// Refuses the counted process to make directories.
SEC("lsm/inode_mkdir")
int refuse_mkdir(void *ctx)
{
	if (counted_pid && count(6))
		return -EPERM;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
