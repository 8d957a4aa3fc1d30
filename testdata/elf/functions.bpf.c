// SPDX-License-Identifier: MIT OR Apache-2.0
/* Functions in all places: beside programs, among them, shared, weak, called and passed on. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

__u64 calls;

static __noinline int leaf(int x)
{
	__sync_fetch_and_add(&calls, 1);
	return x + 1;
}

__noinline int shared(int x)
{
	return leaf(x) * 2;
}

__weak __noinline int replaceable(int x)
{
	return shared(x) + leaf(x);
}

__hidden __noinline int not_exported(int x)
{
	return x ^ 3;
}

/* A function of its own among the programs of a section: no program. */
SEC("socket")
static __noinline int local_helper(int x)
{
	asm volatile("" : "+r"(x));
	return x - 1;
}

SEC("socket")
__noinline int first(struct __sk_buff *skb)
{
	return shared(skb->len) + local_helper(skb->len);
}

SEC("socket")
int second(struct __sk_buff *skb)
{
	return replaceable(skb->len) + not_exported(skb->len);
}

static __noinline long count(__u32 i, void *sum)
{
	*(__u64 *)sum += leaf(i);
	return 0;
}

/* The address of a static function is that of a section with an addend. */
SEC("?tc")
int callback(struct __sk_buff *skb)
{
	__u64 sum = 0;

	bpf_loop(3, count, &sum, 0);
	return sum;
}

/* This one calls another program as if it were a function. */
SEC("socket/no_such_type")
int unknown_type(struct __sk_buff *skb)
{
	return first(skb);
}
