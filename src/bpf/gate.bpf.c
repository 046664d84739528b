// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// The gate: only listed executables load BPF programs and BTF. docs/gate.md explains it; src/kernel/gate fills the maps.
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define EPERM 1
#define MAX_LEVELS 64
#define OWN_MAPS 8
// include/uapi/linux/prctl.h
#define PR_SET_MM 35
#define PR_SET_MM_EXE_FILE 13
#define PR_SET_MM_MAP 14
// include/uapi/linux/hash_info.h and include/uapi/linux/fsverity.h
#define HASH_ALGO_SHA256 4
#define FS_VERITY_HASH_ALG_SHA256 1

// Only the members that are read. The kernel's offsets replace these.
struct task_struct {
	__u64 self_exec_id;
	struct task_struct *group_leader;
} __attribute__((preserve_access_index));

struct file {
	void *f_inode;
} __attribute__((preserve_access_index));

struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

// What the kernel found out about a signature, before the verifier (Linux 7.2).
struct signature {
	__s32 keyring_serial;
	__u8 keyring_type;
	__u8 verdict;
} __attribute__((preserve_access_index));

struct bpf_prog_aux {
	struct signature sig;
} __attribute__((preserve_access_index));

struct bpf_prog {
	enum bpf_prog_type type;
	struct bpf_prog_aux *aux;
} __attribute__((preserve_access_index));

extern struct file *bpf_get_task_exe_file(struct task_struct *task) __ksym;
extern void bpf_put_file(struct file *file) __ksym;
// Only a kernel with fs-verity has it.
extern int bpf_get_fsverity_digest(struct file *file, struct bpf_dynptr *digest) __ksym __weak;

// The loader writes it, and programs read it at each call.
struct settings {
	// CLOCK_BOOTTIME, in nanoseconds, until when calls are refused; 0: without an end.
	__u64 expires;
	// Changes with the lists: a verdict counts only for the generation that it was made in.
	__u32 generation;
	// 1: refuse; 0: only count.
	__u32 enforce;
	// 1: every process of the host is judged; 0: only those in cgroups with a list of their own.
	__u32 node;
	// 1: some cgroup has a list of its own.
	__u32 cgroups;
	// Ids of these maps, which only listed executables may open.
	__u32 own[OWN_MAPS];
	// The keyring with which programs have to be signed; 0: they need not be.
	__s32 keyring;
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

enum algorithm {
	SHA256,
	FS_VERITY,
};

struct listed {
	// The cgroup whose list it is; 0: the host's.
	__u64 list;
	__u64 algorithm;
	__u8 digest[32];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct listed);
	__type(value, __u32);
} executables SEC(".maps");

// The cgroups that have a list of their own.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} cgroups SEC(".maps");

// What was decided about a thread, and room for digests: the kernel writes them only into memory of a map.
struct verdict {
	// With each exec, the kernel gives the task another number.
	__u64 exec_id;
	__u64 list;
	__u32 generation;
	__u32 allowed;
	__u8 sha256[64];
	struct {
		__u16 algorithm;
		__u16 size;
		__u8 digest[64];
	} verity;
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct verdict);
} verdicts SEC(".maps");

// Indices of `counts`.
enum outcome {
	// Calls of listed executables.
	ALLOWED,
	// Calls of others that were refused, and those that were only counted.
	REFUSED,
	COUNTED,
	// Attempts of others to open one of these maps, or to change which executable they count as.
	PROTECTED,
	// Executables that were read.
	HASHED,
	// Programs that are not signed, or not by the keyring: refused, and only counted.
	UNSIGNED_REFUSED,
	UNSIGNED_COUNTED,
	OUTCOMES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct unlisted_executable {
	__u64 calls;
	__u64 list;
	char command[16];
};

// Executables that are not listed, by sha256, or by zeros if it is not known: those that called last.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u8[32]);
	__type(value, struct unlisted_executable);
} unlisted SEC(".maps");

static __always_inline void count(__u32 outcome)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &outcome);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline struct settings *read_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline int refuses(const struct settings *settings)
{
	return settings->enforce && (!settings->expires || bpf_ktime_get_boot_ns() < settings->expires);
}

static long find_list(__u32 level, __u64 *list)
{
	__u64 id = bpf_get_current_ancestor_cgroup_id(level);

	if (id && bpf_map_lookup_elem(&cgroups, &id))
		*list = id;
	return !id || *list;
}

// Whether the current task is judged, and by which list: that of the outermost cgroup that has one. So a cgroup that a
// container makes cannot widen the list of the container.
static __always_inline int is_judged(const struct settings *settings, __u64 *list)
{
	*list = 0;
	if (settings->cgroups)
		bpf_loop(MAX_LEVELS, find_list, list, 0);
	return *list || settings->node;
}

static __always_inline int is_listed(__u64 list, __u64 algorithm, const __u8 *digest)
{
	struct listed key = { .list = list, .algorithm = algorithm };

	__builtin_memcpy(key.digest, digest, sizeof(key.digest));
	return bpf_map_lookup_elem(&executables, &key) != NULL;
}

// What the executable of the current task is, by its contents: fs-verity costs nothing, a sha256 reads the file.
static __always_inline int has_listed_executable(struct task_struct *task, __u64 list, struct verdict *verdict)
{
	struct bpf_dynptr digest;
	struct file *file;
	int listed = 0;
	long algorithm;

	__builtin_memset(verdict->sha256, 0, sizeof(verdict->sha256));
	file = bpf_get_task_exe_file(task);
	if (!file)
		return 0;
	if (bpf_get_fsverity_digest && !bpf_dynptr_from_mem(&verdict->verity, sizeof(verdict->verity), 0, &digest) &&
	    bpf_get_fsverity_digest(file, &digest) == 0 && verdict->verity.algorithm == FS_VERITY_HASH_ALG_SHA256)
		listed = is_listed(list, FS_VERITY, verdict->verity.digest);
	if (!listed) {
		algorithm = bpf_ima_file_hash(file, verdict->sha256, sizeof(verdict->sha256));
		count(HASHED);
		if (algorithm == HASH_ALGO_SHA256)
			listed = is_listed(list, SHA256, verdict->sha256);
		else
			__builtin_memset(verdict->sha256, 0, sizeof(verdict->sha256));
	}
	bpf_put_file(file);
	return listed;
}

static __always_inline struct verdict *judge(const struct settings *settings, __u64 list)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct verdict *verdict = bpf_task_storage_get(&verdicts, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	__u64 exec_id = task->self_exec_id;
	// Before the lists are read: if they change meanwhile, the verdict does not count.
	__u32 generation = *(volatile const __u32 *)&settings->generation;

	if (!verdict)
		return NULL;
	if (verdict->generation != generation || verdict->exec_id != exec_id || verdict->list != list) {
		verdict->generation = 0;
		verdict->allowed = has_listed_executable(task, list, verdict);
		verdict->exec_id = exec_id;
		verdict->list = list;
		verdict->generation = generation;
	}
	return verdict;
}

static __always_inline void note(const struct verdict *verdict, __u64 list)
{
	struct unlisted_executable *known, new = { .calls = 1, .list = list };
	__u8 sha256[32] = {};

	if (verdict)
		__builtin_memcpy(sha256, verdict->sha256, sizeof(sha256));
	known = bpf_map_lookup_elem(&unlisted, sha256);
	if (known) {
		__sync_fetch_and_add(&known->calls, 1);
		return;
	}
	bpf_get_current_comm(new.command, sizeof(new.command));
	bpf_map_update_elem(&unlisted, sha256, &new, BPF_ANY);
}

// security_bpf(cmd, attr, size, ...): `attr` is the kernel's copy, and `cmd` does not have the flag BPF_COMMON_ATTRS.
SEC("lsm.s/bpf")
int BPF_PROG(gate_call, int cmd, union bpf_attr *attr)
{
	struct settings *settings;
	struct verdict *verdict;
	__u64 list;

	if (cmd != BPF_PROG_LOAD && cmd != BPF_BTF_LOAD)
		return 0;
	// What runtimes and systemd load for each container and service, without BTF.
	if (cmd == BPF_PROG_LOAD &&
	    (attr->prog_type == BPF_PROG_TYPE_CGROUP_DEVICE || attr->prog_type == BPF_PROG_TYPE_CGROUP_SKB))
		return 0;
	settings = read_settings();
	if (!settings || !is_judged(settings, &list))
		return 0;
	verdict = judge(settings, list);
	if (verdict && verdict->allowed) {
		count(ALLOWED);
		return 0;
	}
	note(verdict, list);
	if (!refuses(settings)) {
		count(COUNTED);
		return 0;
	}
	count(REFUSED);
	return -EPERM;
}

// Whenever a process gets a descriptor of a map: these maps are for executables of the host's list.
SEC("lsm.s/bpf_map")
int BPF_PROG(gate_map, struct bpf_map *map)
{
	struct settings *settings = read_settings();
	struct verdict *verdict;
	__u32 id = map->id;
	int own = 0;

	if (!settings || !id)
		return 0;
	for (int n = 0; n < OWN_MAPS; n++)
		own |= settings->own[n] == id;
	if (!own || !refuses(settings))
		return 0;
	verdict = judge(settings, 0);
	if (verdict && verdict->allowed)
		return 0;
	count(PROTECTED);
	return -EPERM;
}

// A process with CAP_SYS_RESOURCE, or CAP_CHECKPOINT_RESTORE in a user namespace of its own, may say that it executes another
// file (kernel/sys.c, prctl_set_mm).
SEC("lsm/task_prctl")
int BPF_PROG(gate_prctl, int option, unsigned long what)
{
	struct settings *settings;
	__u64 list;

	if (option != PR_SET_MM || (what != PR_SET_MM_EXE_FILE && what != PR_SET_MM_MAP))
		return 0;
	settings = read_settings();
	if (!settings || !is_judged(settings, &list) || !refuses(settings))
		return 0;
	count(PROTECTED);
	return -EPERM;
}

// Processes, by their first thread, that load what bpfman-hook itself brings along. Only listed executables can write it.
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} exempt SEC(".maps");

#define VERIFIED 1
#define USER_KEYRING 4

// security_bpf_prog_load(prog, attr, token, kernel): the kernel has checked the signature, if there was one. `kernel` is true
// for programs that a signed program loads. `attr` says nothing: a size without a signature is accepted.
SEC("lsm/bpf_prog_load")
int BPF_PROG(gate_signed, struct bpf_prog *prog, union bpf_attr *attr, void *token, bool kernel)
{
	struct settings *settings = read_settings();
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 type = prog->type;

	if (!settings || !settings->keyring || kernel)
		return 0;
	if (type == BPF_PROG_TYPE_CGROUP_DEVICE || type == BPF_PROG_TYPE_CGROUP_SKB)
		return 0;
	if (prog->aux->sig.verdict == VERIFIED && prog->aux->sig.keyring_type == USER_KEYRING &&
	    prog->aux->sig.keyring_serial == settings->keyring)
		return 0;
	if (bpf_task_storage_get(&exempt, task->group_leader, NULL, 0))
		return 0;
	if (!refuses(settings)) {
		count(UNSIGNED_COUNTED);
		return 0;
	}
	count(UNSIGNED_REFUSED);
	return -EPERM;
}

char _license[] SEC("license") = "GPL";
