// SPDX-License-Identifier: MIT OR Apache-2.0
/* memset, memcpy, memmove and struct assignment, as clang expands them. */
#include "test.h"

struct record {
	__u64 id;
	__u32 size;
	__u16 kind;
	char name[18];
};

struct record out[4];

const volatile struct record template = { 7, 8, 9, "a template" };

SEC("raw_tp")
int fill(args_t *ctx)
{
	__builtin_memset(&out[0], 0xff, sizeof(out[0]));
	__builtin_memset(&out[1], 0, sizeof(out[1]));
	__builtin_memset(out[2].name, ctx->args[0], sizeof(out[2].name));
	return out[2].name[17];
}

SEC("raw_tp")
int copy(args_t *ctx)
{
	struct record local;

	__builtin_memcpy(&local, (void *)&template, sizeof(local));
	local.id = ctx->args[0];
	local.name[2] = 'T';
	out[0] = local;
	__builtin_memcpy(&out[1].name[3], local.name, 11);
	return out[1].name[5];
}

/* Overlapping, forwards and backwards. */
SEC("raw_tp")
int move(args_t *ctx)
{
	__builtin_memcpy(out, ctx, 16);
	__builtin_memcpy(out[0].name, "0123456789abcdef", 16);
	__builtin_memmove(&out[0].name[1], &out[0].name[0], 12);
	__builtin_memmove(&out[0].name[2], &out[0].name[5], 8);
	return out[0].name[4];
}
