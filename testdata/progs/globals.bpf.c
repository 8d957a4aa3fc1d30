// SPDX-License-Identifier: MIT OR Apache-2.0
/* Global variables: .data, .rodata and .bss, static ones, and arrays with an index at run time. */
#include "test.h"

__u64 out[8];

__u8 byte = 0xf1;
__u16 half = 0xe2f3;
__u32 word = 0xd4e5f607;
__u64 quad = 0xc1d2e3f405162738;
__s32 negative = -5;

const volatile __u32 limit = 100;
const volatile __s64 offset = -3;

static volatile __u32 calls;
static volatile __u64 last = 11;

/* Every width, read, changed and written back. */
SEC("raw_tp")
int widths(args_t *ctx)
{
	out[0] = (__u64)byte << 32 | half;
	out[1] = word;
	out[2] = quad;
	out[3] = negative;
	byte += ctx->args[0];
	half -= ctx->args[0];
	word ^= ctx->args[0];
	quad *= ctx->args[0] | 1;
	negative >>= 1;
	return negative;
}

SEC("raw_tp")
int constants(args_t *ctx)
{
	__s64 a = ctx->args[0];

	out[0] = limit;
	out[1] = offset;
	return a + offset > limit;
}

/* Static variables have no symbol of their own in relocations, only an offset into the section. */
SEC("raw_tp")
int statics(args_t *ctx)
{
	calls++;
	out[0] = last;
	last = ctx->args[0];
	return calls;
}

struct point {
	__s32 x, y;
	char name[8];
};

struct point points[4] = {
	{ 1, 2, "first" },
	{ -3, 4, "second" },
	{ 5, -6, "third" },
};

static const __u32 primes[] = { 2, 3, 5, 7, 11, 13, 17, 19 };

__u32 histogram[16];

SEC("raw_tp")
int variable_index(args_t *ctx)
{
	__u64 a = ctx->args[0];
	struct point *point = &points[a & 3];

	point->x += point->y;
	point->name[a >> 2 & 7] = 'X';
	histogram[a >> 8 & 15]++;
	out[0] = primes[a & 7];
	out[1] = primes[OPAQUE(5)];
	return point->x;
}

/* A pointer to either variable, chosen at run time. */
SEC("raw_tp")
int pointers(args_t *ctx)
{
	__u64 *chosen = ctx->args[0] & 1 ? &quad : &out[6];

	*OPAQUE(chosen) += 9;
	out[0] = (void *)&points[3] - (void *)&points[1];
	return *chosen;
}
