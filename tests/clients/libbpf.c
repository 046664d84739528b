// A program of libbpf: it opens the skeleton of tests/bpf/client.bpf.c, loads and attaches, makes traffic, and prints what the
// programs have seen.
//
//     libbpf xdp|tcx | libbpf cgroup DIRECTORY
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "client.skel.h"

#if LIBBPF_MAJOR_VERSION > 1 || LIBBPF_MINOR_VERSION >= 3
#define WITH_TCX
// BPF_TCX_INGRESS: the linux/bpf.h of the build machine can be older than the library.
#define TCX_INGRESS ((enum bpf_attach_type)46)
#endif

enum { ARRIVED, RECEIVED, SENT, REFUSED, LOOPBACK = 1 };

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return 1;
}

static struct sockaddr_in port(int number)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(number) };

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return to;
}

static void send_packets(void)
{
	struct sockaddr_in to = port(9);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	for (int i = 0; i < 5; i++)
		sendto(fd, "packet", 6, 0, (struct sockaddr *)&to, sizeof(to));
	close(fd);
}

static unsigned long long counted(struct client *client, unsigned which)
{
	unsigned long long value = 0;

	bpf_map_lookup_elem(bpf_map__fd(client->maps.counters), &which, &value);
	return value;
}

static int on_length(void *sum, void *length, size_t size)
{
	(void)size;
	*(unsigned long long *)sum += *(unsigned long long *)length;
	return 0;
}

static int on_interface(struct client *client)
{
	unsigned long long bytes = 0;
	struct ring_buffer *lengths = ring_buffer__new(bpf_map__fd(client->maps.lengths), on_length, &bytes, NULL);

	if (!lengths)
		return fail("ring buffer");
	client->links.count_arrived = bpf_program__attach_xdp(client->progs.count_arrived, LOOPBACK);
	if (!client->links.count_arrived)
		return fail("attach xdp");
	send_packets();
	ring_buffer__consume(lengths);
	printf("arrived %llu, variable %llu, bytes %llu\n", counted(client, ARRIVED), (unsigned long long)client->bss->seen, bytes);
	ring_buffer__free(lengths);
	return 0;
}

#ifdef WITH_TCX
static int on_tcx(struct client *client)
{
	client->links.count_received = bpf_program__attach_tcx(client->progs.count_received, LOOPBACK, NULL);
	if (!client->links.count_received)
		return fail("attach tcx");
	send_packets();
	printf("received %llu\n", counted(client, RECEIVED));
	return 0;
}
#endif

static int on_cgroup(struct client *client, const char *directory)
{
	struct sockaddr_in refused = port(7);
	int cgroup = open(directory, O_RDONLY | O_DIRECTORY), fd, error = 0;

	if (cgroup < 0)
		return fail(directory);
	client->links.count_sent = bpf_program__attach_cgroup(client->progs.count_sent, cgroup);
	client->links.refuse_connect = bpf_program__attach_cgroup(client->progs.refuse_connect, cgroup);
	if (!client->links.count_sent || !client->links.refuse_connect)
		return fail("attach to the cgroup");
	send_packets();
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&refused, sizeof(refused)))
		error = errno;
	close(fd);
	close(cgroup);
	printf("sent %llu, refused %llu, connect %d\n", counted(client, SENT), counted(client, REFUSED), error);
	return 0;
}

int main(int argc, char **argv)
{
	struct client *client = client__open();
	int failed = 1;

	if (argc < 2)
		return 2;
	if (!client)
		return fail("open");
	client->rodata->refused_port = 7;
#ifdef WITH_TCX
	bpf_program__set_expected_attach_type(client->progs.count_received, TCX_INGRESS);
#endif
	// One kind of program: the container was granted no other.
	bpf_program__set_autoload(client->progs.count_arrived, !strcmp(argv[1], "xdp"));
	bpf_program__set_autoload(client->progs.count_received, !strcmp(argv[1], "tcx"));
	bpf_program__set_autoload(client->progs.count_sent, !strcmp(argv[1], "cgroup"));
	bpf_program__set_autoload(client->progs.refuse_connect, !strcmp(argv[1], "cgroup"));
	if (client__load(client))
		return fail("load");
	if (!strcmp(argv[1], "xdp"))
		failed = on_interface(client);
#ifdef WITH_TCX
	if (!strcmp(argv[1], "tcx"))
		failed = on_tcx(client);
#endif
	if (!strcmp(argv[1], "cgroup") && argc > 2)
		failed = on_cgroup(client, argv[2]);
	client__destroy(client);
	return failed;
}
