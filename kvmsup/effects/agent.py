# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent in a guest (qemu-ga(8)): a small client that the guest can neither hang nor mislead.

What it speaks is QMP without greeting and events (qemu docs/interop/qemu-ga-ref). What came before, and what another
client has left unread, is told apart by guest-sync-delimited. QEMU lets one client in and has the next one wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

from kvmsup.effects import files, qmp
from kvmsup.errors import QmpError
from kvmsup.plan.paths import socket
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

# Not a byte of UTF-8: the other side drops what it has read so far (qga/main.c), and puts it before its answer.
_DELIMITER = b"\xff"
_MOST_INTERFACES = 64
_MOST_ADDRESSES = 32
_MOST_TEXT = 100


class Agent(qmp.Monitor):
    """One connection to the agent of a guest."""

    peer = "the agent in the guest"

    def synchronise(self) -> None:
        """Until the agent has answered this connection. Raises QmpError."""
        token = int.from_bytes(os.urandom(4), "big")
        request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        self._send(_DELIMITER + json.dumps(request).encode() + b"\n")
        while True:
            while _DELIMITER not in self._buffer:
                self._receive()
            del self._buffer[: self._buffer.rindex(_DELIMITER) + 1]
            # An answer to somebody before us may come first.
            if self._message().get("return") == token:
                return

    def say(self, command: str, **arguments: object) -> None:
        """Send a command that is not answered when it succeeds. Raises QmpError."""
        self._send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")


@contextlib.contextmanager
def connected(root: str, guest: str, pid: int, patience: float) -> Iterator[Agent]:
    """The agent of `guest`, whose QEMU is `pid`, for `patience` seconds in all. Raises QmpError."""
    with Agent(root + socket(guest, "agent"), pid, time.monotonic() + patience) as agent:
        agent.synchronise()
        yield agent


def shut_down(agent: Agent) -> None:
    """Have the guest shut down, whose file systems may be frozen. Raises QmpError."""
    if frozen(agent):
        thaw(agent)
    agent.say("guest-shutdown", mode="powerdown")


def frozen(agent: Agent) -> bool:
    """Whether file systems are frozen; false too where the agent cannot freeze any. Raises QmpError."""
    try:
        return bool(agent.execute("guest-fsfreeze-status") == "frozen")
    except qmp.Refused:
        return False


def freeze(agent: Agent) -> int:
    """Write out and freeze every file system that can be; returns how many. Raises QmpError."""
    return _count(agent, "guest-fsfreeze-freeze")


def thaw(agent: Agent) -> int:
    """Let file systems be written to again; returns how many. Raises QmpError."""
    return _count(agent, "guest-fsfreeze-thaw")


def _count(agent: Agent, command: str) -> int:
    found = agent.execute(command)
    if not isinstance(found, int):
        raise QmpError(f"{agent.peer} answered {command} with something that is not a number")
    return found


class Interface(NamedTuple):
    """A network interface as the guest sees it; `addresses` as 192.0.2.5/24."""

    name: str
    mac: str
    addresses: tuple[str, ...]


class Identity(NamedTuple):
    """What the guest says it is; "" and nothing where it does not say."""

    hostname: str
    system: str
    interfaces: tuple[Interface, ...]


def identity(agent: Agent) -> Identity:
    """Ask what the guest is. Raises QmpError when the agent falls silent."""
    hostname, system = _asked(agent, "guest-get-host-name"), _asked(agent, "guest-get-osinfo")
    interfaces = _asked(agent, "guest-network-get-interfaces")
    return Identity(
        hostname=_text(hostname, "host-name"),
        system=_text(system, "pretty-name") or _text(system, "name"),
        interfaces=tuple(map(_interface, interfaces[:_MOST_INTERFACES] if isinstance(interfaces, list) else ())),
    )


def _asked(agent: Agent, command: str) -> Any:
    """What the agent answered; None where it refuses, as an administrator of the guest may have it."""
    try:
        return agent.execute(command)
    except qmp.Refused:
        return None


def _text(found: object, key: str) -> str:
    value = found.get(key) if isinstance(found, dict) else None
    return files.printable(value[:_MOST_TEXT]) if isinstance(value, str) else ""


def _interface(found: object) -> Interface:
    listed = found.get("ip-addresses") if isinstance(found, dict) else None
    addresses = map(_address, listed[:_MOST_ADDRESSES] if isinstance(listed, list) else ())
    return Interface(_text(found, "name"), _text(found, "hardware-address"), tuple(filter(None, addresses)))


def _address(found: object) -> str:
    """As written in networks; "" for what is no address: the guest may say anything."""
    import ipaddress  # only those who show it need it

    prefix = found.get("prefix") if isinstance(found, dict) else None
    try:
        return str(ipaddress.ip_interface(f"{ipaddress.ip_address(_text(found, 'ip-address'))}/{prefix}"))
    except ValueError:
        return ""
