// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs that are called for each element of a map, and write text. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct seq_file;
struct bpf_map;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 3);
} numbers SEC(".maps");

SEC("iter/bpf_map_elem")
int show(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	__u32 *key = ctx->key;
	__u64 *value = ctx->value;

	if (key && value)
		BPF_SEQ_PRINTF(seq, "%u: %llu\n", *key, *value);
	else
		BPF_SEQ_PRINTF(seq, "%llu elements\n", ctx->meta->seq_num + 1);
	return 0;
}

/* Changes what it shows, and says how often it was called before. */
SEC("iter/bpf_map_elem")
int count(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	__u32 *key = ctx->key;
	__u64 *value = ctx->value;

	if (!key || !value) {
		BPF_SEQ_PRINTF(seq, "end %llu\n", ctx->meta->seq_num);
		return 0;
	}
	BPF_SEQ_PRINTF(seq, "num %llu key %u val %llu\n", ctx->meta->seq_num, *key, *value);
	*value += 1;
	return 0;
}

/* Gives up at the third element. */
SEC("iter/bpf_map_elem")
int give_up(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	__u32 *key = ctx->key;
	__u64 *value = ctx->value;

	if (!key || !value)
		return 0;
	if (*key == 2)
		return 1;
	BPF_SEQ_PRINTF(seq, "%u\n", *key);
	return 0;
}

/* The value itself, as bytes. */
SEC("iter/bpf_map_elem")
int raw(struct bpf_iter__bpf_map_elem *ctx)
{
	void *value = ctx->value;

	if (value)
		bpf_seq_write(ctx->meta->seq, value, 8);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
