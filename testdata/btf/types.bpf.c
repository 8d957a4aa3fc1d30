// SPDX-License-Identifier: MIT OR Apache-2.0
/* One of every kind of type BTF has. Rebuild with:
 *   clang-19 -O2 -g -target bpf -mcpu=v3 -fdebug-compilation-dir=. -c types.bpf.c -o types.bpf.o
 *   llvm-objcopy-19 --dump-section .BTF=types.btf --dump-section .BTF.ext=types.btf.ext types.bpf.o /dev/null
 */
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define tag(text) __attribute__((btf_decl_tag(text)))
#define type_tag(text) __attribute__((btf_type_tag(text)))
#define core __attribute__((preserve_access_index))

enum color { RED = -1, GREEN, BLUE = 7 };
enum wide { NOTHING, HUGE = 0xfffffffffffffffeULL };
enum wide_signed { BELOW = -0x100000000LL, ABOVE = 1 };

struct elsewhere;
union elsewhere_too;

struct inner {
	char name[6];
	_Bool flag;
	signed char small;
} core;

struct outer {
	u32 first : 3;
	u32 second : 13;
	int third : 16;
	const volatile struct inner inners[2];
	union {
		u64 whole;
		u32 halves[2];
	};
	enum color color;
	enum wide wide;
	enum wide_signed wide_signed;
	float single_precision;
	double double_precision;
	struct elsewhere *forward;
	union elsewhere_too *forward_too;
	int (*callback)(u32 a, char *restrict b, ...);
	struct outer type_tag("user") *next;
	__int128 big;
	u64 tagged tag("unit:ns");
} core tag("whole");

struct outer table SEC(".data");
const volatile u32 limit SEC(".rodata") = 9;
static volatile u64 hidden SEC(".data") = 1;

static __attribute__((noinline)) u64 read_inner(struct outer *outer, u32 index)
{
	return outer->inners[1].small + outer->whole + index;
}

SEC("socket")
int entry(struct outer *outer)
{
	hidden += 1;
	return read_inner(outer, limit) + outer->second + __builtin_preserve_enum_value(*(enum wide *)HUGE, 0);
}

char _license[] SEC("license") = "GPL";
