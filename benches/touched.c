// touched FUNCTIONS OUT COMMAND…: runs a static program, and appends the address of each of its functions that it or a child
// calls to OUT, in the order of the first call. FUNCTIONS has the addresses of all functions, one hexadecimal number a line.
//
// A breakpoint is set on each function and removed when it is hit, so that the program runs at nearly its own speed: it has a
// time limit. Exits with the program's status.
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX (1 << 20)

static uint64_t at[MAX];
static unsigned char saved[MAX];
static size_t count;

static void fail(const char *what) {
    perror(what);
    exit(120);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int memory_of(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", (int)pid);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) fail(path);
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 4) return 120;
    FILE *list = fopen(argv[1], "r"), *out = fopen(argv[2], "a");
    if (!list || !out) fail("open");
    unsigned long long address;
    while (count < MAX && fscanf(list, "%llx", &address) == 1) at[count++] = address;
    qsort(at, count, sizeof *at, compare);

    pid_t first = fork();
    if (first == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv(argv[3], argv + 3);
        _exit(121);
    }
    int status;
    if (waitpid(first, &status, 0) != first || !WIFSTOPPED(status)) fail("start");
    long follow = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, first, NULL, follow)) fail("ptrace");
    int memory = memory_of(first);
    for (size_t i = 0; i < count; i++)
        if (pread(memory, &saved[i], 1, (off_t)at[i]) != 1 || pwrite(memory, "\xcc", 1, (off_t)at[i]) != 1) fail("set a breakpoint");
    close(memory);
    ptrace(PTRACE_CONT, first, NULL, NULL);

    int code = 122;
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;) {
        if (!WIFSTOPPED(status)) {
            if (pid == first) code = WIFEXITED(status) ? WEXITSTATUS(status) : 123;
            continue;
        }
        int signal = WSTOPSIG(status);
        struct user_regs_struct registers;
        if (signal == SIGTRAP && status >> 16 == 0 && ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0) {
            uint64_t hit = registers.rip - 1;
            uint64_t *found = bsearch(&hit, at, count, sizeof *at, compare);
            if (found) {
                memory = memory_of(pid);
                if (pwrite(memory, &saved[found - at], 1, (off_t)hit) != 1) fail("remove a breakpoint");
                close(memory);
                registers.rip = hit;
                ptrace(PTRACE_SETREGS, pid, NULL, &registers);
                fprintf(out, "%llx\n", (unsigned long long)hit);
            }
        }
        // A new child or thread stops with SIGSTOP.
        if (signal == SIGTRAP || signal == SIGSTOP) signal = 0;
        ptrace(PTRACE_CONT, pid, NULL, signal);
    }
    fclose(out);
    return code;
}
