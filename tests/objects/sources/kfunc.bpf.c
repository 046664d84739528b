// Functions of the kernel, one of which it does not have.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
extern int bpf_there_is_no_such_function(void) __ksym __weak;

SEC("tc")
int calls(struct __sk_buff *skb)
{
	if (bpf_there_is_no_such_function)
		return bpf_there_is_no_such_function();
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
