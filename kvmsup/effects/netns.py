# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces: the host's, and QEMU's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from kvmsup.errors import HostError

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def of_process(root: str, pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of `pid`. Raises HostError when it is gone."""
    path = f"{root}/proc/{pid}/ns/net"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: cannot open: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Be in that network namespace, with this thread, and then where it was before. Raises HostError."""
    with of_process("", os.getpid()) as before:
        if same(descriptor, before):
            yield
            return
        _enter(descriptor)
        try:
            yield
        finally:
            _enter(before)


def same(one: int, other: int) -> bool:
    """Whether two descriptors are of the same namespace (namespaces(7))."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _enter(descriptor: int) -> None:
    """setns(2), for which Python has a function from 3.12 on."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot enter a network namespace: {reason}")
