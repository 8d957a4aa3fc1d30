// SPDX-License-Identifier: MIT OR Apache-2.0
/* Helpers whose results differ from run to run: only what always holds is kept. */
#include "test.h"

__u64 out[8];

SEC("raw_tp")
int time(args_t *ctx)
{
	__u64 before = bpf_ktime_get_ns(), after = bpf_ktime_get_ns();

	out[0] = before > 0;
	out[1] = after >= before;
	out[2] = after - before < 1000000000;
	return 0;
}

SEC("raw_tp")
int random(args_t *ctx)
{
	__u64 all = 0;

	for (int i = 0; i < 64; i++)
		all |= OPAQUE(bpf_get_prandom_u32());
	out[0] = all != 0;
	return 0;
}

SEC("raw_tp")
int task(args_t *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	out[0] = pid_tgid >> 32 != 0;
	out[1] = (__u32)pid_tgid != 0;
	out[2] = bpf_get_smp_processor_id() < 8192;
	return 0;
}
