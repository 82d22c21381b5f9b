# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStopPost=: after every end of the guest, says why where nobody else does."""

from __future__ import annotations

import os
import stat

from kvmsup.effects import journal
from kvmsup.plan import ending
from kvmsup.plan.paths import ENDED, socket

# One line is expected; what is there belongs to QEMU's user, who may have made anything of it.
_MOST = 65536


def main(name: str, root: str = "") -> int:
    """Tell the journal why the guest called `name` has ended; always 0, because nothing depends on it."""
    if os.environ.get("KVMSUP_ISOLATE") == "yes":
        from kvmsup.effects import partition  # for guests that are isolated alone

        partition.clear(root, name)
    result = os.environ.get("SERVICE_RESULT", "")
    found = ending.told(result, ending.cause(_traced(root + socket(name, ENDED))))
    if found:
        journal.say(journal.ERROR if found.failed else journal.NOTICE, found.what, found.catalog)
    return 0


def _traced(path: str) -> str:
    """The end of the file at `path`; "" where there is none, or something else in its place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return ""
        return os.pread(descriptor, _MOST, max(0, found.st_size - _MOST)).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
