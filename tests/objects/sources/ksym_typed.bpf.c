// A per-CPU variable of the kernel with its type.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int bpf_prog_active __ksym;

SEC("raw_tp/sched_switch")
int reads(void *ctx)
{
	const int *active = bpf_per_cpu_ptr(&bpf_prog_active, 0);

	return active ? *active : 0;
}

char LICENSE[] SEC("license") = "GPL";
