// SPDX-License-Identifier: MIT OR Apache-2.0
/* Calls from BPF to BPF: static and global functions, nested ones, and what they do to registers. */
#include "test.h"

__u64 out[16];

/* The position of each argument must matter. */
static __noinline __u64 five(__u64 a, __u64 b, __u64 c, __u64 d, __u64 e)
{
	asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e));
	return a + 3 * b + 5 * c + 7 * d + 11 * e;
}

SEC("raw_tp")
int five_arguments(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = five(a, b, 1, 2, 3);
	out[1] = five(3, 2, 1, b, a);
	out[2] = five(out[0], out[1], a, b, a ^ b);
	return out[2];
}

#define LEVEL(n, next)                                                                             \
	static __noinline __u64 level##n(__u64 depth, __u64 value)                                 \
	{                                                                                          \
		volatile __u64 own = value * n;                                                    \
		__u64 below = depth > n ? next(depth, value + n) : 0;                              \
                                                                                                   \
		return own + below;                                                                \
	}

static __noinline __u64 bottom(__u64 depth, __u64 value)
{
	asm volatile("" : "+r"(depth), "+r"(value));
	return depth << 32 | (__u32)value;
}

LEVEL(6, bottom)
LEVEL(5, level6)
LEVEL(4, level5)
LEVEL(3, level4)
LEVEL(2, level3)
LEVEL(1, level2)

/* Eight frames, the most there may be, each with a local of its own. */
SEC("raw_tp")
int nested(args_t *ctx)
{
	out[0] = level1(ctx->args[0] & 7, ctx->args[1]);
	return out[0];
}

static __noinline void clobber(void)
{
	asm volatile("r1 = -1\n\tr2 = -1\n\tr3 = -1\n\tr4 = -1\n\tr5 = -1\n\t"
		     "r6 = -1\n\tr7 = -1\n\tr8 = -1\n\tr9 = -1\n\tr0 = 0"
		     :
		     :
		     : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9");
}

/* r6 to r9 belong to the caller: here the instructions alone, no compiler saves them. */
SEC("raw_tp")
int callee_saved(args_t *ctx)
{
	register __u64 r1 asm("r1") = ctx->args[0];

	asm volatile("r6 = r1\n\t"
		     "r7 = r6\n\tr7 += 1\n\t"
		     "r8 = r7\n\tr8 += 1\n\t"
		     "r9 = r8\n\tr9 += 1\n\t"
		     "call %[clobber]\n\t"
		     "r1 = r6\n\tr1 += r7\n\tr1 += r8\n\tr1 += r9"
		     : "+r"(r1)
		     : [clobber] "i"(clobber)
		     : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9");
	out[0] = r1;
	return r1;
}

struct pair {
	__u64 low;
	__u64 high;
};

static __noinline void swap(struct pair *pair)
{
	__u64 low = pair->low;

	pair->low = pair->high;
	pair->high = low;
}

static __noinline void swap_and_add(struct pair *pair, __u64 n)
{
	swap(pair);
	pair->low += n;
}

/* A callee may write its caller's stack. */
SEC("raw_tp")
int pointer_to_stack(args_t *ctx)
{
	struct pair pair = { ctx->args[0], ctx->args[1] };

	swap(&pair);
	out[0] = pair.low;
	out[1] = pair.high;
	swap_and_add(&pair, 1000);
	out[2] = pair.low;
	out[3] = pair.high;
	return 0;
}

/* Global functions are verified on their own, for any argument. */
__noinline int global_sum(int a, int b)
{
	asm volatile("" : "+r"(a), "+r"(b));
	return a + b;
}

__noinline int global_with_memory(struct pair *pair)
{
	if (!pair)
		return -1;
	pair->high = global_sum(pair->low, 1);
	return pair->high * 2;
}

SEC("raw_tp")
int global_functions(args_t *ctx)
{
	struct pair pair = { ctx->args[0], ctx->args[1] };

	out[0] = global_sum(ctx->args[0], ctx->args[1]);
	out[1] = global_with_memory(&pair);
	out[2] = pair.high;
	out[3] = global_with_memory(NULL);
	return out[1];
}

static __noinline __u64 from_context(args_t *ctx, __u32 *calls)
{
	__u64 a = OPAQUE(ctx->args[0]), b = OPAQUE(ctx->args[1]);

	*calls += 1;
	return *calls & 1 ? a : b;
}

/* The same callee on several paths, with the context and a pointer into .bss or the stack. */
SEC("raw_tp")
int context_argument(args_t *ctx)
{
	__u32 calls = 0;

	out[0] = from_context(ctx, &calls);
	out[1] = from_context(ctx, &calls);
	out[2] = from_context(ctx, (__u32 *)&out[8]);
	for (int i = 0; i < 5; i++)
		out[3] += from_context(ctx, &calls);
	return calls;
}
