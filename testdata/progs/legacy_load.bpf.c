// SPDX-License-Identifier: MIT OR Apache-2.0
/* The packet loads of classic BPF: big endian, and the end of the program when out of range. */
#include "test.h"

unsigned long long load_byte(void *skb, unsigned long long offset) asm("llvm.bpf.load.byte");
unsigned long long load_half(void *skb, unsigned long long offset) asm("llvm.bpf.load.half");
unsigned long long load_word(void *skb, unsigned long long offset) asm("llvm.bpf.load.word");

__u64 out[8];

SEC("socket")
int absolute(struct __sk_buff *skb)
{
	out[0] = load_byte(skb, 1);
	out[1] = load_half(skb, 2);
	out[2] = load_word(skb, 4);
	out[3] = load_word(skb, 20);
	return out[1];
}

/* At an offset that the packet itself names. */
SEC("socket")
int indirect(struct __sk_buff *skb)
{
	__u64 offset = load_byte(skb, 0);

	out[0] = load_byte(skb, offset);
	out[1] = load_half(skb, offset + 1);
	out[2] = load_word(skb, offset + 3);
	out[3] = 1;
	return out[2];
}
