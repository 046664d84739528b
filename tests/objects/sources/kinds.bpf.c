// Programs of the types that tests attach; each counts its runs.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 lookups, packets, switches, tasks, samples, functions, calls, options, devices, names;

#define COUNT(counter) __sync_fetch_and_add(&counter, 1)

SEC("sk_lookup")
int looks_up(struct bpf_sk_lookup *ctx)
{
	COUNT(lookups);
	return SK_PASS;
}

SEC("flow_dissector")
int dissects(struct __sk_buff *skb)
{
	return BPF_OK;
}

SEC("netfilter")
int filters(void *ctx)
{
	COUNT(packets);
	return 1;
}

SEC("tp_btf/sched_switch")
int switches_tasks(void *ctx)
{
	COUNT(switches);
	return 0;
}

struct meta {
	void *seq;
};

struct iterator {
	struct meta *meta;
	void *task;
};

SEC("iter/task")
int each_task(struct iterator *ctx)
{
	static const char format[] = "a task\n";

	if (ctx->task)
		bpf_seq_printf(ctx->meta->seq, format, sizeof(format), 0, 0);
	return 0;
}

SEC("perf_event")
int samples_cpu(void *ctx)
{
	COUNT(samples);
	return 0;
}

SEC("kprobe.multi/vfs_*")
int enters_many(void *ctx)
{
	COUNT(functions);
	return 0;
}

SEC("uprobe.multi")
int enters_library(void *ctx)
{
	COUNT(functions);
	return 0;
}

SEC("ksyscall/getppid")
int enters_call(void *ctx)
{
	COUNT(calls);
	return 0;
}

SEC("cgroup/setsockopt")
int sets_option(struct bpf_sockopt *ctx)
{
	COUNT(options);
	return 0;
}

SEC("cgroup/sysctl")
int reads_sysctl(struct bpf_sysctl *ctx)
{
	COUNT(names);
	return 0;
}

SEC("cgroup/dev")
int opens_device(struct bpf_cgroup_dev_ctx *ctx)
{
	COUNT(devices);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
