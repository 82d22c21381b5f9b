# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words for the journal that show under the guest's unit, whichever unit said them.

`journalctl -u` and `systemctl status` also show what root logs with OBJECT_SYSTEMD_UNIT= (systemd.journal-fields(7));
the wire format is systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

ERROR, WARNING, NOTICE = 3, 4, 5


def say(priority: int, text: str) -> None:
    """Write `text` to standard error as the unit's own words, each line with its priority (sd-daemon(3))."""
    for line in text.splitlines():
        print(f"<{priority}>{line}", file=sys.stderr)


def tell(root: str, guest: str, priority: int, text: str) -> None:
    """Log `text` for kvm@`guest`; on standard error where there is no journal, or no service to be in."""
    fields = {
        "MESSAGE": text,
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "kvmsup",
        "OBJECT_SYSTEMD_UNIT": f"kvm@{guest}.service",
    }
    if "JOURNAL_STREAM" not in os.environ or not _send(root, fields):
        print(text, file=sys.stderr)


def _send(root: str, fields: dict[str, str]) -> bool:
    message = b"".join(_field(name, value.encode(errors="backslashreplace")) for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message, f"{root}/run/systemd/journal/socket")
    except OSError:
        return False
    return True


def _field(name: str, value: bytes) -> bytes:
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
