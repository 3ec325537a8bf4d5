/* SPDX-License-Identifier: MIT
 * UDP over IPv4 to a port of the allow list goes to the queue; the list and the counters are maps, as are the globals.
 */
#include "pagepool_test.h"

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 2);
	__uint(value_size, 4);
} allowed SEC(".maps");

struct frames {
	u64 taken, left;
};

typedef struct frames frames_t[1];

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, const u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, frames_t);
} totals SEC(".maps");

u64 seen;			      /* .bss */
u64 weight = 3;			      /* .data */
const volatile __u32 ethertype = 0x0800; /* .rodata */

static __noinline void count(__u32 which)
{
	u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		*counter += weight;
}

static __noinline int port_of(struct xdp_md *ctx)
{
	__u8 *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (frame + 42 > end || be16(frame + 12) != ethertype || frame[14] != 0x45 || frame[23] != 17)
		return -1;
	return be16(frame + 36);
}

SEC("xdp")
int take_allowed(struct xdp_md *ctx)
{
	int port = port_of(ctx);
	__u16 key = port;
	__u32 zero = 0;
	struct frames *both = bpf_map_lookup_elem(&totals, &zero);

	__sync_fetch_and_add(&seen, 1);
	if (port < 0 || !bpf_map_lookup_elem(&allowed, &key)) {
		count(1);
		if (both)
			__sync_fetch_and_add(&both->left, 1);
		return XDP_PASS;
	}
	count(0);
	if (both)
		__sync_fetch_and_add(&both->taken, 1);
	return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

char licence[] SEC("license") = "MIT";
