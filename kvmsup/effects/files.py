# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small files: the kernel's one-line attributes, and files of our own that are whole or not there."""

from __future__ import annotations

import contextlib
import os

from kvmsup.errors import HostError


def read(path: str) -> str:
    """The text of `path` without the line end. Raises OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rstrip("\n")


def printable(text: str) -> str:
    """`text` on one line, with ? for what a terminal could take for an order: others chose it."""
    return "".join(char if char.isprintable() else "?" for char in text)


def read_bytes(path: str, most: int) -> bytes:
    """Up to `most` bytes of `path`, without waiting: what is there may be a FIFO or a device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def write_attribute(path: str, value: str) -> None:
    """Write one of the kernel's attributes, in one write as the kernel wants it.

    Raises HostError naming the file and the kernel's reason.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"{path}: cannot write {value}: {error.strerror}") from None


def replace(path: str, text: str, mode: int = 0o644) -> None:
    """Write `path` beside itself and rename it over: a reader sees the old text or the new, never a part.

    Raises HostError naming the file and the reason, with nothing of it left behind.
    """
    part = f"{path}.{os.getpid()}.part"
    content = text.encode()
    try:
        _write_new(part, content, mode)
        os.rename(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise HostError(f"{path}: cannot write: {error.strerror}") from None


def create(path: str, text: str, mode: int) -> None:
    """Write `path`, which must not be there: whole, or not at all.

    Raises HostError naming the file and the reason.
    """
    part = f"{path}.{os.getpid()}.part"
    content = text.encode()
    try:
        _write_new(part, content, mode)
        os.link(part, path)
    except FileExistsError:
        raise HostError(f"{path} is there already", "remove it first, if nobody needs it") from None
    except OSError as error:
        raise HostError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def _write_new(path: str, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)


def remove(path: str) -> None:
    """Remove `path`; that it is gone already is as good. Raises OSError for any other reason."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
