# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many guests that start, change, crash and stop at random, several at a time, while look.py watches the host."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.host import guests
from tests.lab.errors import CommandFailed
from tests.lab.host import Host
from tests.soak import consistent, faults
from tests.soak.consistent import Facts

GUESTS, WORKERS = 50, 4
_LOOKS = "/run/soak-looks.jsonl"
# What a guest that is up meets next, and how often of a hundred times. One that is down is started.
_NEXT = {"stop": 35, "reload": 35, "crash": 15, "restart": 10, "kill-supervisor": 5}
# Refusals that are right among guests that want more than there is, and a reload that gives way to a setup.
_NO_ROOM, _BUSY = "there is room for", "another guest is being set up or released"
_EMULATOR = ('emulator = "0"', 'emulator = "1"')


class Crowd(NamedTuple):
    """What was done, and what was wrong."""

    did: Counter[str]
    wrong: list[str]


def text(number: int) -> str:
    """The TOML of one guest: every fifth owns a CPU and hugepages; some have a tap, KSM, an address on vsock."""
    dedicated = number % 5 == 0
    lines = ['[machine]\ntype = "pc-q35-7.2"\n[cpu]\nvcpus = 1', f"[placement]\n{_EMULATOR[0]}"]
    lines += ['cpus = "dedicated"'] if dedicated else []
    lines += ['[memory]\nsize = "32M"', 'hugepages = "2M"' if dedicated else f"ksm = {str(number % 3 == 0).lower()}"]
    lines += ['[net.lan]\nbridge = "br0"'] if number % 2 else []
    lines += ["[guest]\nready = true"] if number % 4 == 1 else []
    return "\n".join(lines) + "\n"


def drawn(draw: random.Random, up: bool) -> str:
    """What is done next to a guest that is up, or is not."""
    return draw.choices(list(_NEXT), list(_NEXT.values()))[0] if up else "start"


def prepare(host: Host, count: int) -> Facts:
    """`count` guests that may take their time to start, and hear no power button; what is so without any."""
    faults.install_look(host)
    host.put(b'[ksm]\npolicy = "always"\n', "/etc/kvmsup.toml")
    host.run("ip link add br0 type bridge; mkdir -p /run/systemd/system/kvm@.service.d")
    host.put(b"[Service]\nTimeoutStopSec=4\n", "/run/systemd/system/kvm@.service.d/power.conf")
    for unit in ("kvm-setup@.service", "kvm@.service"):
        guests.be_patient_with(host, unit)
    guests.configure(host, {f"g{number}": text(number) for number in range(count)})
    guests.keep_supervisor(host)
    return faults.look(host)


def run(host: Host, base: Facts, seed: int, count: int, minutes: float) -> tuple[Crowd, list[Facts]]:
    """Let the crowd go for so long, then stop all; what was done and wrong, and everything that was seen."""
    crowd = Crowd(Counter(), [])
    seconds = minutes * 60
    watcher = f"systemd-run --quiet --unit soak-look -p StandardOutput=file:{_LOOKS} python3 {faults.LOOK} {seconds}"
    host.run(watcher)
    until = time.monotonic() + seconds
    workers = [threading.Thread(target=_work, args=(host, crowd, seed, n, count, until)) for n in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    host.wait_for("[ $(systemctl show -P ActiveState soak-look) = inactive ]", timeout=400)
    looks = [json.loads(line) for line in host.read(_LOOKS).splitlines()]
    crowd.wrong.extend(f"at {seen['at']:.1f} s: {one}" for seen in looks for one in consistent.sound(seen, base))
    _stop_all(host, crowd, base)
    return crowd, looks


def _stop_all(host: Host, crowd: Crowd, base: Facts) -> None:
    host.run("systemctl stop 'kvm@*'", check=False, timeout=600)
    over = '[ -z "$(systemctl list-jobs --no-legend \'kvm*\')" ] && [ -z "$(ls /run/kvmsup/claims)" ]'
    try:
        host.wait_for(over, timeout=200)
    except CommandFailed as error:
        crowd.wrong.append(f"not all is given back: {error.stdout} {host.run('ls /run/kvmsup/claims').stdout}")
    host.run("systemctl reset-failed 'kvm*'", check=False)
    crowd.wrong.extend(f"at the end: {one}" for one in faults.left(host, base))


def _work(host: Host, crowd: Crowd, seed: int, worker: int, count: int, until: float) -> None:
    """One worker, with guests of its own: what each of them is and does next only it decides."""
    draw = random.Random(f"{seed} {worker}")
    mine = range(worker, count, WORKERS)
    up: set[int] = set()
    stale: set[int] = set()  # edited since systemd loaded them
    while time.monotonic() < until:
        number = draw.choice(mine)
        action = drawn(draw, number in up)
        try:
            _do(host, crowd, action, number, up, stale)
        except Exception as error:  # a thread's own would be lost
            crowd.wrong.append(f"{action} g{number}: {error}")
            return


def _do(host: Host, crowd: Crowd, action: str, number: int, up: set[int], stale: set[int]) -> None:
    name = f"g{number}"
    if action == "reload":
        _edit(host, name)
        stale.add(number)
    elif action in ("start", "restart") and number in stale:
        crowd.did["daemon-reload"] += 1
        host.run("systemctl daemon-reload", timeout=300)
        stale.clear()
    commands = {
        "crash": f"systemctl kill -s KILL --kill-whom=main kvm@{name}; systemctl stop kvm@{name}",
        "kill-supervisor": "systemctl kill -s KILL kvmsup || true",
    }
    done = host.run(commands.get(action, f"systemctl {action} kvm@{name}"), check=False, timeout=900)
    crowd.did[action] += 1
    if done.rc:
        crowd.did[_excused(host, crowd, action, name)] += 1
    if action in ("stop", "crash") or (done.rc and action in ("start", "restart")):
        up.discard(number)
        host.run(f"systemctl reset-failed kvm@{name} kvm-setup@{name}", check=False)
    else:
        up.add(number)


def _edit(host: Host, name: str) -> None:
    path = f"/etc/kvmsup/{name}.toml"
    now = host.read(path)
    old, new = _EMULATOR if _EMULATOR[0] in now else _EMULATOR[::-1]
    host.put(now.replace(old, new).encode(), path)


def _excused(host: Host, crowd: Crowd, action: str, name: str) -> str:
    """Why `action` was refused, in a word; what is no refusal of those that must be is wrong."""
    said = "\n".join(guests.said(host, name).splitlines()[-20:])
    if action in ("start", "restart") and _NO_ROOM in said:
        return "refused"
    if action == "reload" and _BUSY in said:
        return "busy"
    crowd.wrong.append(f"{action} {name}: {said}")
    return "failed"


def figures(crowd: Crowd, looks: Sequence[Facts]) -> dict[str, float | int | str]:
    """What the report tells of a run."""
    up = [sum(one["active"] for one in seen["qemus"].values()) for seen in looks]
    return {
        **dict(sorted(crowd.did.items())),
        "looks": len(looks),
        "most guests at once": max(up, default=0),
        "longest wait for the lock, s": round(max((seen["waited"] for seen in looks), default=0), 1),
    }
