// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sign-extending moves and loads (mcpu=v4). */
#include "test.h"

__u64 out[16];

SEC("raw_tp")
int move64(args_t *ctx)
{
	__u64 a = ctx->args[0];

	asm volatile("%0 = (s8)%1" : "=r"(out[0]) : "r"(a));
	asm volatile("%0 = (s16)%1" : "=r"(out[1]) : "r"(a));
	asm volatile("%0 = (s32)%1" : "=r"(out[2]) : "r"(a));
	return out[0];
}

/* The upper half of the result is zero. */
SEC("raw_tp")
int move32(args_t *ctx)
{
	__u64 a = ctx->args[0];

	asm volatile("r1 = %1\n\tw1 = (s8)w1\n\t%0 = r1" : "=r"(out[0]) : "r"(a) : "r1");
	asm volatile("r1 = %1\n\tw1 = (s16)w1\n\t%0 = r1" : "=r"(out[1]) : "r"(a) : "r1");
	return out[1];
}

SEC("raw_tp")
int load_from_stack(args_t *ctx)
{
	__u64 words[2] = { ctx->args[0], ctx->args[1] };
	const void *bytes = OPAQUE(&words[0]);

	asm volatile("%0 = *(s8 *)(%1 + 0)" : "=r"(out[0]) : "r"(bytes), "m"(words));
	asm volatile("%0 = *(s8 *)(%1 + 7)" : "=r"(out[1]) : "r"(bytes), "m"(words));
	asm volatile("%0 = *(s16 *)(%1 + 2)" : "=r"(out[2]) : "r"(bytes), "m"(words));
	asm volatile("%0 = *(s32 *)(%1 + 4)" : "=r"(out[3]) : "r"(bytes), "m"(words));
	asm volatile("%0 = *(s32 *)(%1 + 8)" : "=r"(out[4]) : "r"(bytes), "m"(words));
	return out[1];
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} values SEC(".maps");

/* What clang makes of signed types in C. */
SEC("raw_tp")
int load_from_map(args_t *ctx)
{
	__u32 key = 1;
	__u64 a = ctx->args[0];
	const volatile struct {
		__s8 byte;
		__s16 half;
		__s32 word;
	} *value;

	bpf_map_update_elem(&values, &key, &a, BPF_ANY);
	value = bpf_map_lookup_elem(&values, &key);
	if (!value)
		return -1;
	out[0] = value->byte;
	out[1] = value->half;
	out[2] = value->word;
	return value->half < 0;
}
