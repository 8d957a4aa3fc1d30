// Types of values with special fields. fields.btf is the .BTF section of:
//     clang-19 -target bpf -O2 -g -c fields.bpf.c
//     llvm-objcopy-19 --dump-section .BTF=fields.btf fields.bpf.o
// Nothing here is a variable, so that the section can be loaded as it is.

typedef unsigned int u32;
typedef unsigned long long u64;

struct bpf_spin_lock { u32 val; };
struct bpf_timer { u64 __opaque[2]; } __attribute__((aligned(8)));
struct bpf_refcount { u32 __opaque[1]; } __attribute__((aligned(4)));
struct bpf_wq { u64 __opaque[2]; } __attribute__((aligned(8)));

struct session { u64 id; };

struct locked { u32 before; struct bpf_spin_lock lock; u64 after; };
struct late_lock { u64 before; u32 more; struct bpf_spin_lock lock; };
struct timed { u64 before; struct bpf_timer timer; u64 after; };
struct locked_timer { struct bpf_timer timer; struct bpf_spin_lock lock; u32 after; };
struct counted { struct bpf_refcount refs; u32 after; };
struct holder { u64 before; struct session __attribute__((btf_type_tag("kptr"))) *session; };
struct worker { struct bpf_wq work; u64 after; };
struct plain { u64 before; u64 after; };

int use(int key, struct locked *a, struct late_lock *b, struct timed *c, struct locked_timer *d)
{
    return key + a->before + b->more + c->after + d->after;
}

int use_more(struct counted *a, struct holder *b, struct worker *c, struct plain *d, struct session *e)
{
    return a->after + b->before + c->after + d->before + e->id;
}
