// SPDX-License-Identifier: MIT OR Apache-2.0
/* Maps whose types of keys or values the kernel refuses, so that loaders create them without. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct timed {
	__u64 before;
	struct bpf_timer timer;
};

enum color { RED, GREEN };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct timed);
} percpu_timer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, enum color);
	__type(value, struct timed);
} enum_key SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct timed);
} fitting SEC(".maps");

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
