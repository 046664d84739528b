// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// The guard: refuses programs that reach beyond a container when they are loaded with a BPF token, and the use of a token
// outside the container that it was made for. docs/guard.md explains it; src/kernel/guard fills the maps.
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define EPERM 1
#define CAP_SYS_ADMIN 21
#define CAP_PERFMON 38
#define LD_IMM64 0x18
#define CALL 0x85
#define MAY_GOTO 0xe5
#define KIND_DECL_TAG 17
#define MAX_TYPES 64
#define MAX_LEVELS 64
#define TAG 16

// Only the members that are read. The kernel's offsets replace these.
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct user_namespace {
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct cred {
	struct user_namespace *user_ns;
} __attribute__((preserve_access_index));

struct task_struct {
	const struct cred *cred;
} __attribute__((preserve_access_index));

struct bpf_token {
	struct user_namespace *userns;
} __attribute__((preserve_access_index));

struct btf_type {
	__u32 name_off;
	__u32 info;
} __attribute__((preserve_access_index));

struct btf {
	struct btf_type **types;
	const char *strings;
	__u32 nr_types;
} __attribute__((preserve_access_index));

struct bpf_prog_aux {
	struct bpf_token *token;
	struct btf *btf;
} __attribute__((preserve_access_index));

struct bpf_prog {
	enum bpf_prog_type type;
	__u32 len;
	struct bpf_prog_aux *aux;
	struct bpf_insn insnsi[0];
} __attribute__((preserve_access_index));

// Why something was refused: indices of `refused`.
enum reason {
	NOT_REFUSED,
	PROGRAM_TYPE,
	HELPER,
	KFUNC,
	KERNEL_VARIABLE,
	LOOP,
	ARGUMENT_TAG,
	CAPABILITY,
	USER_NAMESPACE,
	CGROUP,
	REASONS,
};

// What a container may do, by the inode number of its user namespace.
struct container {
	// The id of its cgroup; 0 if it has none of its own.
	__u64 cgroup;
	// Not 0: policy allows it host scope, so that its programs are not judged. Requires a cgroup.
	__u64 host_scope;
};

struct helpers {
	__u64 allowed[4];
};

// Not 0: programs that may run without a bound are refused too.
const volatile __u32 bounded;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TYPES);
	__type(key, __u32);
	__type(value, struct helpers);
} helpers SEC(".maps");

// The BTF ids of the kfuncs that any program may call.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} kfuncs SEC(".maps");

// The argument tags that any function may have, padded with zeros.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, char[TAG]);
	__type(value, __u32);
} tags SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct container);
} containers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} refused SEC(".maps");

static __always_inline int refuse(__u32 why)
{
	__u64 *count = bpf_map_lookup_elem(&refused, &why);

	if (count)
		__sync_fetch_and_add(count, 1);
	return -EPERM;
}

static long match_level(__u32 level, __u64 *cgroup)
{
	__u64 id = bpf_get_current_ancestor_cgroup_id(level);

	if (id == *cgroup)
		*cgroup = 0;
	return !id || !*cgroup;
}

// Whether the current task is in a cgroup or below it.
static __always_inline int is_below(__u64 cgroup)
{
	bpf_loop(MAX_LEVELS, match_level, &cgroup, 0);
	return !cgroup;
}

// Whether policy allows the container of a token host scope, and the current task is in it.
static __always_inline int has_host_scope(struct bpf_token *token)
{
	__u32 key = token->userns->ns.inum;
	struct container *container = bpf_map_lookup_elem(&containers, &key);

	return container && container->host_scope && container->cgroup && is_below(container->cgroup);
}

struct scan {
	// The address of the first instruction, or of the table of types.
	__u64 start;
	const char *strings;
	struct helpers *helpers;
	__u32 why;
};

static long check_instruction(__u32 n, struct scan *scan)
{
	struct bpf_insn insn;
	__u32 id;

	if (bpf_probe_read_kernel(&insn, sizeof(insn), (void *)(scan->start + n * sizeof(insn)))) {
		scan->why = PROGRAM_TYPE;
		return 1;
	}
	id = insn.imm;
	if (insn.code == CALL && insn.src_reg == 0) {
		if (id >= 256 || !(scan->helpers->allowed[id / 64 & 3] & 1ULL << (id % 64)))
			scan->why = HELPER;
		else if (bounded && (id == BPF_FUNC_loop || id == BPF_FUNC_for_each_map_elem || id == BPF_FUNC_user_ringbuf_drain))
			scan->why = LOOP;
	} else if (insn.code == CALL && insn.src_reg == BPF_PSEUDO_KFUNC_CALL) {
		// `off` would select the BTF of a module.
		if (insn.off || !bpf_map_lookup_elem(&kfuncs, &id))
			scan->why = KFUNC;
	} else if (insn.code == LD_IMM64 && insn.src_reg == BPF_PSEUDO_BTF_ID) {
		scan->why = KERNEL_VARIABLE;
	} else if (insn.code == MAY_GOTO && bounded) {
		scan->why = LOOP;
	}
	return scan->why != NOT_REFUSED;
}

// Before the verifier: the instructions as the kernel has copied them. The token is in `aux`; the argument of the hook
// that should hold it is always null (kernel/bpf/syscall.c, bpf_prog_load).
SEC("lsm/bpf_prog_load")
int BPF_PROG(guard_load, struct bpf_prog *prog)
{
	struct bpf_token *token = prog->aux->token;
	struct scan scan = {};
	__u32 type;

	if (!token || has_host_scope(token))
		return 0;
	type = prog->type;
	scan.helpers = bpf_map_lookup_elem(&helpers, &type);
	// Types that container scope does not load have an empty list, without even map_lookup_elem (1).
	if (!scan.helpers || !(scan.helpers->allowed[0] & 1 << BPF_FUNC_map_lookup_elem))
		return refuse(PROGRAM_TYPE);
	scan.start = (__u64)prog + bpf_core_field_offset(struct bpf_prog, insnsi);
	bpf_loop(prog->len, check_instruction, &scan, 0);
	return scan.why ? refuse(scan.why) : 0;
}

static long check_type(__u32 n, struct scan *scan)
{
	struct btf_type *type = NULL;
	char tag[TAG] = {};
	__u32 name, info;

	bpf_probe_read_kernel(&type, sizeof(type), (void *)(scan->start + n * sizeof(type)));
	if (!type)
		return 0;
	info = BPF_CORE_READ(type, info);
	if ((info >> 24 & 0x1f) != KIND_DECL_TAG)
		return 0;
	name = BPF_CORE_READ(type, name_off);
	// A tag that does not fit is cut, and then not in the map.
	bpf_probe_read_kernel_str(tag, sizeof(tag), scan->strings + name);
	if (tag[0] == 'a' && tag[1] == 'r' && tag[2] == 'g' && tag[3] == ':' && !bpf_map_lookup_elem(&tags, tag))
		scan->why = ARGUMENT_TAG;
	return scan->why != NOT_REFUSED;
}

// After the verifier, before anybody gets a descriptor of the program: the types that the verifier has used. Before, a
// program's BTF is only a descriptor, which another thread could replace.
SEC("lsm/bpf_prog")
int BPF_PROG(guard_program, struct bpf_prog *prog)
{
	struct bpf_token *token = prog->aux->token;
	struct btf *btf = prog->aux->btf;
	struct scan scan = {};

	if (!token || !btf || has_host_scope(token))
		return 0;
	scan.start = (__u64)btf->types;
	scan.strings = btf->strings;
	bpf_loop(btf->nr_types, check_type, &scan, 0);
	return scan.why ? refuse(scan.why) : 0;
}

// Whenever a token stands in for a capability.
SEC("lsm/bpf_token_capable")
int BPF_PROG(guard_capable, struct bpf_token *token, int cap)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct user_namespace *userns = token->userns;
	struct container *container;
	__u32 key;

	// The creator of the user namespace has its capabilities without being in it (security/commoncap.c).
	if (task->cred->user_ns != userns)
		return refuse(USER_NAMESPACE);
	key = userns->ns.inum;
	container = bpf_map_lookup_elem(&containers, &key);
	if (container && container->cgroup && !is_below(container->cgroup))
		return refuse(CGROUP);
	if ((cap == CAP_PERFMON || cap == CAP_SYS_ADMIN) && !(container && container->cgroup && container->host_scope))
		return refuse(CAPABILITY);
	return 0;
}

char _license[] SEC("license") = "GPL";
