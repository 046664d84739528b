/* F2: the floor of an attachment. Attaches a pinned XDP program to `lo` of a process's network namespace by one
 * BPF_LINK_CREATE and pins the link, so that its exit does not detach the program. The kernel waits for grace periods in this call,
 * for every caller.
 *
 * f2 PID PROGRAM-PIN LINK-PIN */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "f2: %s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: f2 PID PROGRAM-PIN LINK-PIN\n");
        return 2;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/net", argv[1]);
    int net = open(path, O_RDONLY | O_CLOEXEC);
    if (net < 0 || setns(net, CLONE_NEWNET)) fail(path);
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.pathname = (uint64_t)(uintptr_t)argv[2];
    int program = (int)syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof attr);
    if (program < 0) fail(argv[2]);
    memset(&attr, 0, sizeof attr);
    attr.link_create.prog_fd = (uint32_t)program;
    attr.link_create.target_ifindex = if_nametoindex("lo");
    attr.link_create.attach_type = BPF_XDP;
    int link = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr);
    if (link < 0) fail("attach to lo");
    memset(&attr, 0, sizeof attr);
    attr.pathname = (uint64_t)(uintptr_t)argv[3];
    attr.bpf_fd = (uint32_t)link;
    if (syscall(SYS_bpf, BPF_OBJ_PIN, &attr, sizeof attr) < 0) fail(argv[3]);
    return 0;
}
