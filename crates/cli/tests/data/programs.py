"""Loads, runs and asks about programs through bpf(2): prints what its calls gave, ids left out. The same with the kernel as
with `bpfarray exec`."""
import ctypes
import hashlib
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
MAP_CREATE, UPDATE, PROG_LOAD, PIN, GET, TEST_RUN, NEXT_ID, FD_BY_ID, MAP_FD_BY_ID = 0, 2, 5, 6, 7, 10, 11, 13, 14
INFO, BTF_LOAD, ENABLE_STATS, BIND_MAP = 15, 18, 32, 35
SOCKET_FILTER, CLS, XDP, RAW_TP, CGROUP_SOCK, SYSCALL = 1, 3, 6, 17, 9, 31
KEEP = []


def at(data):
    """The address of a copy of the bytes, which stays."""
    KEEP.append(ctypes.create_string_buffer(data, len(data)))
    return ctypes.addressof(KEEP[-1])


def bytes_at(address, size):
    return ctypes.string_at(address, size)


def bpf(cmd, fields, size=168):
    """A call with fields by their offsets, of 4 bytes or, where the number is a pair, as long as it says."""
    block = bytearray(168)
    for offset, value in fields.items():
        value, length = value if isinstance(value, tuple) else (value, 4)
        block[offset:offset + length] = value.to_bytes(length, "little") if isinstance(value, int) else value
    block = ctypes.create_string_buffer(bytes(block), 168)
    result = LIBC.syscall(SYS_BPF, cmd, block, size)
    return (result if result >= 0 else -ctypes.get_errno()), block.raw


def insn(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def mov(dst, imm):
    return insn(0xB7, dst, 0, 0, imm)


def load_imm64(dst, src, low, high=0):
    return insn(0x18, dst, src, 0, low) + insn(0, 0, 0, 0, high)


EXIT = insn(0x95)
RETURN_7 = mov(0, 7) + EXIT


def load(prog_type, insns, license=b"GPL\0", log=0, level=1, **extra):
    fields = {0: prog_type, 4: len(insns) // 8, 8: (at(insns), 8), 16: (at(license), 8)}
    if log:
        fields |= {24: level, 28: log, 32: (at(b"\xee" * log), 8)}
    fields |= {int(offset[1:]): value for offset, value in extra.items()}
    return bpf(PROG_LOAD, fields)[0]


def run(fd, **fields):
    found, block = bpf(TEST_RUN, {0: fd} | {int(offset[1:]): value for offset, value in fields.items()}, 80)
    retval, data_out, ctx_out = (struct.unpack_from("i", block, place)[0] for place in (4, 12, 44))
    return found, retval, data_out, ctx_out


def info(fd, size=232, **fields):
    block = bytearray(size)
    for offset, value in fields.items():
        value, length = value if isinstance(value, tuple) else (value, 4)
        block[int(offset[1:]):int(offset[1:]) + length] = value.to_bytes(length, "little")
    address = at(bytes(block))
    found, attr = bpf(INFO, {0: fd, 4: size, 8: (address, 8)}, 16)
    return found, struct.unpack_from("I", attr, 4)[0], bytes_at(address, size)


def map_create(map_type=2, value=8, entries=1, flags=0):
    return bpf(MAP_CREATE, {0: map_type, 4: 4, 8: value, 12: entries, 16: flags})[0]


ok = lambda fd: "ok" if fd > 2 else fd
closed = lambda: 4000

print("== what PROG_LOAD judges")
print("length", load(XDP, b""), load(XDP, RETURN_7, _4=1000001), load(XDP, RETURN_7, _8=(8, 8)))
print("license", load(XDP, RETURN_7, _16=(8, 8)), ok(load(XDP, RETURN_7, b"x" * 200)), ok(load(XDP, RETURN_7, b"\0")))
print("type", [load(kind, RETURN_7) for kind in (0, 33, 1000)])
print("flags", [ok(load(XDP, RETURN_7, _44=1 << bit)) for bit in (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17)])
print("name", [ok(load(XDP, RETURN_7, _48=(name, 16))) for name in
               (b"good_Name.1".ljust(16, b"\0"), b"no-".ljust(16, b"\0"), b"x" * 16, b"x\0y".ljust(16, b"\0"), bytes(16))])
print("attach type", ok(load(SYSCALL, RETURN_7, _44=16)), load(SYSCALL, RETURN_7, _44=16, _68=1), load(SYSCALL, RETURN_7),
      ok(load(XDP, RETURN_7, _68=37)), ok(load(SOCKET_FILTER, RETURN_7, _68=99)))
print("BTF id", load(XDP, RETURN_7, _108=1), load(XDP, RETURN_7, _112=closed()), load(26, RETURN_7))
print("cgroup", ok(load(CGROUP_SOCK, mov(0, 1) + EXIT)), ok(load(CGROUP_SOCK, mov(0, 1) + EXIT, _68=2)),
      load(CGROUP_SOCK, mov(0, 1) + EXIT, _68=5))
print("ifindex", load(XDP, RETURN_7, _64=12345), "CO-RE", ok(load(XDP, RETURN_7, _116=1)))
print("size", [ok(bpf(PROG_LOAD, {0: XDP, 4: 2, 8: (at(RETURN_7), 8), 16: (at(b"GPL\0"), 8)}, size)[0])
               for size in (8, 16, 24, 48, 116, 168)])
print("log", [load(XDP, RETURN_7, **{"_24": level, "_28": size, "_32": (address, 8)}) > 0 or
              load(XDP, RETURN_7, **{"_24": level, "_28": size, "_32": (address, 8)})
              for level, size, address in ((0, 0, 0), (1, 0, 0), (1, 100, 0), (0, 100, at(bytes(100))), (1, 0, at(bytes(100))),
                                           (16, 4096, at(bytes(4096))), (8, 4096, at(bytes(4096))), (1, 4096, at(bytes(4096))),
                                           (1, 1 << 30, at(bytes(4096))), (1, 10, at(bytes(10))))])
print("unknown opcode", load(XDP, insn(0xFF) + EXIT), "no exit", load(XDP, mov(0, 1)), "r0", load(XDP, EXIT))
print("helper for GPL", load(XDP, mov(1, 0) + mov(2, 0) + insn(0x85, 0, 0, 0, 6) + RETURN_7, b"MIT\0"),
      ok(load(XDP, insn(0x85, 0, 0, 0, 5) + RETURN_7, b"MIT\0")))

print("== maps of programs")
array, two, per_cpu = map_create(), map_create(entries=2), map_create(6)
not_map = os.open("/dev/null", os.O_RDONLY)
program = load(XDP, RETURN_7)
ld = lambda src, low, high=0, **extra: ok(load(XDP, load_imm64(1, src, low, high) + RETURN_7, **extra))
print("by fd", ld(1, array), ld(1, array, 1), ld(1, closed()), ld(1, not_map), ld(1, program), ld(7, array), ld(1, -1))
print("values", ld(2, array), ld(2, array, 7), ld(2, array, 8), ld(2, two), ld(2, per_cpu), ld(2, array, 1 << 29), ld(2, array, -1))
fds = at(struct.pack("3i", array, two, closed()))
print("by index", ld(5, 0), ld(5, 1, _120=(fds, 8)), ld(6, 0, 4, _120=(fds, 8)), ld(5, 2, _120=(fds, 8)), ld(5, 0, 1, _120=(fds, 8)),
      ld(5, 0, _120=(8, 8)))
bound = load(XDP, RETURN_7, _120=(fds, 8), _148=2)
print("listed", ok(bound), ld(0, 0, _120=(fds, 8), _148=3), ld(0, 0, _120=(8, 8), _148=1), ld(0, 0, _148=1),
      ld(0, 0, _120=(fds, 8), _148=1 << 30), struct.unpack_from("I", info(bound)[2], 52)[0],
      ld(0, 0, _120=(at(struct.pack("i", not_map)), 8), _148=1))
uses = load(XDP, load_imm64(1, 1, two) + load_imm64(2, 2, array, 4) + load_imm64(3, 1, two) + RETURN_7)
print("bind", bpf(BIND_MAP, {0: uses, 4: per_cpu})[0], bpf(BIND_MAP, {0: uses, 4: per_cpu})[0], bpf(BIND_MAP, {0: uses, 4: two, 8: 1})[0],
      bpf(BIND_MAP, {0: array, 4: two})[0], bpf(BIND_MAP, {0: uses, 4: uses})[0], bpf(BIND_MAP, {0: closed(), 4: two})[0],
      bpf(BIND_MAP, {0: uses, 4: closed()})[0])

print("== functions, source lines and logs")
STRINGS = b"\0int\0f\0a.c\0return 7;\0"
TYPES = struct.pack("4I", 1, 1 << 24, 4, 32) + struct.pack("3I", 0, 13 << 24, 1) + struct.pack("3I", 5, 12 << 24, 2)
BTF = struct.pack("HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(TYPES), len(TYPES), len(STRINGS)) + TYPES + STRINGS
btf = bpf(BTF_LOAD, {0: (at(BTF), 8), 16: len(BTF)}, 28)[0]
CALLS = insn(0x85, 0, 1, 0, 1) + EXIT + RETURN_7


def with_records(functions, lines=(), size=8, line_size=16, insns=CALLS, **extra):
    """Functions and lines are numbers of 4 bytes."""
    pack = lambda records: at(b"".join(struct.pack("%dI" % len(record), *record) for record in records))
    fields = {"_72": btf, "_76": size, "_80": (pack(functions), 8), "_88": len(functions),
              "_92": line_size, "_96": (pack(lines), 8), "_104": len(lines)}
    return ok(load(XDP, insns, **(fields | extra)))


F, L = ((0, 3), (2, 3)), ((0, 7, 11, 1 << 10), (2, 7, 11, 2 << 10 | 5))
print("functions", with_records(F), with_records(F[:1]), with_records(((1, 3), (2, 3))), with_records(((0, 3), (0, 3))),
      with_records(((0, 3), (1, 3))), with_records(((0, 3), (2, 2))), with_records(((0, 3), (2, 9))), with_records(((0, 3), (2, 0))))
print("BTF", with_records(F, _72=array), with_records(F, _72=closed()), with_records(F, _72=not_map), with_records((), _72=closed()))
print("sizes", with_records(F, size=4), with_records(F, size=10), with_records(F, size=256),
      with_records(((0, 3, 0), (2, 3, 0)), size=12), with_records(((0, 3, 0), (2, 3, 1)), size=12), with_records(F, _80=(8, 8)))
print("lines", with_records(F, L), with_records(F, L[:1]), with_records(F, L[1:]), with_records(F, ((0, 7, 11, 0), (0, 7, 11, 0))),
      with_records(F, ((0, 7, 11, 0), (4, 7, 11, 0))), with_records(F, ((0, 700, 11, 0), (2, 7, 11, 0))), with_records(F, ((0, 7, 11, 0), (3, 7, 11, 0))))
print("sizes of lines", with_records(F, L, line_size=12), with_records(F, L, line_size=18), with_records(F, L, _96=(8, 8)),
      with_records(F, tuple(line + (0,) for line in L), line_size=20), with_records(F, tuple(line + (1,) for line in L), line_size=20))
described = load(XDP, CALLS, _48=(b"described".ljust(16, b"\0"), 16), _72=btf, _76=8, _80=(at(struct.pack("4I", 0, 3, 2, 3)), 8), _88=2,
                 _92=16, _96=(at(struct.pack("8I", *L[0], *L[1])), 8), _104=2)
functions, lines = at(bytes(24)), at(bytes(48))
found, size, told = info(described, _132=8, _136=(functions, 8), _144=3, _148=1, _152=(lines, 8), _172=16)
print("told", found, struct.unpack_from("II", told, 144), struct.unpack("6I", bytes_at(functions, 24)), struct.unpack("8I", bytes_at(lines, 32)),
      struct.unpack_from("I", told, 128)[0] > 0)
DEAD = mov(1, 0) + insn(0x15, 1, 0, 2, 0) + mov(0, 9) + mov(0, 8) + RETURN_7
dead = load(XDP, DEAD, _72=btf, _76=8, _80=(at(struct.pack("2I", 0, 3)), 8), _88=1, _92=16,
            _96=(at(b"".join(struct.pack("4I", place, 7, 11, place << 10) for place in (0, 1, 2, 3, 5))), 8), _104=5)
lines = at(bytes(80))
found, size, told = info(dead, _148=5, _152=(lines, 8), _172=16)
print("told of dead code", found, struct.unpack_from("I", told, 20)[0], struct.unpack_from("I", told, 148), struct.unpack("20I", bytes_at(lines, 80)))
for level, size in ((1, 4096), (2, 4096), (1, 0), (1, 5), (9, 5), (0, 0)):
    buf = at(b"\xee" * 4096)
    found, block = bpf(PROG_LOAD, {0: XDP, 4: 2, 8: (at(RETURN_7), 8), 16: (at(b"GPL\0"), 8), 24: level, 28: size, 32: (buf if size else 0, 8)})
    text = bytes_at(buf, 4096).rstrip(b"\xee")
    if level == 1 and size != 0:
        print("log", size, ok(found), text.split(b" max_states")[0])
    if level != 2:
        print("log size", level, size, ok(found), struct.unpack_from("I", block, 140)[0] > 5, len(text) == size or size == 4096)

print("== exclusive maps")
HASH = lambda insns: hashlib.sha256(insns).digest()


def exclusive(digest, size=32, map_type=2, entries=1, **extra):
    """A map for the program with this hash, which may also be an address."""
    address = at(digest) if isinstance(digest, bytes) else digest
    fields = {0: map_type, 4: 4, 8: 8 if map_type in (2, 6) else 4, 12: entries, 80: (address, 8), 88: size}
    return bpf(MAP_CREATE, fields | {int(offset[1:]): value for offset, value in extra.items()})[0]


nobody = bytes(range(32))
print("created", ok(exclusive(nobody)), ok(exclusive(0, 0)), [exclusive(nobody, size) for size in (0, 31, 33)], exclusive(0), exclusive(8),
      exclusive(nobody, _92=1), [ok(exclusive(nobody, map_type=kind)) for kind in (3, 4, 6, 8)])
print("order", exclusive(8, _28=45), exclusive(8, _48=closed(), _56=1), exclusive(nobody, 31, _12=0))
others = exclusive(nobody)
print("held", bpf(MAP_CREATE, {0: 12, 4: 4, 8: 4, 12: 1, 20: others})[0],
      bpf(UPDATE, {0: bpf(MAP_CREATE, {0: 12, 4: 4, 8: 4, 12: 1, 20: array})[0], 8: (at(bytes(4)), 8), 16: (at(struct.pack("I", others)), 8)})[0],
      bpf(UPDATE, {0: others, 8: (at(bytes(4)), 8), 16: (at(bytes(8)), 8)})[0])
listed = at(struct.pack("2i", array, others))
print("others'", ld(1, others), ld(2, others), ld(5, 1, _120=(listed, 8)), ld(0, 0, _120=(listed, 8), _148=2), bpf(BIND_MAP, {0: program, 4: others})[0])
own = exclusive(HASH(load_imm64(1, 1, 0) + RETURN_7))
value = exclusive(HASH(load_imm64(1, 2, 0) + RETURN_7))
print("own", ld(1, own), ld(2, own), ld(1, value), ld(2, value, 4))
listed = at(struct.pack("2i", array, exclusive(HASH(load_imm64(1, 5, 1) + RETURN_7))))
print("own by index", ld(5, 1, _120=(listed, 8)), ld(5, 0, _120=(listed, 8)), ld(5, 1, _120=(at(struct.pack("2i", array, own)), 8)))
counts = load_imm64(1, 2, 0) + mov(2, 1) + insn(0xDB, 1, 2) + RETURN_7
kept = exclusive(HASH(counts))
counting = load(XDP, load_imm64(1, 2, kept) + counts[16:])
print("runs", run(counting, _8=64, _16=(at(bytes(64)), 8))[:2], run(counting, _8=64, _16=(at(bytes(64)), 8), _32=3)[:2])
found, block = bpf(1, {0: kept, 8: (at(bytes(4)), 8), 16: (at(bytes(8)), 8)})
print("counted", found, bytes_at(struct.unpack_from("Q", block, 16)[0], 8).hex())

print("== what is told about programs")
map_ids = [struct.unpack_from("I", info(fd, 104)[2], 4)[0] for fd in (two, array, per_cpu)]
named = load(SOCKET_FILTER, load_imm64(1, 1, two) + load_imm64(2, 2, array, 4) + RETURN_7, b"Dual MIT/GPL\0", _48=(b"named".ljust(16, b"\0"), 16))
ids, xlated, tags = at(bytes(12)), at(bytes(56)), at(bytes(8))
found, size, told = info(uses, _52=3, _56=(ids, 8))
print("maps", found, size, struct.unpack_from("I", told, 52)[0], [map_ids.index(i) for i in struct.unpack("3I", bytes_at(ids, 12))])
found, size, told = info(named, _20=56, _32=(xlated, 8), _180=1, _184=(tags, 8))
kind, prog_id, tag, jited, xlated_len = struct.unpack_from("II8sII", told)
shown = bytearray(bytes_at(xlated, 56))
for place, number in ((4, map_ids[0]), (20, map_ids[1])):
    assert struct.unpack_from("I", shown, place)[0] == number
    shown[place:place + 4] = bytes(4)
print("named", found, size, kind, tag.hex(), jited > 0, xlated_len, shown.hex(), bytes_at(tags, 8) == tag)
print("more", told[64:84], struct.unpack_from("IIQQ", told, 80), struct.unpack_from("II", told, 104), struct.unpack_from("IIII", told, 128),
      struct.unpack_from("II", told, 144), struct.unpack_from("III", told, 168), struct.unpack_from("I", told, 180), told[192:216].hex(),
      struct.unpack_from("II", told, 220), struct.unpack_from("Q", told, 40)[0] > 0, struct.unpack_from("I", told, 48)[0] == os.getuid())
print("sizes", [info(named, size)[:2] for size in (0, 4, 8, 80, 228, 232, 240)], [info(named, 240, _236=1)[0], info(named, 5000)[0]])
print("records", [info(named, **{field: value})[0] for field, value in
                  (("_132", 8), ("_132", 4), ("_144", 1), ("_172", 16), ("_172", 8), ("_148", 1), ("_176", 8), ("_176", 4), ("_168", 1))])
print("faults", info(named, _20=8, _32=(8, 8))[0], info(named, _52=1, _56=(8, 8))[0], info(named, _16=8, _24=(8, 8))[0],
      info(named, _180=1, _184=(8, 8))[0], info(named, _104=1, _112=(8, 8))[0], info(named, _108=1, _120=(8, 8))[0], bpf(INFO, {0: named, 4: 232, 8: (8, 8)}, 16)[0])
with open("/proc/self/fdinfo/%d" % named) as fdinfo:
    lines = [line.split() for line in fdinfo]
OTHERS = ("pos:", "flags:", "mnt_id:", "ino:", "prog_id:", "verified_insns:")
print("fdinfo", [line for line in lines if line[0] not in OTHERS], any(line == ["prog_id:", str(prog_id)] for line in lines))

print("== ids and pins")
again = bpf(FD_BY_ID, {0: prog_id})[0]
print("by id", ok(again), info(again)[2][8:16].hex() == tag.hex(), bpf(FD_BY_ID, {0: 1 << 30})[0], bpf(FD_BY_ID, {0: prog_id, 4: 1})[0],
      bpf(FD_BY_ID, {0: prog_id, 8: 8})[0], bpf(FD_BY_ID, {0: 0})[0])
following = bpf(NEXT_ID, {0: prog_id - 1})
print("next", following[0], struct.unpack_from("I", following[1], 4)[0] == prog_id, bpf(NEXT_ID, {0: 0x7FFFFFFE})[0], bpf(NEXT_ID, {0: 0x7FFFFFFF})[0],
      bpf(NEXT_ID, {0: 0, 8: 1})[0], ok(bpf(MAP_FD_BY_ID, {0: map_ids[0]})[0]))
path = b"/sys/fs/bpf/bpfarray_test_program\0"
if os.path.exists(path[:-1]):
    os.unlink(path[:-1])
print("pin", bpf(PIN, {0: (at(path), 8), 8: named})[0], bpf(PIN, {0: (at(path), 8), 8: named})[0])
for fd in (again, named):
    os.close(fd)
got = bpf(GET, {0: (at(path), 8)})[0]
print("get", ok(got), info(got)[2][8:16].hex() == tag.hex(), [ok(bpf(GET, {0: (at(path), 8), 12: flags})[0]) for flags in (8, 16, 24)])
print("kept maps", ok(bpf(MAP_FD_BY_ID, {0: map_ids[1]})[0]))
os.unlink(path[:-1])
print("unlinked", bpf(GET, {0: (at(path), 8)})[0], run(got, _8=64, _16=(at(bytes(64)), 8)))
print("not a map", bpf(1, {0: got, 8: (at(bytes(4)), 8), 16: (at(bytes(8)), 8)})[0], bpf(22, {0: got})[0])
print("not a program", [run(fd)[0] for fd in (array, not_map, closed())])

print("== TEST_RUN of XDP")
packet = bytes(range(64))
data = {"_8": 64, "_16": (at(packet), 8)}
adjust = load(XDP, insn(0xB7, 2, 0, 0, -4) + insn(0x85, 0, 0, 0, 44) + mov(0, 2) + EXIT)
meta = load(XDP, insn(0x61, 2, 1, 0) + insn(0x61, 3, 1, 8) + insn(0x61, 0, 1, 16) + EXIT)
out = at(b"\xee" * 80)
print("plain", run(program, **data), run(program), run(program, _8=13, _16=(at(packet), 8)), run(program, _8=64), run(program, _8=64, _16=(8, 8)))
print("out", run(adjust, **data, _12=80, _24=(out, 8)), bytes_at(out, 80).hex())
out = at(b"\xee" * 80)
print("short", run(adjust, **data, _12=20, _24=(out, 8)), bytes_at(out, 24).hex())
out = at(b"\xee" * 80)
print("no size", run(adjust, **data, _24=(out, 8)), bytes_at(out, 80).hex(), run(adjust, **data, _12=10), run(adjust, **data, _12=80, _24=(8, 8)), run(adjust, **data, _12=8, _24=(8, 8)))
out = at(b"\xee" * 80)
print("repeat", run(adjust, **data, _32=4, _12=80, _24=(out, 8)), bytes_at(out, 80).hex())
print("arguments", [run(program, **data, **{field: value})[0] for field, value in
                    (("_64", 1), ("_64", 4), ("_68", 1), ("_72", 1), ("_76", 1), ("_40", 4), ("_48", (out, 8)), ("_44", 4), ("_56", (out, 8)))])
md = lambda *fields: struct.pack("6I", *fields)
context = lambda *fields: {"_40": 24, "_48": (at(md(*fields)), 8)}
print("context", [run(meta, **data, **context(*fields)) for fields in
                  ((0, 64, 0, 0, 0, 0), (4, 64, 0, 0, 0, 0), (0, 60, 0, 0, 0, 0), (0, 65, 0, 0, 0, 0), (0, 64, 4, 0, 0, 0), (3, 64, 0, 0, 0, 0),
                   (8, 4, 0, 0, 0, 0), (0, 64, 0, 0, 1, 0), (0, 64, 0, 1, 0, 0), (0, 64, 0, 0, 0, 1), (60, 64, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0))])
got_ctx = at(b"\xee" * 32)
print("context out", run(meta, **data, **context(4, 64, 0, 0, 0, 0), _44=32, _56=(got_ctx, 8)), bytes_at(got_ctx, 32).hex(),
      run(meta, **data, **context(4, 64, 0, 0, 0, 0), _44=8, _56=(got_ctx, 8)), run(meta, **data, **context(4, 64, 0, 0, 0, 0), _44=8, _56=(8, 8)))
got_ctx = at(b"\xee" * 32)
print("only out", run(meta, **data, _44=24, _56=(got_ctx, 8), _12=80, _24=(out, 8)), bytes_at(got_ctx, 24).hex())
print("context sizes", [run(meta, **data, _40=size, _48=(at(md(0, 64, 0, 0, 0, 0) + bytes(tail)), 8))[0] for size, tail in ((8, 0), (4, 0), (12, 0), (24, 0), (28, 4))],
      run(meta, **data, _40=28, _48=(at(md(0, 64, 0, 0, 0, 0) + b"\1\0\0\0"), 8))[0])
print("frags", run(program, _8=5000, _16=(at(bytes(5000)), 8)), run(program, _8=4096, _16=(at(bytes(4096)), 8)), run(program, _8=3500, _16=(at(bytes(3500)), 8)))
frags = load(XDP, RETURN_7, _44=0x20)
out = at(b"\xee" * 5000)
print("with frags", run(frags, _8=5000, _16=(at(packet * 79), 8), _12=5000, _24=(out, 8)), run(frags, _8=5000, _16=(at(packet * 79), 8), _12=4000, _24=(out, 8)),
      run(frags, _8=5000, _16=(at(packet * 79), 8), _12=1000, _24=(out, 8)))
cpumap = load(XDP, RETURN_7, _68=35)
print("attach types", run(cpumap, **data)[0])

print("== TEST_RUN of socket filters and classifiers")
skb_len = insn(0x61, 0, 1, 0) + EXIT
set_mark = insn(0x61, 0, 1, 8) + insn(0x07, 0, 0, 0, 5) + insn(0x63, 1, 0, 8) + EXIT
for kind in (SOCKET_FILTER, CLS):
    length = load(kind, skb_len)
    mark = load(kind, set_mark) if kind == CLS else load(kind, insn(0x61, 0, 1, 8) + EXIT)
    out = at(b"\xee" * 80)
    print("plain", run(length, **data), run(length, **data, _12=80, _24=(out, 8)), bytes_at(out, 80).hex(), run(length, _8=13, _16=(at(packet), 8)))
    print("arguments", [run(length, **data, **{field: value})[0] for field, value in
                        (("_64", 1), ("_64", 2), ("_68", 1), ("_72", 1), ("_40", 4), ("_44", 4), ("_12", 10))])
    skb = struct.pack("48I", *[9 if word == 2 else 0 for word in range(48)])
    got_skb = at(b"\xee" * 192)
    print("context", run(mark, **data, _40=192, _48=(at(skb), 8), _44=192, _56=(got_skb, 8)), bytes_at(got_skb, 192).hex())
    print("repeated", run(mark, **data, _32=3, _40=192, _48=(at(skb), 8), _44=192, _56=(got_skb, 8)), bytes_at(got_skb, 16).hex())
    print("context sizes", [run(mark, **data, _40=size, _48=(at((skb + bytes(8))[:size]), 8))[:2] for size in (8, 12, 192, 200)],
          run(mark, **data, _40=8, _48=(at(b"\1\0\0\0\0\0\0\0"), 8)), run(mark, **data, _40=200, _48=(at(skb + b"\1" * 8), 8)),
          run(mark, **data, _44=12, _56=(got_skb, 8)), run(mark, **data, _44=200, _56=(got_skb, 8)))
    print("long", [run(length, _8=size, _16=(at(bytes(size)), 8)) for size in (3500, 3600, 3700, 3800, 4096)])

print("== TEST_RUN of raw tracepoints and syscall programs")
first = load(RAW_TP, insn(0x79, 0, 1, 8) + EXIT)
args = {"_40": 16, "_48": (at(struct.pack("QQ", 3, 5)), 8)}
print("arguments", run(first, **args), run(first), run(first, _40=8, _48=(at(bytes(8)), 8)), run(first, _40=96, _48=(at(bytes(96)), 8))[0],
      run(first, _40=104, _48=(at(bytes(104)), 8))[0], run(first, _40=16, _48=(8, 8))[0], run(load(RAW_TP, RETURN_7)))
print("refused", [run(first, **args, **{field: value})[0] for field, value in
                  (("_16", (out, 8)), ("_24", (out, 8)), ("_44", 4), ("_36", 1), ("_32", 1), ("_72", 1), ("_64", 1), ("_64", 2), ("_64", 4), ("_68", 1), ("_8", 4), ("_12", 4))],
      run(first, **args, _64=1, _68=100000)[0], run(first, **args, _64=1, _68=0))
system = load(SYSCALL, insn(0x79, 0, 1, 8) + insn(0x7A, 1, 0, 0, 77) + EXIT, _44=16)
words = at(struct.pack("QQ", 3, 5))
print("syscall", run(system, _40=16, _48=(words, 8)), bytes_at(words, 16).hex(), run(system), run(system, _40=15, _48=(words, 8))[0],
      run(system, _40=65535, _48=(at(bytes(65535)), 8))[0], run(system, _40=65536, _48=(at(bytes(65536)), 8))[0], run(system, _40=16, _48=(8, 8))[0])
print("refused", [run(system, _40=16, _48=(words, 8), **{field: value})[0] for field, value in
                  (("_16", (out, 8)), ("_24", (out, 8)), ("_44", 4), ("_36", 1), ("_32", 1), ("_72", 1), ("_64", 1), ("_68", 1), ("_8", 4), ("_12", 4))])
print("no context", run(load(SYSCALL, RETURN_7, _44=16)))
print("other types", run(load(CGROUP_SOCK, mov(0, 1) + EXIT))[0], run(load(2, RETURN_7))[0], run(load(5, RETURN_7))[0], run(load(7, RETURN_7))[0])

print("== statistics")
print("off", run(program, **data)[0], info(program)[2][192:208].hex())
stats = bpf(ENABLE_STATS, {0: 0})[0]
print("enable", ok(stats), bpf(ENABLE_STATS, {0: 1})[0], bpf(ENABLE_STATS, {0: 0, 4: 1})[0], bpf(INFO, {0: stats, 4: 8, 8: (at(bytes(8)), 8)}, 16)[0])
run(program, **data, _32=5)
time, count = struct.unpack_from("QQ", info(program)[2], 192)
print("counted", time > 0, count)
os.close(stats)
run(program, **data, _32=5)
print("off again", struct.unpack_from("Q", info(program)[2], 200)[0])
