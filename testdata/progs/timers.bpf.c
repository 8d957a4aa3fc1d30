// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * bpf_timer. The input is a packet of numbers: key, flags and delay. In the kernel no callback runs on the CPU of a
 * program before that has ended. So programs whose callbacks matter are run several times: to start the timer, then with
 * a delay of SETTLE, to give the callback time wherever it runs, and last with a delay of SHOW, to tell what it did.
 */
#include "test.h"

#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define CLOCK_BOOTTIME 7
#define LONG 1000000000000000ULL
#define SETTLE 0xffffffffffffffffULL
#define SHOW 0xfffffffffffffffeULL

struct timed {
	__u64 calls;
	struct bpf_timer timer;
	__u64 seen;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct timed);
} timed SEC(".maps");

struct both {
	struct bpf_spin_lock lock;
	__u32 number;
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct both);
} both SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct timed);
};

struct inner held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { &held },
};

__s64 out[16];

struct request {
	__u64 key;
	__u64 flags;
	__u64 delay;
};

static __always_inline int request(struct xdp_md *ctx, struct request *to)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + sizeof(*to) > end)
		return -1;
	__builtin_memcpy(to, data, sizeof(*to));
	return 0;
}

static int count(void *map, __u32 *key, struct timed *value)
{
	value->seen = *key + 100;
	__sync_fetch_and_add(&value->calls, 1);
	return 0;
}

static int again(void *map, __u32 *key, struct timed *value)
{
	value->seen = value->calls;
	if (value->calls < 4)
		value->seen += 1000 * (bpf_timer_start(&value->timer, 1000, 0) + 1);
	__sync_fetch_and_add(&value->calls, 1);
	return 0;
}

static int cancel_itself(void *map, __u32 *key, struct timed *value)
{
	value->seen = bpf_timer_cancel(&value->timer);
	__sync_fetch_and_add(&value->calls, 1);
	return 0;
}

static int update_itself(void *map, __u32 *key, struct timed *value)
{
	struct timed other = { .calls = 50, .seen = 60 };

	bpf_map_update_elem(&timed, key, &other, 0);
	__sync_fetch_and_add(&value->calls, 1);
	return 0;
}

struct wait {
	struct timed *value;
	__u64 calls;
	__u64 until;
};

static long look(__u32 i, struct wait *wait)
{
	__u64 calls = __sync_fetch_and_add(&wait->value->calls, 0);

	return calls >= wait->calls || bpf_ktime_get_ns() > wait->until;
}

/* Waits until there were this many calls, at most for a tenth of a second. */
static __always_inline int settle(struct timed *value, __u64 calls)
{
	struct wait wait = { value, calls, bpf_ktime_get_ns() + 100000000 };

	bpf_loop(1 << 20, look, &wait, 0);
	return 0;
}

/* Every clock, and flags that mean none. */
SEC("xdp")
int init(struct xdp_md *ctx)
{
	struct timed *value;
	struct request r;
	__u32 key;

	if (request(ctx, &r))
		return -1;
	key = r.key;
	value = bpf_map_lookup_elem(&timed, &key);
	if (!value)
		return -2;
	return bpf_timer_init(&value->timer, &timed, r.flags);
}

SEC("xdp")
int start_only(struct xdp_md *ctx)
{
	struct timed *value;
	struct request r;
	__u32 key;

	if (request(ctx, &r))
		return -1;
	key = r.key;
	value = bpf_map_lookup_elem(&timed, &key);
	if (!value)
		return -2;
	return bpf_timer_start(&value->timer, LONG, r.flags);
}

SEC("xdp")
int set_callback(struct xdp_md *ctx)
{
	struct timed *value;
	struct request r;
	__u32 key;

	if (request(ctx, &r))
		return -1;
	key = r.key;
	value = bpf_map_lookup_elem(&timed, &key);
	if (!value)
		return -2;
	out[0] = bpf_timer_set_callback(&value->timer, count);
	out[1] = bpf_timer_init(&value->timer, &timed, CLOCK_MONOTONIC);
	out[2] = bpf_timer_set_callback(&value->timer, count);
	out[3] = bpf_timer_set_callback(&value->timer, again);
	out[4] = bpf_timer_init(&value->timer, &timed, CLOCK_MONOTONIC);
	return 0;
}

/* Start and cancel in every state, with the flags of the request. */
SEC("xdp")
int start(struct xdp_md *ctx)
{
	struct timed *value;
	struct request r;
	__u32 key;

	if (request(ctx, &r))
		return -1;
	key = r.key;
	value = bpf_map_lookup_elem(&timed, &key);
	if (!value)
		return -2;
	out[0] = bpf_timer_start(&value->timer, LONG, r.flags);
	out[1] = bpf_timer_cancel(&value->timer);
	out[2] = bpf_timer_init(&value->timer, &timed, CLOCK_MONOTONIC);
	out[3] = bpf_timer_start(&value->timer, LONG, r.flags);
	out[4] = bpf_timer_cancel(&value->timer);
	out[5] = bpf_timer_set_callback(&value->timer, count);
	out[6] = bpf_timer_cancel(&value->timer);
	out[7] = bpf_timer_start(&value->timer, LONG, r.flags);
	out[8] = bpf_timer_set_callback(&value->timer, count);
	out[9] = bpf_timer_start(&value->timer, (r.flags & 1 ? bpf_ktime_get_ns() : 0) + LONG, r.flags);
	out[10] = bpf_timer_start(&value->timer, (r.flags & 1 ? bpf_ktime_get_ns() : 0) + LONG, r.flags);
	out[11] = bpf_timer_cancel(&value->timer);
	out[12] = bpf_timer_cancel(&value->timer);
	out[13] = bpf_timer_start(&value->timer, LONG, r.flags);
	return 0;
}

/* Starts the timer of an element with a callback, which is called as often as wanted. */
#define FIRE(name, clock, callback, wanted)                                                        \
	SEC("xdp") int name(struct xdp_md *ctx)                                                    \
	{                                                                                          \
		struct timed *value;                                                               \
		struct request r;                                                                  \
		__u32 key;                                                                         \
                                                                                                   \
		if (request(ctx, &r))                                                              \
			return -1;                                                                 \
		key = r.key;                                                                       \
		value = bpf_map_lookup_elem(&timed, &key);                                         \
		if (!value)                                                                        \
			return -2;                                                                 \
		if (r.delay == SETTLE)                                                             \
			return settle(value, wanted);                                              \
		if (r.delay == SHOW) {                                                             \
			out[3] = bpf_timer_cancel(&value->timer);                                  \
			out[4] = value->seen;                                                      \
			return value->calls;                                                       \
		}                                                                                  \
		out[0] = bpf_timer_init(&value->timer, &timed, clock);                             \
		out[1] = bpf_timer_set_callback(&value->timer, callback);                          \
		out[2] = bpf_timer_start(&value->timer, r.delay, r.flags);                         \
		return 0;                                                                          \
	}

FIRE(fire, CLOCK_MONOTONIC, count, 1)
FIRE(fire_realtime, CLOCK_REALTIME, count, 1)
FIRE(fire_boottime, CLOCK_BOOTTIME, count, 1)
FIRE(fire_again, CLOCK_MONOTONIC, again, 5)
FIRE(fire_cancels_itself, CLOCK_MONOTONIC, cancel_itself, 1)
FIRE(fire_updates_itself, CLOCK_MONOTONIC, update_itself, 51)

/* An update disarms the timer: it can be initialised again. */
SEC("xdp")
int update_cancels(struct xdp_md *ctx)
{
	struct timed other = { .calls = 3, .seen = 4 };
	struct timed *value;
	struct request r;
	__u32 key;

	if (request(ctx, &r))
		return -1;
	key = r.key;
	value = bpf_map_lookup_elem(&timed, &key);
	if (!value)
		return -2;
	out[0] = bpf_timer_init(&value->timer, &timed, CLOCK_MONOTONIC);
	out[1] = bpf_timer_set_callback(&value->timer, count);
	out[2] = bpf_timer_start(&value->timer, LONG, 0);
	out[3] = bpf_map_update_elem(&timed, &key, &other, r.flags);
	out[4] = bpf_timer_cancel(&value->timer);
	out[5] = bpf_timer_start(&value->timer, LONG, 0);
	out[6] = bpf_timer_init(&value->timer, &timed, CLOCK_MONOTONIC);
	out[7] = bpf_timer_start(&value->timer, LONG, 0);
	return value->calls;
}

/* Each element has a timer of its own. */
SEC("xdp")
int two_timers(struct xdp_md *ctx)
{
	__u32 one = 1, two = 2;
	struct timed *first = bpf_map_lookup_elem(&timed, &one);
	struct timed *second = bpf_map_lookup_elem(&timed, &two);
	struct request r;

	if (request(ctx, &r) || !first || !second)
		return -1;
	if (r.delay == SETTLE)
		return settle(first, 1) + settle(second, 5);
	if (r.delay == SHOW) {
		out[6] = first->seen;
		out[7] = second->seen;
		return first->calls + 10 * second->calls;
	}
	out[0] = bpf_timer_init(&first->timer, &timed, CLOCK_MONOTONIC);
	out[1] = bpf_timer_init(&second->timer, &timed, CLOCK_MONOTONIC);
	out[2] = bpf_timer_set_callback(&first->timer, count);
	out[3] = bpf_timer_set_callback(&second->timer, again);
	out[4] = bpf_timer_start(&second->timer, 2000, 0);
	out[5] = bpf_timer_start(&first->timer, 1000, 0);
	return 0;
}

static int count_locked(void *map, __u32 *key, struct both *value)
{
	struct timed *counter;
	__u32 zero = 0;

	bpf_spin_lock(&value->lock);
	value->number += 1 + *key;
	bpf_spin_unlock(&value->lock);
	counter = bpf_map_lookup_elem(&timed, &zero);
	if (counter)
		__sync_fetch_and_add(&counter->calls, 1);
	return 0;
}

/* A lock and a timer in one value, the lock taken by the callback. */
SEC("xdp")
int lock_in_callback(struct xdp_md *ctx)
{
	struct timed *counter;
	struct both *value;
	__u32 key, zero = 0;
	struct request r;

	if (request(ctx, &r))
		return -1;
	key = r.key & 1;
	value = bpf_map_lookup_elem(&both, &key);
	counter = bpf_map_lookup_elem(&timed, &zero);
	if (!value || !counter)
		return -2;
	if (r.delay == SETTLE)
		return settle(counter, r.flags);
	if (r.delay == SHOW) {
		bpf_spin_lock(&value->lock);
		key = value->number;
		bpf_spin_unlock(&value->lock);
		return key;
	}
	bpf_spin_lock(&value->lock);
	value->number = 40;
	bpf_spin_unlock(&value->lock);
	out[0] = bpf_timer_init(&value->timer, &both, CLOCK_MONOTONIC);
	out[1] = bpf_timer_set_callback(&value->timer, count_locked);
	out[2] = bpf_timer_start(&value->timer, 1000, 0);
	return 0;
}

/* The timer of an inner map. */
SEC("xdp")
int inner_map(struct xdp_md *ctx)
{
	__u32 key = 0, index = 1;
	struct timed *value;
	struct request r;
	void *map = bpf_map_lookup_elem(&outer, &key);

	if (!map || request(ctx, &r))
		return -1;
	value = bpf_map_lookup_elem(map, &index);
	if (!value)
		return -2;
	if (r.delay == SETTLE)
		return settle(value, 1);
	if (r.delay == SHOW) {
		out[3] = bpf_timer_cancel(&value->timer);
		return value->seen;
	}
	out[0] = bpf_timer_init(&value->timer, map, CLOCK_MONOTONIC);
	out[1] = bpf_timer_set_callback(&value->timer, count);
	out[2] = bpf_timer_start(&value->timer, r.delay, 0);
	return 0;
}
