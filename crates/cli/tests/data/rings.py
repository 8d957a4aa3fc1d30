"""Opens perf events for output of programs, maps their rings and reads them by hand: prints what its calls gave, numbers of events
and times left out. The same with the kernel as with `bpfarray exec`."""
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
SYS_BPF, SYS_PERF_EVENT_OPEN = {"x86_64": (321, 298), "aarch64": (280, 241)}[os.uname().machine]
UPDATE, DELETE, PROG_LOAD, PIN, GET, TEST_RUN = 2, 3, 5, 6, 7, 10
ENABLE, DISABLE, RESET, ID, PAUSE, SET_OUTPUT = 0x2400, 0x2401, 0x2403, 0x80082407, 0x40042409, 0x2405
IDENTIFIER, RAW, CPU, TIME, TID, PERIOD, STREAM = 1 << 16, 1 << 10, 1 << 7, 1 << 2, 1 << 1, 1 << 8, 1 << 9
HEAD, TAIL = 1024, 1032
NAME = ctypes.create_string_buffer(b"/sys/fs/bpf/rings")


def checked(result):
    return result if result >= 0 else -ctypes.get_errno()


def bpf(cmd, block):
    block = ctypes.create_string_buffer(block, len(block))
    return checked(LIBC.syscall(SYS_BPF, cmd, block, len(block))), block.raw


def elem(cmd, fd, index, value=0, flags=0):
    key, value = ctypes.c_uint32(index), ctypes.c_int32(value)
    block = struct.pack("IxxxxQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), flags)
    return bpf(cmd, block if cmd == UPDATE else block[:16])[0]


def events(entries, flags=0):
    return bpf(0, struct.pack("7I", 4, 4, 4, entries, flags, 0, 0))[0]


def insn(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def writer(fd, index=-1, size=12):
    """A program that writes 12 bytes, or less."""
    code = insn(0x62, 10, 0, -12, 0x11111111) + insn(0x62, 10, 0, -8, 0x22222222) + insn(0x62, 10, 0, -4, 0x33333333)
    code += insn(0x18, 2, 1, 0, fd) + insn(0) + insn(0xB4, 3, 0, 0, index)
    code += insn(0xBF, 4, 10) + insn(0x07, 4, 0, 0, -12) + insn(0xB7, 5, 0, 0, size) + insn(0x85, imm=25) + insn(0x95)
    code, license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    block = struct.pack("IIQQ", 6, len(code) // 8, ctypes.addressof(code), ctypes.addressof(license))
    return bpf(PROG_LOAD, block + bytes(60))[0]


def run(fd, times=1):
    packet = ctypes.create_string_buffer(64)
    found, block = bpf(TEST_RUN, struct.pack("IIIIQQI", fd, 0, 64, 0, ctypes.addressof(packet), 0, times) + bytes(36))
    return found or struct.unpack_from("i", block, 4)[0]


def attr(kind=1, size=112, config=10, period=1, sample=RAW, read=0, flags=0, wakeup=1, tail=b""):
    head = struct.pack("IIQQQQQI", kind, size, config, period, sample, read, flags, wakeup)
    return ctypes.create_string_buffer(head + bytes(84) + tail, max(size, 136) + len(tail))


def event(block=None, cpu=0, pid=-1, group=-1, flags=8):
    block = attr() if block is None else block
    return checked(LIBC.syscall(SYS_PERF_EVENT_OPEN, block, pid, cpu, group, ctypes.c_ulong(flags)))


def asked(*arguments, **words):
    """What opening an event gives, without the descriptor, and the size that is left in the block."""
    fd = event(*arguments, **words)
    if fd >= 0:
        os.close(fd)
    size = struct.unpack_from("I", arguments[0].raw, 4)[0] if arguments else None
    return ("opened" if fd >= 0 else fd), size


def ioctl(fd, request, argument=0):
    return checked(LIBC.ioctl(fd, ctypes.c_ulong(request), ctypes.c_long(argument)))


class Ring:
    def __init__(self, fd, pages=2, prot=3, flags=1, offset=0):
        at = LIBC.mmap(None, pages * 4096, prot, flags, fd, offset)
        self.failed = -ctypes.get_errno() if at == 2**64 - 1 else 0
        self.at, self.len = at, pages * 4096

    def word(self, offset):
        return ctypes.c_uint64.from_address(self.at + offset)

    def data(self, len, start=0):
        return ctypes.string_at(self.at + 4096 + start, len)

    def drain(self):
        self.word(TAIL).value = self.word(HEAD).value

    def unmap(self):
        return LIBC.munmap(ctypes.c_void_p(self.at), ctypes.c_size_t(self.len))


def mapped(fd, **words):
    ring = Ring(fd, **words)
    if not ring.failed:
        ring.unmap()
    return ring.failed


def polled(poll):
    """What is reported, and what after that."""
    wait = 0.02 if isinstance(poll, select.epoll) else 20
    return [[found for _, found in poll.poll(wait)] for _ in range(2)]


os.sched_setaffinity(0, {0})
if "again" in sys.argv:
    program = bpf(GET, struct.pack("QII", ctypes.addressof(NAME), 0, 0))[0]
    print("another process", [run(program) for _ in range(3)], flush=True)
    sys.exit()

print("sizes", [asked(attr(size=size)) for size in (0, 1, 63, 64, 72, 112, 136, 140, 4096, 4097)])
print("tail", asked(attr(size=200, tail=b"x" * 80)), asked(attr(size=200, tail=bytes(80))))
print("flags", [asked(attr(), flags=flags) for flags in (0, 1, 2, 3, 4, 8, 15, 16, 1 << 40)])
print("CPUs", [asked(attr(), cpu=cpu) for cpu in (-2, -1, 1 << 20)], "group", asked(attr(), group=999))
print("bits", [asked(attr(flags=1 << bit))[0] for bit in (0, 1, 14, 18, 21, 38, 63)])
print("samples", [asked(attr(sample=sample))[0] for sample in (0, RAW | TIME, 1 << 25, 1 << 40)])
print("period", asked(attr(period=1 << 63)), "read format", asked(attr(read=1 << 5)), asked(attr(read=31)))

fd = event()
print("mapping", [mapped(fd, pages=pages) for pages in (1, 2, 3, 4, 5, 6, 9, 257)])
print("mapping otherwise", mapped(fd, flags=2), mapped(fd, offset=4096), mapped(fd, prot=7), mapped(fd, prot=1))
ring = Ring(fd, 5)
print("again", mapped(fd, pages=3), mapped(fd, pages=5), "page", [ring.word(at).value for at in (0, 40, HEAD, TAIL, 1040, 1048)])
print("requests", [ioctl(fd, request) for request in (ENABLE, DISABLE, RESET, PAUSE, 0x2420, 0x5401)], ioctl(event(), PAUSE, 1))
print("number", ioctl(fd, ID, ctypes.addressof(ctypes.c_uint64())), ioctl(fd, ID, 1))

table = events(2)
program, to_1, nothing = writer(table), writer(table, 1), writer(table, size=0)
print("empty", run(program), run(to_1), "slots", elem(UPDATE, table, 2, fd), elem(UPDATE, table, 0, fd, 1))
print("no events", [elem(UPDATE, table, 0, other) for other in (-1, 0, 999, table, program)])
print("inherited", elem(UPDATE, table, 0, event(attr(flags=2))))
fd = event()
print("no ring", elem(UPDATE, table, 0, fd), run(program), elem(UPDATE, table, 1, fd), run(to_1))
ring = Ring(fd)
print("written", run(program), run(nothing), ring.word(HEAD).value, ring.data(48).hex())
print("disabled", ioctl(fd, DISABLE), run(program), ioctl(fd, ENABLE), run(program))
print("paused", ioctl(fd, PAUSE, 1), run(program), ioctl(fd, PAUSE, 0), ring.drain(), run(program), ring.data(8, 64).hex())
if os.cpu_count() > 1:
    print("another CPU", elem(UPDATE, table, 0, event(cpu=1)), run(program), elem(UPDATE, table, 0, fd))

poll, epoll = select.poll(), select.epoll()
run(program)
epoll.register(fd, select.EPOLLIN)
poll.register(fd, select.POLLIN)
print("registered", polled(epoll), polled(poll))
run(program)
print("epoll", polled(epoll))
run(program, 3)
print("epoll once for three", polled(epoll))
run(program)
print("poll", polled(poll))
run(program)
print("select", [len(select.select([fd], [], [], 0.02)[0]) for _ in range(2)])
run(program)
epoll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
run(program)
run(program)
print("one shot", polled(epoll))
epoll.modify(fd, select.EPOLLIN)
run(program)
print("modified", polled(epoll))
sys.stdout.flush()
child = os.fork()
if child == 0:
    os._exit(run(program))
print("of a child", os.waitpid(child, 0)[1], polled(epoll))

ring.drain()
start = ring.word(HEAD).value
results = [run(program) for _ in range(180)]
print("full", results.count(0), results.count(-28), ring.word(HEAD).value - start)
ring.drain()
at = ring.word(HEAD).value % 4096
print("lost", run(program), ring.word(HEAD).value - start, (ring.data(4096) * 2)[at:at + 8].hex(), (ring.data(4096) * 2)[at + 16:at + 24].hex())
print("unmapped", ring.unmap(), run(program))
ring = Ring(fd, 3)
print("mapped again", run(program), ring.word(HEAD).value)
os.close(fd)
print("closed", run(program), ring.word(HEAD).value, ring.unmap(), run(program))

for name, words in (
    ("by number", {"wakeup": 10}),
    ("by half a ring", {"wakeup": 0}),
    ("by bytes", {"wakeup": 100, "flags": 1 << 14}),
    ("by half a ring as well", {"wakeup": 0, "flags": 1 << 14}),
    ("never", {"wakeup": 100000, "flags": 1 << 14}),
):
    fd = event(attr(**words))
    ring, poll = Ring(fd), select.poll()
    poll.register(fd, select.POLLIN)
    elem(UPDATE, table, 0, fd)
    woken = [at for at in range(180) if run(program) == 0 and poll.poll(0)]
    print("woken", name, len(woken), woken[:20])

fd = event(attr(flags=1))
ring = Ring(fd, prot=1)
print("read only", elem(UPDATE, table, 0, fd), run(program), ioctl(fd, ENABLE), {run(program) for _ in range(300)}, ring.word(HEAD).value)
fd = event()
ring = Ring(fd, 1)
print("no room", elem(UPDATE, table, 0, fd), run(program), mapped(fd))

fd = event(attr(sample=IDENTIFIER | RAW | CPU | TIME | TID | PERIOD | STREAM))
ring = Ring(fd)
before = time.monotonic_ns()
print("fields", elem(UPDATE, table, 0, fd), run(program), ring.word(HEAD).value)
identifier, pid, tid, at, stream, cpu, period = struct.unpack("QIIQQQQ", ring.data(48, 8))
print(identifier == stream, pid == os.getpid(), tid == pid, abs(at - before) < 10**9, cpu, period, ring.data(16, 56).hex())
fd = event(attr(sample=0))
ring = Ring(fd)
print("no fields", elem(UPDATE, table, 0, fd), run(program), ring.data(ring.word(HEAD).value).hex())

fd = event()
ring, epoll = Ring(fd), select.epoll()
epoll.register(fd, select.EPOLLIN)
print("pinned", elem(UPDATE, table, 0, fd), bpf(PIN, struct.pack("QII", ctypes.addressof(NAME), program, 0))[0])
sys.stdout.flush()
os.spawnvp(os.P_WAIT, sys.executable, [sys.executable, __file__, "again"])
print("by another process", ring.word(HEAD).value, polled(epoll))
os.unlink("/sys/fs/bpf/rings")
print("deleted", elem(DELETE, table, 0), run(program), elem(DELETE, table, 0))
print("refilled", elem(UPDATE, table, 0, fd), run(program))
os.close(table)
print("table closed", run(program))
kept = events(2, 0x800)
program = writer(kept)
print("kept", elem(UPDATE, kept, 0, fd), run(program), os.close(kept), run(program), ring.word(HEAD).value)

if "bpftool" in sys.argv:
    table = events(os.cpu_count())
    program = writer(table)
    print("pinned", bpf(PIN, struct.pack("QII", ctypes.addressof(NAME), table, 0))[0])
    command = ["bpftool", "-j", "map", "event_pipe", "pinned", NAME.value.decode()]
    pipe = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while run(program) != 0 and pipe.poll() is None:
        time.sleep(0.01)
    print("run", run(program))
    # It prints what there is before it looks whether it is to stop.
    time.sleep(0.5)
    pipe.send_signal(signal.SIGINT)
    for shown in json.loads(pipe.communicate()[0]):
        print("shown by bpftool", abs(shown.pop("timestamp") - time.monotonic_ns()) < 10**10, shown)
    os.unlink(NAME.value)
    print("bpftool is gone", run(program))
