// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Values of every kind that bpftool can print; what it printed is in values.json. Built as by
 * testdata/build-bpf; recorded on a live kernel by loading it, running it once on 64 zeroes, and
 * dumping each map with `bpftool -j map dump`.
 */
#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum color { RED, GREEN, BLUE = -5 };
enum wide : unsigned long long { WIDE = 0x123456789abcdef };
enum negative : long long { NEGATIVE = -3 };
typedef unsigned __int128 u128;

struct pair {
	__u8 first;
	__s16 second;
};

struct values {
	/* numbers */
	__s32 negative;
	__u64 largest;
	__u8 byte;
	bool yes;
	u128 wide;
	const volatile __u32 qualified;

	/* characters */
	char letter;
	signed char negative_char;
	char text[16];
	char empty[4];
	char unterminated[4];
	char control[4];
	__u8 bytes[4];
	char texts[2][3];

	/* enumerations */
	enum color named;
	enum color named_negative;
	enum color unnamed;
	enum wide wide_enum;
	enum negative negative_enum;
	enum negative unnamed_wide;

	/* bit fields */
	unsigned int low : 3;
	unsigned int high : 5;
	int negative_bits : 4;
	enum color color_bits : 3;
	__u64 across : 40;
	__u64 behind : 20;
	bool flag : 1;

	/* the rest */
	struct pair pair;
	struct pair pairs[2];
	union {
		__u32 whole;
		__u8 parts[4];
	} united;
	struct {
		int anonymous;
	};
	struct values *next;
	int (*function)(int);
	int matrix[2][3];
	bool truths[2];
	int none[0];
};

struct values values SEC(".data.values") = {
	.negative = -7,
	.largest = ~0ULL,
	.byte = 200,
	.yes = true,
	.wide = ((u128)1 << 100) + 5,
	.qualified = 10,
	.letter = 'x',
	.negative_char = -4,
	.text = "hello, \"world\"",
	.unterminated = "abcd",
	.control = "a\n",
	.bytes = { 1, 2, 3, 255 },
	.texts = { "ab", "c" },
	.named = GREEN,
	.named_negative = BLUE,
	.unnamed = 77,
	.wide_enum = WIDE,
	.negative_enum = NEGATIVE,
	.unnamed_wide = 9,
	.low = 5,
	.high = 17,
	.negative_bits = -2,
	.color_bits = GREEN,
	.across = 0xfffffffff0,
	.behind = 77,
	.flag = true,
	.pair = { 1, -2 },
	.pairs = { { 1, 2 }, { 3, -4 } },
	.united.whole = 0x04030201,
	.anonymous = 3,
	.matrix = { { 1, 2, 3 }, { 4, 5, 6 } },
	.truths = { true, false },
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct pair);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__uint(value_size, 6);
} untyped SEC(".maps");

int counter = 7;
const volatile int step = 5;
bool seen;

SEC("xdp")
int change_values(struct xdp_md *ctx)
{
	__u32 key = 1;
	struct pair *pair = bpf_map_lookup_elem(&pairs, &key);
	__u8 *bytes = bpf_map_lookup_elem(&untyped, &key);

	if (pair)
		pair->second--;
	if (bytes)
		bytes[5] = 9;
	counter += step;
	seen = values.yes;
	return XDP_PASS;
}
