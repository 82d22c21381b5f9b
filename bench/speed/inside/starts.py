# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start, until the guest runs and is pinned, and an end at once, of one guest in three shapes; where the time goes.

python3 -m bench.speed.inside.starts ROUNDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.cli.run import run
from bench.speed.inside.guests import Shape, check, cpus, define, forget, in_turn, pinned
from bench.speed.inside.peers import Bare, Kvmsup, Libvirt, Peer, argv, attached, cpu_seconds

_OWN = {0: cpus()[-1]}
SHAPES = {
    "plain": Shape(512, pinned(4)),
    "claimed": Shape(512, _OWN, dedicated=True),
    "pages": Shape(512, _OWN, dedicated=True, hugepages=True),
}
# libvirt takes the pages of a guest out of a pool that is there; kvmsup makes them, so it has none before.
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
_SETTLE_SECONDS = 0.25


def once(peer: Peer, name: str, shape: Shape) -> dict[str, float]:
    """Milliseconds of a start, until it was ended, and the CPU time of all that takes part in the start but us."""
    time.sleep(_SETTLE_SECONDS)
    used, began = cpu_seconds(), time.perf_counter()
    peer.start(name)
    ran = time.perf_counter()
    found = {"start": 1000 * (ran - began)}
    found["cpu"] = 1000 * (cpu_seconds() - used)
    time.sleep(_SETTLE_SECONDS)
    check(peer.pid(name), shape)
    if isinstance(peer, Kvmsup):
        found |= where(name)
    began = time.perf_counter()
    peer.end(name)
    found["end"] = 1000 * (time.perf_counter() - began)
    return found


def where(name: str) -> dict[str, float]:
    """Milliseconds of each part of the start that was: what systemd writes down of both units, on CLOCK_MONOTONIC."""
    setup, guest = (_stamps(unit) for unit in (f"kvm-setup@{name}", f"kvm@{name}"))
    attach = attached(name)
    times = {
        "setup: systemd's sandbox": (setup["ExecMainStart"], setup["ExecMainHandoff"]),
        "setup: the program": (setup["ExecMainHandoff"], setup["ExecMainExit"]),
        "between": (setup["ExecMainExit"], guest["ExecMainStart"]),
        "QEMU: systemd's sandbox": (guest["ExecMainStart"], guest["ExecMainHandoff"]),
        "QEMU and attach": (guest["ExecMainHandoff"], guest["ActiveEnter"]),
        "attach alone, sandbox and program": attach,
    }
    return {what: (end - begin) / 1000 for what, (begin, end) in times.items()}


def _stamps(unit: str) -> dict[str, int]:
    lines = (line.partition("=") for line in run("systemctl", "show", unit).splitlines())
    end = "TimestampMonotonic"
    return {key.removesuffix(end): int(value) for key, _, value in lines if key.endswith(end)}


def measure(rounds: int) -> dict[str, Any]:
    """By shape and peer, each round's figures."""
    define(SHAPES)
    kvmsup = Kvmsup()
    peers: dict[str, Peer] = {"kvmsup": kvmsup, "libvirt": Libvirt()}
    peers["bare"] = Bare(SHAPES, {name: argv(kvmsup, name) for name in SHAPES})
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, shape in SHAPES.items():
        lists = found[name] = {peer: [] for peer in peers}
        for turn in range(rounds + 1):
            for who in in_turn(peers, turn):
                pool = shape.memory_mib // 2 if shape.hugepages and who != "kvmsup" else 0
                POOL.write_text(str(pool))
                one = once(peers[who], name, shape)
                if turn:  # the first of each fills caches
                    lists[who].append(one)
        POOL.write_text("0")
    forget(list(SHAPES))
    return found


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1])), sys.stdout)
