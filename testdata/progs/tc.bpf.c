// SPDX-License-Identifier: MIT OR Apache-2.0
/* Traffic control classifiers: direct packet access and the fields of struct __sk_buff. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>

#include "test.h"

__u64 out[24];

SEC("tc")
int fields(struct __sk_buff *skb)
{
	out[0] = skb->len;
	out[1] = skb->protocol;
	out[2] = skb->mark;
	out[3] = skb->priority;
	out[4] = skb->cb[0];
	out[5] = skb->cb[4];
	out[6] = skb->pkt_type;
	out[7] = skb->queue_mapping;
	out[8] = skb->vlan_present;
	out[9] = skb->vlan_tci;
	out[10] = skb->vlan_proto;
	out[11] = skb->tc_index;
	out[12] = skb->tc_classid;
	out[13] = skb->tstamp;
	out[14] = skb->wire_len;
	out[15] = skb->gso_segs;
	out[16] = skb->gso_size;
	out[17] = skb->data_end - skb->data;
	out[18] = skb->data - skb->data_meta;
	return TC_ACT_OK;
}

SEC("tc")
int write_fields(struct __sk_buff *skb)
{
	skb->mark = skb->len ^ 0xffff;
	skb->priority += 7;
	skb->tc_index = 0x1234;
	skb->cb[1] = skb->mark + 1;
	skb->cb[3] = skb->cb[1] << 8;
	skb->tc_classid = 0x10001;
	skb->tstamp += 1000;
	out[0] = skb->mark;
	out[1] = skb->priority;
	out[2] = skb->tc_index;
	out[3] = skb->cb[3];
	return TC_ACT_PIPE;
}

/* Parts of a field, which the kernel converts into a wider load. */
SEC("tc")
int narrow_fields(struct __sk_buff *skb)
{
	volatile __u8 *bytes = (volatile __u8 *)skb;

	out[0] = bytes[offsetof(struct __sk_buff, len)];
	out[1] = bytes[offsetof(struct __sk_buff, mark) + 1];
	out[2] = *(volatile __u16 *)(bytes + offsetof(struct __sk_buff, mark) + 2);
	out[3] = *(volatile __u16 *)(bytes + offsetof(struct __sk_buff, priority));
	return out[0];
}

/* Reads and rewrites the Ethernet header in place. */
SEC("tc")
int packet(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	out[0] = bpf_ntohs(eth->h_proto);
	out[1] = eth->h_dest[5] + eth->h_source[0];
	eth->h_dest[0] = 2;
	return out[0] == ETH_P_IP ? TC_ACT_OK : TC_ACT_STOLEN;
}

/* The same bytes by helper and directly. */
SEC("tc")
int load_bytes(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data;
	__u8 copy[16];

	out[0] = bpf_skb_load_bytes(skb, 0, copy, 14);
	out[1] = *(__u64 *)copy;
	if (data + 14 <= (__u8 *)(long)skb->data_end)
		out[2] = *(__u64 *)data == *(__u64 *)copy;
	out[3] = bpf_skb_load_bytes(skb, skb->len - 15, copy, 16);
	out[4] = *(__u64 *)copy | *(__u64 *)(copy + 8);
	return TC_ACT_OK;
}

/* What the packet's bytes would change in a checksum. */
SEC("tc")
int checksum(struct __sk_buff *skb)
{
	__be32 words[4] = { 0 };

	bpf_skb_load_bytes(skb, 14, words, sizeof(words));
	out[0] = bpf_csum_diff(NULL, 0, words, sizeof(words), 0);
	out[1] = bpf_csum_diff(words, 8, words + 2, 8, 0xffffffff);
	return TC_ACT_OK;
}
