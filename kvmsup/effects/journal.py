# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words for the journal: under the guest's unit whichever unit said them, with KVMSUP_GUEST= and MESSAGE_ID=.

`journalctl -u` and `systemctl status` also show what root logs with OBJECT_SYSTEMD_UNIT= (systemd.journal-fields(7)).
So do programs with their own units: a busy journald hears of one that has ended, and cannot tell any more which
unit it was of, nor that unit's LogExtraFields=. A field that is there twice is kept once.

`catalog` is a name in kvmsup.catalog. The wire format is systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import os
import sys

from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR, WARNING, NOTICE = 3, 4, 5
# Names and values; the journal takes one name several times.
Fields = list[tuple[str, str]]

# The unit whose words are said: it sets this itself.
_UNIT = "KVMSUP_UNIT"
_SOCKET = "/run/systemd/journal/socket"
# A journal that takes nothing must not keep a guest, or the host's boot, waiting.
_PATIENCE_SECONDS = 1.0


def say(priority: int, text: str, catalog: str = "", guests: Iterable[str] = ()) -> None:
    """Say `text` as the unit's own words, of `guests`; on standard error where there is no journal.

    There with a priority for each line (sd-daemon(3)), but for kvm@NAME, whose lines are what its guest prints, too: a
    guest that could choose priorities would write to every terminal of the host (journald.conf(5), ForwardToWall=).
    """
    unit = os.environ.get(_UNIT, "")
    own = unit.partition("@")[2].removesuffix(".service")
    about = _about([own, *guests] if own else guests, unit)
    # create, which is the guest's own user, sees no journal.
    if text and not (os.geteuid() == 0 and _in_service() and _log("", "kvmsup", about, priority, text, catalog)):
        for line in text.splitlines():
            print(line if unit.startswith("kvm@") else f"<{priority}>{line}", file=sys.stderr)


def tell(root: str, guest: str, priority: int, text: str, catalog: str = "") -> None:
    """Log `text` for kvm@`guest`; on standard error where there is no journal, or no service to be in."""
    about = _about([guest], f"kvm@{guest}.service", os.environ.get(_UNIT, ""))
    if not (_in_service() and _log(root, "kvmsup", about, priority, text, catalog)):
        print(text, file=sys.stderr)


def report(root: str, program: str, guest: str, text: str, catalog: str) -> bool:
    """Log an error that `program`, which is no service's, has with `guest`; whether there is a journal to take it."""
    return _log(root, program, _about([guest]), ERROR, text, catalog)


def _about(guests: Iterable[str], *units: str) -> Fields:
    """Of whom a message is, and under which units it shows; "" is none."""
    found = [("KVMSUP_GUEST", guest) for guest in guests] + [("OBJECT_SYSTEMD_UNIT", unit) for unit in units]
    return [(name, value) for name, value in dict.fromkeys(found) if value]


def _in_service() -> bool:
    return "JOURNAL_STREAM" in os.environ


def _log(root: str, program: str, about: Fields, priority: int, text: str, catalog: str) -> bool:
    """Whether the journal took it."""
    own = [("MESSAGE", text), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", program)]
    if catalog:
        from kvmsup.catalog import IDS

        own.append(("MESSAGE_ID", IDS[catalog]))
    return _send(root, [*own, *about])


def _send(root: str, fields: Fields) -> bool:
    import socket  # most starts and stops have nothing to say

    message = b"".join(_field(name, value.encode(errors="backslashreplace")) for name, value in fields)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_PATIENCE_SECONDS)
            sender.sendto(message, root + _SOCKET)
    except OSError:
        return False
    return True


def _field(name: str, value: bytes) -> bytes:
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
