#!/usr/bin/env python3
"""Opens a map file as a NumPy array: python3 read_map.py FILE

Values of 8 bytes become numbers, others hexadecimal bytes. docs/format.md has the format.
"""
import struct
import sys

import numpy


def read_map(path):
    """The values, per element (ARRAY) or per CPU and element (PERCPU_ARRAY), always up to date."""
    with open(path, "rb") as file:
        header = file.read(144)
    if header[:8] != b"\x8fBPFMAP\n" or struct.unpack_from("<2I", header, 8) != (1, 0):
        raise ValueError(f"{path}: not a map file of version 1")
    map_type, _, value_size, max_entries = struct.unpack_from("<4I", header, 16)
    (cpus,) = struct.unpack_from("<I", header, 60)
    values_offset, _, cpu_stride = struct.unpack_from("<3Q", header, 88)
    elem_size = (value_size + 7) // 8 * 8
    value = numpy.dtype("<u8") if value_size == 8 else numpy.dtype((numpy.void, value_size))
    file = numpy.memmap(path, dtype=numpy.uint8, mode="r")
    percpu = cpu_stride != 0
    return numpy.ndarray(
        shape=(cpus, max_entries) if percpu else (max_entries,),
        dtype=value,
        buffer=file,
        offset=values_offset,
        strides=(cpu_stride, elem_size) if percpu else (elem_size,),
    )


if __name__ == "__main__":
    values = read_map(sys.argv[1])
    for index, value in enumerate(values.T):
        if value.dtype != "<u8":
            print(f"{index}: {value.tobytes().hex()}")
        elif value.ndim:
            print(f"{index}: {value.tolist()}  sum {value.sum()}")
        else:
            print(f"{index}: {value}")
