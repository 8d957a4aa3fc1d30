// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * PERF_EVENT_ARRAYs. Their names say what is in the slots when a program starts (crates/oracle/src/events.rs):
 *
 *   rings     rings of one page for CPUs 0 and 1, read when all runs are over
 *   drained   such rings, read after each run
 *   counters  0 and 1: of nothing, on CPUs 0 and 1; 2: of nothing, of this thread; 3 and 4: of output without a
 *             ring, on CPUs 0 and 1
 *   empty     nothing
 */
#include "test.h"

#define EVENTS(name, n)                                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);                                       \
		__uint(max_entries, n);                                                            \
		__uint(key_size, 4);                                                               \
		__uint(value_size, 4);                                                             \
	} name SEC(".maps")

EVENTS(rings, 4);
EVENTS(drained, 2);
EVENTS(counters, 8);
EVENTS(empty, 3);

__s64 out[8];

/* What goes into records. */
__u8 bytes[4096];

static void fill(__u64 seed)
{
	for (int i = 0; i < 64; i++)
		bytes[i] = seed + 3 * i;
}

/* args[0] are the flags. */
SEC("raw_tp")
int output(args_t *ctx)
{
	__u64 data = 0x1122334455667788;

	return bpf_perf_event_output(ctx, &rings, ctx->args[0], &data, sizeof(data));
}

SEC("raw_tp")
int output_whole_result(args_t *ctx)
{
	__u64 data = 1;

	out[0] = bpf_perf_event_output(ctx, &rings, 2, &data, sizeof(data));
	out[1] = bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, &data, sizeof(data));
	return 0;
}

/* args[0] is the length. */
SEC("raw_tp")
int output_length(args_t *ctx)
{
	__u64 len = ctx->args[0];

	fill(len);
	if (len > 64)
		return -1;
	return bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, bytes, len);
}

SEC("raw_tp")
int every_length(args_t *ctx)
{
	__s64 sum = 0;

	fill(1);
	for (int len = 0; len <= 40; len++)
		sum += bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, bytes, OPAQUE(len) & 63);
	return sum;
}

SEC("raw_tp")
int nothing(args_t *ctx)
{
	return bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, &out, 0);
}

SEC("raw_tp")
int to_empty_slots(args_t *ctx)
{
	__u32 data = 7;

	return bpf_perf_event_output(ctx, &empty, ctx->args[0], &data, sizeof(data));
}

/* Counters take no output; what has a CPU is judged before the CPU. */
SEC("raw_tp")
int to_counters(args_t *ctx)
{
	__u32 data = 7;

	return bpf_perf_event_output(ctx, &counters, ctx->args[0], &data, sizeof(data));
}

/* Records without padding, for it shows what was there before. */
static int flood(args_t *ctx, void *map, __u64 count)
{
	__u64 written = 0, refused = 0;

	for (__u32 i = 0; i < count && i < 300; i++) {
		__u32 data[3] = { i, ~i, count };
		long err = bpf_perf_event_output(ctx, map, BPF_F_CURRENT_CPU, data, sizeof(data));

		if (!err)
			written++;
		else
			refused -= err;
	}
	return written << 16 | refused;
}

/* args[0] is the number of records: 170 fit. */
SEC("raw_tp")
int full(args_t *ctx)
{
	return flood(ctx, &rings, ctx->args[0]);
}

/* What was lost is told by the first record that fits again. */
SEC("raw_tp")
int lost(args_t *ctx)
{
	return flood(ctx, &drained, ctx->args[0]);
}

/* Records that go around the end of the ring, without padding too. */
SEC("raw_tp")
int around_the_end(args_t *ctx)
{
	int err = 0;

	fill(ctx->args[0]);
	bytes[0] = ctx->args[0];
	err |= bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 1004);
	err |= bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 44);
	err |= bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 500);
	return err;
}

/* 4096 bytes would be all of the ring, and one byte always stays free. */
SEC("raw_tp")
int as_long_as_the_ring(args_t *ctx)
{
	out[0] = bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 4084);
	out[1] = bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 4076);
	out[2] = bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 4052);
	out[3] = bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, bytes, 4);
	return 0;
}

SEC("raw_tp")
int two_maps(args_t *ctx)
{
	__u32 data = 1;

	out[0] = bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, &data, sizeof(data));
	data = 2;
	out[1] = bpf_perf_event_output(ctx, &drained, BPF_F_CURRENT_CPU, &data, sizeof(data));
	data = 3;
	out[2] = bpf_perf_event_output(ctx, &rings, 0, &data, sizeof(data));
	out[3] = bpf_perf_event_output(ctx, &rings, 1, &data, sizeof(data));
	return 0;
}

/* args[0] are the flags. */
SEC("raw_tp")
int read(args_t *ctx)
{
	out[0] = bpf_perf_event_read(&counters, ctx->args[0]);
	return out[0];
}

SEC("raw_tp")
int read_ring(args_t *ctx)
{
	return bpf_perf_event_read(&rings, ctx->args[0]);
}

SEC("raw_tp")
int read_empty(args_t *ctx)
{
	return bpf_perf_event_read(&empty, ctx->args[0]);
}

/* What could not be read is zero. */
SEC("raw_tp")
int read_value(args_t *ctx)
{
	struct bpf_perf_event_value value = { -1, -1, -1 };
	int err = bpf_perf_event_read_value(&counters, ctx->args[0], &value, sizeof(value));

	out[0] = err;
	out[1] = value.counter;
	out[2] = err ? value.enabled : 0;
	out[3] = err ? value.running : 0;
	return err;
}

SEC("raw_tp")
int read_value_of_a_ring(args_t *ctx)
{
	struct bpf_perf_event_value value = { -1, -1, -1 };
	int err = bpf_perf_event_read_value(&rings, ctx->args[0], &value, sizeof(value));

	out[1] = value.counter;
	out[2] = value.enabled == value.running;
	return err;
}

/* Lengths other than 24 are judged first. */
SEC("raw_tp")
int read_value_of_other_lengths(args_t *ctx)
{
	__s64 value[5] = { -1, -1, -1, -1, -1 };

	out[5] = bpf_perf_event_read_value(&counters, ctx->args[0], (void *)value, 16);
	for (int i = 0; i < 5; i++)
		out[i] = value[i];
	value[0] = -1;
	out[6] = bpf_perf_event_read_value(&counters, ctx->args[0], (void *)value, 40);
	out[7] = value[0] + value[4];
	return bpf_perf_event_read_value(&counters, ctx->args[0], (void *)value, 1);
}

SEC("raw_tp")
int read_into_a_map(args_t *ctx)
{
	__builtin_memset(bytes, 0xff, 32);
	return bpf_perf_event_read_value(&counters, ctx->args[0], (void *)(bytes + 4), 24);
}

static __attribute__((noinline)) int tell(args_t *ctx, __u32 what)
{
	return bpf_perf_event_output(ctx, &rings, BPF_F_CURRENT_CPU, &what, sizeof(what));
}

SEC("raw_tp")
int from_a_function(args_t *ctx)
{
	return tell(ctx, 0xabcd) + tell(ctx, ctx->args[0]);
}
