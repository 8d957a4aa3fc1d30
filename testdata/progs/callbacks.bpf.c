// SPDX-License-Identifier: MIT OR Apache-2.0
/* Helpers that call back: bpf_for_each_map_elem and bpf_loop. */
#include "test.h"

__u64 out[16];

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 10);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u32);
} percpu_numbers SEC(".maps");

struct visit {
	__u64 sum;
	__u64 keys;
	__u64 stop_at;
};

static long visit(void *map, __u32 *key, __u64 *value, struct visit *visit)
{
	if (*key == visit->stop_at)
		return 1;
	*value += *key * 100 + 1;
	visit->sum += *value;
	visit->keys = visit->keys << 4 | *key;
	return 0;
}

/* Stops at the key args[0]; returns how many calls there were. */
SEC("raw_tp")
int for_each(args_t *ctx)
{
	struct visit state = { .stop_at = ctx->args[0] };

	out[0] = bpf_for_each_map_elem(&numbers, visit, &state, 0);
	out[1] = state.sum;
	out[2] = state.keys;
	return out[0];
}

static long visit_percpu(void *map, __u32 *key, __u32 *value, struct visit *visit)
{
	*value += *key + 1;
	visit->sum += *value;
	return *key == visit->stop_at;
}

SEC("raw_tp")
int for_each_percpu(args_t *ctx)
{
	struct visit state = { .stop_at = ctx->args[0] };

	out[0] = bpf_for_each_map_elem(&percpu_numbers, visit_percpu, &state, 0);
	out[1] = state.sum;
	return out[0];
}

SEC("raw_tp")
int for_each_with_flags(args_t *ctx)
{
	struct visit state = { .stop_at = -1 };

	out[0] = bpf_for_each_map_elem(&numbers, visit, &state, ctx->args[0]);
	out[1] = state.keys;
	return out[0];
}

static long fibonacci(__u32 index, __u64 *pair)
{
	__u64 next = pair[0] + pair[1];

	pair[0] = pair[1];
	pair[1] = next;
	return 0;
}

/* args[0] rounds: none, some, the most there may be (2^23), and more than that. */
SEC("raw_tp")
int loop(args_t *ctx)
{
	__u64 pair[2] = { 0, 1 };

	out[0] = bpf_loop(ctx->args[0], fibonacci, pair, 0);
	out[1] = pair[0];
	return out[0];
}

SEC("raw_tp")
int loop_with_flags(args_t *ctx)
{
	__u64 pair[2] = { 0, 1 };

	out[0] = bpf_loop(4, fibonacci, pair, ctx->args[0]);
	out[1] = pair[0];
	return out[0];
}

struct search {
	__u64 target;
	__u32 found;
};

static long search(__u32 index, struct search *search)
{
	if ((__u64)index * index < search->target)
		return 0;
	search->found = index;
	return 1;
}

/* A loop that ends early counts the round that ended it. */
SEC("raw_tp")
int loop_with_early_end(args_t *ctx)
{
	struct search state = { .target = ctx->args[0], .found = -1 };

	out[0] = bpf_loop(1000, search, &state, 0);
	out[1] = state.found;
	return out[0];
}

static long inner(__u32 index, __u64 *sum)
{
	*sum += index;
	return index == 6;
}

static long outer(__u32 index, __u64 *sum)
{
	__u32 key = index;
	__u64 *number = bpf_map_lookup_elem(&numbers, &key);
	__u64 own = 0;
	long rounds = bpf_loop(index, inner, &own, 0);

	if (number)
		*number = own << 8 | rounds;
	*sum += own;
	return 0;
}

/* A callback that loops itself and looks elements up, past the last one too. */
SEC("raw_tp")
int nested_loops(args_t *ctx)
{
	__u64 sum = 0;

	out[0] = bpf_loop(ctx->args[0] & 15, outer, &sum, 0);
	out[1] = sum;
	return sum;
}

static long update_other(void *map, __u32 *key, __u64 *value, void *unused)
{
	__u64 copy = *value + 1;
	__u32 other = *key ^ 1;

	return bpf_map_update_elem(map, &other, &copy, BPF_ANY) != 0;
}

/* The callback's map argument is the map, and changes show at once. */
SEC("raw_tp")
int update_in_callback(args_t *ctx)
{
	return bpf_for_each_map_elem(&numbers, update_other, NULL, 0);
}
