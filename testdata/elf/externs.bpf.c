// SPDX-License-Identifier: MIT OR Apache-2.0
/* What only a running kernel has, and a program that does without. */
#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

extern int LINUX_KERNEL_VERSION __kconfig;
extern bool CONFIG_BPF_SYSCALL __kconfig __weak;
extern const int bpf_prog_active __ksym;
extern const void init_task __ksym __weak;
extern void bpf_rcu_read_lock(void) __ksym;

SEC("socket")
int kconfig(void *ctx)
{
	return LINUX_KERNEL_VERSION;
}

SEC("socket")
int weak_kconfig(void *ctx)
{
	return CONFIG_BPF_SYSCALL;
}

SEC("socket")
int ksym(void *ctx)
{
	return bpf_prog_active;
}

SEC("socket")
int weak_ksym(void *ctx)
{
	return &init_task != 0;
}

SEC("socket")
int kfunc(void *ctx)
{
	bpf_rcu_read_lock();
	return 0;
}

SEC("socket")
int nothing_special(void *ctx)
{
	return 7;
}
