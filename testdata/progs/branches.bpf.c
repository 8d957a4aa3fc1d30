// SPDX-License-Identifier: MIT OR Apache-2.0
/* Every conditional jump: one bit of the result for each that is taken. */
#include "test.h"

__u64 out[4];

SEC("raw_tp")
int registers64(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1], taken = 0;

	taken |= JUMPS64(a, "==", b) << 0;
	taken |= JUMPS64(a, "!=", b) << 1;
	taken |= JUMPS64(a, ">", b) << 2;
	taken |= JUMPS64(a, ">=", b) << 3;
	taken |= JUMPS64(a, "<", b) << 4;
	taken |= JUMPS64(a, "<=", b) << 5;
	taken |= JUMPS64(a, "s>", b) << 6;
	taken |= JUMPS64(a, "s>=", b) << 7;
	taken |= JUMPS64(a, "s<", b) << 8;
	taken |= JUMPS64(a, "s<=", b) << 9;
	taken |= JUMPS64(a, "&", b) << 10;
	return taken;
}

SEC("raw_tp")
int registers32(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1], taken = 0;

	taken |= JUMPS32(a, "==", b) << 0;
	taken |= JUMPS32(a, "!=", b) << 1;
	taken |= JUMPS32(a, ">", b) << 2;
	taken |= JUMPS32(a, ">=", b) << 3;
	taken |= JUMPS32(a, "<", b) << 4;
	taken |= JUMPS32(a, "<=", b) << 5;
	taken |= JUMPS32(a, "s>", b) << 6;
	taken |= JUMPS32(a, "s>=", b) << 7;
	taken |= JUMPS32(a, "s<", b) << 8;
	taken |= JUMPS32(a, "s<=", b) << 9;
	taken |= JUMPS32(a, "&", b) << 10;
	return taken;
}

/* A negative immediate is sign-extended, for the unsigned comparisons too. */
SEC("raw_tp")
int immediates64(args_t *ctx)
{
	__u64 a = ctx->args[0], taken = 0;

	taken |= JUMPS64_IMM(a, "==", -1) << 0;
	taken |= JUMPS64_IMM(a, "!=", -1) << 1;
	taken |= JUMPS64_IMM(a, ">", -2) << 2;
	taken |= JUMPS64_IMM(a, ">=", -1) << 3;
	taken |= JUMPS64_IMM(a, "<", -1) << 4;
	taken |= JUMPS64_IMM(a, "<=", 7) << 5;
	taken |= JUMPS64_IMM(a, "s>", -1) << 6;
	taken |= JUMPS64_IMM(a, "s>=", 0) << 7;
	taken |= JUMPS64_IMM(a, "s<", 0) << 8;
	taken |= JUMPS64_IMM(a, "s<=", -7) << 9;
	taken |= JUMPS64_IMM(a, "&", -0x7fffffff - 1) << 10;
	taken |= JUMPS64_IMM(a, "&", 1) << 11;
	return taken;
}

SEC("raw_tp")
int immediates32(args_t *ctx)
{
	__u64 a = ctx->args[0], taken = 0;

	taken |= JUMPS32_IMM(a, "==", -1) << 0;
	taken |= JUMPS32_IMM(a, "!=", -1) << 1;
	taken |= JUMPS32_IMM(a, ">", -2) << 2;
	taken |= JUMPS32_IMM(a, ">=", -1) << 3;
	taken |= JUMPS32_IMM(a, "<", -1) << 4;
	taken |= JUMPS32_IMM(a, "<=", 7) << 5;
	taken |= JUMPS32_IMM(a, "s>", -1) << 6;
	taken |= JUMPS32_IMM(a, "s>=", 0) << 7;
	taken |= JUMPS32_IMM(a, "s<", 0) << 8;
	taken |= JUMPS32_IMM(a, "s<=", -7) << 9;
	taken |= JUMPS32_IMM(a, "&", -0x7fffffff - 1) << 10;
	taken |= JUMPS32_IMM(a, "&", 1) << 11;
	return taken;
}

/* A bounded loop whose length the verifier cannot know. */
SEC("raw_tp")
int greatest_common_divisor(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	int steps;

	for (steps = 0; steps < 100 && b; steps++) {
		__u64 remainder = a % b;

		a = b;
		b = remainder;
	}
	out[0] = a;
	return steps;
}

/* A switch over sparse cases becomes a tree of comparisons. */
SEC("raw_tp")
int sparse_switch(args_t *ctx)
{
	switch (ctx->args[0]) {
	case 0:
		return 100;
	case 7:
		return out[0]++, 101;
	case 1000:
		return out[1]++, 102;
	case 0x7fffffff:
		return 103;
	case 0x80000000:
		return 104;
	case 0x8000000000000000:
		return 105;
	case 0xffffffffffffffff:
		return out[2]++, 106;
	default:
		return -1;
	}
}

/* One over dense cases does too: this instruction set has no jump tables. */
SEC("raw_tp")
int dense_switch(args_t *ctx)
{
	switch (ctx->args[0] & 15) {
	case 0:
		return 31;
	case 1:
		return 4159;
	case 2:
		return -26;
	case 3:
		return 53;
	case 4:
		return 5897;
	case 5:
		return 9323846;
	case 6:
		return -2643383;
	case 7:
		return 2795;
	default:
		return 0;
	}
}
