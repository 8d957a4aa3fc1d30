// SPDX-License-Identifier: MIT OR Apache-2.0
/* One CO-RE relocation of every kind and rule a program section. Built twice: as it is, and with the types of
 * another version of the same "kernel" (-DTARGET), against which the first is relocated. Rebuild with ./build.
 */
typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef signed int s32;
typedef unsigned long long u64;
typedef signed long long s64;

#define core __attribute__((preserve_access_index))

#ifdef TARGET
enum state { IDLE = 5, BUSY = 6, DONE = 1000 };
enum wide { SMALL = 2, LARGE = 0xffffffff00000001ULL };
enum big_unsigned { TOP = 0xfffffff0u };
enum negative { MINUS = -7, PLUS = 1 };
typedef int handler_t(struct thing *, u32);
typedef u64 number_t;

struct nested {
	u64 inserted;
	s32 signed_value;
	u16 numbers[8];
};

struct thing {
	u64 added[3];
	union {
		struct {
			u8 was_outside;
			u32 moved;
		};
		u64 other;
	};
	u64 widened;
	u16 narrowed;
	s64 signed_widened;
	struct nested nested[4];
	u8 few : 5;
	u32 gap : 20;
	s32 many : 7;
	u64 long_bits : 40;
	struct nested *pointer;
	u32 grown[6];
	u64 now_a_number;
	enum state state;
	u32 unsigned_now;
	char name[32];
	u64 elements_wider[2];
	u32 flexible[];
};

struct matching { u32 a; struct nested *p; s32 extra; };
struct mismatching { u64 a; };
#define thing___flavored thing
#else
enum state { IDLE, BUSY, DONE, GONE };
enum wide { SMALL, LARGE = 0x1234567800000000ULL };
enum big_unsigned { TOP = 0x80000000u };
enum negative { MINUS = -3, PLUS };
typedef int handler_t(struct thing *, u32);
typedef u32 number_t;

struct nested {
	u16 numbers[8];
	s32 signed_value;
} core;

struct thing {
	u32 moved;
	u8 was_outside;
	u32 widened;
	u32 narrowed;
	s32 signed_widened;
	struct nested nested[4];
	u8 few : 3;
	u32 gap : 7;
	s32 many : 12;
	u64 long_bits : 33;
	struct nested *pointer;
	u32 grown[4];
	void *now_a_number;
	enum state state;
	s32 unsigned_now;
	char name[16];
	u32 elements_wider[2];
	u32 removed;
	u32 flexible[];
} core;

struct matching { u32 a; struct nested *p; } core;
struct mismatching { u32 a; } core;

struct thing___flavored {
	u32 moved;
	u64 only_here;
} core;
#endif

#define CASE(name) __attribute__((section("socket/" #name), used)) u64 name(struct thing *thing)
#define OFFSET 0
#define SIZE 1
#define EXISTS 2
#define SIGNED 3
#define LSHIFT 4
#define RSHIFT 5
#define info(field, kind) __builtin_preserve_field_info(field, kind)
#define BITFIELD(name, field) \
	CASE(name##_offset) { return info(thing->field, OFFSET); } \
	CASE(name##_size) { return info(thing->field, SIZE); } \
	CASE(name##_signed) { return info(thing->field, SIGNED); } \
	CASE(name##_lshift) { return info(thing->field, LSHIFT); } \
	CASE(name##_rshift) { return info(thing->field, RSHIFT); }

CASE(load_moved) { return thing->moved; }
CASE(load_from_outside) { return thing->was_outside; }
CASE(load_widened) { return thing->widened; }
CASE(load_narrowed) { return thing->narrowed; }
CASE(load_signed_widened) { return thing->signed_widened; }
CASE(load_nested) { return thing->nested[2].signed_value; }
CASE(load_nested_number) { return thing->nested[3].numbers[5]; }
CASE(load_pointer) { return thing->pointer->numbers[1]; }
CASE(load_grown) { return thing->grown[3]; }
CASE(load_number_for_pointer) { return (u64)thing->now_a_number; }
CASE(load_state) { return thing->state; }
CASE(load_wider_element) { return thing->elements_wider[1]; }
CASE(load_flexible) { return thing->flexible[2]; }
CASE(load_flavored) { return ((struct thing___flavored *)thing)->moved; }
CASE(store_register) { thing->widened = (u64)thing; return 0; }
CASE(store_immediate) { thing->moved = 7; return 0; }
CASE(address_of_name) { return (u64)&thing->name; }
CASE(address_of_element) { return (u64)&thing[1]; }
BITFIELD(few, few)
BITFIELD(gap, gap)
BITFIELD(many, many)
BITFIELD(long_bits, long_bits)
BITFIELD(plain, unsigned_now)
CASE(size_of_array) { return info(thing->nested, SIZE); }
CASE(size_of_element) { return info(thing->nested[1], SIZE); }
CASE(exists) { return info(thing->moved, EXISTS); }
CASE(exists_by_flavor) { return info(((struct thing___flavored *)thing)->moved, EXISTS); }

#ifndef TARGET
CASE(load_removed) { return thing->removed; }
CASE(size_of_removed) { return info(thing->removed, SIZE); }
CASE(exists_removed) { return info(thing->removed, EXISTS); }
CASE(exists_other_kind) { return info(thing->now_a_number, EXISTS); }
CASE(load_only_flavored) { return ((struct thing___flavored *)thing)->only_here; }
CASE(exists_only_flavored) { return info(((struct thing___flavored *)thing)->only_here, EXISTS); }
#endif

#define type_info(type, kind) __builtin_preserve_type_info(*(type *)0, kind)
#define type_id(type, kind) __builtin_btf_type_id(*(type *)0, kind)
#define enum_info(type, name, kind) __builtin_preserve_enum_value(*(type *)name, kind)

CASE(enum_value) { return enum_info(enum state, DONE, 1); }
CASE(enum_value_wide) { return enum_info(enum wide, LARGE, 1); }
CASE(enum_value_unsigned) { return enum_info(enum big_unsigned, TOP, 1); }
CASE(enum_value_negative) { return enum_info(enum negative, MINUS, 1); }
CASE(enum_exists) { return enum_info(enum state, IDLE, 0); }
CASE(type_size) { return type_info(struct thing, 1); }
CASE(type_size_typedef) { return type_info(number_t, 1); }
CASE(type_exists) { return type_info(struct thing, 0); }
CASE(type_exists_function) { return type_info(handler_t, 0); }
CASE(type_matches) { return type_info(struct matching, 2); }

#ifndef TARGET
enum missing { NEVER = 9 };
struct missing_struct { u32 a; } core;

CASE(enum_value_removed) { return enum_info(enum state, GONE, 1); }
CASE(enum_exists_removed) { return enum_info(enum state, GONE, 0); }
CASE(enum_value_missing) { return enum_info(enum missing, NEVER, 1); }
CASE(enum_exists_missing) { return enum_info(enum missing, NEVER, 0); }
CASE(type_size_missing) { return type_info(struct missing_struct, 1); }
CASE(type_exists_missing) { return type_info(struct missing_struct, 0); }
CASE(type_id_missing) { return type_id(struct missing_struct, 1); }
CASE(type_id_target) { return type_id(struct matching, 1); }
CASE(type_id_local) { return type_id(struct matching, 0); }
CASE(type_matches_missing) { return type_info(struct missing_struct, 2); }
CASE(type_mismatches) { return type_info(struct mismatching, 2); }
#else
struct mismatching keep_mismatching;
#endif
