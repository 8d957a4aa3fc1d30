// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Atomic operations of both sizes on memory that holds args[0], with the operand args[1]. Every one
 * leaves the memory and, in the fetching forms, the register.
 */
#include "test.h"

struct result {
	__u64 memory;
	__u64 fetched;
};

struct result out[16];

#define ATOMIC64(result, op)                                                                       \
	({                                                                                         \
		__u64 *_memory = &(result)->memory;                                                \
		*_memory = ctx->args[0];                                                           \
		asm volatile("lock *(u64 *)(%0 + 0) " op " %1"                                     \
			     :                                                                     \
			     : "r"(_memory), "r"(ctx->args[1])                                     \
			     : "memory");                                                          \
	})
#define FETCH64(result, op)                                                                        \
	({                                                                                         \
		__u64 _operand = ctx->args[1];                                                     \
		__u64 *_memory = &(result)->memory;                                                \
		*_memory = ctx->args[0];                                                           \
		asm volatile("%0 = atomic_fetch_" op "((u64 *)(%1 + 0), %0)"                       \
			     : "+&r"(_operand)                                                     \
			     : "r"(_memory)                                                        \
			     : "memory");                                                          \
		(result)->fetched = _operand;                                                      \
	})
/* The upper half of the memory must stay, and that of the register becomes zero. */
#define ATOMIC32(result, op)                                                                       \
	({                                                                                         \
		__u64 *_memory = &(result)->memory;                                                \
		*_memory = ctx->args[0];                                                           \
		asm volatile("r1 = %1\n\tlock *(u32 *)(%0 + 0) " op " w1"                          \
			     :                                                                     \
			     : "r"(_memory), "r"(ctx->args[1])                                     \
			     : "r1", "memory");                                                    \
	})
#define FETCH32(result, op)                                                                        \
	({                                                                                         \
		__u64 _operand = ctx->args[1];                                                     \
		__u64 *_memory = &(result)->memory;                                                \
		*_memory = ctx->args[0];                                                           \
		asm volatile("r1 = %0\n\tw1 = atomic_fetch_" op                                    \
			     "((u32 *)(%1 + 0), w1)\n\t%0 = r1"                                    \
			     : "+&r"(_operand)                                                     \
			     : "r"(_memory)                                                        \
			     : "r1", "memory");                                                    \
		(result)->fetched = _operand;                                                      \
	})

SEC("raw_tp")
int plain64(args_t *ctx)
{
	ATOMIC64(&out[0], "+=");
	ATOMIC64(&out[1], "|=");
	ATOMIC64(&out[2], "&=");
	ATOMIC64(&out[3], "^=");
	return 0;
}

SEC("raw_tp")
int plain32(args_t *ctx)
{
	ATOMIC32(&out[0], "+=");
	ATOMIC32(&out[1], "|=");
	ATOMIC32(&out[2], "&=");
	ATOMIC32(&out[3], "^=");
	return 0;
}

SEC("raw_tp")
int fetch64(args_t *ctx)
{
	FETCH64(&out[0], "add");
	FETCH64(&out[1], "or");
	FETCH64(&out[2], "and");
	FETCH64(&out[3], "xor");
	return out[3].fetched;
}

SEC("raw_tp")
int fetch32(args_t *ctx)
{
	FETCH32(&out[0], "add");
	FETCH32(&out[1], "or");
	FETCH32(&out[2], "and");
	FETCH32(&out[3], "xor");
	return out[3].fetched;
}

SEC("raw_tp")
int exchange(args_t *ctx)
{
	__u64 operand = ctx->args[1];
	__u64 *memory = &out[0].memory;

	*memory = ctx->args[0];
	asm volatile("%0 = xchg_64(%1 + 0, %0)" : "+&r"(operand) : "r"(memory) : "memory");
	out[0].fetched = operand;

	operand = ctx->args[1];
	memory = &out[1].memory;
	*memory = ctx->args[0];
	asm volatile("r1 = %0\n\tw1 = xchg32_32(%1 + 0, w1)\n\t%0 = r1"
		     : "+&r"(operand)
		     : "r"(memory)
		     : "r1", "memory");
	out[1].fetched = operand;
	return 0;
}

/* Compares with args[2]; r0 receives what was in memory, whether or not it was equal. */
SEC("raw_tp")
int compare_exchange(args_t *ctx)
{
	register __u64 r0 asm("r0") = ctx->args[2];
	__u64 operand = ctx->args[1];
	__u64 *memory = &out[0].memory;

	*memory = ctx->args[0];
	asm volatile("r0 = cmpxchg_64(%1 + 0, r0, %2)"
		     : "+r"(r0)
		     : "r"(memory), "r"(operand)
		     : "memory");
	out[0].fetched = r0;

	memory = &out[1].memory;
	*memory = ctx->args[0];
	r0 = ctx->args[2];
	asm volatile("r1 = %2\n\tw0 = cmpxchg32_32(%1 + 0, w0, w1)"
		     : "+r"(r0)
		     : "r"(memory), "r"(operand)
		     : "r1", "memory");
	out[1].fetched = r0;
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The compiler's builtins, on an element of an array and on the stack. */
SEC("raw_tp")
int builtins(args_t *ctx)
{
	__u32 key = ctx->args[0] & 3;
	__u64 *counter = bpf_map_lookup_elem(&counters, &key);
	__u64 local = ctx->args[0];
	__u32 half = ctx->args[1];

	if (!counter)
		return -1;
	__sync_fetch_and_add(counter, ctx->args[1]);
	out[0].fetched = __sync_fetch_and_add(counter, 5);
	out[1].fetched = __sync_fetch_and_or(counter, 0x100);
	out[2].fetched = __sync_fetch_and_and(counter, ~1ul);
	out[3].fetched = __sync_fetch_and_xor(counter, ctx->args[0]);
	out[4].fetched = __sync_lock_test_and_set(&local, 77);
	out[4].memory = local;
	out[5].fetched = __sync_val_compare_and_swap(&local, 77, ctx->args[1]);
	out[5].memory = local;
	out[6].fetched = __sync_fetch_and_sub(&half, 3);
	out[6].memory = half;
	return out[0].fetched;
}
