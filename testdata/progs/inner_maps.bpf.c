// SPDX-License-Identifier: MIT OR Apache-2.0
/* Maps in the slots of ARRAY_OF_MAPS: args[0] is the slot, args[1] the key in it. */
#include "test.h"

__s64 out[16];

struct array {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} a SEC(".maps"), b SEC(".maps");

/* An empty slot in the middle and one at the end. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 5);
	__type(key, __u32);
	__array(values, struct array);
} arrays SEC(".maps") = { .values = { [0] = &a, [1] = &b, [3] = &a } };

struct percpu {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} p SEC(".maps");

/* Per-CPU arrays in slots may differ in length. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 9);
	__type(key, __u32);
	__type(value, __u64);
} p_longer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct percpu);
} percpus SEC(".maps") = { .values = { [0] = (void *)&p, [2] = (void *)&p_longer } };

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} i_short SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 10);
	__type(key, __u32);
	__type(value, __u64);
} i_long SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct inner);
} inners SEC(".maps") = { .values = { [0] = (void *)&i_short, [1] = (void *)&i_long } };

struct wide {
	__u32 words[5];
};

struct wides {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct wide);
} w SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct wides);
} single SEC(".maps") = { .values = { [0] = &w } };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct array);
} empty SEC(".maps");

struct read_only {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} r SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct read_only);
} read_onlys SEC(".maps") = { .values = { [1] = &r } };

static __always_inline __s64 add(void *outer, args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(outer, &slot);
	__u64 *value;

	if (!map)
		return -1;
	value = bpf_map_lookup_elem(map, &key);
	if (!value)
		return -2;
	*value += 0x10001 + slot;
	return *value;
}

SEC("raw_tp")
int add_in_array(args_t *ctx)
{
	return add(&arrays, ctx);
}

SEC("raw_tp")
int add_in_percpu(args_t *ctx)
{
	return add(&percpus, ctx);
}

SEC("raw_tp")
int add_in_inner_map(args_t *ctx)
{
	return add(&inners, ctx);
}

SEC("raw_tp")
int nothing_in_slots(args_t *ctx)
{
	return add(&empty, ctx);
}

SEC("raw_tp")
int add_atomically(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(&arrays, &slot);
	__u64 *value = map ? bpf_map_lookup_elem(map, &key) : NULL;

	if (!value)
		return -1;
	return __sync_fetch_and_add(value, 5);
}

/* Keys that are known beforehand: in a map without INNER_MAP no NULL test is needed. */
SEC("raw_tp")
int constant_keys(args_t *ctx)
{
	__u32 slot = 1, key = 4;
	void *map = bpf_map_lookup_elem(&arrays, &slot);
	__u64 *value;

	if (!map)
		return -1;
	value = bpf_map_lookup_elem(map, &key);
	if (!value)
		return -2;
	*value = ctx->args[0];
	return 0;
}

SEC("raw_tp")
int constant_empty_slot(args_t *ctx)
{
	__u32 slot = 2;

	return bpf_map_lookup_elem(&arrays, &slot) ? 1 : 0;
}

SEC("raw_tp")
int constant_past_the_end(args_t *ctx)
{
	__u32 slot = 5;

	return bpf_map_lookup_elem(&arrays, &slot) ? 1 : 0;
}

SEC("raw_tp")
int past_the_end_of_the_inner_map(args_t *ctx)
{
	__u32 slot = 0, key = 5;
	void *map = bpf_map_lookup_elem(&arrays, &slot);

	if (!map)
		return -1;
	return bpf_map_lookup_elem(map, &key) ? 1 : 0;
}

static __always_inline int update(void *outer, args_t *ctx)
{
	static const __u64 flags[] = { 0, 1, 2, 3, 4, 5, 8, 1ull << 32 };
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(outer, &slot);
	__u64 value = ctx->args[1] ^ 0xabcdef;

	if (!map)
		return -1;
	for (__u32 i = 0; i < ARRAY_SIZE(flags); i++) {
		out[i] = bpf_map_update_elem(map, &key, &value, flags[i]);
		value++;
	}
	return 0;
}

SEC("raw_tp")
int update_array(args_t *ctx)
{
	return update(&arrays, ctx);
}

SEC("raw_tp")
int update_percpu(args_t *ctx)
{
	return update(&percpus, ctx);
}

SEC("raw_tp")
int update_inner_map(args_t *ctx)
{
	return update(&inners, ctx);
}

SEC("raw_tp")
int delete(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(&arrays, &slot);

	return map ? bpf_map_delete_elem(map, &key) : -1;
}

/* The same map in two slots, and by its name. */
SEC("raw_tp")
int three_ways_to_a_map(args_t *ctx)
{
	__u32 first = 0, third = 3, key = ctx->args[1];
	void *one = bpf_map_lookup_elem(&arrays, &first);
	void *two = bpf_map_lookup_elem(&arrays, &third);
	__u64 *value;

	if (!one || !two)
		return -1;
	value = bpf_map_lookup_elem(one, &key);
	if (value)
		*value += 1;
	value = bpf_map_lookup_elem(two, &key);
	if (value)
		*value += 10;
	value = bpf_map_lookup_elem(&a, &key);
	if (!value)
		return -2;
	*value += 100;
	return *value;
}

SEC("raw_tp")
int all_slots(args_t *ctx)
{
	__u32 key = ctx->args[1];
	int found = 0;

	for (__u32 slot = 0; slot < 7; slot++) {
		void *map = bpf_map_lookup_elem(&arrays, &slot);
		__u64 *value;

		if (!map)
			continue;
		value = bpf_map_lookup_elem(map, &key);
		if (!value)
			continue;
		*value += slot + 1;
		found++;
	}
	return found;
}

/* The key of one lookup lies in the value that another found. */
SEC("raw_tp")
int key_in_an_inner_map(args_t *ctx)
{
	__u32 slot = 0, key = 1;
	void *map = bpf_map_lookup_elem(&arrays, &slot), *other;
	__u64 *value;

	if (!map)
		return -1;
	value = bpf_map_lookup_elem(map, &key);
	if (!value)
		return -2;
	*value = ctx->args[0];
	other = bpf_map_lookup_elem(&arrays, value);
	if (!other)
		return -3;
	value = bpf_map_lookup_elem(other, value);
	if (!value)
		return -4;
	*value += 3;
	return *value;
}

static __noinline int set(__u32 slot, __u32 key, __u64 to)
{
	void *map = bpf_map_lookup_elem(&arrays, &slot);
	__u64 *value = map ? bpf_map_lookup_elem(map, &key) : NULL;

	if (!value)
		return -1;
	*value = to;
	return 0;
}

SEC("raw_tp")
int in_a_function(args_t *ctx)
{
	return set(ctx->args[0], ctx->args[1], 77) + set(1, 2, 78) * 10;
}

SEC("raw_tp")
int odd_value_size(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	struct wides *map = bpf_map_lookup_elem(&single, &slot);
	struct wide *value = map ? bpf_map_lookup_elem(map, &key) : NULL;

	if (!value)
		return -1;
	for (__u32 i = 0; i < ARRAY_SIZE(value->words); i++)
		value->words[i] += i + key;
	return value->words[4];
}

SEC("raw_tp")
int read_only(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(&read_onlys, &slot);
	__u64 *value = map ? bpf_map_lookup_elem(map, &key) : NULL;

	return value ? (int)*value + 1 : -1;
}

SEC("raw_tp")
int other_cpu(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *map = bpf_map_lookup_elem(&percpus, &slot);
	__u64 *value;

	if (!map)
		return -1;
	value = bpf_map_lookup_percpu_elem(map, &key, 1);
	if (!value)
		return -2;
	*value += 0x2000;
	out[0] = bpf_map_lookup_percpu_elem(map, &key, 0x10000) == NULL;
	return *value;
}

static long sum(void *map, __u32 *key, __u64 *value, __u64 *total)
{
	*total += *value + *key;
	*value += 2;
	return *key == 3;
}

SEC("raw_tp")
int for_each(args_t *ctx)
{
	__u32 slot = ctx->args[0];
	void *map = bpf_map_lookup_elem(&arrays, &slot);
	__u64 total = 0;

	if (!map)
		return -1;
	out[0] = bpf_for_each_map_elem(map, sum, &total, 0);
	return total;
}

SEC("raw_tp")
int for_each_percpu(args_t *ctx)
{
	__u32 slot = ctx->args[0];
	void *map = bpf_map_lookup_elem(&percpus, &slot);
	__u64 total = 0;

	if (!map)
		return -1;
	out[0] = bpf_for_each_map_elem(map, sum, &total, 0);
	return total;
}

/* A map that was found stays usable, whatever is looked up after it. */
SEC("raw_tp")
int maps_side_by_side(args_t *ctx)
{
	__u32 zero = 0, one = 1, key = ctx->args[1];
	void *first = bpf_map_lookup_elem(&arrays, &zero), *second;
	__u64 *from, *to;

	if (!first)
		return -1;
	second = bpf_map_lookup_elem(&arrays, &one);
	if (!second)
		return -2;
	from = bpf_map_lookup_elem(first, &key);
	to = bpf_map_lookup_elem(second, &key);
	if (!from || !to)
		return -3;
	*from += 3;
	*to += *from * 2;
	return *to;
}

/* An inner map is the argument of a function. */
static __noinline int bump(void *map, __u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&a, &key);

	return value && map ? (int)++*value : -1;
}

SEC("raw_tp")
int address_as_an_argument(args_t *ctx)
{
	__u32 slot = ctx->args[0];

	return bump(bpf_map_lookup_elem(&arrays, &slot), ctx->args[1]);
}

/* Which of two maps of maps is not known beforehand: no lookup is inlined. */
SEC("raw_tp")
int either_outer_map(args_t *ctx)
{
	__u32 slot = ctx->args[0], key = ctx->args[1];
	void *outer = ctx->args[1] & 1 ? (void *)&arrays : (void *)&empty;
	void *map = bpf_map_lookup_elem(OPAQUE(outer), &slot);
	__u64 *value = map ? bpf_map_lookup_elem(map, &key) : NULL;

	if (!value)
		return -1;
	return ++*value;
}

SEC("xdp")
int count_packets(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 slot, key;
	void *map;
	__u64 *value;

	if (data + 14 > end)
		return XDP_ABORTED;
	slot = data[0] & 7;
	key = data[5];
	map = bpf_map_lookup_elem(&percpus, &slot);
	if (!map)
		return XDP_DROP;
	value = bpf_map_lookup_elem(map, &key);
	if (!value)
		return XDP_TX;
	*value += end - data;
	return XDP_PASS;
}
