// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Uses what the object only declares: a value of the kernel's configuration, and a function of the kernel.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int CONFIG_HZ __kconfig;
extern void bpf_rcu_read_lock(void) __ksym;

SEC("xdp")
int reads_config(struct xdp_md *ctx)
{
	return CONFIG_HZ > 100 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int calls_kernel(struct xdp_md *ctx)
{
	bpf_rcu_read_lock();
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
