// SPDX-License-Identifier: MIT OR Apache-2.0
/* Signed division and remainder (mcpu=v4), including by zero and the smallest number by -1. */
#include "test.h"

__u64 out[16];

SEC("raw_tp")
int sdiv64(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("s/=", a, b);
	out[1] = OP64_IMM("s/=", a, 7);
	out[2] = OP64_IMM("s/=", a, -7);
	out[3] = OP64_IMM("s/=", a, -1);
	out[4] = OP64_IMM("s/=", a, 1);
	return out[0];
}

SEC("raw_tp")
int smod64(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP64("s%%=", a, b);
	out[1] = OP64_IMM("s%%=", a, 7);
	out[2] = OP64_IMM("s%%=", a, -7);
	out[3] = OP64_IMM("s%%=", a, -1);
	out[4] = OP64_IMM("s%%=", a, 1);
	return out[0];
}

SEC("raw_tp")
int sdiv32(args_t *ctx)
{
	__u32 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP32("s/=", a, b);
	out[1] = OP32_IMM("s/=", a, 7);
	out[2] = OP32_IMM("s/=", a, -7);
	out[3] = OP32_IMM("s/=", a, -1);
	out[4] = OP32_IMM("s/=", a, 1);
	return out[0];
}

SEC("raw_tp")
int smod32(args_t *ctx)
{
	__u32 a = ctx->args[0], b = ctx->args[1];

	out[0] = OP32("s%%=", a, b);
	out[1] = OP32_IMM("s%%=", a, 7);
	out[2] = OP32_IMM("s%%=", a, -7);
	out[3] = OP32_IMM("s%%=", a, -1);
	out[4] = OP32_IMM("s%%=", a, 1);
	return out[0];
}

/* Signed division as the compiler uses it: floor and Euclid from truncation. */
SEC("raw_tp")
int floor_div(args_t *ctx)
{
	__s64 a = ctx->args[0], b = (__s32)ctx->args[1];

	if (b == 0 || b == -1)
		return -1;

	__s64 quotient = a / b, remainder = a % b;

	out[0] = quotient - (remainder != 0 && (remainder ^ b) < 0);
	out[1] = remainder < 0 ? remainder + (b < 0 ? -b : b) : remainder;
	return 0;
}
