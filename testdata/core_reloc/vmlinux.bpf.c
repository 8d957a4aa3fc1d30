// SPDX-License-Identifier: MIT OR Apache-2.0
/* Questions about types every kernel of the last years has; the layouts here are made up. Rebuild with ./build. */
typedef unsigned int u32;
typedef unsigned long long u64;

#define core __attribute__((preserve_access_index))
#define CASE(name) __attribute__((section("socket/" #name), used)) u64 name(struct task_struct___ours *task)

struct sched_entity {
	u64 vruntime;
} core;

struct task_struct___ours {
	char comm[16];
	struct sched_entity se;
	int pid;
	int no_such_field;
} core;

struct bpf_array {
	u32 index_mask;
} core;

enum bpf_map_type {
	BPF_MAP_TYPE_PERCPU_ARRAY = 1,
};

CASE(pid) { return __builtin_preserve_field_info(task->pid, 0); }
CASE(comm) { return __builtin_preserve_field_info(task->comm, 0); }
CASE(nested) { return __builtin_preserve_field_info(task->se.vruntime, 0); }
CASE(no_such_field) { return __builtin_preserve_field_info(task->no_such_field, 2); }
CASE(array_size) { return __builtin_preserve_type_info(*(struct bpf_array *)0, 1); }
CASE(array_id) { return __builtin_btf_type_id(*(struct bpf_array *)0, 1); }
CASE(percpu_array) { return __builtin_preserve_enum_value(*(enum bpf_map_type *)BPF_MAP_TYPE_PERCPU_ARRAY, 1); }
