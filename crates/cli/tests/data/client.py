"""A program written for bpf(2) of Linux: prints what its calls gave, ids left out. The same with the kernel as with
`bpfarray exec`."""
import ctypes
import mmap
import os
import re
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
CREATE, LOOKUP, UPDATE, NEXT_KEY, FD_BY_ID, INFO, FREEZE = 0, 1, 2, 4, 14, 15, 22


def bpf(cmd, attr):
    block = ctypes.create_string_buffer(attr, len(attr))
    result = LIBC.syscall(SYS_BPF, cmd, block, len(attr))
    return result if result >= 0 else -ctypes.get_errno()


def create(map_type, value_size, entries, flags, name):
    return bpf(CREATE, struct.pack("7I16s", map_type, 4, value_size, entries, flags, 0, 0, name))


def elem(cmd, fd, key, value, flags=0):
    key = ctypes.create_string_buffer(struct.pack("I", key), 4)
    return bpf(cmd, struct.pack("IxxxxQQQ", fd, ctypes.addressof(key), value, flags))


def update(fd, key, value):
    value = ctypes.create_string_buffer(value, len(value))
    return elem(UPDATE, fd, key, ctypes.addressof(value))


def lookup(fd, key, size):
    value = ctypes.create_string_buffer(size)
    return elem(LOOKUP, fd, key, ctypes.addressof(value)), value.raw.hex()


def map_id(fd):
    info = ctypes.create_string_buffer(104)
    bpf(INFO, struct.pack("IIQ", fd, 104, ctypes.addressof(info)))
    return struct.unpack_from("I", info.raw, 4)[0]


def without_ids(text, ids):
    for place, number in enumerate(ids):
        text = re.sub(r"(^|\"id\":)%d\b(?=: |,)" % number, r"\1ID%d" % place, text)
    return text


fd = create(2, 8, 4, 0x400, b"fromPython")
per_cpu = create(6, 4, 2, 0, b"each")
ids = [map_id(fd), map_id(per_cpu)]
print("created", fd > 2, per_cpu > 2, create(2, 0, 4, 0, b""), create(2, 8, 4, 0x2000, b""), create(2, 8, 4, 0, b"no-"))
print("update", update(fd, 2, b"ABCDEFGH"), update(fd, 4, b"ABCDEFGH"), update(0, 0, b"ABCDEFGH"))
print("lookup", lookup(fd, 2, 8), lookup(fd, 4, 8), elem(LOOKUP, fd, 0, 8), elem(LOOKUP, fd, 0, 0, 1))
cpus = len(lookup(per_cpu, 0, 1 << 16)[1])
print("per CPU", update(per_cpu, 1, b"x" * (cpus // 2)), lookup(per_cpu, 1, 64))

sys.stdout.flush()
child = os.fork()
if child == 0:
    print("child", lookup(fd, 2, 8), update(fd, 3, b"child..."), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", lookup(fd, 3, 8))

try:
    window = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    print("mapped", window[16:24])
    window[0:8] = b"window.."
    print("through the window", lookup(fd, 0, 8), "freeze", bpf(FREEZE, struct.pack("I", fd)))
    window.close()
except OSError as error:
    # With `--seccomp` there are no mappings.
    print("not mapped", error.errno, update(fd, 0, b"window.."))
try:
    mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ)
except OSError as error:
    print("too long", error.errno)
print("freeze", bpf(FREEZE, struct.pack("I", fd)), update(fd, 0, b"ABCDEFGH"))
with open("/proc/self/fdinfo/%d" % fd) as fdinfo:
    lines = [line.split() for line in fdinfo]
OTHERS = ("pos:", "flags:", "mnt_id:", "ino:", "map_id:")
print("fdinfo", [line for line in lines if line[0] not in OTHERS])

again = bpf(FD_BY_ID, struct.pack("III", ids[0], 0, 8))
print("read only", update(again, 0, b"ABCDEFGH"), lookup(again, 2, 8))
os.dup2(per_cpu, again)
print("replaced", lookup(again, 1, 64) == lookup(per_cpu, 1, 64))
for closed in (again, 0):
    os.close(closed)
    print("closed", lookup(closed, 0, 8))

if len(sys.argv) > 1:
    for words in ("map show id ID0", "map dump id ID0", "map lookup id ID0 key 2 0 0 0", "map getnext id ID0 key 1 0 0 0",
                  "map lookup id ID0 key 9 0 0 0", "map delete id ID0 key 0 0 0 0", "map peek id ID0",
                  "map update id ID0 key 0 0 0 0 value 1 2 3 4 5 6 7 8", "map freeze id ID0", "-j map show id ID1",
                  "map update id ID1 key 0 0 0 0 value 9 0 0 0", "-j map dump id ID1", "map dump id ID1"):
        line = re.sub("ID([01])", lambda found: str(ids[int(found[1])]), words)
        done = subprocess.run([sys.argv[1], *line.split()], capture_output=True, text=True)
        output = re.sub(r"\s*pids .*|,\"pids\":\[.*?\]", "", done.stdout)
        print(words, done.returncode, without_ids(output + done.stderr, ids))
