// SPDX-License-Identifier: MIT OR Apache-2.0
/* CO-RE relocations of every kind, against types that only this object has. */
#include "test.h"

#include <bpf/bpf_core_read.h>

__u64 out[20];

enum color {
	RED = 3,
	GREEN = 70,
};

struct inner {
	__u16 a;
	__s8 b;
	__u32 flags : 3;
	__u32 level : 7;
	__s32 balance : 6;
};

struct outer {
	__u64 id;
	struct inner inner[3];
	enum color color;
	char name[12];
} __attribute__((preserve_access_index));

struct absent___flavor {
	__u32 missing;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct outer);
} outers SEC(".maps");

SEC("raw_tp")
int field_offsets(args_t *ctx)
{
	__u32 key = ctx->args[0];
	struct outer *outer = bpf_map_lookup_elem(&outers, &key);

	if (!outer)
		return -1;
	outer->id = ctx->args[1];
	outer->inner[2].b = ctx->args[1];
	outer->color = GREEN;
	outer->name[11] = 'z';
	return outer->inner[2].b;
}

SEC("raw_tp")
int field_info(args_t *ctx)
{
	struct outer *outer = (void *)0;

	out[0] = bpf_core_field_exists(outer->color);
	out[1] = bpf_core_field_size(outer->inner);
	out[2] = bpf_core_field_offset(struct outer, name);
	out[3] = bpf_core_field_exists(((struct absent___flavor *)0)->missing);
	out[4] = __builtin_preserve_field_info(outer->inner[1].b, BPF_FIELD_SIGNED);
	return out[1];
}

SEC("raw_tp")
int types(args_t *ctx)
{
	out[0] = bpf_core_type_exists(struct outer);
	out[1] = bpf_core_type_size(struct outer);
	out[2] = bpf_core_type_size(struct inner);
	out[3] = bpf_core_type_id_local(struct outer) != 0;
	return out[1];
}

SEC("raw_tp")
int enum_values(args_t *ctx)
{
	out[0] = bpf_core_enum_value_exists(enum color, GREEN);
	out[1] = bpf_core_enum_value(enum color, GREEN);
	out[2] = bpf_core_enum_value(enum color, RED);
	return out[1];
}

/* Bit fields are read by a load and two shifts whose numbers are relocated. */
SEC("raw_tp")
int bit_fields(args_t *ctx)
{
	__u32 key = 0;
	struct outer *outer = bpf_map_lookup_elem(&outers, &key);

	if (!outer)
		return -1;
	*(__u64 *)&outer->inner[0] = ctx->args[0];
	out[0] = BPF_CORE_READ_BITFIELD(&outer->inner[0], flags);
	out[1] = BPF_CORE_READ_BITFIELD(&outer->inner[0], level);
	out[2] = (__s64)BPF_CORE_READ_BITFIELD(&outer->inner[0], balance);
	return out[2];
}
