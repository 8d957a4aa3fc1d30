/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the test programs share. Most are of type raw_tp, whose context is the array of 64-bit words
 * that the test passes in, and leave what they computed in a global array `out`.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

typedef struct bpf_raw_tracepoint_args args_t;

/* The value of `x`, in a way that hides from the optimizer what it knows about it. */
#define OPAQUE(x)                                                                                  \
	({                                                                                         \
		typeof(x) _x = (x);                                                                \
		asm volatile("" : "+r"(_x));                                                       \
		_x;                                                                                \
	})

/* `a op= b` as exactly this instruction on two 64-bit registers, two 32-bit ones, or an immediate. */
#define OP64(op, a, b)                                                                             \
	({                                                                                         \
		__u64 _r = (a);                                                                    \
		asm volatile("%0 " op " %1" : "+r"(_r) : "r"((__u64)(b)));                         \
		_r;                                                                                \
	})
#define OP32(op, a, b)                                                                             \
	({                                                                                         \
		__u32 _r = (a);                                                                    \
		asm volatile("%0 " op " %1" : "+w"(_r) : "w"((__u32)(b)));                         \
		_r;                                                                                \
	})
#define OP64_IMM(op, a, imm)                                                                       \
	({                                                                                         \
		__u64 _r = (a);                                                                    \
		asm volatile("%0 " op " %1" : "+r"(_r) : "i"(imm));                                \
		_r;                                                                                \
	})
#define OP32_IMM(op, a, imm)                                                                       \
	({                                                                                         \
		__u32 _r = (a);                                                                    \
		asm volatile("%0 " op " %1" : "+w"(_r) : "i"(imm));                                \
		_r;                                                                                \
	})

/* An instruction with one operand that is both source and destination, such as `be16`. */
#define UNARY64(op, a)                                                                             \
	({                                                                                         \
		__u64 _r = (a);                                                                    \
		asm volatile("%0 = " op " %0" : "+r"(_r));                                         \
		_r;                                                                                \
	})

/* Whether `if a cond b goto` jumps, in the 64-bit and the 32-bit jump class. */
#define JUMPS64(a, cond, b)                                                                        \
	({                                                                                         \
		__u64 _taken = 1;                                                                  \
		asm volatile("if %1 " cond " %2 goto +1\n\t%0 = 0"                                 \
			     : "+&r"(_taken)                                                       \
			     : "r"((__u64)(a)), "r"((__u64)(b)));                                  \
		_taken;                                                                            \
	})
#define JUMPS32(a, cond, b)                                                                        \
	({                                                                                         \
		__u64 _taken = 1;                                                                  \
		asm volatile("if %1 " cond " %2 goto +1\n\t%0 = 0"                                 \
			     : "+&r"(_taken)                                                       \
			     : "w"((__u32)(a)), "w"((__u32)(b)));                                  \
		_taken;                                                                            \
	})
#define JUMPS64_IMM(a, cond, imm)                                                                  \
	({                                                                                         \
		__u64 _taken = 1;                                                                  \
		asm volatile("if %1 " cond " %2 goto +1\n\t%0 = 0"                                 \
			     : "+&r"(_taken)                                                       \
			     : "r"((__u64)(a)), "i"(imm));                                         \
		_taken;                                                                            \
	})
#define JUMPS32_IMM(a, cond, imm)                                                                  \
	({                                                                                         \
		__u64 _taken = 1;                                                                  \
		asm volatile("if %1 " cond " %2 goto +1\n\t%0 = 0"                                 \
			     : "+&r"(_taken)                                                       \
			     : "w"((__u32)(a)), "i"(imm));                                         \
		_taken;                                                                            \
	})
