// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Tells the host about each packet: an event with its number and length, and behind it the packet's Ethernet
 * header, which the helper copies.
 *
 *   events    a ring for each CPU    (PERF_EVENT_ARRAY)
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct event {
	__u32 number;
	__u32 len;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} events SEC(".maps");

__u32 packets;

SEC("xdp")
int tell(struct xdp_md *ctx)
{
	struct event event = {
		.number = __sync_fetch_and_add(&packets, 1),
		.len = ctx->data_end - ctx->data,
	};
	__u64 flags = BPF_F_CURRENT_CPU | (__u64)ETH_HLEN << 32;

	bpf_perf_event_output(ctx, &events, flags, &event, sizeof(event));
	return XDP_PASS;
}
