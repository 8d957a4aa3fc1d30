// SPDX-License-Identifier: MIT OR Apache-2.0
/* Byte order: conversions to little and big endian, and the unconditional swaps of mcpu=v4. */
#include "test.h"

__u64 out[16];

SEC("raw_tp")
int to_big_endian(args_t *ctx)
{
	__u64 a = ctx->args[0];

	out[0] = UNARY64("be16", a);
	out[1] = UNARY64("be32", a);
	out[2] = UNARY64("be64", a);
	return out[0];
}

/* On a little endian machine these only cut the value. */
SEC("raw_tp")
int to_little_endian(args_t *ctx)
{
	__u64 a = ctx->args[0];

	out[0] = UNARY64("le16", a);
	out[1] = UNARY64("le32", a);
	out[2] = UNARY64("le64", a);
	return out[0];
}

SEC("raw_tp")
int swap(args_t *ctx)
{
	__u64 a = ctx->args[0];

	out[0] = UNARY64("bswap16", a);
	out[1] = UNARY64("bswap32", a);
	out[2] = UNARY64("bswap64", a);
	return out[1];
}

SEC("raw_tp")
int builtins(args_t *ctx)
{
	__u64 a = ctx->args[0];

	out[0] = __builtin_bswap16(a);
	out[1] = __builtin_bswap32(a);
	out[2] = __builtin_bswap64(a);
	out[3] = __builtin_bswap16(__builtin_bswap32(a));
	return out[3];
}
