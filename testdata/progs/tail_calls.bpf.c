// SPDX-License-Identifier: MIT OR Apache-2.0
/* Jumps through PROG_ARRAYs. What ran, and how often, is left in `out`. */
#include "test.h"

__s64 out[16];

/* A tail call with all 64 bits of its index. */
static __always_inline void tail_call_wide(void *ctx, const void *map, __u64 index)
{
	asm volatile("r1 = %[ctx]\n\t"
		     "r2 = %[map]\n\t"
		     "r3 = %[index]\n\t"
		     "call 12"
		     :
		     : [ctx] "r"(ctx), [map] "r"(map), [index] "r"(index)
		     : "r0", "r1", "r2", "r3", "r4", "r5", "memory");
}

SEC("raw_tp")
int target(args_t *ctx)
{
	out[0]++;
	out[1] = ctx->args[0];
	return 100;
}

SEC("raw_tp")
int negative(args_t *ctx)
{
	out[2]++;
	return -7;
}

int repeat(args_t *ctx);
int ping(args_t *ctx);
int pong(args_t *ctx);
int first_of_three(args_t *ctx);
int second_of_three(args_t *ctx);
int three_at_a_time(args_t *ctx);
int through_two_maps(args_t *ctx);

/* Not a power of two, with holes. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 11);
	__uint(key_size, 4);
	__array(values, int(void *));
} jumps SEC(".maps") = {
	.values = {
		[0] = (void *)&target,
		[1] = (void *)&negative,
		[2] = (void *)&repeat,
		[4] = (void *)&ping,
		[5] = (void *)&pong,
		[6] = (void *)&second_of_three,
		[7] = (void *)&three_at_a_time,
		[10] = (void *)&through_two_maps,
	},
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, int(void *));
} single SEC(".maps") = { .values = { [0] = (void *)&through_two_maps } };

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__uint(key_size, 4);
	__uint(value_size, 4);
} empty SEC(".maps");

SEC("raw_tp")
int constant(args_t *ctx)
{
	bpf_tail_call_static(ctx, &jumps, 0);
	out[3]++;
	return 1;
}

SEC("raw_tp")
int constant_empty_slot(args_t *ctx)
{
	bpf_tail_call_static(ctx, &jumps, 3);
	out[3]++;
	return 2;
}

SEC("raw_tp")
int constant_past_the_end(args_t *ctx)
{
	bpf_tail_call_static(ctx, &jumps, 11);
	out[3]++;
	return 3;
}

SEC("raw_tp")
int negative_result(args_t *ctx)
{
	bpf_tail_call_static(ctx, &jumps, 1);
	return 4;
}

SEC("raw_tp")
int dynamic(args_t *ctx)
{
	bpf_tail_call(ctx, &jumps, (__u32)ctx->args[0]);
	out[3]++;
	return 5;
}

/* The upper half of the index does not count, but for the guard of a map that is masked. */
SEC("raw_tp")
int wide_index(args_t *ctx)
{
	tail_call_wide(ctx, &jumps, ctx->args[0]);
	out[3]++;
	return 6;
}

SEC("raw_tp")
int constant_wide_index(args_t *ctx)
{
	tail_call_wide(ctx, &jumps, 1ull << 32);
	out[3]++;
	return 7;
}

SEC("raw_tp")
int minus_one(args_t *ctx)
{
	tail_call_wide(ctx, &jumps, -1ull);
	out[3]++;
	return 8;
}

SEC("raw_tp")
int no_programs(args_t *ctx)
{
	bpf_tail_call(ctx, &empty, (__u32)ctx->args[0]);
	bpf_tail_call_static(ctx, &empty, 0);
	return 9;
}

/* Counts its runs: the budget is 33 tail calls. */
SEC("raw_tp")
int repeat(args_t *ctx)
{
	out[4]++;
	bpf_tail_call_static(ctx, &jumps, 2);
	return out[4];
}

SEC("raw_tp")
int repeat_dynamically(args_t *ctx)
{
	out[4]++;
	bpf_tail_call(ctx, &jumps, OPAQUE(2));
	return out[4];
}

SEC("raw_tp")
int ping(args_t *ctx)
{
	out[5]++;
	bpf_tail_call_static(ctx, &jumps, 5);
	return 10;
}

SEC("raw_tp")
int pong(args_t *ctx)
{
	out[6]++;
	bpf_tail_call(ctx, &jumps, OPAQUE(4));
	return 11;
}

SEC("raw_tp")
int first_of_three(args_t *ctx)
{
	out[7] = 1;
	bpf_tail_call_static(ctx, &jumps, 6);
	return 12;
}

SEC("raw_tp")
int second_of_three(args_t *ctx)
{
	out[7] = out[7] * 10 + 2;
	bpf_tail_call_static(ctx, &jumps, 0);
	return 13;
}

/* Misses do not use up the budget. */
SEC("raw_tp")
int many_misses(args_t *ctx)
{
	for (int i = 0; i < 40; i++) {
		bpf_tail_call(ctx, &jumps, OPAQUE(3));
		bpf_tail_call(ctx, &jumps, OPAQUE(11 + i));
	}
	bpf_tail_call_static(ctx, &jumps, 0);
	return 14;
}

/* The first hit of several attempts ends the program. */
SEC("raw_tp")
int several_attempts(args_t *ctx)
{
	__u32 index = ctx->args[0];

	for (__u32 i = 0; i < 4; i++) {
		out[8]++;
		bpf_tail_call(ctx, &jumps, index + i);
	}
	return 15;
}

/* One budget for all maps. */
SEC("raw_tp")
int through_two_maps(args_t *ctx)
{
	out[9]++;
	if (out[9] & 1)
		bpf_tail_call_static(ctx, &single, 0);
	else
		bpf_tail_call_static(ctx, &jumps, 10);
	return 16;
}

SEC("raw_tp")
int single_slot(args_t *ctx)
{
	bpf_tail_call(ctx, &single, (__u32)ctx->args[0]);
	return 17;
}

static __noinline int jump(args_t *ctx, __u32 index)
{
	bpf_tail_call(ctx, &jumps, index);
	return 1000;
}

/* The program that a function jumps to returns to the function's caller. */
SEC("raw_tp")
int from_a_function(args_t *ctx)
{
	int result = jump(ctx, ctx->args[0]);

	out[10]++;
	return result + 1;
}

static __noinline int jump_deeper(args_t *ctx, __u32 index)
{
	return jump(ctx, index) + 10;
}

SEC("raw_tp")
int from_a_nested_function(args_t *ctx)
{
	return jump_deeper(ctx, ctx->args[0]) + jump(ctx, 1);
}

/* A tree of jumps, of which the first 33 are made, in the order of their functions' calls. */
SEC("raw_tp")
int three_at_a_time(args_t *ctx)
{
	out[11]++;
	if (out[13] == 3)
		return 1;
	out[13]++;
	for (int i = 0; i < 3; i++)
		out[12] = out[12] * 3 + jump(ctx, 7);
	out[13]--;
	return 2;
}

/* Functions and the program itself share the budget. */
SEC("raw_tp")
int function_then_program(args_t *ctx)
{
	out[14] += jump(ctx, 2);
	bpf_tail_call_static(ctx, &jumps, 0);
	return 18;
}

/* Between max_entries and the next power of two there is nothing; the slot before is the last. */
SEC("raw_tp")
int constant_last_slot(args_t *ctx)
{
	bpf_tail_call_static(ctx, &jumps, 10);
	return 19;
}

/* The index comes from memory that another program may change. */
SEC("raw_tp")
int index_in_memory(args_t *ctx)
{
	out[15] = ctx->args[0];
	bpf_tail_call(ctx, &jumps, *(volatile __u32 *)&out[15]);
	return 20;
}
