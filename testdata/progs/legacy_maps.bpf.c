// SPDX-License-Identifier: MIT OR Apache-2.0
/* Map definitions as they were before BTF: structs in the section `maps`. */
#include "test.h"

struct bpf_map_def {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
};

struct bpf_map_def SEC("maps") counters = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = 4,
};

struct bpf_map_def SEC("maps") percpu_counters = {
	.type = BPF_MAP_TYPE_PERCPU_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = 2 * sizeof(__u64),
	.max_entries = 2,
};

SEC("raw_tp")
int count(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 *counter = bpf_map_lookup_elem(&counters, &key);

	if (!counter)
		return -1;
	__sync_fetch_and_add(counter, ctx->args[1]);
	return *counter;
}

SEC("raw_tp")
int count_percpu(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 *counter = bpf_map_lookup_elem(&percpu_counters, &key);

	if (!counter)
		return -1;
	counter[0]++;
	counter[1] += ctx->args[1];
	return counter[0];
}
