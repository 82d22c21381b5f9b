# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pictures of machines with guests on them, and what `kvmsup topology` is expected to draw: expected/."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from kvmsup import cpulist
from kvmsup.cli import topology
from kvmsup.effects import claims
from kvmsup.model.claim import Claim
from kvmsup.plan import picture_svg, picture_text
from kvmsup.plan.picture import Picture
from tests.unit import machines
from tests.unit.hosts import claim

EXPECTED = Path(__file__).parent / "expected"


class Case(NamedTuple):
    """A machine of `machines` and the guests on it; `widths` are those of the expected terminals."""

    machine: str
    claims: tuple[Claim, ...]
    widths: tuple[int, ...] = (80,)
    housekeeping: str = ""  # "": the default


def _own(name: str, cpus: str, *, emulator: str = "0-1", nodes: str = "0", idle: str = "") -> Claim:
    """A dedicated guest with a vCPU on each of `cpus`, in their order."""
    return claim(name, cpus.split(), emulator=emulator, nodes=nodes)._replace(idle=cpulist.parse(idle))


def _shared(name: str, cpus: str, vcpus: int = 1) -> Claim:
    return claim(name, [cpus] * vcpus, dedicated=False, nodes="")


_SMALL = tuple(
    _own(f"g{number}", f"{first} {first + 128} {first + 1} {first + 129}", nodes=str(first // 64))
    for number, first in enumerate([*range(8, 56, 2), *range(72, 116, 2)])
)
CASES = {
    "desktop": Case(
        "desktop",
        (_own("web", "2 3"), _own("db", "4", idle="5"), _shared("build", "0-7", 4)),
        (80, 120),
    ),
    "hybrid_laptop": Case("hybrid_laptop", (_own("windows", "2 3 4 5"), _shared("lab", "0-19", 4)), (80, 120)),
    "two_sockets_apart": Case(
        "two_sockets_apart",
        (
            _own("web", "1 17 2 18"),
            _own("db", "9 25 10 26 11 27", nodes="1"),
            _own("realtime", "12 13", nodes="1", emulator="15,31", idle="28-29"),
            _shared("batch", "0-31", 8),
        ),
    ),
    "isolated": Case("isolated", (_own("rt", "2 3", idle="6-7"),)),
    "epyc_nps4": Case(
        "epyc_nps4",
        (
            _own("web", "1 65 2 66 3 67"),
            _own("db", " ".join(f"{core} {core + 64}" for core in range(40, 48)), nodes="5"),
            _own("cache", "12 76 13 77 14 78 15 79", nodes="1"),
            _shared("batch", "0-31,64-95", 8),
        ),
        (80, 120),
    ),
    "big_server": Case("big_server", _SMALL, (80, 120)),
    "sparse": Case("sparse", (_own("solver", "88 89 90 91", nodes="8"),)),
    "cpu0_offline": Case("cpu0_offline", ()),
    "cxl_memory": Case("cxl_memory", (_own("big", "1 5", nodes="0-1"),)),
    "small_vm": Case("small_vm", ()),
}


def build(root: str, case: Case) -> None:
    """The host of `case` below `root`, claims and all."""
    machines.BUILDERS[case.machine](root)
    Path(root, "run/kvmsup/claims").mkdir(parents=True)
    for one in case.claims:
        claims.write(root, one)


@functools.cache
def picture_of(name: str) -> Picture:
    case = CASES[name]
    root = tempfile.mkdtemp(prefix="kvmsup-picture.")
    try:
        build(root, case)
        return topology.of_host(root)
    finally:
        shutil.rmtree(root)


def plain(_: str, text: str) -> str:
    return text


def drawn() -> dict[str, str]:
    """The files of expected/, as they would be drawn now."""
    found = {}
    for name, case in CASES.items():
        picture = picture_of(name)
        found[f"{name}.svg"] = picture_svg.render(picture)
        for width in case.widths:
            lines = picture_text.render(picture, width, picture_text.UNICODE, plain)
            found[f"{name}.{width}.txt"] = "".join(f"{line}\n" for line in lines)
    return found
