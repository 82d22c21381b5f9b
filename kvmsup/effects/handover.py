# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors for QEMU: what its own user may not open is opened here by root, and sent to it over QMP.

So nothing is granted to that user in any file system, and nothing is left to take back, however the guest ends.
"""

from __future__ import annotations

import contextlib
import os

from kvmsup.effects import headers, identity, qmp
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model import hostpaths
from kvmsup.model.claim import Claim
from kvmsup.plan.plugs import Command, File, Plug, Source, settled


def plug(monitor: qmp.Conversation, one: Plug, root: str, claim: Claim) -> None:
    """Open what `one` names below `root`, hand it over, and tell QEMU what to do with it, as `claim` has it.

    Raises KvmsupError, beginning with what it is about.
    """
    try:
        with contextlib.ExitStack() as ours:
            found = opened(one.source, root, monitor.pid)
            for descriptor, _ in found:
                ours.callback(os.close, descriptor)
            if isinstance(one.source, File):
                _check_identity(found[0][0], one, claim)
            for descriptor, command in found:
                monitor.hand_over(descriptor, command.name, **command.arguments)
        for command in one.commands:
            told = settled(command, claim.aio or "threads")
            monitor.execute(told.name, **told.arguments)
    except KvmsupError as error:
        error.what = f"{one.about}: {error.what}"
        raise


def _check_identity(descriptor: int, one: Plug, claim: Claim) -> None:
    """What setup has held against the other guests' disks must be what is opened now."""
    claimed = {f"disk.{disk.name}": disk.identity for disk in claim.disks}.get(one.about)
    if claimed and claimed != identity.of(os.fstat(descriptor)):
        what = "it was replaced since setup looked at it"
        raise HostError(what, "start it again, once nobody changes its disks")


def opened(source: Source, root: str, pid: int) -> list[tuple[int, Command]]:
    """Descriptors for QEMU `pid`, which the caller closes, each with the command that takes it along.

    Raises HostError.
    """
    if not isinstance(source, File):
        from kvmsup.effects import taps  # a guest without networks does without

        return taps.opened(source, root, pid)
    return [(open_file(source, root), Command("add-fd", {"fdset-id": source.fdset}))]


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
