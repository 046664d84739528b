// gate_client ACTION...   makes one bpf(2) call after the other and says what came of each: `load ok`, `load EPERM`. What is judged is
// the file that this process executes, so that the tests make copies of it with other contents.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static void say(const char *what, int result)
{
	printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
	fflush(stdout);
}

// r0 = 1; exit
static int load(int type)
{
	struct bpf_insn code[] = { { .code = 0xb7, .imm = 1 }, { .code = 0x95 } };
	union bpf_attr attr = { .prog_type = type, .insns = (__u64)code, .insn_cnt = 2, .license = (__u64) "GPL" };
	int fd = bpf(BPF_PROG_LOAD, &attr);

	if (fd >= 0)
		close(fd);
	return fd;
}

// A single integer type.
static int load_btf(void)
{
	struct {
		struct btf_header header;
		struct btf_type type;
		__u32 bits;
		char strings[5];
	} btf = {
		.header = { .magic = BTF_MAGIC, .version = BTF_VERSION, .hdr_len = sizeof(btf.header), .type_len = 16,
			    .str_off = 16, .str_len = 5 },
		.type = { .name_off = 1, .info = BTF_KIND_INT << 24, .size = 4 },
		.bits = 32,
		.strings = "\0int",
	};
	union bpf_attr attr = { .btf = (__u64)&btf, .btf_size = sizeof(btf.header) + 21 };
	int fd = bpf(BPF_BTF_LOAD, &attr);

	if (fd >= 0)
		close(fd);
	return fd;
}

// A program that says it has a signature, without one: since Linux 7.2 the kernel accepts that as an unsigned program.
static int load_sized(void)
{
	struct bpf_insn code[] = { { .code = 0xb7, .imm = 1 }, { .code = 0x95 } };
	// union bpf_attr of Linux 6.18: `signature` at 152, `signature_size` at 160.
	struct {
		union bpf_attr attr;
		char newer[168 - sizeof(union bpf_attr)];
	} load = { .attr = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insns = (__u64)code, .insn_cnt = 2, .license = (__u64) "GPL" } };
	__u32 size = 10;

	memcpy((char *)&load + 160, &size, sizeof(size));
	return syscall(SYS_bpf, BPF_PROG_LOAD, &load, 168);
}

static int open_pin(const char *path)
{
	union bpf_attr attr = { .pathname = (__u64)path };

	return bpf(BPF_OBJ_GET, &attr);
}

// How many maps of the host this process may not open by their ids.
static int refused_maps(void)
{
	__u32 id = 0;
	int refused = 0;

	for (;;) {
		union bpf_attr attr = { .start_id = id };
		int fd;

		if (bpf(BPF_MAP_GET_NEXT_ID, &attr))
			return refused;
		id = attr.next_id;
		memset(&attr, 0, sizeof(attr));
		attr.map_id = id;
		fd = bpf(BPF_MAP_GET_FD_BY_ID, &attr);
		if (fd >= 0)
			close(fd);
		else if (errno == EPERM)
			refused++;
	}
}

int main(int count, char **words)
{
	for (int n = 1; n < count; n++) {
		const char *word = words[n];

		if (!strcmp(word, "load"))
			say(word, load(BPF_PROG_TYPE_SOCKET_FILTER));
		else if (!strcmp(word, "device"))
			say(word, load(BPF_PROG_TYPE_CGROUP_DEVICE));
		else if (!strcmp(word, "skb"))
			say(word, load(BPF_PROG_TYPE_CGROUP_SKB));
		else if (!strcmp(word, "btf"))
			say(word, load_btf());
		else if (!strcmp(word, "sized"))
			say(word, load_sized());
		else if (!strcmp(word, "open"))
			say(word, open_pin(words[++n]));
		else if (!strcmp(word, "maps"))
			printf("maps %d\n", refused_maps());
		else if (!strcmp(word, "become"))
			// Without the gate: EBUSY, because this file is still mapped.
			say(word, prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, open(words[++n], O_RDONLY), 0, 0));
		else if (!strcmp(word, "describe"))
			// Without the gate: EINVAL, because of the size.
			say(word, prctl(PR_SET_MM, PR_SET_MM_MAP, words, 1, 0));
		else if (!strcmp(word, "write"))
			say(word, open(words[++n], O_WRONLY));
		else if (!strcmp(word, "exec"))
			return execv(words[n + 1], words + n + 1);
		else if (!strcmp(word, "wait"))
			sleep(1);
		else
			return 2;
		fflush(stdout);
	}
	return 0;
}
