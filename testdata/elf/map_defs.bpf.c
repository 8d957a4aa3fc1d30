// SPDX-License-Identifier: MIT OR Apache-2.0
/* Map definitions: every field there is, static ones, and maps that hold maps and programs. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#ifndef __ulong
#define __ulong(name, val) enum { ___bpf_unique_##name = val } name
#endif

struct pair {
	__u32 first;
	__u64 second;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_NUMA_NODE);
	__uint(numa_node, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct pair);
} everything SEC(".maps");

/* Sizes in numbers, and twice the same. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, sizeof(__u32));
	__type(key, int);
	__uint(value_size, 24);
	__uint(max_entries, 1);
} sizes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 100);
	__uint(value_size, 8);
	__ulong(map_extra, 0x100000005);
} extra SEC(".maps");

static struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 7);
	__type(key, __u32);
	__type(value, __u64);
} hidden_away SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} inner_a SEC(".maps"), inner_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { [1] = &inner_b, [3] = &inner_a },
};

int target_one(void *ctx);
int target_two(void *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} jumps SEC(".maps") = {
	.values = { [0] = (void *)&target_two, [2] = (void *)&target_one },
};

SEC("socket")
int target_one(void *ctx)
{
	return 1;
}

SEC("socket")
int target_two(void *ctx)
{
	return 2;
}

SEC("socket")
int use(void *ctx)
{
	__u32 key = 5;
	__u64 *value = bpf_map_lookup_elem(&hidden_away, &key);

	if (value)
		return *value;
	if (bpf_map_lookup_elem(&everything, &key))
		return 1;
	bpf_tail_call(ctx, &jumps, 2);
	return 0;
}
