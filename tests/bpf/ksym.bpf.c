// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Variables of the kernel, one for each processor.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int bpf_prog_active __ksym;

SEC("xdp")
int reads_cpu_variable(struct xdp_md *ctx)
{
	const int *active = bpf_this_cpu_ptr(&bpf_prog_active);

	return *active ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
