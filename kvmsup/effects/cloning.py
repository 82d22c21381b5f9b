# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disk images as they are made: whole or not there, never over another, with their progress told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator

from kvmsup.effects import files, journal, notify
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

QEMU_IMG = "/usr/bin/qemu-img"
_FULL = os.strerror(errno.ENOSPC)
# include/uapi/linux/fs.h
_FICLONE = 0x40049409
# systemd waits this long for the next sign of life. qemu-img may be silent while it writes a long run of zeros.
_PATIENCE_SECONDS = 180
_STEP_PERCENT, _STEP_SECONDS = 10, 5.0


_PART = ".part"


def _part(directory: str, file: str) -> str:
    """What `file` is called while it is made: with a dot in front, which no image has."""
    return f"{directory}/.{file}{_PART}"


def sweep(directory: str) -> None:
    """Remove what attempts that were killed have left, also at images that nobody wants now. Raises HostError."""
    try:
        for name in os.listdir(directory):
            if name.startswith(".") and name.endswith(_PART):
                files.remove(f"{directory}/{name}")
    except OSError as error:
        raise HostError(f"{error.filename}: cannot remove: {error.strerror}") from None


@contextlib.contextmanager
def making(directory: str, file: str) -> Iterator[str]:
    """The path to make `file` at; at the end it is on the disk under its own name, or gone after an exception.

    Raises HostError, also when the name has been taken meanwhile.
    """
    part = _part(directory, file)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield part
        _go_on()
        _sync(part)
        os.link(part, f"{directory}/{file}")  # unlike rename it fails where there is one
        _sync(directory)
    except OSError as error:
        raise HostError(f"{directory}/{file}: cannot be made: {error.strerror}", _hint(error.strerror)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def _go_on(**states: str) -> None:
    """Tell systemd that this is still at work."""
    notify.tell(EXTEND_TIMEOUT_USEC=_PATIENCE_SECONDS * 1_000_000, **states)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hint(reason: str | None) -> str:
    return "df -h /var/lib/kvmsup shows how full it is" if reason and _FULL in reason else ""


def copy(source: str, part: str) -> None:
    """Copy a small file. Raises HostError, or OSError for what is wrong with `part`."""
    try:
        content = files.read_bytes(source, 64 << 20)
    except OSError as error:
        raise HostError(f"{source}: cannot read: {error.strerror}") from None
    with open(part, "r+b") as file:
        file.write(content)


def share(source: int, part: str) -> bool:
    """Whether `part` now has the bytes of the descriptor `source`: at once, where the file system shares them."""
    with open(part, "r+b") as file:
        try:
            fcntl.ioctl(file, _FICLONE, source)
        except OSError:
            return False
    return True


def empty(part: str, format: str, size: int) -> None:
    """Make an image of `size` bytes without any data. Raises HostError, or OSError."""
    if format == "raw":
        os.truncate(part, size)
    else:
        _run("create", "-q", "-f", format, part, str(size))


def resize(part: str, format: str, size: int) -> None:
    """Make the image larger. Raises HostError, or OSError."""
    if format == "raw":
        os.truncate(part, size)
    else:
        _run("resize", "-q", "-f", format, part, str(size))


def convert(about: str, base: str, base_format: str, part: str, format: str) -> None:
    """Copy what is in `base`, into another format if need be. Progress is told as of `about`. Raises HostError."""
    backing = {"backing": None} if base_format == "qcow2" else {}
    file = {"driver": "file", "filename": base}
    source = "json:" + json.dumps({"driver": base_format, "read-only": True, **backing, "file": file})
    command = [*_command(), "convert", "-p", "-t", "none", "-T", "none", "-O", format, source, part]
    if not _takes_direct(part) or not _takes_direct(base):
        command = [*_command(), "convert", "-p", "-O", format, source, part]
    with _started(command) as process:
        assert process.stdout and process.stderr
        _follow(process.stdout.fileno(), about)
        said = process.stderr.read().decode(errors="replace")
        _go_on(STATUS="")
        _check(process.wait(), said)


def _takes_direct(path: str) -> bool:
    """Whether the file system goes past the cache: what is copied once would drive out what is used."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _command() -> list[str]:
    if not os.access(QEMU_IMG, os.X_OK):
        raise HostError(f"there is no {QEMU_IMG}, which makes disk images", "apt install qemu-utils")
    return [QEMU_IMG]


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    import subprocess  # images that are there already need none

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _follow(stream: int, about: str) -> None:
    """Read "    (12.34/100%)" after "    (12.33/100%)" until the end, and tell of it now and then."""
    told_at, told, text = time.monotonic(), 0, b""
    while piece := os.read(stream, 4096):
        text = (text + piece)[-80:]
        percent = _percent(text)
        _go_on(STATUS=f"{about}: {percent} % copied")
        now = time.monotonic()
        if percent // _STEP_PERCENT > told // _STEP_PERCENT and now >= told_at + _STEP_SECONDS:
            told_at, told = now, percent
            journal.say(journal.NOTICE, f"{about}: {percent} % copied")


def _percent(text: bytes) -> int:
    number = text.rpartition(b"/100%")[0].rpartition(b"(")[2].partition(b".")[0]
    return int(number) if number.isdigit() else 0


def _run(*arguments: str) -> None:
    with _started([*_command(), *arguments]) as process:
        said = process.communicate()[1].decode(errors="replace")
    _check(process.returncode, said)


def _check(status: int, said: str) -> None:
    if status:
        lines = [files.printable(line.removeprefix("qemu-img: ")) for line in said.splitlines() if line.strip()]
        reason = "; ".join(lines)[:500] or f"it ended with status {status}"
        raise HostError(f"qemu-img: {reason}", _hint(reason))
