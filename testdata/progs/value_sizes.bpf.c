// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Arrays with values of many sizes: element sizes that are a power of two (found by a shift) and
 * others (found by a multiplication), and values that end inside their element's padding.
 */
#include "test.h"

__s64 out[2];

#define WITH_SIZE(size)                                                                            \
	struct value##size {                                                                       \
		__u8 bytes[size];                                                                  \
	};                                                                                         \
                                                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(max_entries, 3);                                                            \
		__type(key, __u32);                                                                \
		__type(value, struct value##size);                                                 \
	} array##size SEC(".maps");                                                                \
                                                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, 3);                                                            \
		__type(key, __u32);                                                                \
		__type(value, struct value##size);                                                 \
	} percpu##size SEC(".maps");                                                               \
                                                                                                   \
	/* Writes both ends of the value args[0] and leaves its distance from the first one. */   \
	SEC("raw_tp")                                                                              \
	int access##size(args_t *ctx)                                                              \
	{                                                                                          \
		__u32 key = ctx->args[0], first = 0;                                               \
		struct value##size *value = bpf_map_lookup_elem(&array##size, &key);               \
		struct value##size *start = bpf_map_lookup_elem(&array##size, &first);             \
                                                                                                   \
		if (!value || !start)                                                              \
			return -1;                                                                 \
		out[0] = (void *)value - (void *)start;                                            \
		value->bytes[0] += 1;                                                              \
		value->bytes[size - 1] += 0x40;                                                    \
		out[1] = bpf_map_update_elem(&percpu##size, &key, value, BPF_ANY);                 \
		value = bpf_map_lookup_elem(&percpu##size, &key);                                  \
		if (!value)                                                                        \
			return -2;                                                                 \
		value->bytes[size / 2] ^= 0x88;                                                    \
		return value->bytes[size - 1];                                                     \
	}

WITH_SIZE(1)
WITH_SIZE(2)
WITH_SIZE(3)
WITH_SIZE(7)
WITH_SIZE(8)
WITH_SIZE(12)
WITH_SIZE(16)
WITH_SIZE(20)
WITH_SIZE(24)
WITH_SIZE(33)
WITH_SIZE(100)
WITH_SIZE(256)
