# SPDX-License-Identifier: LGPL-2.1-or-later
"""How QEMU does asynchronous I/O here: with io_uring where kernel and QEMU have it, else with threads."""

from __future__ import annotations

from kvmsup.effects import files

_DISABLED = "/proc/sys/kernel/io_uring_disabled"
# What a program is linked with stands in its first part: 0.7 MB from the start in QEMU 7.2.
_HEAD = 4 << 20
# Linux 5.12 stopped to count its memory as locked, of which QEMU may have little.
_LEAST = (5, 12)


def choose(root: str, qemu: str, kernel: tuple[int, ...]) -> str:
    """io_uring, or threads. `qemu` is the program, `kernel` the version; the kernel's own switch is read.

    The switch came with Linux 6.6. 1 leaves io_uring to a group that the guest's user is not in (Documentation/
    admin-guide/sysctl/kernel.rst).
    """
    try:
        allowed = files.read(root + _DISABLED) == "0"
    except OSError:
        allowed = kernel >= _LEAST
    return "io_uring" if allowed and _is_linked(root + qemu) else "threads"


def _is_linked(program: str) -> bool:
    try:
        with open(program, "rb", buffering=0) as file:
            return b"liburing.so" in file.read(_HEAD)
    except OSError:
        return False
