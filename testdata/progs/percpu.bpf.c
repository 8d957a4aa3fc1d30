// SPDX-License-Identifier: MIT OR Apache-2.0
/* Per-CPU arrays and bpf_map_lookup_percpu_elem. */
#include "test.h"

__s64 out[8];

struct pair {
	__u64 a;
	__u32 b;
	__u32 c;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct pair);
} pairs SEC(".maps");

/* Key args[0] on CPU args[1]. */
SEC("raw_tp")
int other_cpu(args_t *ctx)
{
	__u32 key = ctx->args[0];
	struct pair *pair = bpf_map_lookup_percpu_elem(&pairs, &key, ctx->args[1]);

	if (!pair)
		return -1;
	pair->a += key + 1;
	pair->b = ctx->args[1] + 10;
	return pair->a;
}

/* Which of several CPU numbers exist: 0 does, the last three never do. */
SEC("raw_tp")
int bad_cpu(args_t *ctx)
{
	static const __u32 cpus[] = { 0, 0x10000, 0x7fffffff, 0xffffffff };
	__u32 key = ctx->args[0];

	for (__u32 i = 0; i < ARRAY_SIZE(cpus); i++)
		out[i] = bpf_map_lookup_percpu_elem(&pairs, &key, cpus[i]) != NULL;
	return 0;
}

/* The lookup without a CPU is that of the CPU the program runs on. */
SEC("raw_tp")
int own_cpu(args_t *ctx)
{
	__u32 key = ctx->args[0];
	struct pair *own = bpf_map_lookup_elem(&pairs, &key);
	struct pair *same = bpf_map_lookup_percpu_elem(&pairs, &key, bpf_get_smp_processor_id());

	if (!own || !same)
		return -1;
	own->a = ctx->args[1];
	same->a *= 2;
	out[0] = own == same;
	return own->a;
}

/* An update changes the running CPU's element only. */
SEC("raw_tp")
int update(args_t *ctx)
{
	__u32 key = ctx->args[0];
	struct pair pair = { .a = ctx->args[1], .b = 7, .c = 8 };

	out[0] = bpf_map_update_elem(&pairs, &key, &pair, BPF_ANY);
	out[1] = bpf_map_update_elem(&pairs, &key, &pair, BPF_NOEXIST);
	out[2] = bpf_map_update_elem(&pairs, &key, &pair, BPF_EXIST);
	return out[0];
}
