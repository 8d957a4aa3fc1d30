#!/usr/bin/env python3
"""Records which BTF the live kernel takes for maps, into maps.vec. Needs root.

Not asked, for the kernel would warn of a bug of its own: two locks, timers or the like in different structs of
one value, two reference counts, both kinds of locks.
"""

import ctypes
import os
import random
import struct
import sys

sys.dont_write_bytecode = True
from kernel import *

SIZES = {
    "bpf_spin_lock": 4, "bpf_res_spin_lock": 4, "bpf_refcount": 4, "bpf_timer": 16, "bpf_wq": 16,
    "bpf_task_work": 8, "bpf_list_head": 16, "bpf_list_node": 24, "bpf_rb_root": 16, "bpf_rb_node": 32,
    "bpf_dynptr": 16,
}
TAGS = ["kptr", "kptr_untrusted", "percpu_kptr", "uptr", "user"]
cases = []


def case(build, **attr):
    """`build(btf, int)` makes the types and gives those of key and value and the value's size."""
    btf = Btf()
    key, value, size = build(btf, btf.int())
    cases.append({"map_type": ARRAY, "value_size": size, "max_entries": 1, "map_flags": 0,
                  "key": key, "value": value, **attr, "btf": btf})


def value(build, **attr):
    """The same for a value with an ordinary key, on an ARRAY and a PERCPU_ARRAY."""
    for map_type in ARRAY, PERCPU_ARRAY:
        case(lambda b, i: (i, *build(b, i)), map_type=map_type, **attr)


def special(b, name, size=None):
    size = size or SIZES[name]
    return b.struct(name, size, [("o", b.array(b.u(4), size // 4), 0)])


def holder(b, members, tail=8):
    """A struct with members (name, type, size) after each other, and some ordinary bytes."""
    at, placed = 0, []
    for name, of, size in members:
        placed.append((name, of, at * 8))
        at += size
    return b.struct("holder", at + tail, placed), at + tail


def kptr(b, i, tag, target=None):
    return b.ptr(b.tag(tag, target or b.struct("foo", 4, [("x", i, 0)])))


def by_name():
    for name, size in SIZES.items():
        for offset in 8, 4, 2:
            for wrong in 0, 4:
                value(lambda b, i: (
                    b.struct("v", 72, [("f", special(b, name, size + wrong), offset * 8)]), 72))
        value(lambda b, i: holder(b, [("a", b.array(special(b, name), 1), size)]))
        value(lambda b, i: holder(b, [("a", b.array(special(b, name), 2), 2 * size)]))
        value(lambda b, i: (special(b, name), size))
        value(lambda b, i: (b.typedef("t", b.const(holder(b, [("f", special(b, name), size)])[0])), size + 8))
        value(lambda b, i: holder(b, [("f", b.typedef("t", special(b, name)), size)]))
        value(lambda b, i: holder(b, [("f", b.const(special(b, name)), size)]))
        value(lambda b, i: holder(b, [("u", b.union("u", size, [("f", special(b, name), 0)]), size)]))
        value(lambda b, i: holder(b, [("u", b.union(name, size, [("x", i, 0)]), size)]))
        value(lambda b, i: (b.array(holder(b, [("f", special(b, name), size)])[0], 1), size + 8))
        inner = lambda b, n: b.array(b.struct("inner", 40, [("x", b.u(8), 0), ("f", special(b, name), 64)]), n)
        for count in 0, 1, 2:
            value(lambda b, i: holder(b, [("x", b.u(8), 8), ("s", inner(b, count), 40 * count)]))
        for flags in 0x80, 0x100, 0x400, 0x1000:
            value(lambda b, i: holder(b, [("f", special(b, name), size)]), map_flags=flags)
        value(lambda b, i: (b.var("v", holder(b, [("f", special(b, name), size)])[0]), size + 8))
        for map_type in PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS:
            case(lambda b, i: (i, *holder(b, [("f", special(b, name), size)], 0)), map_type=map_type)


def together():
    for name in "bpf_spin_lock", "bpf_res_spin_lock", "bpf_timer", "bpf_wq", "bpf_task_work":
        value(lambda b, i: holder(b, [(n, special(b, name), SIZES[name]) for n in "ab"]))
        # The first one is none, but it counts.
        value(lambda b, i: holder(b, [
            ("a", b.union(name, 16, [("x", i, 0)]), 16), ("b", special(b, name), SIZES[name])]))
    overlap = lambda b: [("t", special(b, "bpf_timer"), 0), ("w", special(b, "bpf_wq"), 64)]
    value(lambda b, i: (b.struct("v", 24, overlap(b)), 24))
    for at in 130, 132, 136:
        value(lambda b, i: (b.struct("v", 24, [("t", special(b, "bpf_timer"), 0), ("x", i, at | 3 << 24)], 1), 24))
    # Which of two structs of one name is the special one does not matter for a map.
    value(lambda b, i: (special(b, "bpf_spin_lock", 8), *holder(b, [("l", special(b, "bpf_spin_lock"), 4)]))[1:])
    for depth in 31, 32, 33:
        def nested(b, i):
            at = special(b, "bpf_timer")
            for level in range(depth):
                at = b.struct(f"s{level}", 16, [("m", at, 0)])
            return at, 16
        value(nested)


def pointers():
    for tag in TAGS:
        value(lambda b, i: holder(b, [("x", b.u(8), 8), ("p", kptr(b, i, tag), 8)]))
        value(lambda b, i: holder(b, [("x", i, 4), ("p", kptr(b, i, tag), 8)]))
        for count in 0, 2, 10, 11, 12:
            value(lambda b, i: holder(b, [("p", b.array(kptr(b, i, tag), count), 8 * count)]))
    value(lambda b, i: (kptr(b, i, "kptr"), 8))
    value(lambda b, i: holder(b, [("p", b.volatile(kptr(b, i, "kptr")), 8)]))
    value(lambda b, i: holder(b, [("p", b.const(kptr(b, i, "kptr")), 8)]))
    value(lambda b, i: holder(b, [("p", b.ptr(b.tag("kptr", b.struct("foo", 4, [("x", i, 0)]), 1)), 8)]))
    targets = [lambda b, i: b.const(b.struct("foo", 4, [])), lambda b, i: b.union("foo", 4, []), lambda b, i: i,
               lambda b, i: b.tag("user", b.struct("foo", 4, [])), lambda b, i: b.typedef("t", b.struct("f", 4, []))]
    for target in targets:
        value(lambda b, i: holder(b, [("p", b.ptr(b.tag("kptr", target(b, i))), 8)]))
    value(lambda b, i: holder(b, [("p", b.ptr(b.tag("kptr", 0)), 8)]))
    for count in 9, 10:
        value(lambda b, i: holder(b, [
            ("t", special(b, "bpf_timer"), 16), ("p", b.array(kptr(b, i, "kptr"), count), 8 * count),
            ("l", special(b, "bpf_spin_lock"), 4)], 4))
    inner = lambda b, i: b.struct("in", 40, [("x", i, 0), ("p", b.array(b.array(kptr(b, i, "kptr"), 2), 2), 64)])
    value(lambda b, i: holder(b, [("s", b.array(inner(b, i), 2), 80)]))
    value(lambda b, i: holder(b, [("s", b.array(inner(b, i), 3), 120)]))


def graph(root="bpf_list_head", node="bpf_list_node", tags=("contains:foo:n",), lock="bpf_spin_lock", at=0,
          count=1, members=(), inner=False, twice=False):
    def build(b, i):
        head, lock_type = special(b, root), special(b, lock) if lock else None
        nodes = [("n", special(b, node), at * 8)]
        nodes += [("n", nodes[0][1], (at + 32) * 8)] if twice else []
        b.struct("foo", 64 + at, nodes + [(m, special(b, m), 512) for m in members])
        of = b.array(head, count) if count != 1 else head
        size = 16 * count
        held = [("x", b.u(8), 0), ("h", of, 64)] + ([("l", lock_type, 64 + size * 8)] if lock else [])
        outer = b.struct("v", size + 16, held)
        for tag in tags:
            b.decl_tag(tag, outer, 1)
        if inner:
            outer = b.struct("w", size + 24, [("x", b.u(8), 0), ("v", outer, 64)])
        return outer, size + 16 + 8 * inner
    value(build)


def graphs():
    graph()
    graph("bpf_rb_root", "bpf_rb_node")
    graph(lock="bpf_res_spin_lock")
    graph(lock=None)
    graph(inner=True)
    graph(count=2)
    graph(count=10)
    graph(count=11)
    graph(twice=True)
    graph(at=8, members=["bpf_refcount"])
    graph(at=4)
    graph(node="bpf_rb_node")
    for tags in [(), ("contains:foo:n",) * 2, ("contains:foo",), ("contains:foo:",), ("contains:bar:n",),
                 ("contains:bar:",), ("contains:foo:m",), ("contains:",), ("contain:foo:n",)]:
        graph(tags=tags)

    # A node that is itself the root of a list of nodes that are roots.
    def chain(depth):
        def build(b, i):
            head, node, lock = (special(b, n) for n in ("bpf_list_head", "bpf_list_node", "bpf_spin_lock"))
            for level in range(depth):
                members = [("n", node, 0)]
                if level:
                    members += [("h", head, 192), ("l", lock, 320)]
                last = b.struct(f"s{level}", 48, members)
                if level:
                    b.decl_tag(f"contains:s{level - 1}:n", last, 1)
            v = b.struct("v", 24, [("h", head, 0), ("l", lock, 128)])
            b.decl_tag(f"contains:s{depth - 1}:n", v, 0)
            return v, 24
        return build
    for depth in 1, 2, 3:
        value(chain(depth))
    value(lambda b, i: holder(b, [("l", special(b, "bpf_list_node"), 24), ("r", special(b, "bpf_rb_node"), 32)]))
    value(lambda b, i: holder(b, [("l", special(b, "bpf_list_node"), 24), ("r", special(b, "bpf_rb_node"), 32),
                                  ("c", special(b, "bpf_refcount"), 4)], 4))


def sections():
    for entries in 1, 2:
        for key in True, False:
            for map_type in ARRAY, PERCPU_ARRAY, PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS:
                for values in ("int", "section", "lock", "typedef"):
                    def build(b, i):
                        of = {"int": lambda: i,
                              "section": lambda: b.section(".data", 4, [(b.var("x", i), 0, 4)]),
                              "lock": lambda: holder(b, [("l", special(b, "bpf_spin_lock"), 4)], 0)[0],
                              "typedef": lambda: b.typedef("t", i)}[values]()
                        return i if key else 0, of, 4
                    case(build, map_type=map_type, max_entries=entries)
    lock = lambda b: special(b, "bpf_spin_lock")
    for said in 4, 8:
        value(lambda b, i: (b.section(".data", 8, [(b.var("l", lock(b)), 0, said)]), 8))
        case(lambda b, i: (0, b.section(".data", 8, [(b.var("l", lock(b)), 0, said)]), 8))
    value(lambda b, i: (b.section(".data", 12, [(b.var("l", b.array(lock(b), 2)), 0, 8)]), 12))
    value(lambda b, i: (b.section(".data", 8, [(b.var("l", lock(b)), 0, 4), (b.var("m", lock(b)), 4, 4)]), 8))
    value(lambda b, i: (b.section(".data", 4, [(b.var("l", b.typedef("t", lock(b))), 0, 4)]), 4))
    for said in 12, 16:
        value(lambda b, i: (b.section(".data", 16, [(b.var("l", holder(b, [("l", lock(b), 4)])[0]), 0, said)]), 16))


def keys():
    kinds = [
        lambda b, i: i, lambda b, i: b.u(4), lambda b, i: b.typedef("t", b.volatile(b.const(i))),
        lambda b, i: b.int("b", 4, encoding=4), lambda b, i: b.int("c", 4, encoding=2), lambda b, i: b.int("n", 4, 31),
        lambda b, i: b.int("n", 4, 16, offset=16), lambda b, i: b.u(2), lambda b, i: b.u(8), lambda b, i: b.u(16),
        lambda b, i: b.enum("e", 4, [("A", 0)]), lambda b, i: b.struct("s", 4, [("x", i, 0)]), lambda b, i: b.ptr(i),
        lambda b, i: b.array(i, 1), lambda b, i: b.float("f", 4), lambda b, i: b.var("x", i), lambda b, i: 999,
        lambda b, i: b.type("f", 7, 0, 0), lambda b, i: b.type("", 13, 0, 0), lambda b, i: b.decl_tag("d", b.typedef("t", i)),
        lambda b, i: b.tag("t", i), lambda b, i: b.section(".data", 4, [(b.var("x", i), 0, 4)]),
    ]
    for kind in kinds:
        for map_type in ARRAY, PERCPU_ARRAY, PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS:
            case(lambda b, i: (kind(b, i), i, 4), map_type=map_type)
            case(lambda b, i: (i, kind(b, i), 4), map_type=map_type)


def at_random(rng):
    """Values of structs in structs and arrays, with special fields here and there."""
    def build(b, i):
        once = [name for name in ("bpf_spin_lock", "bpf_timer", "bpf_wq", "bpf_task_work", "bpf_refcount")]
        rng.shuffle(once)
        types = {name: special(b, name) for name in once}
        foo = b.struct("foo", 4, [("x", i, 0)])
        pointers = [b.ptr(b.tag(tag, foo)) for tag in TAGS[:3]]

        def one(depth):
            """A type and its size and alignment."""
            roll = rng.random()
            if roll < 0.3 and once:
                name = once.pop()
                return types[name], SIZES[name], 4 if SIZES[name] == 4 else 8
            if roll < 0.5:
                return rng.choice(pointers), 8, 8
            if roll < 0.65 and depth < 3:
                of, size, align = one(depth + 1)
                count = rng.choice([0, 1, 1, 2, 3])
                return b.array(of, count), size * count, align
            if roll < 0.85 and depth < 3:
                return struct_of(depth + 1)
            return (i, 4, 4) if roll < 0.95 else (b.ptr(i), 8, 8)

        def struct_of(depth):
            at, align, members = 0, 4, []
            union = rng.random() < 0.1
            for index in range(rng.randint(1, 4)):
                of, size, own = one(depth)
                start = 0 if union else (at + own - 1) // own * own
                members.append((f"m{index}", of, start * 8))
                at, align = max(at, start + size), max(align, own)
            size = max((at + align - 1) // align * align, 4)
            return (b.union if union else b.struct)("s", size, members), size, align
        return struct_of(0)[:2]
    value(build)


def answer(of):
    btf = of["btf"].load()
    if btf < 0:
        return "load " + name(btf)
    inner = create(ARRAY, 4) if of["map_type"] == ARRAY_OF_MAPS else 0
    fd = create(*(of[k] for k in ("map_type", "value_size", "max_entries", "map_flags")), btf, of["key"], of["value"],
                inner)
    for used in [btf] + [inner] * (inner > 0):
        os.close(used)
    if fd < 0:
        return "create " + name(fd)
    try:
        if of["map_type"] not in (ARRAY, PERCPU_ARRAY):
            return "ok"
        size = of["value_size"]
        room = size if of["map_type"] == ARRAY else (size + 7) // 8 * 8 * CPUS
        buffer = ctypes.create_string_buffer(b"\x55" * room, room)
        assert element(UPDATE, fd, 0, buffer) == 0
        assert element(LOOKUP, fd, 0, buffer) == 0
        seen = bytearray(buffer.raw[:size])
        # What list heads show, kernel addresses, begins with ones.
        for at in range(0, size - 7, 8):
            if seen[at + 6:at + 8] == b"\xff\xff":
                seen[at:at + 8] = bytes(8)
        locked = element(LOOKUP, fd, 0, buffer, 4) == 0
        return "ok" + (" lock" if locked else "") + " " + (seen.hex() if seen != b"\x55" * size else "plain")
    finally:
        os.close(fd)


def main():
    by_name()
    together()
    pointers()
    graphs()
    sections()
    keys()
    rng = random.Random(1)
    for _ in range(150):
        at_random(rng)
    known, last = set(), None
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "maps.vec"), "w") as out:
        out.write(
            "# Which BTF a map takes.\n"
            "# `btf` gives the BTF of the maps that follow, `map` their attributes; key_size is 4. The answer is `load` or\n"
            "# `create` and an error number, or `ok`, `lock` where F_LOCK works, and what a lookup shows after an update\n"
            "# with all bytes 55 (addresses as zeros), or `plain` where that is the same.\n"
            f"# Recorded by record.py from Linux {os.uname().release.split('-')[0]}.\n")
        for of in cases:
            blob = of["btf"].bytes().hex()
            attr = " ".join(f"{k}={of[k]}" for k in ("map_type", "value_size", "max_entries", "map_flags", "key", "value"))
            if (blob, attr) in known:
                continue
            known.add((blob, attr))
            if blob != last:
                out.write(f"btf {blob}\n")
                last = blob
            out.write(f"map {attr} = {answer(of)}\n")
    print(len(known), "maps")


if __name__ == "__main__":
    main()
