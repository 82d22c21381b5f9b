# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opening a disk of the host as root: setup tries it, and attach hands over what comes of it."""

from __future__ import annotations

import os

from kvmsup.effects import headers
from kvmsup.errors import HostError
from kvmsup.model import hostpaths
from kvmsup.plan.plugs import File


def open_file(source: File, root: str) -> int:
    """A descriptor of the file or block device, which the caller closes. Raises HostError.

    QEMU takes it for its own only if the access mode is what it wants; from 9.1 on O_DIRECT, too, which it set itself
    before (monitor/fds.c, monitor_fdset_dup_fd_add).
    """
    # O_NONBLOCK: a FIFO that somebody has put there would block for ever.
    flags = (os.O_RDWR if source.write else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(root + source.path, flags)
    except OSError as error:
        raise HostError(f"{source.path}: cannot open: {error.strerror}") from None
    try:
        _check_place(descriptor, source.path, root)
        headers.check(descriptor, source.path, source.format)
        if source.direct:
            _make_direct(descriptor, source.path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_place(descriptor: int, path: str, root: str) -> None:
    """A link of the administrator's into a guest's own directory is as bad as a path there (model/hostpaths.py)."""
    place = os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(os.path.realpath(root) if root else "")
    if place.startswith(hostpaths.GUESTS_OWN):
        what = f"{path} leads to {place}, in a guest's own directory, where links may lead root anywhere"
        raise HostError(what, "move the image to a directory that no guest may write to")


def _make_direct(descriptor: int, path: str) -> None:
    """Only now: a header cannot be read with O_DIRECT unless the buffer is aligned."""
    import fcntl  # a guest without disks of the host's does without

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
    except OSError:
        what = f"{path}: its file system cannot go past the host's cache"
        raise HostError(what, 'cache = "writeback"') from None
