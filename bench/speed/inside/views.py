# SPDX-License-Identifier: LGPL-2.1-or-later
"""What looking at many guests costs, all of which run: kvmsup's listing beside virsh's.

python3 -m bench.speed.inside.views COUNT...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cli.run import VIRSH, Took, interleaved
from bench.speed.inside import crowd
from bench.speed.inside.guests import forget

Json = dict[str, Any]
_PAIRS = 25
_VIEWS = {
    "list": (("kvmsup", "list"), (*VIRSH, "list")),
    "all figures": (("kvmsup", "list", "--json"), (*VIRSH, "domstats")),
}


def measure(counts: Sequence[int]) -> Json:
    """By count, view and peer."""
    crowds, every = crowd.defined(max(counts))
    found = {str(count): _of(crowds, every[:count]) for count in counts}
    forget(every)
    return found


def _of(crowds: Mapping[str, crowd.Crowd], names: Sequence[str]) -> Json:
    """By view and peer, each run's wall and CPU time in milliseconds; all guests of both run.

    `others` is the CPU time that a pair of runs costs in who is asked: by virsh libvirt's daemons, by kvmsup the rest.
    """
    found: Json = {}
    with crowd.running([crowds["kvmsup"], crowds["libvirt"]], names):
        for view, (ours, theirs) in _VIEWS.items():
            asked = crowd.libvirt_daemons() | _system()
            before = {pid: crowd.process_seconds(pid) for pid in asked}
            pair = interleaved(ours, theirs, _PAIRS)
            cost = {
                name: 1000 * (crowd.process_seconds(pid) - before[pid]) / (_PAIRS + 2) for pid, name in asked.items()
            }
            found[view] = {"kvmsup": _took(pair.ours), "libvirt": _took(pair.theirs), "others": cost}
    return found


def _took(runs: Sequence[Took]) -> list[dict[str, float]]:
    return [one._asdict() for one in runs]


def _system() -> dict[int, str]:
    """Those that systemctl asks."""
    names = {pid: Path(words[0]).name for pid, words in crowd.commands().items()}
    return {pid: name for pid, name in names.items() if pid == 1 or name == "dbus-daemon"}


if __name__ == "__main__":
    json.dump(measure([int(word) for word in sys.argv[1:]]), sys.stdout)
