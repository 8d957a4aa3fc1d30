// SPDX-License-Identifier: MIT OR Apache-2.0
/* Dispatch of packets through PROG_ARRAYs, one per program type. */
#include "test.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		++*value;
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	count(0);
	return XDP_DROP;
}

/* Changes the packet, and its length. */
SEC("xdp")
int change(struct xdp_md *ctx)
{
	__u8 *data, *end;

	count(1);
	if (bpf_xdp_adjust_head(ctx, -4))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + 4 > end)
		return XDP_ABORTED;
	data[0] = 0xaa;
	data[1] = data[2] = data[3] = 0xbb;
	return XDP_TX;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 5);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} xdp_jumps SEC(".maps") = { .values = { [0] = (void *)&drop, [2] = (void *)&change } };

SEC("xdp")
int dispatch_xdp(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + 1 > end)
		return XDP_ABORTED;
	bpf_tail_call(ctx, &xdp_jumps, data[0]);
	count(3);
	return XDP_PASS;
}

/* What was changed before the jump is seen after it. */
SEC("xdp")
int change_then_jump(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_head(ctx, 2))
		return XDP_ABORTED;
	bpf_tail_call_static(ctx, &xdp_jumps, 2);
	return XDP_PASS;
}

SEC("tc")
int marked(struct __sk_buff *skb)
{
	skb->mark += 7;
	skb->cb[0] = skb->len;
	return 2;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, int(struct __sk_buff *));
} tc_jumps SEC(".maps") = { .values = { [1] = (void *)&marked } };

SEC("tc")
int dispatch_tc(struct __sk_buff *skb)
{
	skb->mark = 100;
	bpf_tail_call(skb, &tc_jumps, skb->len & 1);
	return 0;
}

SEC("socket")
int length(struct __sk_buff *skb)
{
	count(2);
	return skb->len;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__uint(key_size, 4);
	__array(values, int(struct __sk_buff *));
} socket_jumps SEC(".maps") = { .values = { [0] = (void *)&length } };

SEC("socket")
int dispatch_socket(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &socket_jumps, skb->len & 3);
	return 1;
}
