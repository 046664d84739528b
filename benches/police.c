// Medians in microseconds of calls of bpf(2): MAP_LOOKUP_ELEM, MAP_CREATE, PROG_LOAD of 2 and of 4096 instructions.
//     police CALLS [PIN]
// With the PIN of a program, that is attached to the entry of system calls meanwhile.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAP_CREATE = 0, MAP_LOOKUP_ELEM = 1, PROG_LOAD = 5, OBJ_GET = 7, RAW_TRACEPOINT_OPEN = 17, ARRAY = 2, XDP = 6, ATTACH_XDP = 37 };
enum { KINDS = 4, BATCH = 100, LONG = 4096 };

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
static struct insn code[LONG];
static union {
	struct { uint32_t type, key, value, entries; } map;
	struct { uint32_t fd, unused; uint64_t key, value; } lookup;
	struct {
		uint32_t type, count; uint64_t insns, license; uint32_t log[5], flags; char name[16]; uint32_t ifindex, attach;
	} prog;
	struct { uint64_t name; uint32_t prog; } point;
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

static long create(void)
{
	memset(&attr, 0, sizeof(attr));
	attr.map.type = ARRAY;
	attr.map.key = 4;
	attr.map.value = 8;
	attr.map.entries = 1;
	return bpf(MAP_CREATE);
}

// The last `count` instructions of `code`.
static long load(int count)
{
	memset(&attr, 0, sizeof(attr));
	attr.prog.type = XDP;
	attr.prog.count = count;
	attr.prog.insns = (uintptr_t)(code + LONG - count);
	attr.prog.license = (uintptr_t)"GPL";
	attr.prog.attach = ATTACH_XDP;
	strcpy(attr.prog.name, "measured");
	return bpf(PROG_LOAD);
}

static void attach(const char *pin)
{
	memset(&attr, 0, sizeof(attr));
	*(uint64_t *)attr.bytes = (uintptr_t)pin;
	long prog = bpf(OBJ_GET);

	memset(&attr, 0, sizeof(attr));
	attr.point.name = (uintptr_t)"sys_enter";
	attr.point.prog = prog;
	if (prog < 0 || bpf(RAW_TRACEPOINT_OPEN) < 0) {
		perror(pin);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int calls = argc > 1 ? atoi(argv[1]) : 1000;
	double *taken[KINDS];
	uint32_t key = 0;
	uint64_t value;
	long map = create();

	for (int at = 0; at < LONG; at++)
		code[at] = (struct insn){ 0xb7, 0, 0, 2 };
	code[LONG - 1] = (struct insn){ 0x95, 0, 0, 0 };
	if (argc > 2)
		attach(argv[2]);
	for (int kind = 0; kind < KINDS; kind++)
		taken[kind] = calloc(calls, sizeof(double));
	for (int call = 0; call < calls; call++) {
		memset(&attr, 0, sizeof(attr));
		attr.lookup.fd = map;
		attr.lookup.key = (uintptr_t)&key;
		attr.lookup.value = (uintptr_t)&value;
		double begin = now();
		for (int i = 0; i < BATCH; i++)
			bpf(MAP_LOOKUP_ELEM);
		taken[0][call] = (now() - begin) / BATCH;
		for (int kind = 1; kind < KINDS; kind++) {
			begin = now();
			long fd = kind == 1 ? create() : load(kind == 2 ? 2 : LONG);

			taken[kind][call] = now() - begin;
			if (fd < 0) {
				perror("create a map or load a program");
				return 1;
			}
			close(fd);
		}
	}
	for (int kind = 0; kind < KINDS; kind++) {
		qsort(taken[kind], calls, sizeof(double), by_size);
		printf("%.3f ", taken[kind][calls / 2]);
	}
	printf("\n");
	return 0;
}
