// SPDX-License-Identifier: MIT OR Apache-2.0
/* bpf_strncmp of the 16 bytes in args[0] and args[1] with constant strings. */
#include "test.h"

__s64 out[8];

#define SIGN(x) (((x) > 0) - ((x) < 0))

SEC("raw_tp")
int compare(args_t *ctx)
{
	__u64 words[2] = { ctx->args[0], ctx->args[1] };
	const char *text = (const char *)words;

	out[0] = SIGN(bpf_strncmp(text, 16, "bpf"));
	out[1] = SIGN(bpf_strncmp(text, 3, "bpf"));
	out[2] = SIGN(bpf_strncmp(text, 16, "bpf_map_array"));
	out[3] = SIGN(bpf_strncmp(text, 16, ""));
	out[4] = SIGN(bpf_strncmp(text, 1, "c"));
	out[5] = SIGN(bpf_strncmp(text, 16, "bpf_map_array_of_everything"));
	out[6] = SIGN(bpf_strncmp(text, 16, "\xff"));
	return out[0];
}
