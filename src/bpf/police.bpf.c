// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Judges the bpf(2) calls of the processes in one cgroup. Both programs return 1 to allow a call and 0 to refuse it
// with EPERM (lsm_cgroup). They run with the caller as the current task, so a call is judged by the cgroup of the
// thread that makes it.
#include "police.h"

// libbpf tries what the kernel can do with programs and maps of these names; programs of objects always have a name.
static __always_inline int is_program_probe(const union bpf_attr *attr)
{
	const char *name = attr->prog_name;

	return !name[0] || (name[0] == 'l' && name[1] == 'i' && name[2] == 'b' && name[3] == 'b' && name[6] == '_') ||
	       (name[0] == 'd' && name[1] == 'e' && name[2] == 't' && name[3] == '_' && name[4] == 'a');
}

static __always_inline int is_map_probe(const union bpf_attr *attr)
{
	const char *name = attr->map_name;

	return name[0] == 'l' && name[1] == 'i' && name[2] == 'b' && name[3] == 'b' && name[6] == '_';
}

// security_bpf(cmd, attr, size, ...). `attr` is the kernel's copy, zero beyond what the caller passed, and `cmd` does not
// have the flag BPF_COMMON_ATTRS (kernel/bpf/syscall.c, __sys_bpf).
SEC("lsm_cgroup/bpf")
int police_call(unsigned long long *ctx)
{
	__u32 cmd = ctx[0];
	union bpf_attr *attr = (union bpf_attr *)ctx[1];

	switch (cmd) {
	case BPF_MAP_CREATE:
		return judge_call(cmd, attr->map_type, 0, is_map_probe(attr));
	case BPF_PROG_LOAD:
		return judge_call(cmd, attr->prog_type, attr->expected_attach_type, is_program_probe(attr));
	case BPF_LINK_CREATE:
		return judge_call(cmd, 0, attr->link_create.attach_type, 0);
	case BPF_PROG_ATTACH:
		return judge_call(cmd, 0, attr->attach_type, 0);
	case BPF_PROG_DETACH:
		// Whatever the sets say: it would detach these programs.
		if (police.enforce && attr->attach_type == BPF_LSM_CGROUP) {
			note(&counts[CMDS_AT + BPF_PROG_DETACH], 0, 0);
			return 0;
		}
		return judge_call(cmd, 0, 0, 0);
	default:
		return judge_call(cmd, 0, 0, 0);
	}
}

struct bpf_prog {
	__u32 len;
	struct bpf_insn insnsi[0];
} __attribute__((preserve_access_index));

// include/uapi/linux/bpf_common.h: BPF_JMP | BPF_CALL | BPF_K
#define CALL 0x85
// What libbpf writes as the number of a helper where it cannot resolve something. No kernel has such a helper: the
// verifier refuses the call unless it is dead code.
#define POISON 195896080

struct kfunc {
	struct count count;
	__u64 listed;
};

// Kernel functions by their id in the kernel's BTF; above 32 bits is the offset of the call, which is not 0 for a
// function of a module. The loader writes those that are listed, and freezes the map.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, struct kfunc);
} kfuncs SEC(".maps");

static __always_inline int judge_kfunc(const struct bpf_insn *insn)
{
	__u64 key = (__u64)(__u16)insn->off << 32 | (__u32)insn->imm;
	struct kfunc none = {}, *kfunc = bpf_map_lookup_elem(&kfuncs, &key);

	if (!kfunc) {
		bpf_map_update_elem(&kfuncs, &key, &none, BPF_NOEXIST);
		kfunc = bpf_map_lookup_elem(&kfuncs, &key);
	}
	if (!kfunc)
		return note(&counts[OTHER_KFUNCS_AT], !police.lists_kfuncs, 0);
	return note(&kfunc->count, !police.lists_kfuncs || kfunc->listed, 0);
}

struct program {
	struct bpf_insn *insns;
	int allowed;
	int is_probe;
};

static long judge_instruction(__u32 at, struct program *program)
{
	struct bpf_insn insn;

	// Without its instructions a program cannot be judged.
	if (bpf_probe_read_kernel(&insn, sizeof(insn), program->insns + at)) {
		program->allowed = 0;
		return 1;
	}
	if (insn.code != CALL)
		return 0;
	if (insn.src_reg == 0 && (__u32)insn.imm < POISON)
		program->allowed &= judge(police.helpers, 4, HELPERS_AT, insn.imm, !police.lists_helpers, program->is_probe);
	if (insn.src_reg == BPF_PSEUDO_KFUNC_CALL)
		program->allowed &= judge_kfunc(&insn);
	return 0;
}

// security_bpf_prog_load(prog, attr, ...), since Linux 6.9: the kernel's copy of the instructions, before they are
// verified. The arguments behind these two differ between kernels.
SEC("lsm_cgroup/bpf_prog_load")
int police_load(unsigned long long *ctx)
{
	struct bpf_prog *prog = (struct bpf_prog *)ctx[0];
	union bpf_attr *attr = (union bpf_attr *)ctx[1];
	struct program program = { .insns = prog->insnsi, .allowed = 1, .is_probe = is_program_probe(attr) };

	bpf_loop(prog->len, judge_instruction, &program, 0);
	return program.allowed || !police.enforce;
}

char _license[] SEC("license") = "GPL";
