// SPDX-License-Identifier: MIT OR Apache-2.0
/* Jumps with a 32-bit distance (mcpu=v4). */
#include "test.h"

__u64 out[4];

/* Forwards over two instructions, backwards to them, and out again. */
SEC("raw_tp")
int there_and_back(args_t *ctx)
{
	__u64 a = ctx->args[0] & 15, sum = 0;

	asm volatile("gotol 2f\n"
		     "1:\n\t"
		     "%[sum] += %[a]\n\t"
		     "%[a] -= 1\n"
		     "2:\n\t"
		     "if %[a] == 0 goto 3f\n\t"
		     "gotol 1b\n"
		     "3:\n"
		     : [sum] "+r"(sum), [a] "+r"(a));
	out[0] = sum;
	return sum;
}

/* Over more instructions than a 16-bit distance can name. */
SEC("raw_tp")
int far(args_t *ctx)
{
	__u64 a = ctx->args[0], sum = 0;

	asm volatile("if %[a] == 0 goto 1f\n\t"
		     "gotol 2f\n"
		     "1:\n\t"
		     ".rept 33000\n\t"
		     "%[sum] += 3\n\t"
		     ".endr\n"
		     "2:\n\t"
		     "%[sum] += 1\n"
		     : [sum] "+r"(sum)
		     : [a] "r"(a));
	out[0] = sum;
	return sum;
}
