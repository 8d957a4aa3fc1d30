// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Hands each packet to the program that a table names for its protocol. The table is a PROG_ARRAY, so
 * whoever holds it can exchange a program while packets come in.
 *
 *   handlers    one program for each kind of packet    (PROG_ARRAY)
 *   handled     packets by handler                     (.bss)
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum kind {
	KIND_IPV4,
	KIND_IPV6,
	KIND_OTHER,
	KINDS,
};

struct {
	__u64 accepted;
	__u64 rejected;
	__u64 nobody;
} handled;

SEC("xdp")
int accept(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&handled.accepted, 1);
	return XDP_PASS;
}

SEC("xdp")
int reject(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&handled.rejected, 1);
	return XDP_DROP;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, KINDS);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} handlers SEC(".maps") = {
	.values = {
		[KIND_IPV4] = &accept,
		[KIND_IPV6] = &accept,
	},
};

SEC("xdp")
int dispatch(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	enum kind kind = KIND_OTHER;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		kind = KIND_IPV4;
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		kind = KIND_IPV6;

	bpf_tail_call(ctx, &handlers, kind);
	/* Only without a handler does control come here. */
	__sync_fetch_and_add(&handled.nobody, 1);
	return XDP_ABORTED;
}
