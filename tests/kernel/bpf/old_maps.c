/* SPDX-License-Identifier: MIT
 * Two programs, and maps as they were declared before BTF.
 */
#include "pagepool_test.h"

struct bpf_map_def {
	__u32 type, key_size, value_size, max_entries, map_flags;
};

struct bpf_map_def SEC("maps") verdicts = {BPF_MAP_TYPE_ARRAY, 4, 8, 4, 0};
struct bpf_map_def SEC("maps") sockets = {BPF_MAP_TYPE_XSKMAP, 4, 4, 8, 0};

SEC("xdp/everything")
int everything(struct xdp_md *ctx)
{
	__u32 key = 1;
	u64 *verdict = bpf_map_lookup_elem(&verdicts, &key);

	if (verdict)
		*verdict += 1;
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, 0);
}

SEC("xdp.frags")
int nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("socket")
int of_another_kind(void *ctx)
{
	return 0;
}
