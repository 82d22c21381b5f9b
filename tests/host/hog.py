# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs on the host: takes memory of node 0 in a way that a test needs, tells so on standard output, and stays.

hog.py pages COUNT     faults that many hugepages of 2M
hog.py mapped COUNT    maps that many hugepages of 2M and touches none
hog.py movable LEFT    takes all but LEFT MiB, then frees half of every 2M: compaction can put that in order
hog.py unmovable LEFT  takes all but LEFT MiB for pipes, then empties them but for a page in 64K: none can be moved
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys

_SET_MEMPOLICY, _MPOL_BIND = 238, 2
_MAP_HUGETLB, _MAP_POPULATE, _PR_SET_THP_DISABLE = 0x40000, 0x8000, 41
_PAGE = mmap.PAGESIZE
_PIPE = 16 * _PAGE  # as large as they come (pipe(7))


def main(kind: str, number: int) -> None:
    node = ctypes.c_ulong(1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SET_MEMPOLICY, _MPOL_BIND, ctypes.byref(node), 64):
        raise OSError(ctypes.get_errno(), "set_mempolicy")
    if kind in ("pages", "mapped"):
        held = mmap.mmap(-1, number << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB)
        for offset in range(0, number << 21, 2 << 20) if kind == "pages" else ():
            held[offset] = 1
    elif kind == "movable":
        size = (_free() - (number << 20)) // _PAGE * _PAGE
        libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_POPULATE)
        for offset in range(0, size, 2 << 20):
            held.madvise(mmap.MADV_DONTNEED, offset, 1 << 20)
    else:
        _pipes(number << 20)
    print("ready", flush=True)
    signal.pause()


def _free() -> int:
    with open("/sys/devices/system/node/node0/meminfo", encoding="ascii") as file:
        line = next(line for line in file if "MemFree" in line)
    return int(line.split()[3]) << 10


def _pipes(left: int) -> None:
    """Compaction moves what a process maps, but not the pages of a pipe."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 17, 1 << 17))
    ends = []
    while _free() > left:
        for _ in range(256):
            read, write = os.pipe()
            os.write(write, bytes(_PIPE))
            ends.append(read)
    for read in ends:
        os.read(read, _PIPE - _PAGE)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
