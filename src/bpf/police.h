// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// What police.bpf.c and the measurement of its cost (tests/bpf/police_cost.bpf.c) share: the sets of one container, the
// counters, and the judgement of one call. src/model/police/ has the same layout.
#ifndef POLICE_H
#define POLICE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// What the container may do. The loader sets it, and the kernel lets nobody change it afterwards (.rodata is frozen).
struct police_sets {
	__u64 cmds[1];
	__u64 maps[1];
	__u64 progs[1];
	__u64 attachs[2];
	__u64 helpers[4];
	// 1: refuse what is in no set; 0: only count it.
	__u32 enforce;
	// 1: programs may call only the helpers in the set, only the kernel functions that are listed; 0: any.
	__u32 lists_helpers;
	__u32 lists_kfuncs;
	__u32 unused;
};

const volatile struct police_sets police = {};

// The compiler knows nothing about the value from here on, so that it keeps the check of its bounds where the verifier
// sees it.
#define OPAQUE(value) asm volatile("" : "+r"(value))

struct count {
	__u64 seen;
	__u64 refused;
	// Of those seen: with the name that libbpf gives to what it only tries.
	__u64 probes;
};

// One counter for each value of a set, and after them one for all values beyond; at the end one for kernel functions that
// found no place in their map.
#define CMDS_AT 0
#define MAPS_AT (CMDS_AT + 64 + 1)
#define PROGS_AT (MAPS_AT + 64 + 1)
#define ATTACHS_AT (PROGS_AT + 64 + 1)
#define HELPERS_AT (ATTACHS_AT + 128 + 1)
#define OTHER_KFUNCS_AT (HELPERS_AT + 256 + 1)
#define COUNTS (OTHER_KFUNCS_AT + 1)

// User space reads it. It cannot write it: the loader freezes .bss too.
struct count counts[COUNTS];

static __always_inline int note(struct count *count, int allowed, int is_probe)
{
	__sync_fetch_and_add(&count->seen, 1);
	if (is_probe)
		__sync_fetch_and_add(&count->probes, 1);
	if (!allowed)
		__sync_fetch_and_add(&count->refused, 1);
	return allowed || !police.enforce;
}

// A value of a set of `words` words, whose counters begin at `at`. 1 = allowed. A value beyond the set is not, unless
// `any` is.
static __always_inline int judge(const volatile __u64 *set, __u32 words, __u32 at, __u32 value, int any, int is_probe)
{
	__u64 slot = words * 64;
	int allowed = any;

	if (value < words * 64) {
		__u64 known = value;

		OPAQUE(known);
		known &= words * 64 - 1;
		allowed |= set[known >> 6] >> (known & 63) & 1;
		slot = known;
	}
	slot += at;
	OPAQUE(slot);
	if (slot >= COUNTS)
		return 0;
	return note(&counts[slot], allowed, is_probe);
}

// One call, by what its command refers to: a map type, a program type with the attach type that it is loaded for, or an
// attach type. Each part is counted, also if another one is refused.
static __always_inline int judge_call(__u32 cmd, __u32 type, __u32 attach_type, int is_probe)
{
	int allowed = judge(police.cmds, 1, CMDS_AT, cmd, 0, is_probe);

	switch (cmd) {
	case BPF_MAP_CREATE:
		allowed &= judge(police.maps, 1, MAPS_AT, type, 0, is_probe);
		break;
	case BPF_PROG_LOAD:
		allowed &= judge(police.progs, 1, PROGS_AT, type, 0, is_probe);
		allowed &= judge(police.attachs, 2, ATTACHS_AT, attach_type, 0, is_probe);
		break;
	case BPF_LINK_CREATE:
	case BPF_PROG_ATTACH:
		allowed &= judge(police.attachs, 2, ATTACHS_AT, attach_type, 0, 0);
		break;
	}
	return allowed;
}

#endif
