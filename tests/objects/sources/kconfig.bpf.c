// Values of the kernel's configuration, and those that the loader finds out.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int LINUX_KERNEL_VERSION __kconfig;
extern _Bool LINUX_HAS_SYSCALL_WRAPPER __kconfig __weak;
extern _Bool LINUX_HAS_BPF_COOKIE __kconfig __weak;
extern int LINUX_NOT_KNOWN_YET __kconfig __weak;
extern _Bool CONFIG_BPF_SYSCALL __kconfig __weak;
extern enum libbpf_tristate CONFIG_BPF __kconfig __weak;
extern unsigned int CONFIG_HZ __kconfig __weak;
extern char CONFIG_CC_VERSION_TEXT[16] __kconfig __weak;
extern unsigned long CONFIG_NO_SUCH_OPTION __kconfig __weak;

__u64 version, cookie, hz, bpf, absent;
char compiler[4];

SEC("xdp")
int reads(struct xdp_md *ctx)
{
	version = LINUX_KERNEL_VERSION;
	cookie = LINUX_HAS_BPF_COOKIE;
	hz = CONFIG_HZ;
	bpf = CONFIG_BPF_SYSCALL && CONFIG_BPF == TRI_YES;
	absent = CONFIG_NO_SUCH_OPTION + LINUX_NOT_KNOWN_YET + (LINUX_HAS_SYSCALL_WRAPPER & 2);
	for (int i = 0; i < 4; i++)
		compiler[i] = CONFIG_CC_VERSION_TEXT[i];
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
