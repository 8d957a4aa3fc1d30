// SPDX-License-Identifier: MIT OR Apache-2.0
/* The stack: every width, spilled registers and pointers, and offsets known only at run time. */
#include "test.h"

__u64 out[16];

/* One 8-byte slot written and read in pieces. */
SEC("raw_tp")
int pieces(args_t *ctx)
{
	union {
		__u64 quad;
		__u32 words[2];
		__u16 halves[4];
		__u8 bytes[8];
	} volatile slot;

	slot.quad = ctx->args[0];
	slot.bytes[3] = 0xaa;
	slot.halves[3] = 0xbbcc;
	out[0] = slot.quad;
	out[1] = slot.words[0];
	out[2] = slot.words[1];
	out[3] = slot.halves[1];
	slot.words[1] = ctx->args[1];
	out[4] = slot.quad;
	return slot.bytes[7];
}

/* More live values than registers. */
SEC("raw_tp")
int spills(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	__u64 values[14];

#pragma unroll
	for (int i = 0; i < 14; i++)
		values[i] = OPAQUE(a * (i + 1) ^ b >> i);
	bpf_get_smp_processor_id();
#pragma unroll
	for (int i = 0; i < 14; i++)
		out[i] = values[i] + values[13 - i];
	return out[13];
}

/* An array of which index and contents come from the context. */
SEC("raw_tp")
int variable_offset(args_t *ctx)
{
	__u64 a = ctx->args[0], b = ctx->args[1];
	__u64 slots[8] = { 0 };
	__u8 bytes[16] = { 0 };

	slots[a & 7] = b;
	slots[b & 7] += a;
	bytes[a & 15] = b;
	bytes[b & 15] ^= 0x5a;
	for (int i = 0; i < 8; i++)
		out[i] = slots[i];
	out[8] = *(__u64 *)&bytes[0];
	out[9] = *(__u64 *)&bytes[8];
	return slots[a & 7];
}

/* The first and the last of the 512 bytes. */
SEC("raw_tp")
int whole_frame(args_t *ctx)
{
	volatile __u64 frame[64];

	frame[0] = ctx->args[0];
	frame[63] = ctx->args[1];
	out[0] = frame[0] - frame[63];
	return out[0];
}

/* Constants are sign-extended to the width of the store. */
SEC("raw_tp")
int store_immediates(args_t *ctx)
{
	__u64 slots[4] = { 0 };

	asm volatile("*(u8 *)(%0 + 1) = -2\n\t"
		     "*(u16 *)(%0 + 10) = -3\n\t"
		     "*(u32 *)(%0 + 20) = -4\n\t"
		     "*(u64 *)(%0 + 24) = -5"
		     :
		     : "r"(slots)
		     : "memory");
	for (int i = 0; i < 4; i++)
		out[i] = slots[i];
	return out[3];
}

/* Insertion sort of eight bytes. */
SEC("raw_tp")
int sort(args_t *ctx)
{
	__u64 a = ctx->args[0];
	__u8 bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = a >> 8 * i;
	for (int i = 1; i < 8; i++) {
		for (int j = i; j > 0; j--) {
			__u8 low = bytes[j - 1], high = bytes[j];
			__u8 smaller = low < high ? low : high;

			bytes[j] = low ^ high ^ smaller;
			bytes[j - 1] = smaller;
		}
	}
	out[0] = *(__u64 *)bytes;
	return bytes[0];
}
