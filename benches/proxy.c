// Medians in microseconds of calls of bpf(2), each alone: two that the proxy makes, one that it does not get, and getppid(2).
//     proxy CALLS
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAP_CREATE = 0, MAP_LOOKUP_ELEM = 1, PROG_LOAD = 5, ARRAY = 2, XDP = 6, ATTACH_XDP = 37, KINDS = 4, BATCH = 100 };

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
static const struct insn pass[] = { { 0xb7, 0, 0, 2 }, { 0x95, 0, 0, 0 } };
static union {
	struct { uint32_t type, key, value, entries; } map;
	struct { uint32_t fd, unused; uint64_t key, value; } lookup;
	struct {
		uint32_t type, count; uint64_t insns, license; uint32_t log[5], flags; char name[16]; uint32_t ifindex, attach;
	} prog;
	uint8_t bytes[128];
} attr;

static long bpf(int command)
{
	return syscall(SYS_bpf, command, &attr, sizeof(attr));
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int by_size(const void *x, const void *y)
{
	double difference = *(const double *)x - *(const double *)y;

	return (difference > 0) - (difference < 0);
}

static long make(int command)
{
	memset(&attr, 0, sizeof(attr));
	if (command == MAP_CREATE) {
		attr.map.type = ARRAY;
		attr.map.key = 4;
		attr.map.value = 8;
		attr.map.entries = 1;
	} else {
		attr.prog.type = XDP;
		attr.prog.count = 2;
		attr.prog.insns = (uintptr_t)pass;
		attr.prog.license = (uintptr_t)"GPL";
		attr.prog.attach = ATTACH_XDP;
	}
	return bpf(command);
}

int main(int argc, char **argv)
{
	int calls = argc > 1 ? atoi(argv[1]) : 1000;
	double *taken[KINDS];
	uint32_t key = 0;
	uint64_t value;
	long map = make(MAP_CREATE);

	for (int kind = 0; kind < KINDS; kind++)
		taken[kind] = calloc(calls, sizeof(double));
	if (map < 0) {
		perror("create a map");
		return 1;
	}
	for (int call = 0; call < calls; call++) {
		for (int kind = 0; kind < 2; kind++) {
			double begin = now();
			long fd = make(kind ? PROG_LOAD : MAP_CREATE);

			taken[kind][call] = now() - begin;
			if (fd < 0) {
				perror(kind ? "load a program" : "create a map");
				return 1;
			}
			close(fd);
		}
		memset(&attr, 0, sizeof(attr));
		attr.lookup.fd = map;
		attr.lookup.key = (uintptr_t)&key;
		attr.lookup.value = (uintptr_t)&value;
		double begin = now();
		for (int i = 0; i < BATCH; i++)
			bpf(MAP_LOOKUP_ELEM);
		taken[2][call] = (now() - begin) / BATCH;
		begin = now();
		for (int i = 0; i < BATCH; i++)
			syscall(SYS_getppid);
		taken[3][call] = (now() - begin) / BATCH;
	}
	for (int kind = 0; kind < KINDS; kind++) {
		qsort(taken[kind], calls, sizeof(double), by_size);
		printf("%.3f ", taken[kind][calls / 2]);
	}
	printf("\n");
	return 0;
}
