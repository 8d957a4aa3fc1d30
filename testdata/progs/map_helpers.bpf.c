// SPDX-License-Identifier: MIT OR Apache-2.0
/* Lookup, update and delete with good and bad keys and flags: args[0] is the key, args[1] the flags. */
#include "test.h"

__s64 out[16];

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} percpu SEC(".maps");

SEC("raw_tp")
int array_lookup(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 *value = bpf_map_lookup_elem(&array, &key);

	if (!value)
		return -1;
	*value += 0x0101010101010101;
	return *value;
}

SEC("raw_tp")
int percpu_lookup(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 *value = bpf_map_lookup_elem(&percpu, &key);

	if (!value)
		return -1;
	*value += 0x0101010101010101;
	return *value;
}

SEC("raw_tp")
int array_update(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 value = ctx->args[0] ^ 0xabcdef;

	return bpf_map_update_elem(&array, &key, &value, ctx->args[1]);
}

SEC("raw_tp")
int percpu_update(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 value = ctx->args[0] ^ 0xabcdef;

	return bpf_map_update_elem(&percpu, &key, &value, ctx->args[1]);
}

/* All flags on two keys; the update with several of them is judged in the kernel's order. */
SEC("raw_tp")
int all_flags(args_t *ctx)
{
	static const __u64 flags[] = { 0, 1, 2, 3, 4, 5, 8, 1ull << 32 };
	__u32 key = ctx->args[0];
	__u64 value = 1;

	for (__u32 i = 0; i < ARRAY_SIZE(flags); i++) {
		out[i] = bpf_map_update_elem(&array, &key, &value, flags[i]);
		out[8 + i] = bpf_map_update_elem(&percpu, &key, &value, flags[i]);
		value++;
	}
	return 0;
}

/* Elements of an array cannot be deleted. */
SEC("raw_tp")
int delete(args_t *ctx)
{
	__u32 key = ctx->args[0];

	out[0] = bpf_map_delete_elem(&array, &key);
	out[1] = bpf_map_delete_elem(&percpu, &key);
	return out[0];
}

/* Constant keys, for which no NULL test is needed, and one that is past the end. */
SEC("raw_tp")
int constant_keys(args_t *ctx)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&array, &key);

	if (value)
		*value = ctx->args[0];
	key = 4;
	value = bpf_map_lookup_elem(&percpu, &key);
	if (value)
		*value = ctx->args[1];
	key = 5;
	out[0] = bpf_map_lookup_elem(&array, &key) == NULL;
	out[1] = bpf_map_lookup_elem(&percpu, &key) == NULL;
	return 0;
}

/* Key and value may lie in another map's element, even in the one that is updated. */
SEC("raw_tp")
int key_in_a_value(args_t *ctx)
{
	__u32 first = 1;
	__u64 *key = bpf_map_lookup_elem(&array, &first);

	if (!key)
		return -1;
	*key = ctx->args[0];
	out[0] = bpf_map_update_elem(&array, key, key, BPF_ANY);
	out[1] = bpf_map_update_elem(&percpu, key, key, BPF_EXIST);
	out[2] = bpf_map_lookup_elem(&percpu, key) != NULL;
	return out[0];
}

/* The same call on either map: too much for an inlined lookup. */
SEC("raw_tp")
int either_map(args_t *ctx)
{
	__u32 key = ctx->args[0];
	void *map = ctx->args[1] & 1 ? (void *)&array : (void *)&percpu;
	__u64 *value = bpf_map_lookup_elem(OPAQUE(map), &key);

	if (!value)
		return -1;
	*value += 3;
	return *value;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, __u64);
} read_only SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(map_flags, BPF_F_WRONLY_PROG);
	__type(key, __u32);
	__type(value, __u64);
} write_only SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(key_size, 4);
	__uint(value_size, 8);
} mmapable SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(map_flags, BPF_F_INNER_MAP);
	__type(key, __u32);
	__type(value, __u64);
} inner SEC(".maps");

/* Maps with flags; the lookup on one with INNER_MAP is a call. */
SEC("raw_tp")
int map_flags(args_t *ctx)
{
	__u32 key = ctx->args[0];
	__u64 a = ctx->args[1], *value;

	value = bpf_map_lookup_elem(&read_only, &key);
	out[0] = value ? (__s64)*value : -1;
	value = bpf_map_lookup_elem(&write_only, &key);
	if (value)
		*value = a;
	out[1] = bpf_map_update_elem(&mmapable, &key, &a, BPF_ANY);
	value = bpf_map_lookup_elem(&inner, &key);
	if (value)
		*value += a;
	out[2] = value ? 0 : -1;
	return out[1];
}
