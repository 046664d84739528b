// Variables and addresses of the kernel, and some that it does not have.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const void schedule __ksym;
extern const void there_is_no_such_symbol __ksym __weak;
extern const int there_is_no_such_variable __ksym __weak;

__u64 address, nothing;

SEC("raw_tp/sched_switch")
int reads(void *ctx)
{
	address = (__u64)&schedule;
	nothing = (__u64)&there_is_no_such_symbol + !!&there_is_no_such_variable;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
