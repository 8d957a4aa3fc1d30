// SPDX-License-Identifier: MIT OR Apache-2.0
/* Variables: which sections can be mapped, where each variable lies, an address in the middle of one. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

__u32 exported = 1;
static volatile __u32 own = 2;
__u64 table[4] = { 10, 11, 12, 13 };

/* Nobody outside sees anything of these sections. */
__hidden __u32 concealed SEC(".data.concealed") = 3;
static volatile __u32 local SEC(".bss.local");

const volatile __u16 limit = 9;

SEC("socket")
int sum(struct __sk_buff *skb)
{
	__u64 *third;

	asm volatile("%0 = table + 16 ll" : "=r"(third));
	own += exported;
	local = concealed;
	return *third + own + limit;
}
