// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Counts the packets of a network interface.
 *
 *   packets_by_protocol    packets and bytes, one counter per CPU    (PERCPU_ARRAY)
 *   packets_by_port_class  TCP and UDP packets by destination port   (ARRAY)
 *   dropped                packets not let through, by reason        (.bss)
 *
 * What it accepts and where it draws lines is in .rodata (fixed once the program is loaded) and
 * in .data (may change while it runs).
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The port ranges of RFC 6335. */
const volatile __u16 first_registered_port = 1024;
const volatile __u16 first_dynamic_port = 49152;

/* Longer frames are dropped: 1500 bytes of payload behind an Ethernet header and two VLAN tags. */
__u32 max_frame_bytes = 1522;

enum protocol {
	PROTOCOL_TCP,
	PROTOCOL_UDP,
	PROTOCOL_ICMP,
	PROTOCOL_ICMPV6,
	PROTOCOL_OTHER_IP,
	PROTOCOL_ARP,
	PROTOCOL_OTHER,
	PROTOCOLS,
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROTOCOLS);
	__type(key, __u32);
	__type(value, struct traffic);
} packets_by_protocol SEC(".maps");

enum port_class {
	PORT_WELL_KNOWN,
	PORT_REGISTERED,
	PORT_DYNAMIC,
	PORT_CLASSES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORT_CLASSES);
	__type(key, __u32);
	__type(value, __u64);
} packets_by_port_class SEC(".maps");

struct {
	__u64 too_long;
	__u64 malformed;
} dropped;

#define MAX_VLAN_TAGS 2
#define MAX_IPV6_EXTENSIONS 8 /* a packet with more counts as malformed */

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_OFFSET 0xfff8

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

struct ipv6_fragment {
	__u8 nexthdr;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* The part of a packet that is not parsed yet. */
struct cursor {
	void *pos;
	void *end;
	__u32 left; /* up to the end of the innermost header's payload, which padding may follow */
};

/*
 * The next `size` bytes, or NULL when there are not so many. All parsing goes through here, so these
 * are the only bounds checks that the verifier, or a reader, must find.
 */
static __always_inline void *take(struct cursor *packet, __u32 size)
{
	void *header = packet->pos;

	if (size > packet->left || header + size > packet->end)
		return NULL;
	packet->pos += size;
	packet->left -= size;
	return header;
}

/* Ends the packet `size` bytes from here, as a length field says; false when it has not so many. */
static __always_inline bool limit(struct cursor *packet, __u32 size)
{
	if (size > packet->left)
		return false;
	packet->left = size;
	return true;
}

/* What a packet turned out to be. */
struct summary {
	enum protocol protocol;
	bool has_port;
	__u16 port; /* destination, in host byte order */
};

/* Each parser returns false for a packet that contradicts itself or ends too early. */

static __always_inline bool parse_tcp(struct cursor *packet, struct summary *summary)
{
	const struct tcphdr *tcp = take(packet, sizeof(*tcp));

	if (!tcp || tcp->doff * 4 < sizeof(*tcp) || !take(packet, tcp->doff * 4 - sizeof(*tcp)))
		return false;
	summary->has_port = true;
	summary->port = bpf_ntohs(tcp->dest);
	return true;
}

static __always_inline bool parse_udp(struct cursor *packet, struct summary *summary)
{
	const struct udphdr *udp = take(packet, sizeof(*udp));

	if (!udp || bpf_ntohs(udp->len) < sizeof(*udp))
		return false;
	summary->has_port = true;
	summary->port = bpf_ntohs(udp->dest);
	return true;
}

/* `first`: not a later fragment of a datagram, which lacks this header. */
static __always_inline bool parse_transport(struct cursor *packet, __u8 protocol, bool first,
					    struct summary *summary)
{
	switch (protocol) {
	case IPPROTO_TCP:
		summary->protocol = PROTOCOL_TCP;
		return !first || parse_tcp(packet, summary);
	case IPPROTO_UDP:
		summary->protocol = PROTOCOL_UDP;
		return !first || parse_udp(packet, summary);
	case IPPROTO_ICMP:
		summary->protocol = PROTOCOL_ICMP;
		return true;
	case IPPROTO_ICMPV6:
		summary->protocol = PROTOCOL_ICMPV6;
		return true;
	default:
		summary->protocol = PROTOCOL_OTHER_IP;
		return true;
	}
}

static __always_inline bool parse_ipv4(struct cursor *packet, struct summary *summary)
{
	const struct iphdr *ip = take(packet, sizeof(*ip));

	if (!ip || ip->version != 4)
		return false;

	__u32 header_bytes = ip->ihl * 4;
	__u32 total_bytes = bpf_ntohs(ip->tot_len);

	if (header_bytes < sizeof(*ip) || total_bytes < header_bytes ||
	    !limit(packet, total_bytes - sizeof(*ip)) ||
	    !take(packet, header_bytes - sizeof(*ip)))
		return false;

	bool first = !(ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET));

	return parse_transport(packet, ip->protocol, first, summary);
}

static __always_inline bool parse_ipv6(struct cursor *packet, struct summary *summary)
{
	const struct ipv6hdr *ip = take(packet, sizeof(*ip));

	if (!ip || ip->version != 6 || !limit(packet, bpf_ntohs(ip->payload_len)))
		return false;

	__u8 next = ip->nexthdr;
	bool first = true;

	for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS: {
			const struct ipv6_opt_hdr *option = take(packet, sizeof(*option));

			/* The length counts units of 8 bytes behind the first 8. */
			if (!option || !take(packet, 8 + option->hdrlen * 8 - sizeof(*option)))
				return false;
			next = option->nexthdr;
			break;
		}
		case IPPROTO_FRAGMENT: {
			const struct ipv6_fragment *fragment = take(packet, sizeof(*fragment));

			if (!fragment)
				return false;
			first = !(fragment->offset & bpf_htons(IPV6_FRAGMENT_OFFSET));
			next = fragment->nexthdr;
			break;
		}
		default:
			return parse_transport(packet, next, first, summary);
		}
		/* What a later fragment starts with is payload, whatever its type. */
		if (!first)
			return parse_transport(packet, next, first, summary);
	}
	return false;
}

static __always_inline bool parse_frame(struct cursor *packet, struct summary *summary)
{
	const struct ethhdr *eth = take(packet, sizeof(*eth));

	if (!eth)
		return false;

	__be16 type = eth->h_proto;

	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;

		const struct vlan_tag *tag = take(packet, sizeof(*tag));

		if (!tag)
			return false;
		type = tag->type;
	}

	switch (type) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(packet, summary);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(packet, summary);
	case bpf_htons(ETH_P_ARP):
		summary->protocol = PROTOCOL_ARP;
		return true;
	default:
		summary->protocol = PROTOCOL_OTHER;
		return true;
	}
}

static __always_inline enum port_class classify(__u16 port)
{
	if (port < first_registered_port)
		return PORT_WELL_KNOWN;
	if (port < first_dynamic_port)
		return PORT_REGISTERED;
	return PORT_DYNAMIC;
}

static __always_inline void count(const struct summary *summary, __u32 bytes)
{
	__u32 protocol = summary->protocol;
	struct traffic *traffic = bpf_map_lookup_elem(&packets_by_protocol, &protocol);

	/* No atomics: this CPU's counter is its own while the program runs. */
	if (traffic) {
		traffic->packets++;
		traffic->bytes += bytes;
	}

	if (!summary->has_port)
		return;

	__u32 class = classify(summary->port);
	__u64 *packets = bpf_map_lookup_elem(&packets_by_port_class, &class);

	if (packets)
		__sync_fetch_and_add(packets, 1);
}

SEC("xdp")
int count_packets(struct xdp_md *ctx)
{
	struct cursor packet = {
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.left = ctx->data_end - ctx->data,
	};
	struct summary summary = {};
	__u32 bytes = packet.left;

	if (bytes > max_frame_bytes) {
		__sync_fetch_and_add(&dropped.too_long, 1);
		return XDP_DROP;
	}
	if (!parse_frame(&packet, &summary)) {
		__sync_fetch_and_add(&dropped.malformed, 1);
		return XDP_DROP;
	}
	count(&summary, bytes);
	return XDP_PASS;
}
