# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's files that become a guest's credentials and its seed: whether systemd will be able to load them."""

from __future__ import annotations

import os
import stat

from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model.guest import Guest
from kvmsup.model.table import Problem
from kvmsup.plan import firstboot


def check(root: str, guest: Guest) -> None:
    """What systemd would say of its own start of the unit, and less clearly ("status=243/CREDENTIALS").

    Raises HostError with the key in the guest's file.
    """
    if guest.cloud_init and not os.path.exists(root + firstboot.PROGRAM):
        raise HostError(
            f"cloud-init: its seed is made by xorriso, and there is no {firstboot.PROGRAM}", firstboot.INSTALL
        )
    total = 0
    for key, path in firstboot.keys(guest):
        try:
            found = os.stat(root + path)
        except OSError as error:
            raise HostError(f"{key}: {path}: {error.strerror}", "put the file there, or take the key out") from None
        if not stat.S_ISREG(found.st_mode):
            raise HostError(f"{key}: {path} is no file", "name a file")
        total += len(key) + found.st_size
        if total > firstboot.MOST_BYTES:
            what = f"{key}: {path} is too large: systemd takes {firstboot.MOST_BYTES >> 20}M for all of a guest's"
            raise HostError(what, "hand over large files on a disk")


def problems(root: str, guest: Guest) -> list[Problem]:
    """What the start of `guest` would be refused for, and user-data that cloud-init would pass over."""
    try:
        check(root, guest)
    except HostError as error:
        key, _, what = error.what.partition(": ")
        table, _, name = key.partition(".")
        return [Problem((table, name) if name else (table,), what, error.hint, False, "warning")]
    path = guest.cloud_init.user_data if guest.cloud_init else ""
    if not path or firstboot.is_known(_head(root + path)):
        return []
    what = f"{path} does not begin as cloud-init wants, and would be passed over"
    return [Problem(("cloud-init", "user-data"), what, "its first line: #cloud-config", False, "warning")]


def _head(path: str) -> bytes:
    """The beginning of a file; what may not be read here is none, which is good."""
    try:
        return files.read_bytes(path, 4096)
    except OSError:
        return b""
