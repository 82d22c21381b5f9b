# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that do with their memory what QEMU does with a guest's: anonymous, MADV_MERGEABLE, full of pages."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

MIB = 1 << 20
_PAGE = 4096


class Workload(NamedTuple):
    """`guests` processes of `size` bytes each, of which a share `alike` is the same in all, page by page.

    Of the rest, an eighth is written to every second.
    """

    guests: int
    size: int
    alike: float

    @property
    def resident(self) -> int:
        return self.guests * self.size


@contextlib.contextmanager
def running(load: Workload) -> Iterator[None]:
    """The processes, all of them full, until the end of the block."""
    ready, tell = os.pipe()
    pids = []
    try:
        for number in range(load.guests):
            pid = os.fork()
            if not pid:
                _guest(load, number, tell)
            pids.append(pid)
        for _ in pids:
            if not os.read(ready, 1):
                raise RuntimeError("a guest has died")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def _guest(load: Workload, number: int, tell: int) -> None:
    """Never returns."""
    try:
        # Ends with its parent (PR_SET_PDEATHSIG), however that ends.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        memory = mmap.mmap(-1, load.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.madvise(mmap.MADV_MERGEABLE)
        same = int(load.size * load.alike) // MIB * MIB
        for dice, begin, end in ((random.Random(0), 0, same), (random.Random(number + 1), same, load.size)):
            for place in range(begin, end, MIB):
                memory[place : place + MIB] = dice.randbytes(MIB)
        os.write(tell, b"!")
        restless = range(same, same + (load.size - same) // 8, _PAGE)
        while True:
            time.sleep(1)
            stamp = time.monotonic_ns().to_bytes(8, "little")
            for place in restless:
                memory[place : place + 8] = stamp
    finally:
        os._exit(1)
