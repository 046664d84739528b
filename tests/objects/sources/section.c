// One program in the section SECTION, which returns RETURNS.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC(SECTION)
int program(void *ctx)
{
	return RETURNS;
}

char LICENSE[] SEC("license") = "GPL";
