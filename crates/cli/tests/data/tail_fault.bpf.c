// SPDX-License-Identifier: MIT OR Apache-2.0
/* A program that a tail call leads to reads where there is nothing. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("xdp")
int target(struct xdp_md *ctx)
{
	return *(volatile int *)8;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, int(void *));
} targets SEC(".maps") = {
	.values = { (void *)&target },
};

SEC("xdp")
int enter(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &targets, 0);
	return XDP_DROP;
}
