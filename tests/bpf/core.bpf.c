// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Reads the kernel's own structures, whose layout differs from kernel to kernel (CO-RE).
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int tgid;
	struct task_struct *group_leader;
	char comm[16];
} __attribute__((preserve_access_index));

// The same structure as no kernel has it.
struct task_struct___never {
	int no_such_member;
} __attribute__((preserve_access_index));

struct no_such_type {
	int member;
} __attribute__((preserve_access_index));

enum bpf_map_type___kernel {
	BPF_MAP_TYPE_RINGBUF___kernel = 1,
	BPF_MAP_TYPE_NEVER___kernel = 2,
};

enum { TGID, LEADER, COMM, SIZE, MEMBER, TYPE, NO_MEMBER, NO_TYPE, VALUE, NO_VALUE, FACTS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FACTS);
	__type(key, __u32);
	__type(value, __u64);
} found SEC(".maps");

static __always_inline void keep(__u32 which, __u64 value)
{
	bpf_map_update_elem(&found, &which, &value, BPF_ANY);
}

SEC("raw_tp/sched_process_exec")
int read_task(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	struct task_struct *leader = NULL;
	char comm[4] = {};
	int tgid = 0;

	bpf_core_read(&comm, sizeof(comm), &task->comm);
	if (comm[0] != 'c' || comm[1] != 'o' || comm[2] != 'r')
		return 0;
	bpf_core_read(&tgid, sizeof(tgid), &task->tgid);
	keep(TGID, tgid);
	bpf_core_read(&leader, sizeof(leader), &task->group_leader);
	tgid = 0;
	bpf_core_read(&tgid, sizeof(tgid), &leader->tgid);
	keep(LEADER, tgid);
	keep(COMM, bpf_core_field_size(task->comm));
	keep(SIZE, bpf_core_type_size(struct task_struct) > sizeof(struct task_struct));
	keep(MEMBER, bpf_core_field_exists(task->comm));
	keep(TYPE, bpf_core_type_exists(struct task_struct));
	keep(NO_MEMBER, bpf_core_field_exists(((struct task_struct___never *)task)->no_such_member));
	keep(NO_TYPE, bpf_core_type_exists(struct no_such_type));
	keep(VALUE, bpf_core_enum_value(enum bpf_map_type___kernel, BPF_MAP_TYPE_RINGBUF___kernel));
	keep(NO_VALUE, bpf_core_enum_value_exists(enum bpf_map_type___kernel, BPF_MAP_TYPE_NEVER___kernel));
	return 0;
}

SEC("raw_tp/sched_process_exec")
int read_never(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct___never *task = (void *)ctx->args[0];
	int value = 0;

	bpf_core_read(&value, sizeof(value), &task->no_such_member);
	keep(NO_MEMBER, value);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
