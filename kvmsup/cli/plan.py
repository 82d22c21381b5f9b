# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup plan: where guests would go on this host as it is now, and why, or why not. Nothing is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.cli import show
from kvmsup.effects import claims, configs, ledger, room, sysfs
from kvmsup.errors import ConfigError, KvmsupError, visible
from kvmsup.model import config
from kvmsup.model.claim import Claim
from kvmsup.model.guest import NAME_RULE, Guest, Host, is_name
from kvmsup.model.topology import Topology
from kvmsup.plan import placement
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from typing import Any

_HEADS = ("GUEST", "", "VCPUS", "CPUS", "IDLE", "EMULATOR", "NODE", "MEMORY", "PAGES")


class Planned(NamedTuple):
    """One guest: what it holds or would claim, and why; or `refused`, the reason why it cannot."""

    name: str
    verdict: str  # runs | fits | refused | broken file
    claim: Claim | None
    memory: int  # bytes
    why: tuple[str, ...]
    refused: str


def run(asked: argparse.Namespace) -> int:
    """Print the plan; 1 when a guest would be refused or its file is wrong."""
    planned = list(plan(asked.root.rstrip("/"), asked.guest))
    if asked.json:
        show.as_json([_described(one) for one in planned])
    else:
        _print(planned)
    return 1 if any(one.refused for one in planned) else 0


def plan(root: str, name: str) -> Iterator[Planned]:
    """The guest called `name`, or every guest: those that run stay, others are placed by name, one beside the other.

    Raises KvmsupError.
    """
    if root and not os.path.isdir(root):
        raise KvmsupError(f"--root {root}: no such directory")
    topology = sysfs.topology(root)
    host = config.read_host(configs.HOST_FILE, configs.read_host(root), topology)
    known = claims.read_all(root)
    # Below another root the guests are another host's, and this one's systemd knows nothing of them.
    standing = dict.fromkeys(known, ledger.HOLDING) if root else ledger.standings(known)
    held = {guest: claim for guest, claim in known.items() if standing[guest] != ledger.STALE}
    if not root and os.geteuid() and any(claim.page_size for claim in held.values()):
        raise KvmsupError("only root can see how many hugepages the running guests have of those promised to them")
    names = configs.names(root)
    if name and name not in {*names, *held}:
        raise configs.no_guest(root, name)
    for guest in [name] if name else sorted({*names, *held}):
        if guest in held and not name:
            yield Planned(guest, "runs", held[guest], _memory(root, guest), (), "")
            continue
        # For one that runs: where it would go if it were started now, beside all the others.
        found = _placed(root, guest, host, topology, [claim for other, claim in held.items() if other != guest])
        if found.claim:
            held[guest] = found.claim
        yield found


def _memory(root: str, name: str) -> int:
    """What the file of a guest that runs says now, 0 where that is wrong or gone."""
    try:
        content = configs.read_guest(root, name)
        return config.read_guest(name, configs.guest_file(name), content).guest.memory.size if content else 0
    except KvmsupError:
        return 0


def _placed(root: str, name: str, host: Host, topology: Topology, others: list[Claim]) -> Planned:
    file = configs.guest_file(name)
    if not is_name(name):
        return Planned(name, "broken file", None, 0, (), f"{file}: {name!r} cannot name a guest\n  hint: {NAME_RULE}")
    content = configs.read_guest(root, name)
    if content is None:
        return Planned(name, "broken file", None, 0, (), f"{file} is gone; it runs until it is stopped")
    try:
        guest: Guest = config.read_guest(name, file, content, topology).guest
    except ConfigError as error:
        return Planned(name, "broken file", None, 0, (), str(error))
    try:
        free = room.free(root, topology.nodes, guest.memory.page_size, others)
        found = placement.place(guest, host, topology, others, free)
    except KvmsupError as error:
        return Planned(name, "refused", None, guest.memory.size, (), str(error))
    return Planned(name, "fits", placement.claim(guest, found, ""), guest.memory.size, found.why, "")


def _described(one: Planned) -> dict[str, Any]:
    claim = one.claim
    return {
        "name": one.name,
        "verdict": one.verdict,
        "placement": show.placement(claim) if claim else None,
        "memory": one.memory or None,
        "why": list(one.why),
        "refused": one.refused or None,
    }


def _print(planned: list[Planned]) -> None:
    if not planned:
        print("no guests: describe one in /etc/kvmsup/NAME.toml, see kvmsup.guest(5)")
        return
    for line in show.table(_HEADS, [_cells(one) for one in planned]):
        print(line)
    for one in planned:
        told = [*one.why, *visible(one.refused).splitlines()]
        if told:
            print(f"\n{visible(one.name)}")
        for line in told:
            print(f"  {line}")


def _cells(one: Planned) -> list[str]:
    claim = one.claim
    memory = sizes.render(one.memory) if one.memory else ""
    if claim is None:
        return [one.name, one.verdict, "", "", "", "", "", memory, ""]
    vcpus = " ".join(map(cpulist.render, claim.vcpu)) if claim.dedicated else cpulist.render(claim.vcpu[0])
    return [
        one.name,
        one.verdict,
        str(len(claim.vcpu)),
        vcpus if len(vcpus) < 32 else cpulist.render(frozenset().union(*claim.vcpu)),
        cpulist.render(claim.idle),
        cpulist.render(claim.emulator),
        cpulist.render(claim.nodes),
        memory,
        sizes.render(claim.page_size) if claim.page_size else "",
    ]
