// SPDX-License-Identifier: MIT OR Apache-2.0
/* bpf_csum_diff over what is in the packet. */
#include "test.h"

__s64 out[8];

/* Old bytes at 16, new ones at 32, a seed at 48. */
SEC("xdp")
int difference(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	__be32 from[4], to[4];
	__u32 seed;

	if (data + 52 > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(from, data + 16, 16);
	__builtin_memcpy(to, data + 32, 16);
	__builtin_memcpy(&seed, data + 48, 4);

	out[0] = bpf_csum_diff(from, 16, to, 16, seed);
	out[1] = bpf_csum_diff(NULL, 0, to, 16, seed);
	out[2] = bpf_csum_diff(from, 16, NULL, 0, seed);
	out[3] = bpf_csum_diff(from, 4, to, 12, 0);
	out[4] = bpf_csum_diff(NULL, 0, NULL, 0, seed);
	out[5] = bpf_csum_diff(from, 8, to, 8, -1);
	return XDP_PASS;
}

/* Straight from the packet, with the sizes that are its first two bytes: multiples of 4 or not. */
SEC("xdp")
int packet(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	__u8 *sizes = data;

	if (data + 64 > (void *)(long)ctx->data_end)
		return XDP_DROP;
	out[0] = bpf_csum_diff(data, sizes[0] & 31, data + 32, sizes[1] & 31, 0);
	out[1] = bpf_csum_diff(NULL, 0, data, 64, 0);
	return XDP_PASS;
}
