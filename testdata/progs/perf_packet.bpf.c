// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Records with bytes of the packet behind the data: how many is in bits 32 to 51 of the flags. perf.bpf.c says what
 * is in the map.
 */
#include "test.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} rings SEC(".maps");

__s64 out[16];

/* Outputs 4 bytes and so many of the packet. */
#define OUTPUT(ctx, len, flags)                                                                    \
	({                                                                                         \
		__u32 _data = 0x44332211;                                                          \
		bpf_perf_event_output(ctx, &rings, (__u64)(len) << 32 | (flags), &_data,           \
				      sizeof(_data));                                              \
	})

/* Everything that can be wrong, and lengths around that of the packet. */
#define LENGTHS(ctx, packet_len)                                                                   \
	do {                                                                                       \
		__u64 _len = packet_len;                                                           \
                                                                                                   \
		out[0] = OUTPUT(ctx, _len, BPF_F_CURRENT_CPU);                                     \
		out[1] = OUTPUT(ctx, _len + 1, BPF_F_CURRENT_CPU);                                 \
		out[2] = OUTPUT(ctx, _len - 1, 0);                                                 \
		out[3] = OUTPUT(ctx, 0, 0);                                                        \
		out[4] = OUTPUT(ctx, 1, 0);                                                        \
		out[5] = OUTPUT(ctx, 0xfffff, 0);                                                  \
		out[6] = OUTPUT(ctx, 0x100000, 0);                                                 \
		out[7] = OUTPUT(ctx, 0x100000 | (_len + 1), 4);                                    \
		out[8] = OUTPUT(ctx, _len + 1, 4);                                                 \
		out[9] = OUTPUT(ctx, _len, 4);                                                     \
		out[10] = OUTPUT(ctx, _len, 2);                                                    \
		out[11] = OUTPUT(ctx, _len, 1);                                                    \
		out[12] = OUTPUT(ctx, 0x80000000 | _len, 0);                                       \
		out[13] = bpf_perf_event_output(ctx, &rings, _len << 32, &out, 0);                 \
		out[14] = bpf_perf_event_output(ctx, &rings, 0, &out, 0);                          \
	} while (0)

SEC("xdp")
int xdp_lengths(struct xdp_md *ctx)
{
	LENGTHS(ctx, ctx->data_end - ctx->data);
	return 0;
}

SEC("tc")
int tc_lengths(struct __sk_buff *skb)
{
	LENGTHS(skb, skb->len);
	return 0;
}

SEC("socket")
int socket_lengths(struct __sk_buff *skb)
{
	LENGTHS(skb, skb->len);
	return 0;
}

/* The packet as it is now. */
SEC("xdp")
int xdp_adjusted(struct xdp_md *ctx)
{
	out[0] = OUTPUT(ctx, 16, 0);
	out[1] = bpf_xdp_adjust_head(ctx, 4);
	out[2] = OUTPUT(ctx, 16, 0);
	out[3] = bpf_xdp_adjust_tail(ctx, -2);
	out[4] = OUTPUT(ctx, ctx->data_end - ctx->data, 0);
	out[5] = OUTPUT(ctx, ctx->data_end - ctx->data + 1, 0);
	return 0;
}

/* Packets in several buffers are copied from all of them. */
SEC("xdp.frags")
int xdp_frags(struct xdp_md *ctx)
{
	__u64 len = bpf_xdp_get_buff_len(ctx);

	out[0] = OUTPUT(ctx, len, 0);
	out[1] = OUTPUT(ctx, len + 1, 0);
	out[2] = OUTPUT(ctx, 3600, 0);
	return 0;
}

SEC("tc")
int tc_stored(struct __sk_buff *skb)
{
	__u32 number = 0x99887766;

	out[0] = bpf_skb_store_bytes(skb, 2, &number, sizeof(number), 0);
	return OUTPUT(skb, 12, 0);
}

/* Records of the same packet fill the ring. */
SEC("tc")
int tc_full(struct __sk_buff *skb)
{
	int written = 0;

	for (int i = 0; i < 400; i++) {
		long err = OUTPUT(skb, 14, BPF_F_CURRENT_CPU);

		if (err) {
			out[0] = err;
			break;
		}
		written++;
	}
	return written;
}
