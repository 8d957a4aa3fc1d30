// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * 32-bit arithmetic on the low halves of args[0] and args[1]. Every result is stored as 64 bits, so
 * that an upper half which was not cleared shows.
 */
#include "test.h"

__u64 out[16];

/* The whole 64-bit register after a 32-bit instruction has written it. */
#define WIDE(op, a, b)                                                                             \
	({                                                                                         \
		__u64 _r = (a);                                                                    \
		asm volatile("r1 = %0\n\tr2 = %1\n\tw1 " op " w2\n\t%0 = r1"                       \
			     : "+r"(_r)                                                            \
			     : "r"((__u64)(b))                                                     \
			     : "r1", "r2");                                                        \
		_r;                                                                                \
	})
#define WIDE_IMM(op, a, imm)                                                                       \
	({                                                                                         \
		__u64 _r = (a);                                                                    \
		asm volatile("r1 = %0\n\tw1 " op " %1\n\t%0 = r1" : "+r"(_r) : "i"(imm) : "r1");   \
		_r;                                                                                \
	})

SEC("raw_tp")
int add_sub_mul(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = WIDE("+=", a, b);
	out[1] = WIDE("-=", a, b);
	out[2] = WIDE("*=", a, b);
	out[3] = WIDE_IMM("+=", a, -1);
	out[4] = WIDE_IMM("-=", a, 0x7fffffff);
	out[5] = WIDE_IMM("*=", a, -7);
	return out[0];
}

SEC("raw_tp")
int div_mod(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = WIDE("/=", a, b);
	out[1] = WIDE("%%=", a, b);
	out[2] = WIDE_IMM("/=", a, 10);
	out[3] = WIDE_IMM("%%=", a, 10);
	out[4] = WIDE_IMM("/=", a, -3);
	out[5] = WIDE_IMM("%%=", a, -3);
	return out[0];
}

SEC("raw_tp")
int and_or_xor(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = WIDE("&=", a, b);
	out[1] = WIDE("|=", a, b);
	out[2] = WIDE("^=", a, b);
	out[3] = WIDE_IMM("&=", a, -256);
	out[4] = WIDE_IMM("|=", a, -0x7fffffff - 1);
	out[5] = WIDE_IMM("^=", a, -1);
	return out[1];
}

/* A shift uses the low five bits of its count. */
SEC("raw_tp")
int shifts(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	out[0] = WIDE("<<=", a, b);
	out[1] = WIDE(">>=", a, b);
	out[2] = WIDE("s>>=", a, b);
	out[3] = WIDE_IMM("<<=", a, 31);
	out[4] = WIDE_IMM(">>=", a, 31);
	out[5] = WIDE_IMM("s>>=", a, 31);
	out[6] = WIDE_IMM("<<=", a, 0);
	out[7] = WIDE_IMM("s>>=", a, 4);
	return out[2];
}

SEC("raw_tp")
int neg_mov(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];

	asm volatile("r1 = %1\n\tw1 = -w1\n\t%0 = r1" : "=r"(out[0]) : "r"(a) : "r1");
	out[1] = WIDE("=", a, b);
	out[2] = WIDE_IMM("=", a, -1);
	out[3] = WIDE_IMM("=", a, 0x7fffffff);
	return out[1];
}

/* Unsigned and signed C arithmetic of 8, 16 and 32 bits, where the compiler narrows and widens. */
SEC("raw_tp")
int narrow(args_t *ctx)
{
	__u8 a8 = ctx->args[0], b8 = ctx->args[1];
	__u16 a16 = ctx->args[0], b16 = ctx->args[1];
	__s32 a32 = ctx->args[0], b32 = ctx->args[1];

	out[0] = (__u8)(a8 + b8);
	out[1] = (__u8)(a8 * b8);
	out[2] = (__u16)(a16 - b16);
	out[3] = (__u16)(a16 << 3 | b16 >> 13);
	out[4] = (__s64)(a32 >> 3);
	out[5] = (__s64)a32 * b32;
	out[6] = (__s64)(__s8)a8;
	out[7] = (__s64)(__s16)b16;
	out[8] = (__u32)a32 > (__u32)b32;
	out[9] = a32 > b32;
	return a32;
}
