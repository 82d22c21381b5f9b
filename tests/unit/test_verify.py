# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup verify: what would put each difference right."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kvmsup.cli import verify
from kvmsup.effects import glance, observe
from kvmsup.effects.glance import Seen
from kvmsup.effects.observe import Thread
from tests.unit import trees
from tests.unit.hosts import claim

CPU = frozenset
MOVED = Thread(8, "CPU 0/KVM", "vCPU 0", CPU((1,)), CPU((2,)), "", "other", 2)
HOME = MOVED._replace(actual=CPU((1,)))
RELOAD = "systemctl reload kvmsup puts threads and cpusets back"


@pytest.mark.parametrize(
    ("thread", "maps", "hints"),
    [
        (HOME, "7f0 bind:0 anon=9 N0=9 kernelpagesize_kB=4", []),
        (MOVED, "7f0 bind:0 anon=9 N0=9 kernelpagesize_kB=4", [RELOAD]),
        (HOME, "7f0 bind:0 anon=9 N0=8 N1=1 kernelpagesize_kB=4", ["a restart of the guest puts its memory back"]),
        (MOVED, "7f0 bind:0 anon=9 N0=8 N1=1 kernelpagesize_kB=4", [RELOAD, "a restart of the guest puts its"]),
    ],
)
def test_hints(
    thread: Thread,
    maps: str,
    hints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of threads one, of memory another, and none twice."""
    root = str(tmp_path)
    trees.write(root, "/proc/7/numa_maps", maps)
    seen = Seen("web", "active", "", "", 7, "", 0.0, "", claim("web"), True)
    monkeypatch.setattr(observe, "threads", lambda *_: [thread, thread])
    found = list(verify.differences(root, seen))
    monkeypatch.setattr(glance, "guests", lambda *_: [seen])
    monkeypatch.setattr(verify, "differences", lambda *_: found)
    assert verify.run(argparse.Namespace(guests=[], json=False)) == bool(hints)
    told = [line.removeprefix("hint: ") for line in capsys.readouterr().out.splitlines() if line.startswith("hint: ")]
    assert len(told) == len(hints) and all(line.startswith(hint) for line, hint in zip(told, hints, strict=True))
