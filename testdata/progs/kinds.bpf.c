// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs of several types and attach types, to be put into slots of PROG_ARRAYs. */
#include "test.h"

SEC("socket")
int socket_one(struct __sk_buff *skb)
{
	return 1;
}

SEC("socket")
int socket_two(struct __sk_buff *skb)
{
	return 2;
}

SEC("xdp")
int xdp_plain(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp.frags")
int xdp_frags(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb)
{
	return 1;
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	return 1;
}
