/* run INPUT PROGRAM ARG...   times one process from fork to exit, with INPUT as its standard input.
 *
 * Prints nanoseconds, peak memory in KiB and the exit status. Peak memory is that of the process or of the largest child it
 * waited for, whichever is more: getrusage(2). It is measured from here and not from an interpreter, because a process starts
 * with the peak of the process that it was forked from. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int input = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (input < 0) { perror(argv[1]); return 2; }
    long long start = now();
    pid_t child = fork();
    if (child < 0) { perror("fork"); return 2; }
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        if (null < 0 || dup2(input, 0) < 0 || dup2(null, 1) < 0) _exit(127);
        close(null);
        execv(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child) { perror("wait4"); return 2; }
    long long end = now();
    printf("%lld %ld %d\n", end - start, usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
