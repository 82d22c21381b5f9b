# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup topology: the host's nodes, caches, cores and CPUs, and which guest has each."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from kvmsup import cpulist
from kvmsup.cli import show
from kvmsup.effects import claims, configs, files, hugepages, sysfs, systemctl
from kvmsup.errors import KvmsupError
from kvmsup.model import config
from kvmsup.plan import picture, picture_text
from kvmsup.plan.picture import Pages, Picture, Room
from kvmsup.plan.scene import housekeeping_of
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any


def run(asked: argparse.Namespace) -> int:
    """Print or write the picture. Raises KvmsupError when the host cannot be read or the file not be written."""
    if asked.json and asked.svg == "-":
        raise KvmsupError("--json and --svg - both want standard output", "give --svg a file")
    root = asked.root.rstrip("/")
    if asked.watch:
        if asked.svg:
            raise KvmsupError("--svg draws one picture, and --watch many", "leave one of them out")
        from kvmsup.cli import watch

        return watch.run(lambda: look(root), asked.watch, json=asked.json)
    if asked.svg:
        from kvmsup.plan import picture_svg

        drawn = of_host(root)
        _write(asked.svg, picture_svg.render(drawn))
        if asked.json:
            show.as_json(described(drawn))
        return 0
    return show.once(look(root), json=asked.json)


def look(root: str) -> show.Look:
    """The picture now. Raises KvmsupError."""
    drawn = of_host(root)
    lines = picture_text.render(drawn, _width(), _style(), _paint(picture.owners(drawn)))
    return show.Look(described(drawn), list(lines))


def of_host(root: str) -> Picture:
    """The picture of the host whose files are below `root`. Raises KvmsupError."""
    if root and not os.path.isdir(root):
        raise KvmsupError(f"--root {root}: no such directory")
    topology = sysfs.topology(root)
    held = claims.read_all(root)
    host = config.read_host(configs.HOST_FILE, configs.read_host(root), topology)
    free = sysfs.free_memory(root, topology.nodes)
    rooms = {node: Room(topology.memory[node], free[node], _pools(root, node)) for node in topology.nodes}
    # Below another root the guests are another host's.
    states = {} if root else _states(list(held))
    return picture.draw(topology, held.values(), housekeeping_of(host, topology), rooms, states)


def _states(guests: list[str]) -> dict[str, str]:
    if not guests:
        return {}
    shown = systemctl.show([f"kvm@{guest}.service" for guest in guests], ("ActiveState",))
    return {guest: shown.get(f"kvm@{guest}.service", {}).get("ActiveState", "") for guest in guests}


def _pools(root: str, node: int) -> tuple[Pages, ...]:
    return tuple(Pages(size, pool.total, pool.free) for size, pool in hugepages.pools(root, node).items())


def _write(file: str, text: str) -> None:
    if file == "-":
        print(text, end="")
    else:
        files.put(file, text)


def _width() -> int:
    """The terminal's, or COLUMNS; 80 where there is neither."""
    return max(40, show.columns())


def _style() -> picture_text.Style:
    try:
        "".join(picture_text.UNICODE).encode((sys.stdout and sys.stdout.encoding) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return picture_text.ASCII
    return picture_text.UNICODE


def _paint(places: Mapping[str, int]) -> picture_text.Paint:
    def paint(whose: str, text: str) -> str:
        if whose in places:
            return show.tinted(places[whose], text)
        return text if whose == picture.FREE else show.dimmed(text)

    return paint


def described(drawn: Picture) -> dict[str, Any]:
    """The picture for programs."""
    return {
        "nodes": [_node(node) for node in drawn.nodes],
        "offline": cpulist.render(drawn.offline),
        "guests": [_guest(guest) for guest in drawn.guests],
    }


def _guest(guest: picture.Tenant) -> dict[str, Any]:
    return {
        "name": guest.name,
        "active": guest.state or None,
        "placement": "dedicated" if guest.dedicated else "shared",
        "cpus": cpulist.render(guest.cpus),
        "emulator": cpulist.render(guest.emulator),
    }


def _node(node: picture.Node) -> dict[str, Any]:
    return {
        "node": node.number,
        "memory": node.room.memory,
        "free": node.room.free,
        "hugepages": [pool._asdict() for pool in node.room.hugepages],
        "distances": list(node.distances),
        "guests": list(node.guests),
        "caches": [_cache(cache) for cache in node.caches],
    }


def _cache(cache: picture.Cache) -> dict[str, Any]:
    cores = [{"kind": core.kind or None, "cpus": [_cpu(cpu) for cpu in core.cpus]} for core in cache.cores]
    return {"package": cache.package, "die": cache.die, "shared": cache.shared, "cores": cores}


def _cpu(cpu: picture.Cpu) -> dict[str, Any]:
    told = cpu._asdict() | {"guest": cpu.guest or None}
    return {"cpu": told.pop("number"), **{key: list(value) if key in _LISTS else value for key, value in told.items()}}


_LISTS = ("vcpus", "shared", "emulators")
