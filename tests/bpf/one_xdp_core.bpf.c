// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// One XDP program that the kernel's own types decide about (CO-RE), as small as they get: for benches/manual.py.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int tgid;
	char comm[16];
} __attribute__((preserve_access_index));

__u64 seen;

SEC("xdp")
int measure(struct xdp_md *ctx)
{
	seen += bpf_core_field_offset(struct task_struct, tgid) + bpf_core_type_size(struct task_struct);
	if (bpf_core_field_exists(struct task_struct, comm))
		seen++;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
