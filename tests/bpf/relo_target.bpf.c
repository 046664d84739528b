// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// The other side of relo.bpf.c: only its types matter.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct nested {
	long pad;
	int deep;
};

struct subject {
	long pad;
	union {
		struct {
			int unrelated;
			int number;
		};
		long other;
	};
	unsigned int narrow;
	short sign;
	struct subject *next;
	int list[8];
	const volatile struct nested in;
	unsigned int before : 7;
	unsigned int bits : 5;
	int shrunk;
};

enum choice { FIRST_CHOICE = 41 };

struct twofold___one {
	int member;
};

struct twofold___two {
	int pad;
	int member;
};

SEC("socket")
int keep(void *ctx)
{
	return 0;
}

// Types are kept only where something uses them.
struct subject subject;
enum choice choice;
struct twofold___one one;
struct twofold___two two;

char _license[] SEC("license") = "Dual BSD/GPL";
