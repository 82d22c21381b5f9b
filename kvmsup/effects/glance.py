# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest at a glance, from systemd and its claim; kvmsup.effects.observe asks its QEMU, too.

kvmsup.effects.overview has all of them, in less time.
"""

from __future__ import annotations

from kvmsup.effects import claims, configs, systemctl
from kvmsup.errors import KvmsupError
from kvmsup.model import guest
from kvmsup.model.claim import Claim
from kvmsup.records import NamedTuple


class Seen(NamedTuple):
    """One guest at a glance; `claim` is None while it is down, `pid` 0 while QEMU does not run."""

    name: str
    active: str
    sub: str
    result: str
    pid: int
    since: str
    since_boot: float  # the same moment in seconds after boot
    description: str
    claim: Claim | None
    configured: bool


_PROPERTIES = (
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "ActiveEnterTimestamp",
    "ActiveEnterTimestampMonotonic",
    "Description",
)


def guests(root: str, names: list[str] | None = None) -> list[Seen]:
    """Every guest that has a file or a claim, or those of `names`. Raises KvmsupError."""
    held = claims.read_all(root)
    configured = configs.names(root)
    wanted = sorted({*configured, *held}) if names is None else names
    shown = systemctl.show(guest.units(wanted), _PROPERTIES)
    return [_seen(name, shown.get(f"kvm@{name}.service", {}), held.get(name), name in configured) for name in wanted]


def running(root: str, name: str) -> Seen:
    """The guest, which has a claim and a QEMU. Raises KvmsupError where there is no such guest, or it does not run."""
    seen = guests(root, [name])[0]
    if not seen.configured and not seen.claim:
        raise configs.no_guest(root, name)
    if not seen.claim or not seen.pid:
        raise KvmsupError(f"guest {name} does not run", f"systemctl start kvm@{name}")
    return seen


def _seen(name: str, values: dict[str, str], claim: Claim | None, configured: bool) -> Seen:
    return Seen(
        name=name,
        active=values.get("ActiveState", "inactive"),
        sub=values.get("SubState", "dead"),
        result=values.get("Result", "success"),
        pid=int(values.get("MainPID") or 0),
        since=values.get("ActiveEnterTimestamp", ""),
        since_boot=int(values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6,
        description=values.get("Description", ""),
        claim=claim,
        configured=configured,
    )
