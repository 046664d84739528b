// A hostile client of bpf(2): proxy_fuzz SECONDS SEED. It makes notified calls with valid, mutated and random arguments,
// from several processes and threads that change the arguments, close the descriptors, interrupt and kill each other
// while the calls are judged. It prints its seed first, and one line with what it did at the end.
//
// The arguments come from the seed, so that a seed repeats them; what the threads do to each other does not repeat.
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
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAP_CREATE = 0, PROG_LOAD = 5, PROG_ATTACH = 8, PROG_DETACH = 9, RAW_TP = 17, BTF_LOAD = 18, LINK_CREATE = 28, TOKEN_CREATE = 36 };
enum { WORKERS = 4, ATTR = 176, REGION = 64 << 10, DESCRIPTORS = 96 };

struct insn { uint8_t code, regs; int16_t off; int32_t imm; };

// Counters of all processes, and when to stop.
struct shared {
	volatile unsigned long calls, made, denied, interrupted, killed, execs, wide;
	double end;
};
static struct shared *all;
// Memory for arguments that other threads change and unmap: writable, read-only, without access, and one that comes and goes.
static uint8_t *region, *readonly, *forbidden, *fleeting;
static uint8_t *sparse; // 40 MiB, most of it never touched
static int fds[DESCRIPTORS];
static volatile int stop;
static uint64_t state;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
// splitmix64
static uint64_t mix(uint64_t *s) {
	uint64_t z = (*s += 0x9e3779b97f4a7c15u);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}
static uint64_t random_of(uint64_t n) { return mix(&state) % n; }
static int one_in(int n) { return random_of(n) == 0; }

static const uint32_t numbers[] = { 0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20,
	(1 << 20) + 1, 1 << 24, (1 << 24) + 1, 0x7fffffff, 0x80000000, 0xfffffff8, 0xfffffffe, 0xffffffff };
static uint32_t number(void) { return one_in(3) ? mix(&state) : numbers[random_of(sizeof numbers / sizeof *numbers)]; }

static uint64_t pointer(void) {
	switch (random_of(12)) {
	case 0: return 0;
	case 1: return 8;
	case 2: return (uintptr_t)forbidden + random_of(4096);
	case 3: return (uintptr_t)readonly + random_of(4096);
	case 4: return (uintptr_t)fleeting + random_of(4096);
	case 5: return (uintptr_t)region + REGION - random_of(64); // ends in what is not mapped
	case 6: return 0xffffffff81000000u + random_of(4096);
	case 7: return mix(&state);
	case 8: return (uintptr_t)sparse + random_of(4096);
	case 9: return UINT64_MAX - random_of(64);
	default: return (uintptr_t)region + random_of(REGION);
	}
}

// ---- descriptors of all kinds

static void add(int fd) {
	if (fd < 0) return;
	int at = random_of(DESCRIPTORS), old = fds[at];
	fds[at] = fd;
	if (old > 2) close(old);
}
static void open_others(void) {
	int pair[2];
	add(open("/", O_RDONLY | O_DIRECTORY)); add(open("/fuzz", O_RDONLY)); add(open("/fuzz", O_PATH)); add(open("/dev/null", O_RDWR));
	add(open("/proc/self/mem", O_RDWR)); add(open("/proc/self/ns/net", O_RDONLY)); add(open("/proc/self/ns/user", O_RDONLY));
	add(open("/proc/self/ns/mnt", O_RDONLY)); add(open("/cg", O_RDONLY | O_DIRECTORY)); add(open("/sys", O_RDONLY | O_DIRECTORY));
	add(open("/sys/kernel/btf/vmlinux", O_RDONLY)); add(open("/tmp", O_TMPFILE | O_RDWR, 0600)); add(open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
	if (!pipe(pair)) { add(pair[0]); add(pair[1]); }
	if (!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) { add(pair[0]); add(pair[1]); }
	add(socket(AF_INET, SOCK_STREAM, 0)); add(socket(AF_NETLINK, SOCK_RAW, 0)); add(eventfd(0, 0)); add(epoll_create1(0));
	add(timerfd_create(CLOCK_MONOTONIC, 0)); add(memfd_create("m", 0)); add(syscall(SYS_pidfd_open, getpid(), 0));
	add(syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */)); add(syscall(SYS_inotify_init1, 0));
}
static uint32_t descriptor(void) {
	switch (random_of(10)) {
	case 0: return number();
	case 1: return random_of(2000);
	case 2: return random_of(16);
	default: return fds[random_of(DESCRIPTORS)];
	}
}

// ---- valid calls

static uint8_t attr[8192];
static void put32(unsigned at, uint32_t value) { memcpy(attr + at, &value, 4); }
static void put64(unsigned at, uint64_t value) { memcpy(attr + at, &value, 8); }
#define I(c, d, s, o, i) ((struct insn){ c, (d) | (s) << 4, o, i })

static int map_create(void) {
	static const uint8_t types[] = { 1, 2, 2, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 22, 23, 24, 27, 27, 28, 30, 31, 32, 33 };
	uint32_t type = one_in(4) ? random_of(40) : types[random_of(sizeof types)];
	put32(0, type);
	put32(4, type == 27 || type == 31 || type == 22 || type == 23 || type == 30 ? 0 : 4);
	put32(8, type == 27 || type == 31 ? 0 : 8);
	put32(12, type == 27 || type == 31 ? 4096u << random_of(3) : 1 + (uint32_t)random_of(64));
	put32(16, one_in(3) ? 1u << random_of(20) : type == 11 ? 1 : 0);
	if (type == 12 || type == 13 || one_in(8)) put32(20, descriptor());
	memcpy(attr + 28, "fuzzed", 6);
	if (one_in(8)) { put32(48, descriptor()); put32(52, random_of(8)); put32(56, random_of(8)); }
	return MAP_CREATE;
}

static unsigned program(struct insn *code, uint32_t limit) {
	unsigned n = 0, parts = random_of(6), functions = 0;
	code[n++] = I(0xbf, 6, 1, 0, 0);
	while (parts-- && n + 16 < limit) {
		switch (random_of(9)) {
		case 0: // look up in a map
			code[n++] = I(0x62, 10, 0, -4, 0); code[n++] = I(0xbf, 2, 10, 0, 0); code[n++] = I(0x07, 2, 0, 0, -4);
			code[n++] = I(0x18, 1, one_in(4) ? random_of(16) : 1, 0, descriptor()); code[n++] = I(0, 0, 0, 0, one_in(8) ? number() : 0);
			code[n++] = I(0x85, 0, 0, 0, 1); break;
		case 1: code[n++] = I(0x85, 0, 0, 0, one_in(2) ? 5 : random_of(220)); break;
		case 2: code[n++] = I(0x85, 0, 2, one_in(4) ? random_of(4) : 0, random_of(150000)); break;
		case 3: code[n++] = I(0x85, 0, 1, 0, random_of(8) - 3); functions++; break;
		case 4: code[n++] = I(0x05 | random_of(16) << 4, random_of(10), 0, random_of(6) - 3, random_of(8)); break;
		case 5: code[n++] = I(0x18, random_of(10), random_of(8), 0, number()); code[n++] = I(0, 0, 0, 0, number()); break;
		case 6: code[n++] = I(random_of(256), random_of(16), random_of(16), random_of(16) - 8, number()); break;
		case 7: for (int i = 0; i < 3; i++) code[n++] = I(0xb7, random_of(10), 0, 0, number()); break;
		default: code[n++] = I(0x61, 0, 6, random_of(20) * 4, 0);
		}
	}
	code[n++] = I(0xb7, 0, 0, 0, random_of(3));
	code[n++] = I(0x95, 0, 0, 0, 0);
	return n;
}
static int prog_load(void) {
	static const struct { uint8_t type, attach; } kinds[] = { { 1, 0 }, { 3, 0 }, { 3, 46 }, { 6, 37 }, { 6, 37 }, { 8, 0 }, { 8, 1 }, { 9, 2 }, { 13, 3 },
		{ 14, 5 }, { 15, 6 }, { 16, 7 }, { 18, 10 }, { 21, 39 }, { 22, 17 }, { 23, 18 }, { 25, 21 }, { 30, 36 }, { 32, 45 }, { 2, 0 }, { 26, 24 }, { 29, 27 } };
	unsigned which = random_of(sizeof kinds / sizeof *kinds);
	struct insn *code = (struct insn *)(region + 8 * random_of(64));
	put32(0, one_in(8) ? random_of(40) : kinds[which].type);
	put32(68, one_in(8) ? random_of(64) : kinds[which].attach);
	put32(4, one_in(3) ? 2 : program(code, 256));
	if (*(uint32_t *)(attr + 4) == 2) { code[0] = I(0xb7, 0, 0, 0, random_of(3)); code[1] = I(0x95, 0, 0, 0, 0); }
	put64(8, (uintptr_t)code);
	strcpy((char *)region + 32768, one_in(4) ? "MIT" : "GPL");
	put64(16, (uintptr_t)region + 32768);
	if (one_in(2)) { put32(24, random_of(8)); put32(28, one_in(4) ? number() : 4096); put64(32, one_in(4) ? pointer() : (uintptr_t)region + 40960); }
	if (one_in(6)) put32(44, 1u << random_of(20));
	memcpy(attr + 48, "fuzzed", 6);
	if (one_in(5)) { put32(72, descriptor()); put32(76, one_in(3) ? number() : 8); put64(80, pointer()); put32(88, 1 + random_of(3)); }
	if (one_in(8)) { put32(92, one_in(3) ? number() : 16); put64(96, pointer()); put32(104, random_of(4)); }
	if (one_in(12)) { put32(108, random_of(1000)); put32(112, descriptor()); }
	if (one_in(12)) { put64(120, pointer()); put32(148, random_of(4)); }
	if (one_in(12)) { put32(116, random_of(4)); put64(128, pointer()); put32(136, one_in(2) ? 16 : number()); }
	return PROG_LOAD;
}
static int btf_load(void) {
	// int; pointer; proto (pointer); func static or global; a tag of its argument
	uint32_t types[] = { 1, 1 << 24, 8, 64, 0, 2 << 24, 1, 0, 13 << 24 | 1, 1, 7, 2, 5, 12 << 24 | random_of(3), 3, 9, 17 << 24, 4, 0 };
	static const char strings[] = "\0u64\0f\0a\0arg:untrusted";
	uint32_t length = sizeof types - (one_in(2) ? 16 : 0);
	uint8_t *to = region + 16384;
	uint32_t header[6] = { 0x1eb9f, 24, 0, length, length, sizeof strings };
	memcpy(to, header, 24); memcpy(to + 24, types, length); memcpy(to + 24 + length, strings, sizeof strings);
	if (one_in(4)) for (int i = random_of(8); i >= 0; i--) to[random_of(24 + length)] = mix(&state);
	put64(0, (uintptr_t)to);
	put32(16, 24 + length + sizeof strings);
	if (one_in(10)) { put64(0, (uintptr_t)sparse); put32(16, number()); }
	if (one_in(3)) { put64(8, (uintptr_t)region + 40960); put32(20, 4096); put32(24, random_of(4)); }
	return BTF_LOAD;
}
static int link_create(void) {
	static const uint8_t types[] = { 37, 37, 46, 47, 0, 1, 2, 3, 6, 10, 17, 18, 21, 36, 41, 42, 45, 48, 54, 5, 7, 28 };
	put32(0, descriptor()); put32(4, one_in(2) ? 1 + random_of(3) : descriptor());
	put32(8, one_in(8) ? random_of(64) : types[random_of(sizeof types)]);
	if (one_in(3)) put32(12, one_in(2) ? 2 : 1u << random_of(16));
	if (one_in(5)) { put32(16, descriptor()); put64(24, one_in(2) ? 1 : pointer()); }
	return LINK_CREATE;
}
static int prog_attach(void) {
	static const uint8_t types[] = { 0, 1, 2, 3, 4, 5, 6, 7, 10, 17, 18, 21, 36, 37, 46, 47, 54 };
	put32(0, one_in(3) ? random_of(4) : descriptor()); put32(4, descriptor()); put32(8, types[random_of(sizeof types)]);
	if (one_in(3)) put32(12, random_of(8));
	if (one_in(4)) { put32(16, descriptor()); put32(20, descriptor()); }
	return one_in(2) ? PROG_ATTACH : PROG_DETACH;
}
static int raw_tracepoint(void) {
	strcpy((char *)region + 33000, "sys_enter");
	put64(0, one_in(2) ? (uintptr_t)region + 33000 : pointer()); put32(8, descriptor());
	return RAW_TP;
}
static int build(void) {
	memset(attr, 0, sizeof attr);
	switch (random_of(16)) {
	case 0: case 1: case 2: return map_create();
	case 3: case 4: case 5: case 6: case 7: return prog_load();
	case 8: case 9: return btf_load();
	case 10: case 11: case 12: return link_create();
	case 13: return prog_attach();
	case 14: return raw_tracepoint();
	default: put32(0, random_of(4)); put32(4, descriptor()); return TOKEN_CREATE;
	}
}
static void mutate(void) {
	for (int i = random_of(4); i >= 0; i--) {
		unsigned at = random_of(ATTR / 8) * 8;
		switch (random_of(5)) {
		case 0: attr[random_of(ATTR)] = mix(&state); break;
		case 1: put32(at + 4 * random_of(2), number()); break;
		case 2: put64(at, pointer()); break;
		case 3: put32(at + 4 * random_of(2), descriptor()); break;
		default: attr[random_of(ATTR)] ^= 1 << random_of(8);
		}
	}
}

// ---- the calls

static unsigned size_of_call(void) {
	if (!one_in(4)) return ATTR - 8;
	switch (random_of(5)) {
	case 0: return random_of(ATTR + 8);
	case 1: return 4096 - random_of(3);
	case 2: return 4097 + random_of(8192);
	case 3: return number();
	default: return 0;
	}
}
static long wide(int cmd) {
#ifdef __x86_64__
	static uint8_t *low;
	if (!low) low = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED) return -1;
	memcpy(low, attr, ATTR);
	long result, nr = one_in(3) ? 321 : 357;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(cmd), "c"(low), "d"(size_of_call()) : "memory", "r8", "r9", "r10", "r11");
	__sync_fetch_and_add(&all->wide, 1);
	errno = result < 0 && result > -4096 ? -result : 0;
	return result < 0 && result > -4096 ? -1 : result;
#else
	(void)cmd;
	errno = ENOSYS;
	return -1;
#endif
}
static void call(void) {
	int cmd = build();
	if (!one_in(3)) mutate();
	if (one_in(24)) cmd = number();
	uint64_t first = cmd;
	if (one_in(24)) first |= mix(&state) << 32;
	if (one_in(24)) first |= 1 << 16;
	uint8_t *where = attr;
	unsigned size = size_of_call();
	switch (random_of(8)) {
	case 0: where = region + 8 * random_of(REGION / 8 - ATTR); memcpy(where, attr, ATTR); break; // others change it
	case 1: where = region + REGION - ATTR + 8; memcpy(where, attr, ATTR - 8); break; // ends where memory ends
	case 2: if (one_in(4)) where = (uint8_t *)(uintptr_t)pointer(); break;
	}
	long fd = one_in(32) ? wide(cmd) : syscall(SYS_bpf, first, where, size | (one_in(24) ? 1ul << 40 : 0));
	__sync_fetch_and_add(&all->calls, 1);
	if (fd > 2) { __sync_fetch_and_add(&all->made, 1); add(fd); }
	else if (fd < 0 && errno == EINTR) __sync_fetch_and_add(&all->interrupted, 1);
	else if (fd < 0) __sync_fetch_and_add(&all->denied, 1);
}

// ---- what disturbs the calls

static void *change(void *seed) {
	uint64_t own = (uintptr_t)seed;
	while (!stop) {
		uint64_t value = mix(&own);
		*(volatile uint64_t *)(region + (value % (REGION / 8)) * 8) = value & 1 ? value : value & 0xff;
		if (value % 64 == 0) {
			munmap(fleeting, 4096);
			mmap(fleeting, 4096, value & 64 ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		}
		if (value % 8 == 0) usleep(value >> 52);
	}
	return 0;
}
static void *close_some(void *seed) {
	uint64_t own = (uintptr_t)seed;
	while (!stop) {
		int at = mix(&own) % DESCRIPTORS, old = fds[at];
		fds[at] = 0;
		if (old > 2) close(old);
		if (mix(&own) % 4 == 0) { int other = dup(fds[mix(&own) % DESCRIPTORS]); if (other > 2) fds[at] = other; }
		usleep(mix(&own) % 2000);
	}
	return 0;
}
// A thread that is interrupted faster than its arguments can be copied gets no answer: that ends with the time.
static void on_signal(int n) {
	(void)n;
	if (now() > all->end) _exit(0);
}
static void signals(void) {
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = one_in(2) ? SA_RESTART : 0 };
	struct itimerval timer = { { 0, 100 + random_of(5000) }, { 0, 100 + random_of(5000) } }, off = { { 0, 0 }, { 0, 0 } };
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, one_in(3) ? &off : &timer, 0);
}
// A child that is killed while it calls, or executes another program in the middle.
static void child(void) {
	pid_t pid = one_in(4) ? vfork() : fork();
	if (pid == 0) {
		if (one_in(3)) { execl("/fuzz", "/fuzz", "once", (char *)0); _exit(1); }
		if (one_in(8)) (void)!unshare(CLONE_NEWUSER | (one_in(2) ? CLONE_NEWNET : CLONE_FILES));
		for (int i = 0; i < 20; i++) call();
		_exit(0);
	}
	if (pid < 0) return;
	if (one_in(2)) { usleep(random_of(3000)); kill(pid, SIGKILL); __sync_fetch_and_add(&all->killed, 1); }
	while (waitpid(pid, 0, 0) < 0 && errno == EINTR) {}
	__sync_fetch_and_add(&all->execs, 1);
}
static void few_descriptors(void) {
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = one_in(2) ? 3 + random_of(8) : limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void prepare(void) {
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	uint8_t *place = mmap(0, REGION + (1 << 20), PROT_NONE, flags, -1, 0);
	region = mmap(place, REGION, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
	forbidden = place + REGION + 8192;
	readonly = mmap(0, 8192, PROT_READ, flags, -1, 0);
	fleeting = mmap(0, 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
	sparse = mmap(0, 40 << 20, PROT_READ | PROT_WRITE, flags, -1, 0);
	open_others();
}
static void worker(uint64_t seed) {
	pthread_t others[2];
	state = seed;
	prepare();
	pthread_create(&others[0], 0, change, (void *)(uintptr_t)mix(&state));
	pthread_create(&others[1], 0, close_some, (void *)(uintptr_t)mix(&state));
	// A worker ends after a while, so that what it holds is closed in all orders.
	for (int i = 0; i < 20000 && now() < all->end; i++) {
		call();
		if (one_in(50)) open_others();
		if (one_in(200)) signals();
		if (one_in(100)) child();
		if (one_in(500)) few_descriptors();
	}
	if (one_in(2)) kill(getpid(), SIGKILL);
	_exit(0);
}

int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "once")) {
		static struct shared own;
		all = &own;
		state = getpid();
		prepare();
		for (int i = 0; i < 10; i++) call();
		return 0;
	}
	if (argc != 3) { fprintf(stderr, "usage: proxy_fuzz SECONDS SEED\n"); return 2; }
	uint64_t seed = strtoull(argv[2], 0, 0);
	all = mmap(0, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	all->end = now() + atof(argv[1]);
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	int running = 0;
	while (running > 0 || now() < all->end) {
		if (running < WORKERS && now() < all->end) {
			uint64_t own = mix(&seed);
			pid_t pid = fork();
			if (pid == 0) worker(own);
			if (pid > 0) running++; else usleep(10000);
			continue;
		}
		if (waitpid(-1, 0, 0) > 0) running--;
		else if (errno == ECHILD) running = 0;
	}
	printf("fuzz %lu calls %lu made %lu denied %lu interrupted %lu killed %lu children %lu wide\n", all->calls, all->made, all->denied,
		all->interrupted, all->killed, all->execs, all->wide);
	return 0;
}
