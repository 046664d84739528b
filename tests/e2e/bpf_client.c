// A client of bpf(2) without a library, with or without a token. Each argument is a step, STEP or STEP:ARGUMENT…, and prints one line,
// `STEP RESULT ERRNO`, RESULT being 0 or -1. The kernel's header is not used for bpf(2), since that of the build machine may be older
// than the kernel.
//     map:TYPE              creates a map
//     prog:TYPE:ATTACH      loads a program of two instructions
//     helper:TYPE:HELPER    loads a program that calls a helper with a buffer on its stack, 8 and 0
//     call:COMMAND          makes a call with empty arguments
//     detach:CGROUP         finds LSM programs by their ids, and detaches each from a cgroup
//     edit:PIN              opens a pinned map, and writes zeros
//     token:BPFFS           creates a token, which later steps use
//     borrow:PID:BPFFS      has a child in the namespaces of a process create the token
//     enter:PID             enters the user namespace of a process
//     wait                  waits for a line
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	MAP_CREATE = 0, MAP_UPDATE_ELEM = 2, PROG_LOAD = 5, OBJ_GET = 7, PROG_DETACH = 9, PROG_GET_NEXT_ID = 11,
	PROG_GET_FD_BY_ID = 13, OBJ_GET_INFO_BY_FD = 15, TOKEN_CREATE = 36,
	LSM = 29, LSM_CGROUP = 43, TOKEN_FD = 1 << 16,
};

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };
union attr {
	struct { uint32_t type, key, value, entries, flags, unused[14]; int32_t token; } map;
	struct {
		uint32_t type, insn_cnt; uint64_t insns, license; uint32_t log_level, log_size; uint64_t log_buf;
		uint32_t kern_version, flags; char name[16]; uint32_t ifindex, expected, unused[18]; int32_t token;
	} prog;
	struct { uint32_t target, prog, type, flags; } attach;
	struct { uint64_t path; uint32_t fd, flags; } object;
	struct { uint32_t map, unused; uint64_t key, value, flags; } element;
	struct { uint32_t fd, len; uint64_t info; } info;
	struct { uint32_t start, next; } id;
	struct { uint32_t flags, bpffs; } token;
	uint8_t bytes[152];
};
_Static_assert(__builtin_offsetof(union attr, map.token) == 76 && __builtin_offsetof(union attr, prog.token) == 144, "linux/bpf.h");
static union attr a;
static int token = -1;

static long bpf(int command) { return syscall(SYS_bpf, command, &a, sizeof a); }
static void clear(void) { memset(&a, 0, sizeof a); }

static long map_of(uint32_t type) {
	clear();
	a.map.type = type; a.map.key = 4; a.map.value = 8; a.map.entries = 1;
	if (token >= 0) { a.map.flags = TOKEN_FD; a.map.token = token; }
	return bpf(MAP_CREATE);
}
static long load(const struct insn *code, unsigned count, uint32_t type, uint32_t expected) {
	clear();
	a.prog.type = type; a.prog.expected = expected; a.prog.insns = (uintptr_t)code; a.prog.insn_cnt = count;
	a.prog.license = (uintptr_t)"GPL";
	strcpy(a.prog.name, "client");
	if (token >= 0) { a.prog.flags = TOKEN_FD; a.prog.token = token; }
	return bpf(PROG_LOAD);
}
static long program(uint32_t type, uint32_t expected) {
	const struct insn code[] = { { 0xb7, 0, 0, 1 }, { 0x95, 0, 0, 0 } };
	return load(code, 2, type, expected);
}
static long calling(uint32_t type, int helper) {
	const struct insn code[] = {
		{ 0xbf, 0xa1, 0, 0 }, { 0x07, 1, 0, -8 }, { 0xb7, 2, 0, 8 }, { 0xb7, 3, 0, 0 }, { 0x85, 0, 0, helper }, { 0xb7, 0, 0, 0 }, { 0x95, 0, 0, 0 },
	};
	return load(code, 7, type, 0);
}
// The result of the last one, and -1 with ENOENT if there is none.
static long detach(const char *cgroup) {
	uint32_t id = 0, info[64];
	long result = -1;
	int directory = open(cgroup, O_RDONLY | O_DIRECTORY), error = ENOENT;

	if (directory < 0) return -1;
	for (;;) {
		clear();
		a.id.start = id;
		if (bpf(PROG_GET_NEXT_ID)) { error = errno == ENOENT ? error : errno; break; }
		id = a.id.next;
		clear();
		a.id.start = id;
		int prog = bpf(PROG_GET_FD_BY_ID);
		if (prog < 0) continue;
		clear();
		memset(info, 0, sizeof info);
		a.info.fd = prog; a.info.len = sizeof info; a.info.info = (uintptr_t)info;
		if (!bpf(OBJ_GET_INFO_BY_FD) && info[0] == LSM) {
			clear();
			a.attach.target = directory; a.attach.prog = prog; a.attach.type = LSM_CGROUP;
			result = bpf(PROG_DETACH);
			error = errno;
		}
		close(prog);
	}
	errno = error;
	return result;
}
static long edit(const char *pin) {
	static uint8_t key[8], zeros[1 << 16];

	clear();
	a.object.path = (uintptr_t)pin;
	int map = bpf(OBJ_GET);
	if (map < 0) return -1;
	clear();
	a.element.map = map; a.element.key = (uintptr_t)key; a.element.value = (uintptr_t)zeros;
	return bpf(MAP_UPDATE_ELEM);
}
static int create_token(const char *bpffs) {
	clear();
	a.token.bpffs = open(bpffs, O_RDONLY | O_DIRECTORY);
	return (int)a.token.bpffs < 0 ? -1 : bpf(TOKEN_CREATE);
}
static int enter(const char *pid, int namespaces) {
	int process = syscall(SYS_pidfd_open, atoi(pid), 0);
	return process < 0 ? -1 : setns(process, namespaces);
}
static int borrow(const char *pid, const char *bpffs) {
	char space[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int sockets[2], fd, status;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) return -1;
	pid_t child = fork();
	if (!child) {
		if (enter(pid, CLONE_NEWUSER | CLONE_NEWNS) || (fd = create_token(bpffs)) < 0) _exit(errno);
		header->cmsg_level = SOL_SOCKET; header->cmsg_type = SCM_RIGHTS; header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
		_exit(sendmsg(sockets[0], &message, 0) == 1 ? 0 : errno);
	}
	if (child < 0 || waitpid(child, &status, 0) != child) return -1;
	if (!WIFEXITED(status) || WEXITSTATUS(status)) { errno = WEXITSTATUS(status); return -1; }
	if (recvmsg(sockets[1], &message, 0) != 1 || !(header = CMSG_FIRSTHDR(&message))) return -1;
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	return fd;
}

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		char words[256], *rest = words, line[8];
		long result = -1;

		snprintf(words, sizeof words, "%s", argv[i]);
		char *step = strsep(&rest, ":"), *first = rest ? strsep(&rest, ":") : "", *second = rest ? rest : "";
		errno = EINVAL;
		if (!strcmp(step, "map")) result = map_of(atoi(first));
		else if (!strcmp(step, "prog")) result = program(atoi(first), atoi(second));
		else if (!strcmp(step, "helper")) result = calling(atoi(first), atoi(second));
		else if (!strcmp(step, "call")) { clear(); result = bpf(atoi(first)); }
		else if (!strcmp(step, "detach")) result = detach(first);
		else if (!strcmp(step, "edit")) result = edit(first);
		else if (!strcmp(step, "token")) result = token = create_token(first);
		else if (!strcmp(step, "borrow")) result = token = borrow(first, second);
		else if (!strcmp(step, "enter")) result = enter(first, CLONE_NEWUSER);
		else if (!strcmp(step, "wait")) { puts("waiting"); fflush(stdout); if (!fgets(line, sizeof line, stdin)) return 1; continue; }
		int error = result < 0 ? errno : 0;
		printf("%s %d %d\n", argv[i], result < 0 ? -1 : 0, error);
		fflush(stdout);
		if (result >= 0 && result != token) close(result > 2 ? result : -1);
	}
	return 0;
}
