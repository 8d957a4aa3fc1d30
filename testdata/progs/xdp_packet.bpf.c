// SPDX-License-Identifier: MIT OR Apache-2.0
/* XDP programs that read and write packets in place. */
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>

#include "test.h"

__u64 out[8];

#define PACKET(ctx)                                                                                \
	void *data = (void *)(long)(ctx)->data;                                                    \
	void *data_end = (void *)(long)(ctx)->data_end

/* The context's fields; the packet starts where its metadata ends. */
SEC("xdp")
int context(struct xdp_md *ctx)
{
	out[0] = ctx->data_end - ctx->data;
	out[1] = ctx->data - ctx->data_meta;
	out[2] = ctx->rx_queue_index;
	return XDP_PASS;
}

/* Returns the packet's first byte, whatever action it may be. */
SEC("xdp")
int first_byte(struct xdp_md *ctx)
{
	PACKET(ctx);

	if (data + 1 > data_end)
		return XDP_ABORTED;
	return *(__u8 *)data;
}

/* Swaps the addresses and sends the frame back. */
SEC("xdp")
int reflect(struct xdp_md *ctx)
{
	PACKET(ctx);
	struct ethhdr *eth = data;
	__u8 address[ETH_ALEN];

	if ((void *)(eth + 1) > data_end)
		return XDP_DROP;
	__builtin_memcpy(address, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, address, ETH_ALEN);
	return XDP_TX;
}

/* Lowers the time to live and mends the checksum, as a router does. */
SEC("xdp")
int forward(struct xdp_md *ctx)
{
	PACKET(ctx);
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->ttl <= 1)
		return XDP_DROP;

	__u32 sum = ip->check + bpf_htons(0x100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
	out[0] = bpf_ntohs(ip->check);
	return XDP_REDIRECT;
}

/* Comparisons with data_end in every way a compiler may put them. */
SEC("xdp")
int bounds(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u64 sum = 0;

	if (data + 20 <= data_end)
		sum += *(__u8 *)(data + 19);
	if (data_end >= data + 40)
		sum += *(__u16 *)(data + 38);
	if (data + 60 < data_end)
		sum += *(__u32 *)(data + 56);
	if (data_end > data + 64)
		sum += *(__u64 *)(data + 56);
	out[0] = sum;
	return XDP_PASS;
}

/* An offset that comes from the packet itself. */
SEC("xdp")
int offset_in_packet(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u8 *offset = data, *target;

	if (data + 1 > data_end)
		return XDP_ABORTED;
	target = data + (*offset & 0x3f);
	if ((void *)(target + 2) > data_end)
		return XDP_DROP;
	target[1] = target[0] + 1;
	out[0] = *offset;
	return XDP_PASS;
}

/* CRC-32 of the first 64 bytes, bit by bit. */
SEC("xdp")
int crc32(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u32 crc = -1;
	const __u8 *byte = data;

	for (int i = 0; i < 64; i++) {
		if ((void *)(byte + 1) > data_end)
			break;
		crc ^= *byte++;
#pragma unroll
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ 0xedb88320 * OPAQUE(crc & 1);
	}
	out[0] = ~crc;
	return XDP_PASS;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} bytes SEC(".maps");

/* How often each byte occurs, by bpf_loop over the packet, which the callback must check again. */
static long count_byte(__u32 index, struct xdp_md **ctx)
{
	PACKET(*ctx);
	__u8 *byte = data + (index & 0xfff);

	if ((void *)(byte + 1) > data_end)
		return 1;

	__u32 key = *byte;
	__u32 *count = bpf_map_lookup_elem(&bytes, &key);

	if (count)
		++*count;
	return 0;
}

SEC("xdp")
int histogram(struct xdp_md *ctx)
{
	struct xdp_md *argument = ctx;

	out[0] = bpf_loop(0x1000, count_byte, &argument, 0);
	return XDP_PASS;
}
