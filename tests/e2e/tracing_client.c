// A client of perf_event_open(2) and bpf(2) without a library: each argument is a step, and prints one line, `STEP RESULT …`.
// A program that returns 0 keeps its event from being counted, so that a count tells whether the program runs.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
static const struct insn ignore[] = { { 0xb7, 0, 0, 0 }, { 0x95, 0, 0, 0 } };

static long bpf(int cmd, void *attr, unsigned size) { return syscall(SYS_bpf, cmd, attr, size); }
static long load(uint32_t type, uint32_t expected) {
	struct { uint32_t type, count; uint64_t insns, license; uint32_t log[2]; uint64_t log_buf; uint32_t version, flags; char name[16]; uint32_t ifindex, expected; } attr = {
		.type = type, .count = 2, .insns = (uintptr_t)ignore, .license = (uintptr_t)"GPL", .name = "traced", .expected = expected };
	return bpf(5, &attr, sizeof attr);
}
static long link_to(long program, long target, uint32_t type) {
	struct { uint32_t program, target, type, flags; uint64_t cookie; } attr = { .program = program, .target = target, .type = type };
	return bpf(28, &attr, sizeof attr);
}
static long event(uint32_t type, uint64_t config, const void *text, uint64_t offset, int pid, int cpu) {
	struct perf_event_attr attr = { .type = type, .size = sizeof attr, .config = config, .config1 = (uintptr_t)text, .config2 = offset, .sample_period = 1 };
	return syscall(SYS_perf_event_open, &attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}
static uint32_t pmu(const char *name) {
	char path[99], number[16] = "";
	snprintf(path, sizeof path, "/sys/bus/event_source/devices/%s/type", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, number, sizeof number - 1) < 1) { perror(path); exit(3); }
	close(fd);
	return atoi(number);
}
static long count(long fd) { uint64_t n = 0; return fd < 0 || read(fd, &n, sizeof n) != sizeof n ? -1 : (long)n; }
static void say(const char *step, long result) { printf("%s %d %d\n", step, result < 0 ? -1 : 0, result < 0 ? errno : 0); fflush(stdout); }

// The function that is probed, and where it lies in the file. The program is static, and not position-independent.
__attribute__((noinline)) void probed(void) { __asm__ volatile("nop; nop"); }
extern char __executable_start;
static uint64_t place(void) { return (uintptr_t)probed - (uintptr_t)&__executable_start; }
static void often(void (*what)(void)) { for (int i = 0; i < 10; i++) what(); }
static void parent(void) { syscall(SYS_getppid); }

// How often the event happened before a program was attached, and after; the ways are ioctl and link.
static void counted(const char *step, long fd, long program, int by_link, void (*what)(void)) {
	often(what);
	long before = count(fd);
	int error = errno;
	long attached = by_link ? link_to(program, fd, 41) : ioctl(fd, PERF_EVENT_IOC_SET_BPF, program);
	if (fd < 0 || attached < 0) { printf("%s failed %ld %d %ld %d\n", step, fd, error, attached, errno); fflush(stdout); return; }
	often(what);
	printf("%s %ld %ld\n", step, before, count(fd));
	fflush(stdout);
	close(fd);
}

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		const char *step = argv[i];
		if (!strcmp(step, "tracepoint") || !strcmp(step, "tracepoint-link"))
			counted(step, event(PERF_TYPE_TRACEPOINT, atoi(argv[++i]), 0, 0, 0, -1), load(5, 0), strlen(step) > 10, parent);
		else if (!strcmp(step, "uprobe")) counted(step, event(pmu("uprobe"), 0, argv[0], place(), 0, -1), load(2, 0), 0, probed);
		else if (!strcmp(step, "uprobe-exe")) counted(step, event(pmu("uprobe"), 0, "/proc/self/exe", place(), 0, -1), load(2, 0), 1, probed);
		else if (!strcmp(step, "uprobe-pid")) {
			// The process by its number in the container's pid namespace.
			char path[64];
			snprintf(path, sizeof path, "/proc/%d/root%s", getpid(), argv[0]);
			counted(step, event(pmu("uprobe"), 0, path, place(), getpid(), -1), load(2, 0), 0, probed);
		}
		else if (!strcmp(step, "uprobe-multi")) {
			uint64_t offset = place();
			struct { uint32_t program, target, type, flags; uint64_t path, offsets, counters, cookies; uint32_t count, how, pid, pad; } attr = {
				.program = load(2, 48), .type = 48, .path = (uintptr_t)argv[0], .offsets = (uintptr_t)&offset, .count = 1, .pid = getpid() };
			say(step, bpf(28, &attr, 60));
		}
		else if (!strcmp(step, "output")) say(step, event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, 0, 0, -1, 0));
		else if (!strcmp(step, "clock")) say(step, event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK, 0, 0, -1, 0));
		else if (!strcmp(step, "breakpoint")) say(step, event(PERF_TYPE_BREAKPOINT, 0, 0, 0, 0, -1));
		else if (!strcmp(step, "file")) say(step, event(pmu("uprobe"), 0, argv[++i], 0, -1, 0));
		else if (!strcmp(step, "relative")) say(step, event(pmu("uprobe"), 0, "client", 0, -1, 0));
		else if (!strcmp(step, "nobody")) say(step, event(PERF_TYPE_TRACEPOINT, 1, 0, 0, 4000000, -1));
		else if (!strcmp(step, "nowhere")) say(step, syscall(SYS_perf_event_open, (void *)64, 0, -1, -1, 0));
		else { fprintf(stderr, "unknown step %s\n", step); return 2; }
	}
	return 0;
}
