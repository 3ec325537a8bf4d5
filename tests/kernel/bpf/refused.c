/* SPDX-License-Identifier: MIT
 * One mistake at a time, chosen by -D.
 */
#include "pagepool_test.h"

#ifndef NO_XSKMAP
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 4);
#ifdef PINNED
	__uint(pinning, 1);
#endif
#ifdef STRANGE_MEMBER
	__uint(colour, 1);
#endif
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");
#endif

#ifdef KSYM
extern int kernel_function(void *) SEC(".ksyms");
#endif

#ifdef CORE
struct sk_buff {
	int len;
} __attribute__((preserve_access_index));
#endif

#ifdef NO_XDP
SEC("socket")
#else
SEC("xdp")
#endif
int broken(struct xdp_md *ctx)
{
#ifdef BEYOND
	return *(__u8 *)(long)ctx->data;
#endif
#ifdef KSYM
	return kernel_function(ctx);
#endif
#ifdef CORE
	return ((struct sk_buff *)ctx)->len;
#endif
	return XDP_PASS;
}
