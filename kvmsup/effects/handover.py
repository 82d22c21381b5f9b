# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors for QEMU: what its own user may not open is opened here by root, and sent to it over QMP.

So nothing is granted to that user in any file system, and nothing is left to take back, however the guest ends.
"""

from __future__ import annotations

import contextlib
import os

from kvmsup.effects import identity, opening
from kvmsup.errors import HostError, KvmsupError
from kvmsup.model.claim import Claim
from kvmsup.plan.plugs import Command, File, Plug, Source, settled
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmsup.effects import qmp


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
    return [(opening.open_file(source, root), Command("add-fd", {"fdset-id": source.fdset}))]
