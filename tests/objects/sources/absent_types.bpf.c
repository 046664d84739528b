// CO-RE: size and id of a type that the kernel does not have are 0.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

struct there_is_no_such_type {
	int a;
} __attribute__((preserve_access_index));

struct task_struct___mine {
	int pid;
	int gone;
} __attribute__((preserve_access_index));

SEC("xdp")
int asks(struct xdp_md *ctx)
{
	return !bpf_core_type_size(struct there_is_no_such_type) && !bpf_core_type_id_kernel(struct there_is_no_such_type) &&
	       !bpf_core_type_exists(struct there_is_no_such_type) && bpf_core_type_size(struct task_struct___mine) > 8 &&
	       bpf_core_field_exists(struct task_struct___mine, pid) && !bpf_core_field_exists(struct task_struct___mine, gone)
		? XDP_DROP : XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
