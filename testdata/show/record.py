#!/usr/bin/env python3
"""Records what the live kernel shows when pinned maps are read, into values.vec.

Needs root and a bpffs of its own, so run it as
    unshare --mount sh -c 'mount --make-rprivate / && mount -t bpf bpf /mnt && ./record.py /mnt'

Not asked, for we differ on purpose: pointers that the kernel hashes, arrays of pointers and of arrays with
elements that differ, enumerations that do not have 4 bytes (8 of an enum64), bit fields that end at bit 128.
"""

import ctypes
import os
import random
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../check_btf"))
from kernel import *

pack = struct.pack
cases = []


def case(build, data, map_type=ARRAY, entries=1, key=True, size=None):
    """The last element is `data`, others are zeros. For a PERCPU_ARRAY, `size` is that of one CPU's value."""
    btf = Btf()
    i = btf.int()
    cases.append((btf, map_type, entries, i if key else 0, build(btf, i), size or len(data), data))


def pair(b, i, name="s"):
    return b.struct(name, 8, [("a", i, 0), ("b", i, 32)])


def integers():
    for size in 1, 2, 4, 8, 16:
        for encoding in 0, 1, 2, 4:
            for byte in b"\x00", b"\x05", b"\x80", b"\xff", b"A":
                case(lambda b, i: b.int("n", size, encoding=encoding), byte * size)
            case(lambda b, i: b.array(b.int("n", size, encoding=encoding), 3), bytes(range(64, 64 + 3 * size)))
    for size, bits, offset in [(4, 24, 0), (8, 40, 0), (4, 3, 2), (4, 8, 8), (4, 32, 0), (8, 32, 0), (2, 8, 0), (16, 64, 64), (16, 100, 3)]:
        for encoding in 0, 1, 2:
            case(lambda b, i: b.int("n", size, bits, encoding, offset), bytes(range(0xA1, 0xA1 + size)))
    case(lambda b, i: b.int("n", 16), pack("<QQ", 5, 0))
    case(lambda b, i: b.int("n", 16), pack("<QQ", 5, 9))


def characters():
    texts = [b"hi\0\0", b"hi!!", b"\x01\x02hi", b"\x80\x9f\xa0\xff", b"\x7f\x1f '", b"\0abc", b"\\\"\n\t", b"a\0b\0"]
    for text in texts:
        case(lambda b, i: b.array(b.char(), 4), text)
        case(lambda b, i: b.array(b.u(1), 4), text)
        case(lambda b, i: b.array(b.int("bool", 1, encoding=4), 4), text)
        case(lambda b, i: b.array(b.typedef("t", b.const(b.char())), 4), text)
        case(lambda b, i: b.struct("v", 12, [("a", b.array(b.char(), 4), 0), ("x", b.char(), 32), ("b", b.array(b.char(), 4), 40)]),
             text + b"A" + text + b"\0\0\0")
        case(lambda b, i: b.array(b.array(b.char(), 4), 2), text * 2)


def enumerations():
    values = [("A", 0), ("B", 1), ("C", -1), ("D", 1)]
    for flag in 0, 1:
        for value in 0, 1, 7, 0xFFFFFFFF, 0xFFFFFFFE:
            case(lambda b, i: b.enum("e", 4, values, flag), pack("<I", value))
            case(lambda b, i: b.array(b.enum("e", 4, values, flag), 2), pack("<II", 0, value))
        for value in 0, 1 << 40, 2**64 - 1, 2**63:
            case(lambda b, i: b.enum64("e", [("BIG", 1 << 40), ("LOW", -1)], flag), pack("<Q", value))


def composites():
    case(lambda b, i: pair(b, i), pack("<ii", 1, -2))
    case(lambda b, i: b.typedef("t", b.const(pair(b, i))), pack("<ii", 1, 2))
    case(lambda b, i: b.var("t", pair(b, i)), pack("<ii", 1, 2))
    case(lambda b, i: b.union("u", 8, [("a", i, 0), ("b", b.u(8), 0)]), pack("<ii", 1, 2))
    wrap = lambda b, of, size: b.struct("v", size + 4, [("w", of, 0), ("x", 1, size * 8)])
    inside = [
        lambda b, i: pair(b, i), lambda b, i: b.const(pair(b, i)), lambda b, i: b.typedef("t", pair(b, i)),
        lambda b, i: b.typedef("t", b.const(pair(b, i))), lambda b, i: b.const(b.typedef("t", pair(b, i))),
        lambda b, i: b.tag("t", pair(b, i)), lambda b, i: b.array(i, 2), lambda b, i: b.const(b.array(i, 2)),
        lambda b, i: b.typedef("t", b.array(i, 2)), lambda b, i: b.array(b.const(i), 2),
        lambda b, i: b.array(pair(b, i), 1), lambda b, i: b.array(b.typedef("t", pair(b, i)), 1),
        lambda b, i: b.union("u", 8, [("p", pair(b, i), 0), ("q", b.array(i, 2), 0)]),
        lambda b, i: b.union("u", 8, []), lambda b, i: b.struct("u", 8, []),
        lambda b, i: b.array(b.array(i, 2), 1), lambda b, i: b.array(b.array(pair(b, i), 1), 1),
        lambda b, i: b.array(b.ptr(0), 1), lambda b, i: b.array(b.array(b.ptr(i), 1), 1),
        lambda b, i: b.array(b.typedef("t", b.ptr(i)), 1), lambda b, i: b.ptr(i), lambda b, i: b.float("d", 8),
        lambda b, i: b.array(b.float("f", 4), 2), lambda b, i: b.array(i, 0), lambda b, i: b.array(b.ptr(i), 0),
    ]
    for of in inside:
        for data in bytes(12), pack("<qi", -1, 7):
            case(lambda b, i: wrap(b, of(b, i), 8), data)
            case(lambda b, i: b.array(wrap(b, of(b, i), 8), 2), data * 2)
        case(of, b"\xff" * 8) if inside.index(of) not in (13, 14, 23, 24) else None
    def levels(n):
        def build(b, i):
            at = pair(b, i)
            for _ in range(n):
                at = b.array(at, 1)
            return b.struct("v", 16, [("x", i, 0), ("a", at, 32)])
        return build
    for n in 7, 8, 9, 10, 11:
        case(levels(n), pack("<iiii", 1, 2, 3, 4))
    case(lambda b, i: b.struct("v", 8, [("a", i, 3 << 24), ("b", i, 3 | 13 << 24), ("c", i, 16 | 16 << 24), ("d", i, 32)], 1),
         pack("<II", 0xDEADBEEF, 7))
    case(lambda b, i: b.struct("v", 16, [("a", b.u(8), 3 | 61 << 24), ("b", i, 64 | 32 << 24)], 1), b"\xff" * 16)
    case(lambda b, i: b.struct("v", 4, [("a", b.enum("e", 4, [("A", 1)]), 2 << 24), ("b", b.enum("e", 4, [("A", 1)]), 2 | 1 << 24)], 1), b"\5\0\0\0")
    case(lambda b, i: b.struct("v", 8, [("a", b.int("x", 4, 3, offset=2), 0), ("b", b.int("y", 4, 5), 9)]), pack("<II", 0xDEADBEEF, 7))
    for pointer in 2**64 - 1, 2**64 - 4095:
        case(lambda b, i: b.ptr(0), pack("<Q", pointer))


def maps():
    for entries, key in (1, False), (1, True), (2, True):
        case(lambda b, i: b.section(".data", 12, [(b.var("x", i), 0, 4), (b.var("y", b.array(i, 2)), 4, 8)]),
             pack("<iii", 1, 2, 3), entries=entries, key=key)
    case(lambda b, i: b.section(".bss", 16, [(b.var("p", b.typedef("t", pair(b, i))), 0, 8), (b.var("q", pair(b, i)), 8, 8)]),
         pack("<iiii", 1, 2, 3, 4), key=False)
    case(lambda b, i: b.section(".rodata", 16, [(b.var("t", b.array(b.char(), 4)), 4, 4), (b.var("f", b.float("d", 8)), 8, 8)]),
         b"\0\0\0\0text" + bytes(8), key=False)
    case(lambda b, i: i, pack("<i", 5), entries=3)
    case(lambda b, i: b.struct("v", 24, [("l", b.struct("bpf_spin_lock", 4, [("val", b.u(4), 0)]), 0),
                                         ("t", b.struct("bpf_timer", 16, [("o", b.array(b.u(8), 2), 0)]), 64)]), b"\xff" * 24)
    for size in 3, 4, 8, 12:
        cpus = b"".join(bytes([65 + c] * size).ljust((size + 7) // 8 * 8, b"\xee") for c in range(CPUS))
        case(lambda b, i: b.array(b.u(1), size), cpus, PERCPU_ARRAY, 2, size=size)
    case(lambda b, i: pair(b, i), b"".join(pack("<ii", -c, c) for c in range(CPUS)), PERCPU_ARRAY, 2, size=8)


def at_random(rng):
    def build(b, i):
        def scalar():
            kind = rng.randrange(8)
            if kind < 5:
                size = rng.choice([1, 2, 4, 8, 16])
                return b.int("n", size, encoding=rng.choice([0, 1, 1, 2, 4])), size
            if kind == 5:
                return b.enum("e", 4, [("A", 0), ("B", 1)], rng.randrange(2)), 4
            return (b.ptr(i), 8) if kind == 6 else (b.float("f", 4), 4)

        def modified(of):
            return rng.choice([lambda t: t] * 5 + [b.const, b.volatile, lambda t: b.typedef("t", t)])(of)

        def one(depth, elements=False):
            if depth > 3 or rng.random() < 0.4:
                of, size = scalar()
                return modified(of), size
            if rng.random() < 0.4:
                of, size = one(depth + 1, True)
                # Of arrays and pointers, one: the kernel would repeat it.
                whole = b.resolved.get(of) in ("array", "pointer")
                count = 1 if whole else rng.choice([0, 1, 2, 3, 5])
                of = b.array(of, count)
                return modified(of), size * count
            union, at, members = rng.random() < 0.3, 0, []
            for index in range(rng.randint(0, 4)):
                of, size = one(depth + 1)
                # Floats must be aligned.
                start = 0 if union else at + 3 & ~3
                members.append((f"m{index}", of, start * 8))
                at = max(at, start + size)
            return modified((b.union if union else b.struct)("s", at, members)), at
        of, size = one(0)
        build.size = size
        return of
    btf = Btf()
    i = btf.int()
    btf.resolved = {}
    # What each type is below its modifiers.
    plain = Btf.type
    def noting(name, kind, length, value, tail=b"", flag=0):
        id = plain(btf, name, kind, length, value, tail, flag)
        btf.resolved[id] = {2: "pointer", 3: "array"}.get(kind) or (btf.resolved.get(value) if kind in (8, 9, 10) else None)
        return id
    btf.type = noting
    of = build(btf, i)
    if build.size == 0:
        return
    btf.has_pointer = "pointer" in btf.resolved.values()
    data = bytes(build.size) if btf.has_pointer else bytes(rng.choice([0, 1, 65, 200, 255]) for _ in range(build.size))
    del btf.type
    cases.append((btf, ARRAY, 1, i, of, len(data), data))


def escaped(text):
    text = text.decode("latin-1").replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def main():
    root = sys.argv[1]
    integers()
    characters()
    enumerations()
    composites()
    maps()
    rng = random.Random(1)
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 300):
        at_random(rng)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "values.vec")
    with open(path, "w", encoding="utf-8") as out:
        out.write(
            "# What a pinned map reads like, without the two lines before the first element.\n"
            "# The last of `entries` elements has the bytes `data`, for all CPUs where there are several; others are zeros.\n"
            "# The text is Latin-1, with \\\\, \\n, \\t and \\xNN.\n"
            f"# Recorded by record.py from Linux {os.uname().release.split('-')[0]} with {CPUS} possible CPUs.\n")
        for btf, map_type, entries, key, value, size, data in cases:
            loaded = btf.load()
            assert loaded >= 0, (name(loaded), btf.bytes().hex())
            fd = create(map_type, size, entries, 0, loaded, key, value)
            assert fd >= 0, (name(fd), btf.bytes().hex())
            result = element(UPDATE, fd, entries - 1, ctypes.create_string_buffer(data, len(data)))
            assert result == 0, result
            text = read_pinned(fd, os.path.join(root, "map"))
            text = text.split(b"\n", 2)[2]
            os.close(fd)
            os.close(loaded)
            out.write(f"map_type={map_type} entries={entries} key={key} value={value} data={data.hex()} "
                      f"btf={btf.bytes().hex()} = {escaped(text)}\n")
    print(len(cases), "maps")


if __name__ == "__main__":
    main()
