// A probe that a program declares: usdt.bpf.h brings maps and values of the configuration.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include <stdbool.h>
#include <linux/ptrace.h>
#include <bpf/usdt.bpf.h>

SEC("usdt/libc.so.6:libc:setjmp")
int BPF_USDT(hits, void *buffer, int flags)
{
	return flags;
}

char LICENSE[] SEC("license") = "GPL";
