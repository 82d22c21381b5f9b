# SPDX-License-Identifier: LGPL-2.1-or-later
"""attach's, where the claim is of one state of the guest's files, and QEMU was started from another.

systemd can load an edit between setup and QEMU's start, which waits for bridges and mounts; and a start that overtakes
a stop finds the setup unit still up, so that setup does not run again.
"""

from __future__ import annotations

from kvmsup.effects import running
from kvmsup.entry.request import requested
from kvmsup.errors import HostError
from kvmsup.plan import changes


def check(root: str, guest: str, generated: str) -> None:
    """Raises HostError unless all that setup has given `guest` is what the files say that have this fingerprint.

    A comment is no difference, nor is what the host's file says to others.
    """
    what = "its CPUs and memory were claimed for another state of its files than QEMU was started from"
    request, keys = requested(guest, root), running.read(root, guest)
    if request and keys is not None and request.loaded == generated:
        found = changes.differences(keys, changes.flatten(request.guest))
        if not found:
            return
        what += f": {', '.join(change.told for change in found)}"
    raise HostError(what, f"systemctl start kvm@{guest}", "not-loaded")
