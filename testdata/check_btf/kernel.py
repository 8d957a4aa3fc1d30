"""The live kernel's bpf(2), and a builder for BTF: what the two recorders need."""

import ctypes
import errno
import os
import struct

MAP_CREATE, LOOKUP, UPDATE, OBJ_PIN, BTF_LOAD = 0, 1, 2, 6, 18
ARRAY, PROG_ARRAY, PERF_EVENT_ARRAY, PERCPU_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS = 2, 3, 4, 6, 8, 12
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
CPUS = int(open("/sys/devices/system/cpu/possible").read().split("-")[-1]) + 1

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attr):
    """The call's result, or the negated error number."""
    block = ctypes.create_string_buffer(attr, len(attr))
    result = libc.syscall(SYS_BPF, command, block, len(attr))
    return result if result >= 0 else -ctypes.get_errno()


def name(result):
    return "ENOTSUPP" if result == -524 else {"ENOTSUP": "EOPNOTSUPP"}.get(
        errno.errorcode[-result], errno.errorcode[-result])


class Btf:
    """Types by number, in the order of the calls. Members are (name, type, bit offset)."""

    def __init__(self):
        self.types, self.strings, self.count = b"", b"\0", 0

    def string(self, text):
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def type(self, name, kind, length, value, tail=b"", flag=0):
        info = flag << 31 | kind << 24 | length
        self.types += struct.pack("<III", self.string(name), info, value) + tail
        self.count += 1
        return self.count

    def int(self, name="int", size=4, bits=None, encoding=1, offset=0):
        bits = size * 8 if bits is None else bits
        return self.type(name, 1, 0, size, struct.pack("<I", encoding << 24 | offset << 16 | bits))

    def u(self, size):
        return self.int(f"u{size * 8}", size, encoding=0)

    def char(self):
        return self.int("char", 1)

    def ptr(self, to):
        return self.type("", 2, 0, to)

    def array(self, of, length):
        return self.type("", 3, 0, 0, struct.pack("<III", of, 1, length))

    def struct(self, name, size, members, flag=0, kind=4):
        tail = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.type(name, kind, len(members), size, tail, flag)

    def union(self, name, size, members):
        return self.struct(name, size, members, kind=5)

    def enum(self, name, size, values, flag=0):
        tail = b"".join(struct.pack("<Ii", self.string(n), v) for n, v in values)
        return self.type(name, 6, len(values), size, tail, flag)

    def enum64(self, name, values, flag=0):
        tail = b"".join(struct.pack("<IQ", self.string(n), v % 2**64) for n, v in values)
        return self.type(name, 19, len(values), 8, tail, flag)

    def typedef(self, name, of):
        return self.type(name, 8, 0, of)

    def volatile(self, of):
        return self.type("", 9, 0, of)

    def const(self, of):
        return self.type("", 10, 0, of)

    def var(self, name, of):
        return self.type(name, 14, 0, of, struct.pack("<I", 1))

    def section(self, name, size, variables):
        tail = b"".join(struct.pack("<III", *variable) for variable in variables)
        return self.type(name, 15, len(variables), size, tail)

    def float(self, name, size):
        return self.type(name, 16, 0, size)

    def decl_tag(self, text, of, component=-1):
        return self.type(text, 17, 0, of, struct.pack("<i", component))

    def tag(self, text, of, flag=0):
        return self.type(text, 18, 0, of, flag=flag)

    def bytes(self):
        lengths = 24, 0, len(self.types), len(self.types), len(self.strings)
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, *lengths) + self.types + self.strings

    def load(self):
        data = self.bytes()
        buffer = ctypes.create_string_buffer(data, len(data))
        return bpf(BTF_LOAD, struct.pack("<QQIIII", ctypes.addressof(buffer), 0, len(data), 0, 0, 0))


def create(map_type, value_size, entries=1, flags=0, btf=0, key=0, value=0, inner=0):
    return bpf(MAP_CREATE, struct.pack(
        "<IIIIIII16sIIIIIQ", map_type, 4, value_size, entries, flags, inner, 0, b"", 0, btf, key, value, 0, 0))


def element(command, fd, key, value, flags=0):
    """Looks `value` up, in place, or updates with it."""
    key = ctypes.create_string_buffer(struct.pack("<I", key), 4)
    addresses = ctypes.addressof(key), ctypes.addressof(value)
    return bpf(command, struct.pack("<IIQQQ", fd, 0, *addresses, flags))


def read_pinned(fd, path):
    """What reading the map's file gives, which must lie in a bpffs."""
    buffer = ctypes.create_string_buffer(path.encode())
    result = bpf(OBJ_PIN, struct.pack("<QII", ctypes.addressof(buffer), fd, 0))
    if result < 0:
        return result
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        return -error.errno
    finally:
        os.unlink(path)
