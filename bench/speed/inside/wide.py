# SPDX-License-Identifier: LGPL-2.1-or-later
"""One guest with ever more vCPUs: its start, and what attaching and pinning take once QEMU has built the machine.

python3 -m bench.speed.inside.wide ROUNDS VCPUS...
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cli.run import run
from bench.speed.inside.guests import Shape, check, define, forget, in_turn, pinned
from bench.speed.inside.peers import GUESTS, Bare, Kvmsup, Libvirt, Monitor, Peer, argv, attached

Json = dict[str, Any]
NAME = "wide"
_UNIT = f"kvm@{NAME}.service"
_DROP_IN = Path(f"/run/systemd/system/{_UNIT}.d/stop.conf")
_MEMORY_MIB = 256
_SETTLE_SECONDS = 0.5
_PATIENCE_SECONDS = 170.0  # a start has 180
_KVM_CHECK_EXTENSION, _KVM_CAP_MAX_VCPUS = 0xAE03, 66


def measure(rounds: int, widths: Sequence[int]) -> Json:
    """By number of vCPUs, each round's milliseconds, or why no such guest could be started; what KVM says it can."""
    kvmsup = Kvmsup()
    found: Json = {"most of KVM": most_of_kvm()}
    for width in widths:
        refused: dict[str, str] = {}
        for accel in ("kvm", "tcg"):
            shape = Shape(_MEMORY_MIB, pinned(width), accel=accel)
            try:
                with _defined(shape):
                    line = argv(kvmsup, NAME)
                    found[str(width)] = {"accel": accel, "refused": refused} | _of(kvmsup, shape, line, rounds)
                break
            except RuntimeError as error:
                refused[accel] = f"{error}{_last_words()}"
                run("systemctl", "reset-failed")
        else:
            found[str(width)] = {"refused": refused}
    return found


def most_of_kvm() -> int:
    """The vCPUs that this KVM gives one guest at most."""
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, _KVM_CHECK_EXTENSION, _KVM_CAP_MAX_VCPUS)
    finally:
        os.close(device)


@contextlib.contextmanager
def _defined(shape: Shape) -> Any:
    define({NAME: shape})
    try:
        yield
    finally:
        forget([NAME])


def _last_words() -> str:
    """What the guest's unit said last."""
    return run("journalctl", "--no-pager", "--output=cat", "--lines=8", f"--unit={_UNIT}")


def _of(kvmsup: Kvmsup, shape: Shape, line: Sequence[str], rounds: int) -> Json:
    """`starts`, by peer, and `attach`: from a QEMU that answers, and is paused, until the guest runs and is pinned."""
    bare = Bare({NAME: shape}, {NAME: line})
    peers: dict[str, Peer] = {"kvmsup": kvmsup, "libvirt": Libvirt(), "bare": bare}
    starts: dict[str, list[Json]] = {who: [] for who in peers}
    attach: dict[str, list[Json]] = {"kvmsup": [], "bare": []}
    for turn in range(rounds):
        for who in in_turn(peers, turn):
            starts[who].append(start(peers[who], shape))
        attach["kvmsup"].append(attach_by_kvmsup(kvmsup, shape))
        attach["bare"].append(attach_by_hand(bare, shape))
    return {"starts": starts, "attach": attach}


def start(peer: Peer, shape: Shape) -> Json:
    """Milliseconds until it runs and is pinned, and of its end."""
    time.sleep(_SETTLE_SECONDS)
    began = time.perf_counter()
    peer.start(NAME)
    ran = time.perf_counter()
    check(peer.pid(NAME), shape)
    before_end = time.perf_counter()
    peer.end(NAME)
    return {"start": 1000 * (ran - began), "end": 1000 * (time.perf_counter() - before_end)}


def attach_by_kvmsup(kvmsup: Kvmsup, shape: Shape) -> Json:
    """Milliseconds from where attach is about to connect until its program has ended, and until systemd says active.

    It is held there (kvmsup/steps.py) until QEMU has answered somebody else, so QEMU's own work is not in it.
    """
    _DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    _DROP_IN.write_text("[Service]\nEnvironment=KVMSUP_FAULT=attach.connect:stop\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", _UNIT)  # which it is since it was killed
    try:
        run("systemctl", "start", "--no-block", _UNIT)
        held = _held()
        _until_qemu_answers()
        time.sleep(_SETTLE_SECONDS)
        went_on = time.clock_gettime(time.CLOCK_MONOTONIC)
        os.kill(held, signal.SIGCONT)
        run("systemctl", "start", _UNIT)  # joins the one that goes on
        check(kvmsup.pid(NAME), shape)
        until = {"program": attached(NAME)[1], "active": int(_show("ActiveEnterTimestampMonotonic"))}
    finally:
        kvmsup.end(NAME)
        _DROP_IN.unlink()
        run("systemctl", "daemon-reload")
    return {what: stamp / 1000 - 1000 * went_on for what, stamp in until.items()}


def _held() -> int:
    """The pid of attach, once it has stopped itself. Raises RuntimeError when it does not."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until and _show("ActiveState") in ("activating", "inactive"):
        pid = int(_show("ControlPID"))
        with contextlib.suppress(OSError):
            if pid and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return pid
        time.sleep(0.05)
    raise RuntimeError(f"{_UNIT} did not come to attach")


def _show(what: str) -> str:
    return run("systemctl", "show", "-P", what, _UNIT).strip()


def _until_qemu_answers() -> None:
    """It does when its machine is built and its memory is there, on the monitor that is the administrator's."""
    until = time.monotonic() + _PATIENCE_SECONDS
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(_PATIENCE_SECONDS)
        while talk.connect_ex(f"{GUESTS}/{NAME}/admin.qmp"):  # it is not there yet
            if time.monotonic() > until:
                raise RuntimeError(f"{_UNIT}: QEMU does not listen")
            time.sleep(0.01)
        Monitor(talk)


def attach_by_hand(bare: Bare, shape: Shape) -> Json:
    """Milliseconds from a QEMU that has answered until it runs with its vCPUs pinned: the least there can be."""
    with bare.halted(NAME) as qemu:
        time.sleep(_SETTLE_SECONDS)
        began = time.perf_counter()
        bare.go(NAME, qemu)
        took = time.perf_counter() - began
    check(bare.pid(NAME), shape)
    bare.end(NAME)
    return {"active": 1000 * took}


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), [int(word) for word in sys.argv[2:]]), sys.stdout)
