// Functions of every linkage, weak ones, and callbacks.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 sum;

__attribute__((noinline)) int global(int a)
{
	return a + 1;
}

__weak __attribute__((noinline)) int weak(int a)
{
	return a + 2;
}

static __attribute__((noinline)) int local(int a)
{
	return a + 3;
}

__hidden __attribute__((noinline)) int hidden(int a)
{
	return a + 4;
}

static int callback(__u32 index, void *context)
{
	sum += index;
	return 0;
}

SEC("xdp")
int calls(struct xdp_md *ctx)
{
	bpf_loop(4, callback, 0, 0);
	return sum == 6 && global(1) + weak(1) + local(1) + hidden(1) == 14 ? XDP_DROP : XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
