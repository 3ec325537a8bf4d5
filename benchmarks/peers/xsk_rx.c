/* SPDX-License-Identifier: MIT
 *
 * The C receiver that AfXdpQueue is measured against: AF_XDP by the kernel's headers alone, nothing but the work. It
 * takes frames from the rx ring, asks of each what our NumPy verdict asks (UDP over IPv4?), and gives the chunk back to
 * the fill ring: no pool, no ownership, no checks of what the kernel says.
 *
 * Usage: xsk_rx IFNAME poll|spin BUDGET. Says "ready" when it is bound, and on SIGTERM one line of JSON:
 * {"frames": N, "matched": N, "cpu_s": S}.
 *
 * Sources: Documentation/networking/af_xdp.rst, linux/if_xdp.h, linux/bpf.h.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RING 2048u /* entries of rx and fill ring: the defaults of AfXdpQueue */
#define CHUNK 4096u
#define CHUNKS 4608u
#define FRAMES_OFFSET(at) ((at) & ~(uint64_t)(CHUNK - 1))

struct ring {
	uint32_t *producer, *consumer;
	void *entries;
	uint32_t mine; /* the index that is ours */
};

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void die(const char *call)
{
	fprintf(stderr, "%s: %s\n", call, strerror(errno));
	exit(1);
}

static int bpf(int command, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

/* A map of one socket, a program that redirects into it, attached for as long as this process lives. */
static void steer(unsigned int ifindex, int xsk)
{
	union bpf_attr attr;
	uint32_t key = 0, value = (uint32_t)xsk;
	int map, program;

	memset(&attr, 0, sizeof attr);
	attr.map_type = BPF_MAP_TYPE_XSKMAP;
	attr.key_size = attr.value_size = 4;
	attr.max_entries = 1;
	map = bpf(BPF_MAP_CREATE, &attr);
	if (map < 0)
		die("bpf map create");

	struct bpf_insn code[] = {
		/* r2 = ctx->rx_queue_index; r1 = map; r3 = XDP_PASS; return bpf_redirect_map(r1, r2, r3) */
		{ .code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16 },
		{ .code = BPF_LD | BPF_IMM | BPF_DW, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map },
		{ .code = 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_XDP;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = sizeof code / sizeof code[0];
	attr.license = (uintptr_t) "Dual MIT/GPL";
	program = bpf(BPF_PROG_LOAD, &attr);
	if (program < 0)
		die("bpf program load");

	memset(&attr, 0, sizeof attr);
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.target_ifindex = ifindex;
	attr.link_create.attach_type = BPF_XDP;
	attr.link_create.flags = XDP_FLAGS_DRV_MODE;
	if (bpf(BPF_LINK_CREATE, &attr) < 0)
		die("attach XDP program");

	memset(&attr, 0, sizeof attr);
	attr.map_fd = (uint32_t)map;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)&value;
	if (bpf(BPF_MAP_UPDATE_ELEM, &attr) < 0)
		die("bpf map update");
}

static struct ring map_ring(int xsk, const struct xdp_ring_offset *at, off_t which, size_t entry_bytes)
{
	char *base = mmap(NULL, at->desc + RING * entry_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xsk, which);
	struct ring ring;

	if (base == MAP_FAILED)
		die("mmap ring");
	ring.producer = (uint32_t *)(base + at->producer);
	ring.consumer = (uint32_t *)(base + at->consumer);
	ring.entries = base + at->desc;
	ring.mine = 0;
	return ring;
}

static void set(int xsk, int option, const void *value, socklen_t bytes)
{
	if (setsockopt(xsk, SOL_XDP, option, value, bytes) < 0)
		die("setsockopt XDP");
}

/* The queue was just closed by another receiver: the kernel needs some milliseconds to notice. */
static void bind_patiently(int xsk, unsigned int ifindex)
{
	struct sockaddr_xdp address = { .sxdp_family = AF_XDP, .sxdp_ifindex = ifindex };
	struct timespec moment = { .tv_nsec = 10 * 1000 * 1000 };

	for (int i = 0; bind(xsk, (struct sockaddr *)&address, sizeof address) < 0; i++) {
		if (errno != EBUSY || i == 200)
			die("bind AF_XDP");
		nanosleep(&moment, NULL);
	}
}

static inline int is_udp(const unsigned char *frame)
{
	return frame[12] == 0x08 && frame[13] == 0x00 && frame[23] == 17;
}

int main(int argc, char **argv)
{
	struct xdp_umem_reg umem = { .len = (uint64_t)CHUNKS * CHUNK, .chunk_size = CHUNK };
	struct xdp_mmap_offsets offsets;
	struct ring rx, fill;
	struct rusage used;
	struct sigaction action = { .sa_handler = stop };
	socklen_t bytes = sizeof offsets;
	uint64_t frames = 0, matched = 0;
	uint32_t entries = RING, budget;
	unsigned int ifindex;
	int xsk, spin;
	unsigned char *memory;

	if (argc != 4)
		return 2;
	ifindex = if_nametoindex(argv[1]);
	spin = strcmp(argv[2], "spin") == 0;
	budget = (uint32_t)atoi(argv[3]);
	sigaction(SIGTERM, &action, NULL);

	memory = mmap(NULL, umem.len + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap UMEM");
	memory = (unsigned char *)(((uintptr_t)memory + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
	madvise(memory, umem.len, MADV_HUGEPAGE); /* as our arena does where there are no reserved huge pages */
	memset(memory, 0, umem.len);
	umem.addr = (uintptr_t)memory;

	xsk = socket(AF_XDP, SOCK_RAW, 0);
	if (xsk < 0)
		die("socket AF_XDP");
	set(xsk, XDP_UMEM_REG, &umem, sizeof umem);
	set(xsk, XDP_UMEM_FILL_RING, &entries, sizeof entries);
	set(xsk, XDP_UMEM_COMPLETION_RING, &entries, sizeof entries);
	set(xsk, XDP_RX_RING, &entries, sizeof entries);
	if (getsockopt(xsk, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &bytes) < 0)
		die("getsockopt XDP_MMAP_OFFSETS");
	rx = map_ring(xsk, &offsets.rx, XDP_PGOFF_RX_RING, sizeof(struct xdp_desc));
	fill = map_ring(xsk, &offsets.fr, XDP_UMEM_PGOFF_FILL_RING, sizeof(uint64_t));
	for (uint32_t i = 0; i < RING; i++)
		((uint64_t *)fill.entries)[i] = (uint64_t)i * CHUNK;
	fill.mine = RING;
	__atomic_store_n(fill.producer, fill.mine, __ATOMIC_RELEASE);
	bind_patiently(xsk, ifindex);
	steer(ifindex, xsk);
	puts("ready");
	fflush(stdout);

	while (!stopped) {
		uint32_t n = __atomic_load_n(rx.producer, __ATOMIC_ACQUIRE) - rx.mine;

		if (n == 0) {
			struct pollfd waiting = { .fd = xsk, .events = POLLIN };

			if (!spin)
				poll(&waiting, 1, -1);
			continue;
		}
		if (n > budget)
			n = budget;
		for (uint32_t i = 0; i < n; i++) {
			const struct xdp_desc *desc = (struct xdp_desc *)rx.entries + ((rx.mine + i) & (RING - 1));

			matched += (uint64_t)is_udp(memory + desc->addr);
			((uint64_t *)fill.entries)[(fill.mine + i) & (RING - 1)] = FRAMES_OFFSET(desc->addr);
		}
		rx.mine += n;
		fill.mine += n;
		frames += n;
		__atomic_store_n(rx.consumer, rx.mine, __ATOMIC_RELEASE);
		__atomic_store_n(fill.producer, fill.mine, __ATOMIC_RELEASE);
	}
	getrusage(RUSAGE_SELF, &used);
	printf("{\"frames\": %llu, \"matched\": %llu, \"cpu_s\": %.3f}\n", (unsigned long long)frames,
	       (unsigned long long)matched,
	       (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	return 0;
}
