// SPDX-License-Identifier: MIT OR Apache-2.0
/* 64-bit arithmetic: args[0] op args[1], and the same with immediates. */
#include "test.h"

__u64 out[16];

SEC("raw_tp")
int add_sub_mul(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("+=", a, b);
	out[1] = OP64("-=", a, b);
	out[2] = OP64("*=", a, b);
	out[3] = OP64_IMM("+=", a, 0x7fffffff);
	out[4] = OP64_IMM("+=", a, -1);
	out[5] = OP64_IMM("-=", a, -0x7fffffff - 1);
	out[6] = OP64_IMM("*=", a, 1000003);
	out[7] = OP64_IMM("*=", a, -7);
	return 0;
}

/* Division by zero gives 0, and the remainder of it the dividend. */
SEC("raw_tp")
int div_mod(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("/=", a, b);
	out[1] = OP64("%%=", a, b);
	out[2] = OP64_IMM("/=", a, 10);
	out[3] = OP64_IMM("%%=", a, 10);
	out[4] = OP64_IMM("/=", a, -3);
	out[5] = OP64_IMM("%%=", a, -3);
	out[6] = OP64_IMM("/=", a, 1);
	out[7] = OP64_IMM("%%=", a, 1);
	return out[0];
}

SEC("raw_tp")
int and_or_xor(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("&=", a, b);
	out[1] = OP64("|=", a, b);
	out[2] = OP64("^=", a, b);
	out[3] = OP64_IMM("&=", a, -256);
	out[4] = OP64_IMM("|=", a, 0x0f0f0f0f);
	out[5] = OP64_IMM("^=", a, -1);
	out[6] = OP64_IMM("|=", a, -0x7fffffff - 1);
	return out[2];
}

/* A shift uses the low six bits of its count. */
SEC("raw_tp")
int shifts(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("<<=", a, b);
	out[1] = OP64(">>=", a, b);
	out[2] = OP64("s>>=", a, b);
	out[3] = OP64_IMM("<<=", a, 1);
	out[4] = OP64_IMM("<<=", a, 63);
	out[5] = OP64_IMM(">>=", a, 1);
	out[6] = OP64_IMM(">>=", a, 63);
	out[7] = OP64_IMM("s>>=", a, 1);
	out[8] = OP64_IMM("s>>=", a, 63);
	out[9] = OP64_IMM("<<=", a, 0);
	return out[1];
}

SEC("raw_tp")
int neg_mov(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = UNARY64("-", a);
	out[1] = OP64("=", a, b);
	out[2] = OP64_IMM("=", a, -1);
	out[3] = OP64_IMM("=", a, 0x7fffffff);
	asm volatile("%0 = 0x123456789abcdef0 ll" : "=r"(out[4]));
	asm volatile("%0 = 0xffffffff ll" : "=r"(out[5]));
	return out[0];
}

/* A result wider than 32 bits is cut on return. */
SEC("raw_tp")
__u64 return_value(args_t *ctx)
{
	return ctx->args[0];
}

/* Arithmetic as the compiler writes it. */
SEC("raw_tp")
int mixed(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	__u64 low_a = a & 0xffffffff, high_a = a >> 32;
	__u64 low_b = b & 0xffffffff, high_b = b >> 32;
	__u64 middle = high_a * low_b + (low_a * low_b >> 32);
	__u64 carry = low_a * high_b + (middle & 0xffffffff);

	/* The 128-bit product of a and b. */
	out[0] = a * b;
	out[1] = high_a * high_b + (middle >> 32) + (carry >> 32);

	/* Bits set, by the way of Hacker's Delight. */
	a -= a >> 1 & 0x5555555555555555;
	a = (a & 0x3333333333333333) + (a >> 2 & 0x3333333333333333);
	a = (a + (a >> 4)) & 0x0f0f0f0f0f0f0f0f;
	out[2] = a * 0x0101010101010101 >> 56;
	return out[2];
}
