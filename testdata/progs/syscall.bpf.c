// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs of type syscall: the context is memory of the caller, read and written. */
#include "test.h"

struct request {
	__u64 a;
	__u64 b;
	__u32 operation;
	__s32 status;
	__u64 result;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} requests SEC(".maps");

SEC("syscall")
int calculate(struct request *ctx)
{
	__u32 operation = ctx->operation;
	__u64 *count = bpf_map_lookup_elem(&requests, &operation);

	if (!count) {
		ctx->status = -22;
		return -22;
	}
	*count += 1;
	switch (operation) {
	case 0:
		ctx->result = ctx->a + ctx->b;
		break;
	case 1:
		ctx->result = ctx->a - ctx->b;
		break;
	case 2:
		ctx->result = ctx->a * ctx->b;
		break;
	default:
		ctx->result = ctx->a / ctx->b;
	}
	ctx->status = 1;
	return operation;
}

/* Pieces of every width. */
SEC("syscall")
int bytes(struct request *ctx)
{
	volatile __u8 *bytes = (volatile __u8 *)ctx;

	bytes[31] = bytes[0] ^ bytes[8];
	bytes[24] = bytes[1];
	*(volatile __u16 *)(bytes + 26) = *(volatile __u16 *)(bytes + 6);
	*(volatile __u32 *)(bytes + 16) += *(volatile __u32 *)(bytes + 4);
	return bytes[31];
}
