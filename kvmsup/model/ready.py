# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest says of itself over vsock, in the words of sd_notify(3).

Everything that is kept of them is bounded and printable: the guest chose it.
"""

from __future__ import annotations

import json
import re

from kvmsup.errors import HostError
from kvmsup.model.claim import NOBODY_ELSE
from kvmsup.records import NamedTuple

_MOST_STATUS = 200
_MOST_UNITS = 64
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,120}")
_TIMES = re.compile(r"\s*\([^()]*\)")


class Said(NamedTuple):
    """What a guest has said since its boot: `units` are those targets that are active, in their order."""

    ready: bool = False
    status: str = ""
    units: tuple[str, ...] = ()


def hear(said: Said, message: bytes) -> Said:
    """What is known after one `message` more, lines of NAME=VALUE; names that mean nothing here are passed over."""
    for line in message.decode(errors="replace").split("\n"):
        name, _, value = line.partition("=")
        if name == "READY" and value == "1":
            said = said._replace(ready=True)
        elif name == "STATUS":
            said = said._replace(status=_printable(value)[:_MOST_STATUS])
        elif name == "X_SYSTEMD_SHUTDOWN":
            said = Said(status=f"shutting down: {_printable(value)[:20]}")
        elif name in ("X_SYSTEMD_UNIT_ACTIVE", "X_SYSTEMD_UNIT_INACTIVE") and _UNIT.fullmatch(value):
            rest = tuple(unit for unit in said.units if unit != value)
            added = (value,) if name.endswith("_ACTIVE") else ()
            said = said._replace(units=(*rest, *added)[-_MOST_UNITS:])
    return said


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def reached(said: Said, wanted: str) -> bool:
    """Whether `said` is what was waited for: "yes" for READY=1, else the name of a target."""
    return said.ready if wanted == "yes" else wanted in said.units


def news(said: Said) -> frozenset[str]:
    """What of it counts as progress. Times do not: systemd counts the seconds of a job that hangs, for ever."""
    status = _TIMES.sub("", said.status)
    return frozenset((f"status {status}", f"ready {said.ready}", *said.units))


def render(said: Said) -> str:
    """`said` as its file has it."""
    return json.dumps(said._asdict()) + "\n"


def parse(text: str, file: str) -> Said:
    """What `render` wrote to `file`. Raises HostError when it is not that."""
    try:
        values = json.loads(text)
        ready, status, units = values["ready"], values["status"], values["units"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HostError(f"{file} is not what a guest said: {error!r}", NOBODY_ELSE) from None
    return Said(ready is True, str(status), tuple(map(str, units)) if isinstance(units, list) else ())
