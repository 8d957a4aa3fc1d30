// SPDX-License-Identifier: MIT OR Apache-2.0
/* Data sections with names of their own: each is a map beside .data, .rodata and .bss. */
#include "test.h"

__u64 out[4];

SEC(".data.settings") __u32 step = 3;
SEC(".data.settings") __u32 weight[2] = { 10, 20 };
SEC(".data.state") __u64 total = 1000;
SEC(".rodata.limits") const volatile __u64 ceiling = 1050;
SEC(".rodata.names") const char names[2][8] = { "under", "over" };
SEC(".bss.scratch") __u8 scratch[12];

SEC("raw_tp")
int accumulate(args_t *ctx)
{
	__u32 which = ctx->args[0] & 1;

	total += step * weight[which];
	step++;
	scratch[11] = names[total > ceiling][0];
	out[0] = total;
	return total > ceiling;
}
