/* F1: the floor of a delegation. Reads an OCI state for the container's pid and makes the same namespace, mount and token calls
 * as the hook for `delegate=networking`, and nothing else: no store, no policy, no checks.
 *
 * f1 ROOTFS < state */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Newer than Debian 12's headers: linux/bpf.h of 6.9. */
#define TOKEN_CREATE 36

static const char *const OPTIONS[][2] = {
    { "delegate_cmds", "map_create:prog_load:btf_load" },
    { "delegate_maps", "hash:array:percpu_hash:percpu_array:lru_hash:lpm_trie:array_of_maps:hash_of_maps:prog_array:ringbuf:devmap:xskmap:sockmap:sockhash" },
    { "delegate_progs", "socket_filter:xdp:sched_cls:sched_act:sk_lookup:sk_reuseport:sk_msg:sk_skb:flow_dissector:netfilter:lwt_xmit" },
    { "delegate_attachs", "cgroup_inet_ingress:xdp:tcx_ingress:tcx_egress:sk_lookup:flow_dissector:netfilter" },
};

static void fail(const char *what) {
    fprintf(stderr, "f1: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_fd(int socket, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = { 0 };
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(socket, &message, 0) != 1) fail("send a descriptor");
}

static int receive_fd(int socket) {
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message)) fail("receive a descriptor");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static int in_root(int root, int flags) {
    struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
    int fd = syscall(SYS_openat2, root, "/sys/fs/bpf", &how, sizeof how);
    if (fd < 0) fail("open /sys/fs/bpf");
    return fd;
}

/* In the container's user and mount namespaces. */
static void child(int socket, int pidfd, const char *rootfs) {
    if (setns(pidfd, CLONE_NEWUSER | CLONE_NEWNS)) fail("setns");
    if (setresgid(0, 0, 0) || setresuid(0, 0, 0)) fail("setresuid");
    int context = syscall(SYS_fsopen, "bpf", FSOPEN_CLOEXEC);
    if (context < 0) fail("fsopen");
    send_fd(socket, context);
    int mount = receive_fd(socket);
    int root = open(rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail(rootfs);
    int target = in_root(root, O_PATH | O_DIRECTORY);
    if (syscall(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) fail("move_mount");
    int bpffs = in_root(root, O_RDONLY | O_DIRECTORY);
    struct { __u32 flags; __u32 bpffs_fd; } attributes = { 0, bpffs };
    if (syscall(SYS_bpf, TOKEN_CREATE, &attributes, sizeof attributes) < 0) fail("create a token");
    _exit(0);
}

int main(int argc, char **argv) {
    char state[65536];
    ssize_t length = 0, got;
    if (argc != 2) return 2;
    while ((got = read(0, state + length, sizeof state - 1 - length)) > 0) length += got;
    state[length] = 0;
    char *found = strstr(state, "\"pid\":");
    if (!found) fail("find the pid");
    pid_t pid = atoi(found + strlen("\"pid\":"));

    int pidfd = syscall(SYS_pidfd_open, pid, 0), sockets[2], status;
    if (pidfd < 0) fail("pidfd_open");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) fail("socketpair");
    pid_t forked = fork();
    if (forked < 0) fail("fork");
    if (forked == 0) child(sockets[1], pidfd, argv[1]);
    int context = receive_fd(sockets[0]);
    for (size_t i = 0; i < sizeof OPTIONS / sizeof *OPTIONS; i++)
        if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, OPTIONS[i][0], OPTIONS[i][1], 0)) fail(OPTIONS[i][0]);
    if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) fail("create the file system");
    int mount = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    if (mount < 0) fail("fsmount");
    send_fd(sockets[0], mount);
    if (waitpid(forked, &status, 0) != forked) fail("wait");

    /* The kernel ignores unknown options, so the hook reads back the result. */
    char path[64], buffer[65536];
    snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
    int mounts = open(path, O_RDONLY | O_CLOEXEC);
    while (read(mounts, buffer, sizeof buffer) > 0) { }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
