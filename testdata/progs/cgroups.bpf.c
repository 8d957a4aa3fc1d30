// SPDX-License-Identifier: MIT OR Apache-2.0
/* CGROUP_ARRAYs without a control group in them: args[0] is the index. */
#include "test.h"

__s64 out[4];

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 5);
	__uint(key_size, 4);
	__uint(value_size, 4);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} single SEC(".maps");

SEC("raw_tp")
int under(args_t *ctx)
{
	return bpf_current_task_under_cgroup(&cgroups, ctx->args[0]);
}

SEC("raw_tp")
int under_single(args_t *ctx)
{
	return bpf_current_task_under_cgroup(&single, ctx->args[0]);
}

SEC("raw_tp")
int constant_empty_slot(args_t *ctx)
{
	return bpf_current_task_under_cgroup(&cgroups, 4);
}

SEC("raw_tp")
int constant_past_the_end(args_t *ctx)
{
	return bpf_current_task_under_cgroup(&cgroups, 5);
}

/* All 64 bits of what the helper returns. */
SEC("raw_tp")
int whole_result(args_t *ctx)
{
	out[0] = bpf_current_task_under_cgroup(&cgroups, 0);
	out[1] = bpf_current_task_under_cgroup(&single, 1);
	return 0;
}
