# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words for the journal that show under the guest's unit, whichever unit said them.

`journalctl -u` and `systemctl status` also show what root logs with OBJECT_SYSTEMD_UNIT= (systemd.journal-fields(7));
the wire format is systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import os
import sys

ERROR, WARNING, NOTICE = 3, 4, 5


# The unit whose words are said, where its lines carry no priority: kvm@.service sets it.
_UNIT = "KVMSUP_UNIT"


def say(priority: int, text: str) -> None:
    """Say `text` as the unit's own words, on standard error with a priority for each line (sd-daemon(3)).

    The lines of kvm@NAME are what its guest prints, too, and a guest that could choose priorities would write to every
    terminal of the host (journald.conf(5), ForwardToWall=). So systemd reads none there, and root logs in another way.
    """
    unit = os.environ.get(_UNIT)
    if unit is None:
        for line in text.splitlines():
            print(f"<{priority}>{line}", file=sys.stderr)
    elif text and (os.geteuid() != 0 or not _log("", unit, priority, text)):
        print(text, file=sys.stderr)


def tell(root: str, guest: str, priority: int, text: str) -> None:
    """Log `text` for kvm@`guest`; on standard error where there is no journal, or no service to be in."""
    if not _log(root, f"kvm@{guest}.service", priority, text):
        print(text, file=sys.stderr)


def _log(root: str, unit: str, priority: int, text: str) -> bool:
    """Whether the journal took it: not without one, nor outside of a service."""
    fields = {
        "MESSAGE": text,
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "kvmsup",
        "OBJECT_SYSTEMD_UNIT": unit,
    }
    return "JOURNAL_STREAM" in os.environ and _send(root, fields)


def _send(root: str, fields: dict[str, str]) -> bool:
    import socket  # most starts and stops have nothing to say

    message = b"".join(_field(name, value.encode(errors="backslashreplace")) for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message, f"{root}/run/systemd/journal/socket")
    except OSError:
        return False
    return True


def _field(name: str, value: bytes) -> bytes:
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
