// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * XDP programs that move the packet's ends. By how much is in the packet: 32-bit numbers in the
 * order of the machine, from its start.
 */
#include "test.h"

__s64 out[16];

static __always_inline __s32 delta(struct xdp_md *ctx, int n)
{
	__s32 *deltas = (void *)(long)ctx->data;

	if ((void *)(deltas + n + 1) > (void *)(long)ctx->data_end)
		return 0;
	return deltas[n];
}

/* What the context shows after a move. */
static __always_inline void show(struct xdp_md *ctx, __s64 *slots)
{
	slots[0] = ctx->data_end - ctx->data;
	slots[1] = ctx->data - ctx->data_meta;
}

static __always_inline void mark(void *from, void *to, __u32 mark)
{
	if (from + sizeof(mark) <= to)
		*(__u32 *)from = mark;
}

SEC("xdp")
int head(struct xdp_md *ctx)
{
	out[0] = bpf_xdp_adjust_head(ctx, delta(ctx, 0));
	show(ctx, &out[1]);
	mark((void *)(long)ctx->data, (void *)(long)ctx->data_end, 0x68656164);
	return XDP_PASS;
}

/* Bytes added at the end are zero. */
SEC("xdp")
int tail(struct xdp_md *ctx)
{
	out[0] = bpf_xdp_adjust_tail(ctx, delta(ctx, 0));
	show(ctx, &out[1]);
	mark((void *)(long)ctx->data, (void *)(long)ctx->data_end, 0x7461696c);
	return XDP_PASS;
}

SEC("xdp")
int meta(struct xdp_md *ctx)
{
	out[0] = bpf_xdp_adjust_meta(ctx, delta(ctx, 0));
	show(ctx, &out[1]);
	mark((void *)(long)ctx->data_meta, (void *)(long)ctx->data, 0x6d657461);

	void *data_meta = (void *)(long)ctx->data_meta;

	if (data_meta + 4 <= (void *)(long)ctx->data)
		out[3] = *(__u32 *)data_meta;
	return XDP_PASS;
}

/* Metadata moves with the head, and limits how far it may go. */
SEC("xdp")
int meta_then_head(struct xdp_md *ctx)
{
	__s32 first = delta(ctx, 0), second = delta(ctx, 1);

	out[0] = bpf_xdp_adjust_meta(ctx, first);
	mark((void *)(long)ctx->data_meta, (void *)(long)ctx->data, 0x6d657461);
	show(ctx, &out[1]);
	out[3] = bpf_xdp_adjust_head(ctx, second);
	show(ctx, &out[4]);

	void *data_meta = (void *)(long)ctx->data_meta;

	if (data_meta + 4 <= (void *)(long)ctx->data)
		out[6] = *(__u32 *)data_meta;
	return XDP_PASS;
}

/* Head, tail, head again: each judged by what the one before left. */
SEC("xdp")
int sequence(struct xdp_md *ctx)
{
	__s32 first = delta(ctx, 0), second = delta(ctx, 1), third = delta(ctx, 2);

	out[0] = bpf_xdp_adjust_head(ctx, first);
	show(ctx, &out[1]);
	out[3] = bpf_xdp_adjust_tail(ctx, second);
	show(ctx, &out[4]);
	out[6] = bpf_xdp_adjust_head(ctx, third);
	show(ctx, &out[7]);
	mark((void *)(long)ctx->data, (void *)(long)ctx->data_end, 0x73657121);
	return XDP_TX;
}
