// SPDX-License-Identifier: MIT OR Apache-2.0
/* What clang makes of C for the oldest instruction set (mcpu=v1): no 32-bit registers, no < or <=. */
#include "test.h"

__u64 out[16];

SEC("raw_tp")
int arithmetic(args_t *ctx)
{
	__u32 a = ctx->args[0], b = ctx->args[1];
	__s32 c = a, d = b;

	out[0] = a + b;
	out[1] = a * b;
	out[2] = a / (b | 1);
	out[3] = a % (b | 1);
	out[4] = c >> (b & 31);
	out[5] = (__s64)c * d;
	out[6] = (__u16)a << 7 ^ (__s8)b;
	return a - b;
}

SEC("raw_tp")
int compare(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	__s32 c = a, d = b;
	int result = 0;

	if (a < b)
		result |= 1;
	if (a <= 0x7fff)
		result |= 2;
	if ((__s64)a <= (__s64)b)
		result |= 4;
	if (c < d)
		result |= 8;
	if ((__u32)c >= (__u32)d)
		result |= 16;
	if (c == d)
		result |= 32;
	return result;
}

/* Xorshift, 64 steps. */
SEC("raw_tp")
int random_walk(args_t *ctx)
{
	__u64 x = ctx->args[0] | 1;

#pragma unroll
	for (int i = 0; i < 64; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		out[i & 15] += x;
	}
	return x;
}

/* The product of two 3x3 matrices of bytes. */
SEC("raw_tp")
int matrix(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	__s32 left[9], right[9];

#pragma unroll
	for (int i = 0; i < 9; i++) {
		left[i] = (__s8)(a >> 7 * i);
		right[i] = (__s8)(b >> 7 * i);
	}
#pragma unroll
	for (int row = 0; row < 3; row++) {
#pragma unroll
		for (int column = 0; column < 3; column++) {
			__s32 sum = 0;

#pragma unroll
			for (int i = 0; i < 3; i++)
				sum += left[3 * row + i] * right[3 * i + column];
			out[3 * row + column] = sum;
		}
	}
	return out[8];
}
