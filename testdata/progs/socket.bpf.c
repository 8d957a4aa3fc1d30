// SPDX-License-Identifier: MIT OR Apache-2.0
/* Socket filters: bpf_skb_load_bytes and the fields of struct __sk_buff. */
#include "test.h"

__u64 out[16];

SEC("socket")
int length(struct __sk_buff *skb)
{
	out[0] = skb->len;
	out[1] = skb->protocol;
	out[2] = skb->pkt_type;
	out[3] = skb->vlan_present;
	out[4] = skb->vlan_tci;
	return skb->len;
}

/* A read past the end fails and clears the buffer. */
SEC("socket")
int load_bytes(struct __sk_buff *skb)
{
	__u64 buffer = -1;

	out[0] = bpf_skb_load_bytes(skb, 0, &buffer, 8);
	out[1] = buffer;
	out[2] = bpf_skb_load_bytes(skb, 13, &buffer, 1);
	out[3] = buffer;
	out[4] = bpf_skb_load_bytes(skb, skb->len - 2, &buffer, 2);
	out[5] = buffer;
	out[6] = bpf_skb_load_bytes(skb, skb->len - 1, &buffer, 2);
	out[7] = buffer;
	buffer = -1;
	out[8] = bpf_skb_load_bytes(skb, skb->len, &buffer, 4);
	out[9] = buffer;
	buffer = -1;
	out[10] = bpf_skb_load_bytes(skb, 0x80000000, &buffer, 8);
	out[11] = buffer;
	out[12] = bpf_skb_load_bytes(skb, -14, &buffer, 2);
	return out[1];
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} protocols SEC(".maps");

/* Counts by the protocol field of the network header, which is where a filter's data begins here. */
SEC("socket")
int count(struct __sk_buff *skb)
{
	__u8 protocol = 0;

	if (bpf_skb_load_bytes(skb, 9, &protocol, 1))
		return 0;

	__u32 key = protocol;
	__u64 *bytes = bpf_map_lookup_elem(&protocols, &key);

	if (bytes)
		__sync_fetch_and_add(bytes, skb->len);
	return protocol;
}

/* The control block is scratch memory. */
SEC("socket")
int control_block(struct __sk_buff *skb)
{
	__u32 before = skb->cb[0] | skb->cb[4];

	skb->cb[0] = skb->len;
	skb->cb[4] = 0x12345678;
	out[0] = before;
	out[1] = skb->cb[0];
	out[2] = skb->cb[4];
	return skb->cb[4];
}
