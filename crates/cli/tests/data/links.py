"""Links programs to maps for whose elements they are called, through bpf(2), and reads what they write: prints what its calls gave,
ids left out. The same with the kernel as with `bpfarray exec`; `links.txt` is what Linux 6.18 gave."""
import ctypes
import os
import struct
import subprocess
import time

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
MAP_CREATE, UPDATE, PROG_LOAD, PIN, GET, TEST_RUN, PROG_FD_BY_ID, MAP_FD_BY_ID, INFO = 0, 2, 5, 6, 7, 10, 13, 14, 15
LINK_CREATE, LINK_UPDATE, LINK_FD_BY_ID, LINK_NEXT_ID, ENABLE_STATS, ITER_CREATE, LINK_DETACH = 28, 29, 30, 31, 32, 33, 34
ARRAY, PERCPU_ARRAY, XDP, KPROBE, TRACING, TRACE_ITER, SLEEPABLE = 2, 6, 6, 2, 26, 28, 16
META, KEY, VALUE = 0, 16, 24
SEQ_WRITE = 127
CPUS = int(open("/sys/devices/system/cpu/possible").read().replace("-", ",").split(",")[-1]) + 1
CLOSED = 4000
KEEP = []


def at(data):
    """The address of a copy of the bytes, which stays."""
    KEEP.append(ctypes.create_string_buffer(data, max(len(data), 1)))
    return ctypes.addressof(KEEP[-1])


def bpf(cmd, fields, size=168):
    """A call with fields by their offsets, of 4 bytes or, where the number is a pair, as long as it says."""
    block = bytearray(168)
    for offset, value in fields.items():
        value, length = value if isinstance(value, tuple) else (value, 4)
        block[offset:offset + length] = value.to_bytes(length, "little")
    block = ctypes.create_string_buffer(bytes(block), 168)
    result = LIBC.syscall(SYS_BPF, cmd, block, size)
    return (result if result >= 0 else -ctypes.get_errno()), block.raw


def ok(fd):
    """Whether the call gave a descriptor, which is closed."""
    if fd > 2:
        os.close(fd)
    return "ok" if fd > 2 else fd


def of(extra):
    return {int(name[1:]): value for name, value in extra.items()}


def iterator_id():
    """The id of the function that stands for the iterator, as libbpf finds it; and how many types there are."""
    with open("/sys/kernel/btf/vmlinux", "rb") as file:
        btf = file.read()
    header, types, types_len, strings, strings_len = struct.unpack_from("<5I", btf, 4)
    strings = btf[header + strings:header + strings + strings_len]
    name = strings.index(b"\0bpf_iter_bpf_map_elem\0") + 1
    # Bytes after a record, at all and for each of its members.
    rest = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}
    place, end, found, number = header + types, header + types + types_len, 0, 0
    while place < end:
        number += 1
        name_off, info = struct.unpack_from("<2I", btf, place)
        kind, members = info >> 24 & 31, info & 0xFFFF
        if (name_off, kind) == (name, 12):
            found = number
        always, each = rest.get(kind, (0, 0))
        place += 12 + always + each * members
    return found, number


ITERATOR, LAST = iterator_id()


def insn(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def mov(dst, imm):
    return insn(0xB7, dst, 0, 0, imm)


def ldx(dst, src, off, size=0x79):
    return insn(size, dst, src, off)


EXIT = insn(0x95)
RETURN_0 = mov(0, 0) + EXIT


def writes(field, count):
    """A program that writes so many bytes of a key or value."""
    return (insn(0xBF, 6, 1) + ldx(2, 1, field) + insn(0x15, 2, 0, 4) + ldx(1, 6, META) + ldx(1, 1, 0) + mov(3, count) +
            insn(0x85, imm=SEQ_WRITE) + RETURN_0)


def reaches(field, off):
    """A program that loads 4 bytes there."""
    return ldx(2, 1, field) + insn(0x15, 2, 0, 1) + ldx(3, 2, off, 0x61) + RETURN_0


def load(insns, prog_type=TRACING, attach_type=TRACE_ITER, btf_id=ITERATOR, **extra):
    fields = {0: prog_type, 4: len(insns) // 8, 8: (at(insns), 8), 16: (at(b"GPL\0"), 8), 68: attach_type, 108: btf_id}
    return bpf(PROG_LOAD, fields | of(extra))[0]


def map_create(map_type=ARRAY, value=8, entries=3, **extra):
    return bpf(MAP_CREATE, {0: map_type, 4: 4, 8: value, 12: entries} | of(extra))[0]


def info_of(map_fd):
    return at(struct.pack("I12x", map_fd & 0xFFFFFFFF))


def link(prog, map_fd, **extra):
    return bpf(LINK_CREATE, {0: prog, 8: TRACE_ITER, 16: (info_of(map_fd), 8), 24: 4} | of(extra))[0]


def read_all(fd):
    text = b""
    while part := os.read(fd, 1 << 16):
        text += part
    os.close(fd)
    return text


def iterate(fd):
    found = bpf(ITER_CREATE, {0: fd})[0]
    return found if found < 0 else read_all(found).hex()


def iterate_once(prog, map_fd):
    fd = link(prog, map_fd)
    found = iterate(fd)
    os.close(fd)
    return found


prog, array = load(RETURN_0), map_create()
xdp, sleepy, null = load(RETURN_0, XDP, 0, 0), load(RETURN_0, _44=SLEEPABLE), os.open("/dev/null", os.O_RDONLY)

print("== programs")
print("ids", ok(load(RETURN_0)), [load(RETURN_0, btf_id=number) for number in (0, LAST, LAST + 1, 0xFFFFF, 0x100000, 0xFFFFFFFF)])
print("types", load(RETURN_0, XDP, 0), load(RETURN_0, KPROBE, 0), load(RETURN_0, XDP), load(RETURN_0, attach_type=0))
print("prog fd", load(RETURN_0, _112=CLOSED), load(RETURN_0, _112=xdp), load(RETURN_0, _112=null), load(RETURN_0, btf_id=0, _112=CLOSED))
print("results", ok(load(mov(0, 1) + EXIT)), load(mov(0, 2) + EXIT), load(insn(0x85, imm=7) + EXIT))
print("context", [load(ldx(2, 1, off, size) + RETURN_0) for off, size in ((32, 0x79), (16, 0x61), (1, 0x79))], load(insn(0x7B, 1, 1) + RETURN_0))
print("key", load(reaches(KEY, -1)), load(ldx(2, 1, KEY) + ldx(3, 2, 0) + RETURN_0),
      load(ldx(2, 1, KEY) + insn(0x15, 2, 0, 1) + insn(0x62, 2, 0, 0, 1) + RETURN_0))
print("meta", [ok(load(ldx(2, 1, META) + ldx(3, 2, off, size) + RETURN_0)) for off, size in
               ((0, 0x79), (8, 0x79), (16, 0x79), (16, 0x61), (20, 0x61), (0, 0x61), (4, 0x61), (12, 0x79), (24, 0x79), (-8, 0x79))],
      load(ldx(2, 1, META) + insn(0x7A, 2, 0, 0) + RETURN_0))
print("run", [bpf(TEST_RUN, {0: prog} | fields)[0] for fields in ({}, {8: 64, 16: (at(bytes(64)), 8)}, {64: 1}, {68: 1}, {72: 1})])
prog_info = at(bytes(232))
bpf(INFO, {0: prog, 4: 232, 8: (prog_info, 8)}, 16)
print("told", struct.unpack_from("I", ctypes.string_at(prog_info, 232), 224)[0] == ITERATOR)

print("== what LINK_CREATE judges")
print("tails", [ok(link(prog, array, **{"_%d" % off: (1, 1)})) for off in (4, 12, 28, 40, 52, 59, 60, 64, 167)])
print("sizes", [ok(bpf(LINK_CREATE, {0: prog, 8: TRACE_ITER, 16: (info_of(array), 8), 24: 4}, size)[0]) for size in (0, 4, 12, 16, 24, 28, 168)])
print("program", [link(fd, array) for fd in (CLOSED, array, null, xdp)], link(CLOSED, array, _4=1), link(xdp, array, _8=37), link(xdp, array, _8=0))
print("attach type", [link(prog, array, _8=number) for number in (0, 1, 27, 29, 57, 100, 0xFFFFFFFF)], link(CLOSED, array, _8=0))
none = {0: prog, 8: TRACE_ITER}
print("info", bpf(LINK_CREATE, none)[0], bpf(LINK_CREATE, none | {24: 4})[0], bpf(LINK_CREATE, none | {16: (info_of(array), 8)})[0],
      [bpf(LINK_CREATE, none | {16: (8, 8), 24: size})[0] for size in (4, 16, 17, 4097)])
block = at(struct.pack("I", array) + bytes(5000))
print("its size", [ok(bpf(LINK_CREATE, none | {16: (block, 8), 24: size})[0]) for size in (4, 5, 16, 17, 4096, 4097)])
print("its tail", [ok(bpf(LINK_CREATE, none | {16: (at(struct.pack("I", array) + bytes(off - 4) + b"\1"), 8), 24: off + 1})[0]) for off in (4, 15, 16)])
print("map", [link(prog, fd) for fd in (0, CLOSED, -1, null, prog)])
kinds = [map_create(), map_create(PERCPU_ARRAY), map_create(3, 4), map_create(4, 4), map_create(8, 4), map_create(12, 4, _20=array)]
print("kinds", [ok(link(prog, fd)) for fd in kinds])
print("modes", [ok(link(prog, map_create(_16=flags))) for flags in (8, 16, 0x80, 0x100, 0x400)])
exclusive = [bpf(MAP_CREATE, {0: kind, 4: 4, 8: size, 12: 1, 80: (at(bytes(32)), 8), 88: 32})[0] for kind, size in ((ARRAY, 8), (3, 4))]
print("exclusive", [link(prog, fd) for fd in exclusive], link(load(reaches(KEY, 4)), exclusive[0]), link(sleepy, exclusive[0]))
print("sleepable", link(sleepy, array), link(sleepy, CLOSED), link(sleepy, array, _24=0))
print("key", [ok(link(load(reaches(KEY, off)), array)) for off in (0, 1, 4)], [ok(link(load(writes(KEY, count)), array)) for count in (4, 5)])
print("value", [ok(link(load(reaches(VALUE, off)), array)) for off in (4, 5, 100)], [ok(link(load(writes(VALUE, count)), array)) for count in (8, 9)])
per_cpu = map_create(PERCPU_ARRAY, 6)
print("of CPUs", [ok(link(load(reaches(VALUE, 8 * CPUS + off)), per_cpu)) for off in (-4, -3, 0)])
print("order", link(load(reaches(KEY, 1)), kinds[2]), link(load(reaches(KEY, 1)), CLOSED), link(prog, CLOSED, _12=1))

print("== iterators")
for index in range(3):
    bpf(UPDATE, {0: array, 8: (at(struct.pack("I", index)), 8), 16: (at(struct.pack("Q", 0x1111 * index)), 8)})
values = load(writes(VALUE, 8))
linked = link(values, array)
print("text", iterate(linked), iterate(linked), iterate_once(load(writes(KEY, 4)), array), iterate_once(prog, array))
print("judged", bpf(ITER_CREATE, {0: linked, 4: 1})[0], bpf(ITER_CREATE, {0: linked, 8: 1})[0], bpf(ITER_CREATE, {0: CLOSED, 4: 1})[0],
      [bpf(ITER_CREATE, {0: fd})[0] for fd in (CLOSED, array, prog, null)])
fd = bpf(ITER_CREATE, {0: linked})[0]
print("not bpf's", bpf(ITER_CREATE, {0: fd})[0], bpf(INFO, {0: fd, 4: 64, 8: (at(bytes(64)), 8)}, 16)[0], bpf(PIN, {0: (at(b"/sys/fs/bpf/none\0"), 8), 8: fd})[0])
child = os.fork()
if child == 0:
    os._exit(os.read(fd, 8) != struct.pack("Q", 0))
other = os.dup(fd)
print("shared", os.waitpid(child, 0)[1], os.read(other, 8).hex(), read_all(fd).hex(), read_all(other))
adds = load(ldx(2, 1, VALUE) + insn(0x15, 2, 0, 2) + mov(3, 1) + insn(0xDB, 2, 3) + RETURN_0)
print("adds", iterate_once(adds, array), iterate(linked))
whole = link(load(writes(VALUE, 8 * CPUS)), per_cpu)
bpf(UPDATE, {0: per_cpu, 8: (at(struct.pack("I", 1)), 8), 16: (at(b"\7" * 8 * CPUS), 8)})
print("of CPUs", iterate(whole) == bytes(8 * CPUS).hex() + (b"\7" * 8 * CPUS).hex() + bytes(8 * CPUS).hex())

print("== LINK_UPDATE and LINK_DETACH")
keys = load(writes(KEY, 4))
update = lambda **extra: bpf(LINK_UPDATE, of(extra))[0]
print("replaced", update(_0=linked, _4=keys), iterate(linked), update(_0=linked, _4=keys), update(_0=linked, _4=sleepy), update(_0=linked, _4=values))
print("expected", update(_0=linked, _4=keys, _8=4, _12=prog), update(_0=linked, _4=keys, _8=4, _12=values), update(_0=linked, _4=values, _8=4, _12=keys))
print("old", update(_0=linked, _4=keys, _12=values), update(_0=linked, _4=keys, _8=4), update(_0=linked, _4=keys, _8=4, _12=array),
      update(_0=linked, _4=keys, _8=4, _12=CLOSED), update(_0=linked, _4=xdp, _8=4, _12=prog), update(_0=linked, _4=CLOSED, _12=values))
print("flags", [update(_0=linked, _4=keys, _8=flags) for flags in (1, 2, 8)], update(_0=CLOSED, _4=CLOSED, _8=1), update(_0=linked, _4=keys, _16=1))
print("new", [update(_0=linked, _4=fd) for fd in (xdp, array, CLOSED, null)], "link", [update(_0=fd, _4=keys) for fd in (CLOSED, array, keys, null)])
print("detach", [bpf(LINK_DETACH, {0: fd})[0] for fd in (linked, CLOSED, array, prog, null)], bpf(LINK_DETACH, {0: linked, 4: 1})[0])

print("== what is told about links")


def info(fd, size=64, **extra):
    block = bytearray(max(size, 80))
    for offset, value in of(extra).items():
        value, length = value if isinstance(value, tuple) else (value, 4)
        block[offset:offset + length] = value.to_bytes(length, "little")
    address = at(bytes(block))
    found, attr = bpf(INFO, {0: fd, 4: size, 8: (address, 8)}, 16)
    return found, struct.unpack_from("I", attr, 4)[0], ctypes.string_at(address, 64)


def object_id(fd):
    return struct.unpack_from("I", info(fd)[2], 4)[0]


kind, link_id, prog_id = struct.unpack_from("3I", info(linked)[2])
print("info", kind, prog_id == object_id(values), struct.unpack_from("I", info(linked)[2], 24)[0], struct.unpack_from("I", info(linked)[2], 28)[0] == object_id(array),
      info(linked)[2][12:24].hex(), info(linked)[2][32:].hex())
for size in (1, 5, 12, 13, 20):
    name = at(b"\xee" * 20)
    found, written, told = info(linked, _16=(name, 8), _24=size)
    print("name", size, found, written, struct.unpack_from("2I", told)[0], ctypes.string_at(name, 20))
print("halves", info(linked, _24=20)[0], info(linked, _16=(name, 8))[0], info(linked, _16=(8, 8), _24=20)[:2], info(linked, 20, _16=(name, 8))[0])
print("sizes", [info(linked, size)[:2] for size in (0, 4, 12, 16, 28, 32, 63, 64, 72, 4096, 4097)])
print("rest", info(linked, 72, _64=1)[0], info(linked, _12=7, _60=9)[2][12:16].hex(), info(linked, _12=7, _60=9)[2][60:].hex(),
      bpf(INFO, {0: linked, 4: 64, 8: (8, 8)}, 16)[0])
with open("/proc/self/fdinfo/%d" % linked) as fdinfo:
    lines = [line.split() for line in fdinfo][4:]
ids = [link_id, object_id(values), object_id(array)]
print("fdinfo", [line[0] if line[0].endswith("_id:") else line for line in lines], [int(line[1]) for line in lines if line[0].endswith("_id:")] == ids)
following = bpf(LINK_NEXT_ID, {0: link_id - 1})
print("next", following[0], struct.unpack_from("I", following[1], 4)[0] == link_id, bpf(LINK_NEXT_ID, {0: 0x7FFFFFFE})[0],
      bpf(LINK_NEXT_ID, {0: 0x7FFFFFFF})[0], bpf(LINK_NEXT_ID, {0: 0, 8: 1})[0])
by_id = lambda number, **extra: bpf(LINK_FD_BY_ID, {0: number} | of(extra))[0]
print("by id", ok(by_id(link_id)), by_id(0), by_id(1 << 30), by_id(0xFFFFFFFF), by_id(link_id, _4=1), by_id(link_id, _8=8))
print("not a link", bpf(1, {0: linked, 8: (at(bytes(4)), 8), 16: (at(bytes(8)), 8)})[0], bpf(TEST_RUN, {0: linked})[0], link(linked, array), link(prog, linked))

print("== what keeps what")
path, pinned = b"/sys/fs/bpf/bpfarray_test_link\0", "/sys/fs/bpf/bpfarray_test_link"
if os.path.exists(pinned):
    os.unlink(pinned)
pin = lambda fd: bpf(PIN, {0: (at(path), 8), 8: fd})[0]
get = lambda flags=0: bpf(GET, {0: (at(path), 8), 12: flags})[0]
ids = object_id(values), object_id(array)
print("pin", pin(linked), pin(linked), [ok(get(flags)) for flags in (0, 8, 16, 24)])
for fd in (linked, values, array):
    os.close(fd)
print("kept", ok(bpf(PROG_FD_BY_ID, {0: ids[0]})[0]), ok(bpf(MAP_FD_BY_ID, {0: ids[1]})[0]))
print("cat", read_all(os.open(pinned, os.O_RDONLY)).hex(), subprocess.run(["cat", pinned], stdout=subprocess.PIPE).stdout.hex())
again = get()
print("get", iterate(again), object_id(again) == link_id, os.unlink(pinned), ok(by_id(link_id)))
stats = bpf(ENABLE_STATS, {})[0]
before = bpf(PROG_FD_BY_ID, {0: ids[0]})[0]
iterate(again)
prog_info = at(bytes(232))
bpf(INFO, {0: before, 4: 232, 8: (prog_info, 8)}, 16)
print("runs", struct.unpack_from("Q", ctypes.string_at(prog_info, 232), 200)[0])
for fd in (again, before, stats):
    os.close(fd)
# The kernel takes its time with what nobody needs any more.
for _ in range(100):
    gone = [by_id(link_id), bpf(PROG_FD_BY_ID, {0: ids[0]})[0], bpf(MAP_FD_BY_ID, {0: ids[1]})[0]]
    if max(gone) < 0:
        break
    for fd in gone:
        ok(fd)
    time.sleep(0.01)
print("gone", gone, get())
