# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup-reload.service: an edited file below /etc/kvmsup is picked up by a daemon-reload.

A path unit does not watch while its service runs, so this reloads until the files have stopped changing.
"""

from __future__ import annotations

import contextlib
import os
import time

from kvmsup.effects import configs, journal, systemctl
from kvmsup.entry import generator
from kvmsup.errors import KvmsupError

# Editors write in several steps; what comes within this time is one edit.
_SETTLE_SECONDS = 0.15


def main(root: str = "") -> int:
    """Reload until nothing changes any more; 0, or 1 with the reason on standard error."""
    try:
        loaded = ""
        while (now := _state(root)) != loaded:
            # Before it is loaded, so that the generator has nothing to do but to take it, and nobody is still at work
            # here when the edit is seen to have come. What is not kept costs milliseconds, and no guest anything.
            with contextlib.suppress(KvmsupError):
                generator.remember(root)
            systemctl.daemon_reload()
            loaded = now
            time.sleep(_SETTLE_SECONDS)
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error))
        return 1
    return 0


def _state(root: str) -> str:
    """Everything that tells one state of the files from another."""
    files = [configs.HOST_FILE, *map(configs.guest_file, configs.names(root))]
    return "\n".join(f"{file} {_stamp(root + file)}" for file in files)


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.strerror or "unreadable"
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
