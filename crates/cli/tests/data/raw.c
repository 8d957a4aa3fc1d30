/* A program without any libc: it begins at `_start`, and makes its system calls itself. Exits with 42 if all is well. */
static long call(long number, long a, long b, long c)
{
#if defined(__x86_64__)
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
#endif
}

#if defined(__x86_64__)
enum { BPF = 321, EXIT = 231 };
#elif defined(__aarch64__)
enum { BPF = 280, EXIT = 94 };
#endif

static unsigned long values[2] = { 42, 0 };

void _start(void)
{
	unsigned int key = 1, create[4] = { 2, 4, 8, 4 };
	long fd = call(BPF, 0, (long)create, 16);
	unsigned long elem[4] = { fd, (long)&key, (long)&values[0], 0 };
	long updated = call(BPF, 2, (long)elem, 32);
	elem[2] = (long)&values[1];
	long found = call(BPF, 1, (long)elem, 32);
	call(EXIT, fd < 3 ? 1 : updated ? 2 : found ? 3 : (int)values[1], 0, 0);
}
