# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small files: the kernel's one-line attributes, and files of our own that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from kvmsup.errors import HostError

# The end of a file's name while it is not whole.
PART = ".part"
_PIECE = 1 << 16


def read(path: str) -> str:
    """The text of `path` without the line end. Raises OSError.

    A listing reads five files a guest: open() makes eight system calls for each, this half as many.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b"".join(iter(lambda: os.read(descriptor, _PIECE), b""))
    finally:
        os.close(descriptor)
    return content.decode(errors="surrogateescape").rstrip("\n")


def words(path: str) -> list[list[str]]:
    """The words of each line of `path`, a record of our own; none where there is none, or it cannot be read."""
    try:
        return [line.split() for line in read(path).splitlines()]
    except OSError:
        return []


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


class NoRoom(HostError):
    """The file system is full, or whoever writes has had their share of it."""


def _cannot_write(path: str, error: OSError) -> HostError:
    kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
    return kind(f"{path}: cannot write: {error.strerror}")


def replace(path: str, text: str, mode: int = 0o644) -> None:
    """Write `path` beside itself and rename it over: a reader sees the old text or the new, never a part.

    Raises HostError naming the file and the reason, NoRoom for that one, with nothing of it left behind.
    """
    part = f"{path}.{os.getpid()}{PART}"
    content = text.encode()
    try:
        _write_new(part, content, mode)
        os.rename(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise _cannot_write(path, error) from None


def put(path: str, text: str) -> None:
    """Write where somebody has pointed: what is no file, such as a FIFO or a device, is written into and stays.

    A file is replaced, where a link leads. Raises HostError naming the file and the reason.
    """
    try:
        if _may_be_replaced(path):
            replace(os.path.realpath(path), text)
        else:
            _write_into(path, text.encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write_into(path: str, content: bytes) -> None:
    # O_NOCTTY: a terminal is not to become the one of this process.
    descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(content)


def _may_be_replaced(path: str) -> bool:
    """Whether `path` leads to a file, or to where none is yet."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def rewrite(path: str, text: str) -> None:
    """As `replace`; where there is no room for a second file, over the one that is there. Raises HostError."""
    try:
        replace(path, text)
    except NoRoom:
        if not os.path.exists(path):
            raise
        overwrite(path, text)


def overwrite(path: str, text: str) -> None:
    """Write over what is at `path`, in the room that it has: for where there is none for a second file.

    One write, of which a reader may see a part; what is left of the old text is line ends until they are cut off.
    Raises HostError, NoRoom where it needs more, and then the old text is there.
    """
    content = text.encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            _lengthen(descriptor, size, len(content) - size)
            os.pwrite(descriptor, content.ljust(size, b"\n"), 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _lengthen(descriptor: int, size: int, more: int) -> None:
    """Take room behind the text, filled with line ends. A write that has room for a part writes that (write(2))."""
    if more > 0 and os.pwrite(descriptor, b"\n" * more, size) < more:
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sweep_parts(directory: str, of: str = "") -> None:
    """Remove what a `replace` that was killed has left in `directory`, of the file `of` or of all.

    The caller knows that nobody writes there. Raises HostError.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        file, _, pid = name.removesuffix(PART).rpartition(".")
        if name.endswith(PART) and pid.isdecimal() and of in ("", file):
            remove(f"{directory}/{name}")


def create(path: str, text: str, mode: int) -> None:
    """Write `path`, which must not be there: whole, or not at all.

    Raises HostError naming the file and the reason.
    """
    part = f"{path}.{os.getpid()}{PART}"
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
    # Who may write to the directory, too, could have put a link there, which would lead to another file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except FileExistsError:
        os.unlink(path)
        descriptor = os.open(path, flags, mode)
    with open(descriptor, "wb") as file:
        file.write(content)


def remove(path: str) -> None:
    """Remove `path`; that it is gone already is as good. Raises HostError naming the file and the reason."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"{path}: cannot remove: {error.strerror}") from None
