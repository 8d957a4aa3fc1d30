// Loops over 1,000 elements with keys that vary, for measuring engines. mcpu=v3
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define ENTRIES 1000

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
} percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} total SEC(".maps");

// All keys, though nobody who compiles this can tell: the seed is 0.
#define KEY(i, seed) ((i) ^ (seed))

static __always_inline __u32 seed_of(struct xdp_md *ctx)
{
	return ctx->rx_queue_index;
}

SEC("xdp")
int lookup_and_read(struct xdp_md *ctx)
{
	__u32 seed = seed_of(ctx);
	__u64 sum = 0;

	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = KEY(i, seed);
		__u64 *value = bpf_map_lookup_elem(&counters, &key);

		if (value)
			sum += *(volatile __u64 *)value;
	}
	return sum & 1 ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int read_modify_write(struct xdp_md *ctx)
{
	__u32 seed = seed_of(ctx);

	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = KEY(i, seed);
		__u64 *value = bpf_map_lookup_elem(&counters, &key);

		if (value)
			*value += i;
	}
	return XDP_PASS;
}

SEC("xdp")
int atomic_add(struct xdp_md *ctx)
{
	__u32 seed = seed_of(ctx);

	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = KEY(i, seed);
		__u64 *value = bpf_map_lookup_elem(&counters, &key);

		if (value)
			__sync_fetch_and_add(value, i);
	}
	return XDP_PASS;
}

SEC("xdp")
int percpu_add(struct xdp_md *ctx)
{
	__u32 seed = seed_of(ctx);

	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = KEY(i, seed);
		__u64 *value = bpf_map_lookup_elem(&percpu, &key);

		if (value)
			*value += i;
	}
	return XDP_PASS;
}

SEC("xdp")
int update_elem(struct xdp_md *ctx)
{
	__u32 seed = seed_of(ctx);

	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = KEY(i, seed);
		__u64 value = i;

		bpf_map_update_elem(&counters, &key, &value, BPF_ANY);
	}
	return XDP_PASS;
}

// A thousand times the same counter, whose key is a constant.
SEC("xdp")
int constant_key(struct xdp_md *ctx)
{
	for (__u32 i = 0; i < ENTRIES; i++) {
		__u32 key = 0;
		__u64 *value = bpf_map_lookup_elem(&total, &key);

		if (value)
			*(volatile __u64 *)value += 1;
	}
	return XDP_PASS;
}

SEC("xdp")
int nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
