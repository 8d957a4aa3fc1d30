// SPDX-License-Identifier: MIT OR Apache-2.0
/* What people run at the edge of a network: a rate limiter, a load balancer, a parser made of tail calls. */
#include "test.h"

#include <bpf/bpf_endian.h>

#define ETH_P_IP 0x0800
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ports {
	__be16 source;
	__be16 dest;
};

/* The IPv4 header of a packet without options, or NULL. */
static __always_inline struct iphdr *ipv4(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end || eth->proto != bpf_htons(ETH_P_IP) || ip->version_ihl != 0x45)
		return NULL;
	return ip;
}

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash ^= word;
	hash *= 0x9e3779b1;
	return hash ^ hash >> 15;
}

struct bucket {
	__u64 tokens;
	__u64 filled_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

/* Packets a source may send at once, and nanoseconds until it may send one more. */
const volatile __u64 burst = 1000;
const volatile __u64 interval = 1000;

/* One token for each packet of a source; buckets fill up with time. */
SEC("xdp")
int rate_limit(struct xdp_md *ctx)
{
	struct iphdr *ip = ipv4(ctx);
	struct bucket *bucket;
	__u64 now, earned;
	__u32 key;

	if (!ip)
		return XDP_PASS;
	key = mix(0, ip->saddr) % 1024;
	bucket = bpf_map_lookup_elem(&buckets, &key);
	if (!bucket)
		return XDP_ABORTED;
	now = bpf_ktime_get_ns();
	earned = (now - bucket->filled_at) / interval;
	if (earned) {
		bucket->tokens = bucket->tokens + earned > burst ? burst : bucket->tokens + earned;
		bucket->filled_at = now;
	}
	if (!bucket->tokens)
		return XDP_DROP;
	bucket->tokens--;
	return XDP_PASS;
}

struct backend {
	__u8 mac[6];
	__u8 unused[2];
	__be32 addr;
};

struct stats {
	__u64 packets;
	__u64 bytes;
};

#define BACKENDS 64
#define RING_SIZE 4096

/* Which backend each part of the hash space belongs to. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RING_SIZE);
	__type(key, __u32);
	__type(value, __u32);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BACKENDS);
	__type(key, __u32);
	__type(value, struct stats);
} sent SEC(".maps");

/* The checksum of a header after one of its words has changed (RFC 1624). */
static __always_inline __u16 adjust_check(__u16 check, __u32 old, __u32 new)
{
	__u32 sum = (__u16)~check;

	sum += (__u16)~old + (__u16)~(old >> 16) + (__u16)new + (new >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Sends each flow to a backend of its own. */
SEC("xdp")
int balance(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = ipv4(ctx);
	struct ethhdr *eth = data;
	struct backend *backend;
	struct ports *ports;
	struct stats *stats;
	__u32 hash, *owner, key;
	__be32 old;

	if (!ip || (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP))
		return XDP_PASS;
	ports = (void *)(ip + 1);
	if ((void *)(ports + 1) > end)
		return XDP_DROP;
	hash = mix(mix(mix(ip->protocol, ip->saddr), ip->daddr), ports->source | ports->dest << 16);
	key = hash % RING_SIZE;
	owner = bpf_map_lookup_elem(&ring, &key);
	if (!owner)
		return XDP_ABORTED;
	key = *owner;
	backend = bpf_map_lookup_elem(&backends, &key);
	stats = bpf_map_lookup_elem(&sent, &key);
	if (!backend || !stats)
		return XDP_ABORTED;
	stats->packets++;
	stats->bytes += end - data;
	old = ip->daddr;
	ip->daddr = backend->addr;
	ip->check = adjust_check(ip->check, old, backend->addr);
	__builtin_memcpy(eth->src, eth->dst, 6);
	__builtin_memcpy(eth->dst, backend->mac, 6);
	return XDP_TX;
}

/* A parser in four programs. */
int chain_ip(struct xdp_md *ctx);
int chain_ports(struct xdp_md *ctx);
int chain_count(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 8);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} steps SEC(".maps") = {
	.values = {
		[1] = (void *)&chain_ip,
		[2] = (void *)&chain_ports,
		[5] = (void *)&chain_count,
	},
};

SEC("xdp")
int chain(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	bpf_tail_call(ctx, &steps, eth->proto == bpf_htons(ETH_P_IP) ? 1 : 7);
	return XDP_PASS;
}

SEC("xdp")
int chain_ip(struct xdp_md *ctx)
{
	struct iphdr *ip = ipv4(ctx);

	if (!ip)
		return XDP_DROP;
	bpf_tail_call(ctx, &steps, ip->protocol == IPPROTO_UDP ? 2 : 3);
	return XDP_PASS;
}

SEC("xdp")
int chain_ports(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = ipv4(ctx);
	struct ports *ports;

	if (!ip)
		return XDP_ABORTED;
	ports = (void *)(ip + 1);
	if ((void *)(ports + 1) > end)
		return XDP_DROP;
	bpf_tail_call(ctx, &steps, bpf_ntohs(ports->dest) & 7);
	return XDP_PASS;
}

SEC("xdp")
int chain_count(struct xdp_md *ctx)
{
	__u32 key = 1;
	struct stats *stats = bpf_map_lookup_elem(&sent, &key);

	if (stats) {
		stats->packets++;
		stats->bytes += ctx->data_end - ctx->data;
	}
	return XDP_TX;
}
