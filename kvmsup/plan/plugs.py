# SPDX-License-Identifier: LGPL-2.1-or-later
"""What attach plugs into a paused QEMU, because only root may open it; pure.

The generator writes it as one line of JSON into the guest's drop-in and attach reads it from its environment, so that
a start reads no TOML. Nothing in it is secret: every user can read a unit's environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import count, takewhile

from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

VARIABLE = "KVMSUP_PLUGS"
# Linux starts no program with a longer string in its environment than 128 KiB (MAX_ARG_STRLEN), which some 250 disks
# exceed: what does not fit goes on in KVMSUP_PLUGS_1, and so on. A plug has a path of 4 KiB at the most.
_MOST = 96 << 10
# Stands for what setup has found out: how this host's QEMU does asynchronous I/O.
CHOSEN_AIO = "chosen"


class File(NamedTuple):
    """A file or block device that QEMU then finds as /dev/fdset/`fdset`; `format` says what its bytes are.

    `direct` is for I/O past the host's page cache (O_DIRECT of open(2)).
    """

    path: str
    write: bool
    fdset: int
    format: str  # raw | qcow2
    direct: bool = False


class BridgeTap(NamedTuple):
    """A new tap in `bridge`, for the interface that QEMU knows as `id`; `mac` is the guest's."""

    id: str
    link: str
    bridge: str
    mac: str
    alias: str
    queues: int
    vhost: bool


class OwnTap(NamedTuple):
    """A persistent tap that the administrator has made."""

    id: str
    link: str
    queues: int
    vhost: bool


class MacVtap(NamedTuple):
    """A new macvtap on top of the host's interface `over`, with the guest's `mac`."""

    id: str
    link: str
    over: str
    mac: str
    queues: int
    vhost: bool


Source = File | BridgeTap | OwnTap | MacVtap
_KINDS: Mapping[str, type[Source]] = {"file": File, "bridge": BridgeTap, "tap": OwnTap, "macvtap": MacVtap}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Command(NamedTuple):
    """One QMP command."""

    name: str
    arguments: Mapping[str, Any]


class Plug(NamedTuple):
    """One thing to open, and what to tell QEMU once it has the descriptor. `about` is its table in the TOML."""

    about: str
    source: Source
    commands: tuple[Command, ...]


def descriptor(interface: str, what: str, queue: int) -> str:
    """What QEMU is told to call a descriptor for one queue of an interface: the "tap", or the "vhost"."""
    return f"{interface}.{what}{queue}"


def render(plugs: Iterable[Plug]) -> str:
    """The plugs as one line of ASCII."""
    rows = [[plug.about, [_NAMES[type(plug.source)], *plug.source], plug.commands] for plug in plugs]
    return json.dumps(rows, separators=(",", ":"))


def variables(plugs: Iterable[Plug]) -> dict[str, str]:
    """The plugs as variables of an environment; none for none."""
    groups: list[list[Plug]] = []
    room = 0
    for plug in plugs:
        length = len(render([plug]))
        if length > room:
            groups.append([])
            room = _MOST
        groups[-1].append(plug)
        room -= length
    return {_variable(number): render(group) for number, group in enumerate(groups)}


def given(environment: Mapping[str, str]) -> tuple[Plug, ...]:
    """What `variables` made. Raises HostError when it is something else."""
    names = takewhile(environment.__contains__, map(_variable, count()))
    return tuple(plug for name in names for plug in parse(environment[name]))


def _variable(number: int) -> str:
    return f"{VARIABLE}_{number}" if number else VARIABLE


def parse(text: str) -> tuple[Plug, ...]:
    """What `render` made. Raises HostError when it is something else."""
    try:
        return tuple(_plug(*row) for row in json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{VARIABLE} is not as the generator writes it: {error!r}"
        raise HostError(what, "systemctl daemon-reload") from None


def _plug(about: str, source: list[Any], commands: list[list[Any]]) -> Plug:
    kind, *fields = source
    return Plug(about, _KINDS[kind](*fields), tuple(Command(*command) for command in commands))


def settled(command: Command, aio: str) -> Command:
    """`command` with the host's own way of asynchronous I/O wherever it was left open."""
    return Command(command.name, {key: _settled(key, value, aio) for key, value in command.arguments.items()})


def _settled(key: str, value: Any, aio: str) -> Any:
    if isinstance(value, dict):
        return {inner: _settled(inner, one, aio) for inner, one in value.items()}
    return aio if key == "aio" and value == CHOSEN_AIO else value
