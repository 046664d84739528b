// A client of bpf(2) without a library: each argument is a step, and prints one line, `STEP RESULT ERRNO …`, RESULT being
// 0 or -1. The kernel's header is not used for bpf(2), since that of the build machine may be older than the kernel.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MAP_CREATE = 0, PROG_LOAD = 5, PROG_ATTACH = 8, OBJ_GET_INFO = 15, RAW_TP = 17, BTF_LOAD = 18, LINK_CREATE = 28, TOKEN_CREATE = 36 };

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
union attr {
	struct { uint32_t type, key, value, entries, flags, inner; uint32_t numa; char name[16]; } map;
	struct {
		uint32_t type, insn_cnt; uint64_t insns, license; uint32_t log_level, log_size; uint64_t log_buf;
		uint32_t kern_version, flags; char name[16]; uint32_t ifindex, expected;
	} prog;
	struct { uint32_t prog_fd, target, type, flags; } link;
	struct { uint32_t fd, len; uint64_t info; } info;
	uint8_t bytes[8192];
};
static union attr a;

static long bpf(int cmd, unsigned size) { return syscall(SYS_bpf, cmd, &a, size); }
static void say(const char *step, long result) {
	int error = result < 0 ? errno : 0;
	printf("%s %d %d\n", step, result < 0 ? -1 : 0, error);
	fflush(stdout);
}

static long map_of(uint32_t type, uint32_t entries) {
	memset(&a, 0, sizeof a);
	a.map.type = type; a.map.key = type == 27 ? 0 : 4; a.map.value = type == 27 ? 0 : 8; a.map.entries = entries;
	strcpy(a.map.name, "proxied");
	return bpf(MAP_CREATE, 128);
}
static char verifier[4096];
static long load(const struct insn *code, unsigned count, uint32_t type, uint32_t expected, const char *name) {
	memset(&a, 0, sizeof a);
	a.prog.type = type; a.prog.expected = expected; a.prog.insns = (uintptr_t)code; a.prog.insn_cnt = count;
	a.prog.license = (uintptr_t)"GPL"; a.prog.log_level = 1; a.prog.log_buf = (uintptr_t)verifier; a.prog.log_size = sizeof verifier;
	verifier[0] = 0;
	snprintf(a.prog.name, sizeof a.prog.name, "%s", name);
	return bpf(PROG_LOAD, 128);
}
#define MOV(r, v) { 0xb7, r, 0, v }
#define CALL(f) { 0x85, 0, 0, f }
#define EXIT { 0x95, 0, 0, 0 }
static const struct insn pass[] = { MOV(0, 2), EXIT };
static long xdp(void) { return load(pass, 2, 6, 37, "proxied"); }
static long link_to(long prog, uint32_t target, uint32_t type) {
	memset(&a, 0, sizeof a);
	a.link.prog_fd = prog; a.link.target = target; a.link.type = type;
	return bpf(LINK_CREATE, 64);
}
static void calling(const char *step, int helper) {
	struct insn code[] = { MOV(1, 0), MOV(2, 0), MOV(3, 0), CALL(helper), MOV(0, 2), EXIT };
	long fd = load(code, 6, 6, 37, "calling");
	say(step, fd);
	verifier[strcspn(verifier, "\n")] = 0;
	printf("log %s\n", verifier);
	fflush(stdout);
}

// 500 loads that are refused, each for another reason: the name of the program is in it.
static void refusals(const char *step) {
	struct insn code[] = { MOV(1, 0), MOV(2, 0), MOV(3, 0), CALL(113), MOV(0, 2), EXIT };
	long result = 0;
	for (int i = 0; i < 500 && result <= 0; i++) {
		char name[16];
		snprintf(name, sizeof name, "refused%d", i);
		result = load(code, 6, 6, 37, name);
	}
	say(step, result);
}

static volatile int stop;
static volatile unsigned long alarms;
static void on_alarm(int n) { (void)n; alarms++; }
// A program that keeps the verifier busy for some ten milliseconds. Loops do not: without CAP_PERFMON it refuses long ones.
static void storm(void) {
	enum { LENGTH = 100000 };
	static struct insn slow[LENGTH];
	for (int i = 0; i < LENGTH; i++) slow[i] = (struct insn){ 0x07, 0, 0, 1 };
	slow[0] = (struct insn)MOV(0, 0); slow[LENGTH - 1] = (struct insn)EXIT;
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct itimerval timer = { { 0, 5000 }, { 0, 5000 } }, off = { { 0, 0 }, { 0, 0 } };
	memset(&a, 0, sizeof a);
	a.prog.type = 6; a.prog.expected = 37; a.prog.insns = (uintptr_t)slow; a.prog.insn_cnt = LENGTH; a.prog.license = (uintptr_t)"GPL";
	strcpy(a.prog.name, "stormed");
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, &timer, 0);
	long fd = bpf(PROG_LOAD, 128);
	setitimer(ITIMER_REAL, &off, 0);
	say("storm", fd);
	printf("alarms %lu\n", alarms);
	fflush(stdout);
}
static void *flip(void *type) {
	while (!stop) { *(volatile uint32_t *)type = 2; *(volatile uint32_t *)type = 1; }
	return 0;
}
// Another thread changes the map's type all the time: 1, a hash, is not granted.
static void race(void) {
	pthread_t other;
	int wrong = 0, made = 0;
	static union attr query;
	static uint32_t info[64];
	memset(&a, 0, sizeof a);
	a.map.key = 4; a.map.value = 8; a.map.entries = 1;
	pthread_create(&other, 0, flip, &a.map.type);
	for (int i = 0; i < 2000; i++) {
		long fd = bpf(MAP_CREATE, 128);
		if (fd < 0) continue;
		made++;
		memset(&query, 0, sizeof query);
		query.info.fd = fd; query.info.len = sizeof info; query.info.info = (uintptr_t)info;
		if (syscall(SYS_bpf, OBJ_GET_INFO, &query, 128) || info[0] != 2) wrong++;
		close(fd);
	}
	stop = 1;
	pthread_join(other, 0);
	printf("race %d made %d\n", wrong, made);
	fflush(stdout);
}
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static int by_size(const void *x, const void *y) { double d = *(const double *)x - *(const double *)y; return (d > 0) - (d < 0); }
static void cost(void) {
	enum { N = 1000 };
	static double maps[N], progs[N];
	for (int i = 0; i < N; i++) {
		double begin = now(); long fd = map_of(2, 1); maps[i] = now() - begin; close(fd);
		memset(&a, 0, sizeof a);
		a.prog.type = 6; a.prog.expected = 37; a.prog.insns = (uintptr_t)pass; a.prog.insn_cnt = 2; a.prog.license = (uintptr_t)"GPL";
		begin = now(); fd = bpf(PROG_LOAD, 128); progs[i] = now() - begin; close(fd);
	}
	qsort(maps, N, sizeof *maps, by_size); qsort(progs, N, sizeof *progs, by_size);
	printf("cost map_create %.1f prog_load %.1f\n", maps[N / 2], progs[N / 2]);
	fflush(stdout);
}

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		const char *step = argv[i];
		if (!strcmp(step, "map")) say(step, map_of(2, 16));
		else if (!strcmp(step, "bigmap")) say(step, map_of(2, 32 << 20));
		else if (!strcmp(step, "ringbuf")) say(step, map_of(27, 4096));
		else if (!strcmp(step, "common")) { map_of(2, 1); say(step, bpf(MAP_CREATE | 1 << 16, 128)); }
		else if (!strcmp(step, "prog")) say(step, xdp());
		else if (!strcmp(step, "kprobe")) say(step, load(pass, 2, 2, 0, "proxied"));
		else if (!strcmp(step, "xdp")) say(step, link_to(xdp(), 1, 37));
		else if (!strcmp(step, "keep")) { say(step, link_to(xdp(), 1, 37)); pause(); }
		else if (!strcmp(step, "wrongfd")) { long map = map_of(2, 1); say(step, link_to(map, 1, 37)); }
		else if (!strcmp(step, "notopen")) say(step, link_to(999, 1, 37));
		else if (!strcmp(step, "cgroup")) {
			struct insn code[] = { MOV(0, 1), EXIT };
			long prog = load(code, 2, 8, 0, "proxied");
			say(step, link_to(prog, open(argv[++i], O_RDONLY | O_DIRECTORY), 0));
		}
		else if (!strcmp(step, "token")) { memset(&a, 0, sizeof a); say(step, bpf(TOKEN_CREATE, 8)); }
		else if (!strcmp(step, "large")) { memset(&a, 0, sizeof a); a.map.type = 2; say(step, bpf(MAP_CREATE, 8192)); }
		else if (!strcmp(step, "beyond")) { memset(&a, 0, sizeof a); a.bytes[4000] = 1; say(step, bpf(MAP_CREATE, 4096)); }
		else if (!strcmp(step, "padded")) { map_of(2, 1); say(step, bpf(MAP_CREATE, 4096)); }
		else if (!strcmp(step, "nowhere")) say(step, syscall(SYS_bpf, MAP_CREATE, (void *)64, 128));
		else if (!strcmp(step, "manyinsns")) { load(pass, 2, 6, 37, "p"); a.prog.insn_cnt = 0xffffffff; say(step, bpf(PROG_LOAD, 128)); }
		else if (!strcmp(step, "ktime")) calling(step, 5);
		else if (!strcmp(step, "readkernel")) calling(step, 113);
		else if (!strcmp(step, "refusals")) refusals(step);
		else if (!strcmp(step, "verifier")) {
			struct insn code[] = { MOV(0, 0), { 0x79, 0x20, 0, 0 }, EXIT };
			say(step, load(code, 3, 6, 37, "bad"));
			printf("log %s\n", strstr(verifier, "R2") ? "names R2" : verifier);
			fflush(stdout);
		}
		else if (!strcmp(step, "emfile")) {
			struct rlimit old, none = { 3, 3 };
			getrlimit(RLIMIT_NOFILE, &old); none.rlim_max = old.rlim_max;
			setrlimit(RLIMIT_NOFILE, &none);
			long fd = map_of(2, 1);
			int error = errno;
			setrlimit(RLIMIT_NOFILE, &old);
			errno = error;
			say(step, fd);
		}
		else if (!strcmp(step, "storm")) storm();
		else if (!strcmp(step, "race")) race();
		else if (!strcmp(step, "cost")) cost();
		else if (!strcmp(step, "other-netns")) {
			if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) { printf("other-netns cannot %d\n", errno); continue; }
			say(step, link_to(xdp(), 1, 37));
		}
		else if (!strcmp(step, "int80")) {
#ifdef __x86_64__
			void *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
			memset(low, 0, 4096); *(uint32_t *)low = 2;
			long result;
			__asm__ volatile("int $0x80" : "=a"(result) : "a"(357), "b"(0), "c"(low), "d"(128) : "memory", "r8", "r9", "r10", "r11");
			errno = result < 0 ? -result : 0;
			say(step, result < 0 ? -1 : result);
#else
			printf("int80 -1 38\n");
#endif
		}
		else if (!strcmp(step, "sleep")) sleep(atoi(argv[++i]));
		else if (!strcmp(step, "wait")) { char line[8]; printf("waiting\n"); fflush(stdout); if (!fgets(line, sizeof line, stdin)) return 1; }
		else { fprintf(stderr, "unknown step %s\n", step); return 2; }
	}
	return 0;
}
