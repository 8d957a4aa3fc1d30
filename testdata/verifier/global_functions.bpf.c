// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Global functions, which are verified by their types alone. What Linux 6.18 says to each program is the end of its name;
 * all of them would be accepted if the functions were static.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct pair {
	int a, b;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, int);
	__type(value, struct pair);
} pairs SEC(".maps");

int numbers[8];

__noinline int checked(struct pair *p)
{
	return p ? p->a + p->b : 0;
}

__noinline int unchecked(struct pair *p)
{
	return p->a;
}

__noinline int past_the_end(struct pair *p)
{
	return p ? ((int *)p)[2] : 0;
}

__noinline int nested(struct pair *p)
{
	return p ? checked(p) + 1 : 0;
}

__noinline int length(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data;
}

__noinline int moves(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, 0);
}

__noinline int masked(int i)
{
	return numbers[i & 7];
}

__noinline int unmasked(int i)
{
	return numbers[i];
}

__noinline int odd(long n)
{
	return n & 1;
}

__noinline void nothing(int *p)
{
	if (p)
		*p = 1;
}

__noinline int of_no_size(void *p)
{
	return p != 0;
}

SEC("xdp")
int on_the_stack_accepted(struct xdp_md *ctx)
{
	struct pair p = { 1, 2 };

	return checked(&p) + nested(&p);
}

SEC("xdp")
int an_element_accepted(struct xdp_md *ctx)
{
	int key = 3;

	return checked(bpf_map_lookup_elem(&pairs, &key));
}

SEC("xdp")
int null_accepted(struct xdp_md *ctx)
{
	return checked(0);
}

SEC("xdp")
int without_a_test_refused(struct xdp_md *ctx)
{
	struct pair p = { 1, 2 };

	return unchecked(&p);
}

SEC("xdp")
int past_the_end_refused(struct xdp_md *ctx)
{
	struct pair p = { 1, 2 };

	return past_the_end(&p);
}

SEC("xdp")
int too_little_memory_refused(struct xdp_md *ctx)
{
	int n = 3;

	return checked((void *)&n);
}

SEC("xdp")
int context_accepted(struct xdp_md *ctx)
{
	return length(ctx);
}

SEC("xdp")
int packet_that_moved_refused(struct xdp_md *ctx)
{
	char *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + 4 > end)
		return 0;
	moves(ctx);
	return *data;
}

SEC("xdp")
int masked_index_accepted(struct xdp_md *ctx)
{
	return masked(3);
}

SEC("xdp")
int unmasked_index_refused(struct xdp_md *ctx)
{
	return unmasked(3);
}

SEC("xdp")
int address_as_number_refused(struct xdp_md *ctx)
{
	return odd((long)ctx);
}

SEC("xdp")
int no_result_refused(struct xdp_md *ctx)
{
	int n = 3;

	nothing(&n);
	return n;
}

SEC("xdp")
int of_no_size_refused(struct xdp_md *ctx)
{
	int n = 3;

	return of_no_size(&n);
}
