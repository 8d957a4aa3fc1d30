// SPDX-License-Identifier: MIT OR Apache-2.0
/* bpf_spin_lock: args[0] is a key, args[1] flags or a number. Locks are for programs of packets. */
#include "test.h"

struct account {
	__u32 balance;
	struct bpf_spin_lock lock;
	__u64 updates;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} plain SEC(".maps");

/* The lock last, at a value size that is no multiple of 8. */
struct late {
	__u8 bytes[20];
	struct bpf_spin_lock lock;
	__u32 after;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct late);
} late SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct account);
};

struct inner first SEC(".maps");
struct inner second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { &first, &second },
};

struct request {
	__u32 key;
	__u32 flags;
	__u64 number;
};

/* Reads the request that a packet begins with. */
static __always_inline int request(struct xdp_md *ctx, struct request *to)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + sizeof(*to) > end)
		return -1;
	__builtin_memcpy(to, data, sizeof(*to));
	return 0;
}

SEC("xdp")
int add(struct xdp_md *ctx)
{
	struct request r;
	struct account *a;

	if (request(ctx, &r))
		return -1;
	a = bpf_map_lookup_elem(&accounts, &r.key);
	if (!a)
		return -2;
	bpf_spin_lock(&a->lock);
	a->balance += r.number;
	a->updates++;
	bpf_spin_unlock(&a->lock);
	return a->balance;
}

/* Two locks, one after the other, and a branch under the lock. */
SEC("xdp")
int transfer(struct xdp_md *ctx)
{
	__u32 to_key = 0, enough = 0, amount;
	struct account *from, *to;
	struct request r;

	if (request(ctx, &r))
		return -1;
	amount = r.number & 3;
	from = bpf_map_lookup_elem(&accounts, &r.key);
	to = bpf_map_lookup_elem(&accounts, &to_key);
	if (!from || !to)
		return -2;
	bpf_spin_lock(&from->lock);
	from->balance += r.flags;
	if (from->balance >= amount) {
		from->balance -= amount;
		enough = 1;
	}
	from->updates++;
	bpf_spin_unlock(&from->lock);
	if (!enough)
		return 0;
	bpf_spin_lock(&to->lock);
	to->balance += amount;
	bpf_spin_unlock(&to->lock);
	return 1;
}

SEC("xdp")
int update(struct xdp_md *ctx)
{
	struct account value = { .balance = 7, .updates = 0x0102030405060708 };
	struct request r;

	if (request(ctx, &r))
		return -1;
	value.balance += r.number;
	return bpf_map_update_elem(&accounts, &r.key, &value, r.flags);
}

/* The same flags on values without a lock. */
SEC("xdp")
int update_plain(struct xdp_md *ctx)
{
	struct request r;

	if (request(ctx, &r))
		return -1;
	return bpf_map_update_elem(&plain, &r.key, &r.number, r.flags);
}

SEC("xdp")
int update_late(struct xdp_md *ctx)
{
	struct late value = { .after = 0x55667788 };
	struct late *stored;
	struct request r;
	int i, ret;

	if (request(ctx, &r))
		return -1;
	for (i = 0; i < 20; i++)
		value.bytes[i] = i + r.number;
	ret = bpf_map_update_elem(&late, &r.key, &value, r.flags);
	stored = bpf_map_lookup_elem(&late, &r.key);
	if (!stored)
		return ret;
	bpf_spin_lock(&stored->lock);
	stored->after += 1;
	bpf_spin_unlock(&stored->lock);
	return ret;
}

static int add_one(__u32 i, struct request *r)
{
	struct account *a = bpf_map_lookup_elem(&accounts, &r->key);

	if (!a)
		return 1;
	bpf_spin_lock(&a->lock);
	a->balance += i;
	a->updates++;
	bpf_spin_unlock(&a->lock);
	return 0;
}

SEC("xdp")
int in_a_loop(struct xdp_md *ctx)
{
	struct request r;

	if (request(ctx, &r))
		return -1;
	return bpf_loop(10, add_one, &r, 0);
}

static long each(void *map, __u32 *key, struct account *a, struct request *r)
{
	bpf_spin_lock(&a->lock);
	a->balance += *key + (__u32)r->number;
	bpf_spin_unlock(&a->lock);
	return 0;
}

SEC("xdp")
int for_each(struct xdp_md *ctx)
{
	struct request r;

	if (request(ctx, &r))
		return -1;
	return bpf_for_each_map_elem(&accounts, each, &r, 0);
}

static __noinline int locked_add(struct account *a, __u32 amount)
{
	if (!a)
		return 0;
	bpf_spin_lock(&a->lock);
	a->balance += amount;
	a->updates++;
	bpf_spin_unlock(&a->lock);
	return a->balance;
}

SEC("xdp")
int in_a_function(struct xdp_md *ctx)
{
	struct account *a;
	struct request r;

	if (request(ctx, &r))
		return -1;
	a = bpf_map_lookup_elem(&accounts, &r.key);
	return locked_add(a, r.number) + locked_add(a, 1);
}

SEC("xdp")
int inner_map(struct xdp_md *ctx)
{
	struct account *a;
	struct request r;
	__u32 key = 2;
	void *map;

	if (request(ctx, &r))
		return -1;
	map = bpf_map_lookup_elem(&outer, &r.key);
	if (!map)
		return -2;
	a = bpf_map_lookup_elem(map, &key);
	if (!a)
		return -3;
	bpf_spin_lock(&a->lock);
	a->balance += r.number;
	a->updates++;
	bpf_spin_unlock(&a->lock);
	return a->balance;
}

SEC("xdp")
int inner_update(struct xdp_md *ctx)
{
	struct account value = { .balance = 9, .updates = 10 };
	struct request r;
	__u32 key = 3;
	void *map;

	if (request(ctx, &r))
		return -1;
	map = bpf_map_lookup_elem(&outer, &r.key);
	if (!map)
		return -2;
	return bpf_map_update_elem(map, &key, &value, r.flags);
}

/* An array in a value's place before and after the lock, with a variable index. */
SEC("tc")
int variable_offset(struct __sk_buff *skb)
{
	__u32 key = 1, at = skb->len & 15;
	struct late *value = bpf_map_lookup_elem(&late, &key);

	if (!value)
		return -1;
	bpf_spin_lock(&value->lock);
	value->bytes[at] += 3;
	bpf_spin_unlock(&value->lock);
	return value->bytes[at];
}
