// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Calls functions of the kernel: those that are there, those that may be absent, one that is nowhere. LSM programs that
// sleep, and that attach to a cgroup.
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct file;
struct task_struct;

extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;
extern struct file *bpf_get_task_exe_file(struct task_struct *task) __ksym __weak;
extern void bpf_put_file(struct file *file) __ksym __weak;
extern void bpf_no_such_function(void) __ksym __weak;
extern void bpf_nowhere(int number) __ksym;

const volatile __u32 watched_pid;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

enum { CALLED, ABSENT, SLEPT, EXECUTABLE };

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&seen, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline int watched(void)
{
	return bpf_get_current_pid_tgid() >> 32 == watched_pid;
}

SEC("raw_tp/sys_enter")
int calls_the_kernel(void *ctx)
{
	if (!watched())
		return 0;
	if (bpf_rcu_read_lock) {
		bpf_rcu_read_lock();
		bpf_rcu_read_unlock();
		count(CALLED);
	}
	if (bpf_no_such_function)
		bpf_no_such_function();
	else
		count(ABSENT);
	return 0;
}

SEC("raw_tp/sys_enter")
int calls_what_is_absent(void *ctx)
{
	bpf_no_such_function();
	return 0;
}

SEC("raw_tp/sys_enter")
int calls_nowhere(void *ctx)
{
	bpf_nowhere(1);
	return 0;
}

SEC("lsm.s/bpf")
int BPF_PROG(sleeps, int cmd, union bpf_attr *attr, unsigned int size)
{
	struct file *file;
	char byte;

	if (!watched() || cmd != BPF_MAP_CREATE)
		return 0;
	// Only sleepable programs may call this helper. The address is nobody's.
	bpf_copy_from_user(&byte, 1, NULL);
	count(SLEPT);
	if (bpf_get_task_exe_file) {
		file = bpf_get_task_exe_file((struct task_struct *)bpf_get_current_task_btf());
		if (file) {
			count(EXECUTABLE);
			bpf_put_file(file);
		}
	}
	return 0;
}

SEC("lsm_cgroup/bpf")
int BPF_PROG(refuses_queues, int cmd, union bpf_attr *attr, unsigned int size)
{
	return !(cmd == BPF_MAP_CREATE && attr->map_type == BPF_MAP_TYPE_QUEUE);
}

char _license[] SEC("license") = "Dual BSD/GPL";
