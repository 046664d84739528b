// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// What policing adds to a call of bpf(2), on a kernel that calls no LSM programs: the code of src/bpf/police.bpf.c at the entry of the
// system call. An LSM program gets the kernel's copy of the arguments; this one has to copy them, so that it costs more.
#include "../../src/bpf/police.h"

// include/uapi/asm-generic/unistd.h has another number; only x86-64 is measured.
#define SYS_BPF 321
// arch/x86/include/asm/ptrace.h, struct pt_regs
#define SI 104
#define DI 112

static long judge_instruction(__u32 at, const struct bpf_insn **program)
{
	struct bpf_insn insn;

	if (bpf_probe_read_user(&insn, sizeof(insn), *program + at))
		return 1;
	if (insn.code == (BPF_JMP | BPF_CALL) && insn.src_reg == 0)
		judge(police.helpers, 4, HELPERS_AT, insn.imm, 0, 0);
	return 0;
}

SEC("raw_tracepoint/sys_enter")
int judge_calls(unsigned long long *ctx)
{
	const struct bpf_insn *program;
	union bpf_attr attr;
	__u64 cmd, pointer;

	if (ctx[1] != SYS_BPF)
		return 0;
	if (bpf_probe_read_kernel(&cmd, sizeof(cmd), (void *)(ctx[0] + DI)) ||
	    bpf_probe_read_kernel(&pointer, sizeof(pointer), (void *)(ctx[0] + SI)) ||
	    bpf_probe_read_user(&attr, 72, (void *)pointer))
		return 0;
	switch (cmd) {
	case BPF_MAP_CREATE:
		judge_call(cmd, attr.map_type, 0, 0);
		break;
	case BPF_PROG_LOAD:
		judge_call(cmd, attr.prog_type, attr.expected_attach_type, 0);
		program = (const void *)attr.insns;
		bpf_loop(attr.insn_cnt, judge_instruction, &program, 0);
		break;
	default:
		judge_call(cmd, 0, 0, 0);
	}
	return 0;
}

// What a program at this place costs if it does nothing.
SEC("raw_tracepoint/sys_enter")
int judge_nothing(unsigned long long *ctx)
{
	return ctx[1] == SYS_BPF;
}

char _license[] SEC("license") = "GPL";
