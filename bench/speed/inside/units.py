# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd by itself takes for a start: kvmsup's two units with nothing in them, in their sandboxes and without.

python3 -m bench.speed.inside.units ROUNDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.cli.run import run
from bench.speed.inside.guests import in_turn

_THEIRS, _OURS = Path("/usr/lib/systemd/system"), Path("/run/systemd/system")
_SETTLE_SECONDS = 0.25
_STARTS = 8  # in turn: one unit may start five times in ten seconds
# What each unit runs instead; attach's place is taken, too.
_SETUP = ("ExecStart=/bin/true",)
_GUEST = ("ExecStart=/bin/sleep infinity", "ExecStartPost=+/bin/true")
# What makes a unit what it is to systemd's jobs. The rest of [Service] is the sandbox.
_KEPT = ("Type", "RemainAfterExit", "Slice", "KillMode")
_PROGRAMS = ("Exec", "EnvironmentFile")


def emptied(text: str, kind: str, commands: tuple[str, ...], *, sandboxed: bool) -> str:
    """The unit `text` with other `commands`, and units of `kind` for kvmsup's; without its sandbox if so."""
    head, service = text.split("[Service]\n")
    body = service.partition("[Install]")[0].splitlines()
    lines = [line for line in body if not line.startswith(_PROGRAMS)]
    if not sandboxed:
        lines = [line for line in lines if line.partition("=")[0] in _KEPT]
    return "\n".join(
        (head.replace("kvm-setup@", f"{kind}-setup@").replace("kvm@", f"{kind}@"), "[Service]", *commands, *lines)
    )


def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each start, by kind; the first of each fills caches."""
    kinds = {"sandboxed": True, "open": False}
    for kind, sandboxed in kinds.items():
        for name, commands in (("kvm-setup@", _SETUP), ("kvm@", _GUEST)):
            text = emptied((_THEIRS / f"{name}.service").read_text(), kind, commands, sandboxed=sandboxed)
            (_OURS / f"{name.replace('kvm', kind)}.service").write_text(text)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "kvmsup")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind in in_turn(kinds, turn):
            time.sleep(_SETTLE_SECONDS)
            unit = f"{kind}@empty-{turn % _STARTS}"
            began = time.perf_counter()
            run("systemctl", "start", unit)
            if turn:
                found[kind].append(1000 * (time.perf_counter() - began))
            run("systemctl", "kill", "--signal=KILL", unit)
            run("systemctl", "stop", unit, unit.replace("@", "-setup@"))
    return found


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1])), sys.stdout)
