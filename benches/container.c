/* container ROOTFS   a process in its own namespaces, in the state of a runtime's container at createRuntime: user namespace
 * 0:100000:65536, its mounts created below ROOTFS, no pivot_root yet. Prints its pid and waits for EOF on its input. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void write_file(pid_t pid, const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail(path);
    close(fd);
}

static void mount_in(const char *rootfs, const char *type, const char *at) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", rootfs, at);
    if (mount(type, path, type, MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) fail(path);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int mapped[2], ready[2];
    char byte;
    if (pipe(mapped) || pipe(ready)) fail("pipe");
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)) fail("unshare");
        if (write(ready[1], "u", 1) != 1 || read(mapped[0], &byte, 1) != 1) fail("pipe");
        if (setresgid(0, 0, 0) || setresuid(0, 0, 0)) fail("setresuid");
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("make the mounts private");
        if (mount(argv[1], argv[1], NULL, MS_BIND | MS_REC, NULL)) fail("bind the root file system");
        mount_in(argv[1], "sysfs", "sys");
        mount_in(argv[1], "tmpfs", "run");
        if (write(ready[1], "m", 1) != 1) fail("pipe");
        for (;;) pause();
    }
    if (read(ready[0], &byte, 1) != 1) fail("the child did not start");
    write_file(child, "uid_map", "0 100000 65536");
    write_file(child, "gid_map", "0 100000 65536");
    if (write(mapped[1], "g", 1) != 1) fail("pipe");
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) fail("the child did not mount");
    printf("%d\n", child);
    fflush(stdout);
    while (read(0, &byte, 1) > 0) { }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
